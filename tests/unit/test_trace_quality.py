"""The quality axis of a sweep, and the file that names its trace."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from simulator import predict, sweep
from simulator.base import console
from simulator.policies import parse
from simulator.results.quality import of_trace
from simulator.trace import read_trace


def run(app: Any, *arguments: str, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> Any:
    patch.setattr(sys, "argv", ["verb", *arguments])
    with pytest.raises(SystemExit) as left:
        console.main(app)
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def test_a_sweep_names_its_trace_and_has_the_quality_axis(
    opt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    out = tmp_path / "sweep.parquet"
    status, text, _ = run(
        sweep.app,
        "--model",
        "opt-6.7b",
        "--device",
        "a100-sxm-80g",
        "--policy",
        "dense",
        "--policy",
        "shadowllm(keep=[0.2,0.5])",
        "--policy",
        "mustafar(keep=0.3)",
        "--trace",
        str(opt),
        "--out",
        str(out),
        "--quiet",
        capsys=capsys,
        patch=monkeypatch,
    )
    assert status == 0
    assert "Speed against quality" in text
    assert "2.000x" in text
    table = pq.read_table(out)
    metadata = table.schema.metadata
    assert json.loads(metadata[b"shadowline.traces"]) == {str(opt): read_trace(opt).digest}
    assert f"--trace {opt}".encode() in metadata[b"shadowline.command"]
    ratio = dict(zip(table["policy"].to_pylist(), table["quality_perplexity_ratio"].to_pylist(), strict=True))
    # keep = 0.2 is below the measured 0.3, mustafar was not measured: no number is made up.
    assert ratio == {
        "dense": 1.0,
        "shadowllm(keep=0.2)": None,
        "mustafar(keep=0.3)": None,
        "shadowllm(keep=0.5)": pytest.approx(2.0),
    }


def test_a_refused_trace_is_one_line_and_exit_2(
    opt: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ("--model", "opt-13b", "--device", "a100-sxm-80g", "--policy", "shadowllm(keep=0.5)")
    for verb in (predict, sweep):
        status, out, err = run(verb.app, *base, "--trace", str(opt), capsys=capsys, patch=monkeypatch)
        assert status == 2
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith("error: --trace: ")


def test_quality_at_and_between_measured_sparsities(opt: Path) -> None:
    trace = read_trace(opt)
    at = of_trace(trace).at(parse("shadowllm(keep=0.5)"))
    # Two seeds, 16/10 and 25/10: geometric mean 2.
    assert at.perplexity_ratio == pytest.approx(2.0)
    assert at.agreement == pytest.approx(0.7)
    assert "plainact" in at.source
    assert "sparsity 0.5" in at.source
    assert at.source.endswith("; context 384; seeds: 2")
    between = of_trace(trace).at(parse("shadowllm(keep=0.4)"))
    assert between.perplexity_ratio == pytest.approx(np.sqrt(2.0 * 4.0))
    assert between.agreement == pytest.approx(0.6)
    assert "between sparsity 0.5 and sparsity 0.7" in between.source


@pytest.mark.parametrize(
    "policy",
    [
        "shadowllm(keep=0.29)",  # outside what was measured
        "shadowllm(keep=0.71)",
        "shadowllm(keep=0.5,rank=64)",  # another predictor
        "shadowllm(keep=0.5)+kv_quant",  # together with something nobody measured
        "dejavu(keep=0.5,attn_keep=0.5)",
    ],
)
def test_what_was_not_measured_has_no_quality(policy: str, opt: Path) -> None:
    quality = of_trace(read_trace(opt)).at(parse(policy))
    assert np.isnan(quality.perplexity_ratio)
    assert quality.source == ""


def test_two_parameters_must_move_together_as_measured(tmp_path: Path, synthetic: SimpleNamespace) -> None:
    rows = synthetic.quality_rows(
        {"policy": "dejavu(keep=0.5,attn_keep=0.5)", "perplexity": 20.0},
        {"policy": "dejavu(keep=0.7,attn_keep=0.7)", "sparsity": 0.3, "perplexity": 20.0},
    )
    trace = read_trace(synthetic.make(tmp_path / "t", keeps=(0.5,), quality=rows))
    assert of_trace(trace).at(parse("dejavu(keep=0.6,attn_keep=0.6)")).perplexity_ratio == pytest.approx(2)
    assert of_trace(trace).at(parse("dejavu(keep=0.6,attn_keep=0.5)")).source == ""


def test_of_two_variants_the_better_answers_and_is_named(tmp_path: Path, synthetic: SimpleNamespace) -> None:
    rows = synthetic.quality_rows({"budget": "global"}, {"budget": "layer", "perplexity": 15.0})
    trace = read_trace(synthetic.make(tmp_path / "t", keeps=(0.5,), quality=rows))
    found = of_trace(trace).at(parse("shadowllm(keep=0.5)"))
    assert found.perplexity_ratio == pytest.approx(1.5)
    assert "layer budget" in found.source


def test_masks_per_token_go_before_masks_per_sequence(tmp_path: Path, synthetic: SimpleNamespace) -> None:
    """A step is charged for a new choice per token, so its quality is that of a new choice per token."""
    rows = synthetic.quality_rows({"mask": "sequence", "perplexity": 12.0}, {"mask": "token"})
    trace = read_trace(synthetic.make(tmp_path / "t", keeps=(0.5,), quality=rows))
    assert of_trace(trace).at(parse("shadowllm(keep=0.5)")).perplexity_ratio == pytest.approx(2.0)


def test_show_tells_the_variant_that_is_best_at_half_sparsity(tmp_path: Path, synthetic: SimpleNamespace) -> None:
    from simulator.trace.judged import judged

    rows = synthetic.quality_rows(
        {"criterion": "plainact", "perplexity": 16.0},
        {"criterion": "plainact", "perplexity": 25.0, "seed": 1},
        {"criterion": "plainact", "perplexity": 80.0, "sparsity": 0.7, "policy": "shadowllm(keep=0.3)"},
        {"criterion": "snip", "perplexity": 30.0},
        {"criterion": "snip", "perplexity": 5.0, "mask": "sequence"},
        {"criterion": "snip", "perplexity": 20.0, "sparsity": 0.7, "policy": "shadowllm(keep=0.3)"},
    )
    trace = read_trace(synthetic.make(tmp_path / "t", keeps=(0.5,), quality=rows))
    (curve,) = judged(trace).values()
    assert (curve.policy, curve.variant) == ("shadowllm(keep=0.5)", "plainact, layer targets, global budget")
    np.testing.assert_allclose(curve.at(0.5)[0], 2.0)
    np.testing.assert_allclose(curve.at(0.6)[0], 4.0)
    assert np.isnan(curve.at(0.4)[0])
    assert judged(read_trace(synthetic.make(tmp_path / "u", keeps=(0.5,), quality=None))) == {}
