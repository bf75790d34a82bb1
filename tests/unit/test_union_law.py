"""Which curve stands for a tensor that was not measured, how far models differ, and that the answer says so."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.base import console
from simulator.base.dtypes import FORMATS
from simulator.inference.evaluate import evaluate
from simulator.inference.group import group_of
from simulator.inference.lowering import Lowering
from simulator.model.hub import find_model
from simulator.ops.step import decode_step
from simulator.ops.union import PUBLISHED, ROWS, union_density
from simulator.ops.union_law import RELU, UNITS, UnionLaw, apart, between_models, default_law, kind
from simulator.policies import POLICIES, parse
from simulator.policies import __main__ as policies_verb
from simulator.predict import app as predict_verb
from simulator.results.prediction import predict, united
from simulator.scenario.scenario import Scenario
from simulator.trace import __main__ as trace_verb
from simulator.trace import defaults, read_trace
from simulator.trace.depth import DepthCurves

ROOT = Path(__file__).parents[2]
SHIPPED = [f"traces/shipped/{name}/trace" for name in ("smollm2-135m-instruct", "tiny-llama-py", "tiny-opt-py")]


def run(app: Any, *arguments: str, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> tuple[str, str]:
    patch.setattr(sys, "argv", ["verb", *arguments])
    with pytest.raises(SystemExit) as left:
        console.main(app)
    assert not left.value.code
    return capsys.readouterr()


def test_four_rows_at_half_touch_nine_tenths_of_gated_neurons() -> None:
    """SmolLM2 measured 0.922 of its neurons, 0.929 of the FFN's inputs, 0.835 of its heads; OPT's routers say 0.74."""
    for tensor, touched in (("ffn.down", 0.922), ("ffn.in", 0.929), ("attn.head", 0.835)):
        table, law = default_law(tensor, "llama-2-7b", "silu")
        assert float(union_density(0.5, 4.0, table)) == pytest.approx(touched, abs=0.008)
        assert "SmolLM2-135M-Instruct" in law.source
    table, law = default_law(kind("ffn.down", "relu"), "llama-2-7b", "relu")
    assert float(union_density(0.5, 4.0, table)) == pytest.approx(0.74, abs=0.01)
    assert law.units == "ReLU neurons"


@pytest.mark.parametrize("model", PUBLISHED)
def test_a_model_with_a_table_of_its_own_keeps_it(model: str) -> None:
    table, law = default_law(RELU, model, "relu")
    np.testing.assert_allclose(union_density(PUBLISHED[model][0], ROWS, table), PUBLISHED[model], rtol=1e-9)
    assert law.log_error == 0.0
    assert model in law.source


def test_only_neurons_follow_the_activation() -> None:
    assert [kind(t, "relu2") for t in ("ffn.gate", "ffn.down", "ffn.in", "attn.head")] == [
        RELU,
        RELU,
        "ffn.in",
        "attn.head",
    ]
    assert kind("ffn.gate", "gelu") == "ffn.gate"
    assert default_law("ffn.gate", "x", "tanh")[1].source.endswith("tanh was not measured")
    assert "tanh" not in default_law("attn.in", "x", "tanh")[1].source
    assert "not measured" not in default_law("ffn.gate", "gemma-2-9b", "gelu")[1].source  # Gemma was


def test_how_far_models_differ_is_the_root_mean_square_over_them() -> None:
    """Gates: Gemma 0.062 and the small Llama 0.122, (0.062^2 + 0.122^2) / 2 = 0.0968^2."""
    assert apart("ffn.gate") == {"gemma-3-270m": 0.062, "tiny-llama-py": 0.122}
    assert between_models("ffn.gate") == pytest.approx(0.0968, abs=1e-4)


def test_a_share_that_one_layer_alone_has_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma has exact zeros among its attention inputs in one layer of 18: `defaults` ended in a traceback."""
    trace = read_trace(ROOT / SHIPPED[1])
    found = defaults.curves(trace, "attn.in")
    assert found is not None

    def over_layers(trace: Any, tensor: str, statistic: str, keep: float | None) -> Any:
        all_layers = real(trace, tensor, statistic, 0.9 if keep is None else keep)
        if keep is not None or all_layers is None:
            return all_layers
        return DepthCurves(all_layers.layers[:1], all_layers.x, all_layers.values[:1] * 0.99 + 0.01)

    real = defaults.over_layers
    monkeypatch.setattr(defaults, "over_layers", over_layers)
    again = defaults.curves(trace, "attn.in")
    assert again is not None
    np.testing.assert_array_equal(again[1], found[1])


def test_each_published_router_is_judged_by_the_others() -> None:
    by = {c.source.split()[0]: c for c in defaults.judge_published()}
    assert set(by) == set(PUBLISHED)
    assert by["opt-30b"].median < 0.04 < by["opt-66b"].median < 0.25
    assert "opt-66b" not in by["opt-66b"].law


def test_the_committed_defaults_are_what_the_shipped_traces_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    traces = [read_trace(folder) for folder in SHIPPED]
    committed = (ROOT / "simulator/ops/union.toml").read_text("utf-8")
    command = committed.split('command = "')[1].split('"')[0]
    assert command.split()[4:-2] == SHIPPED
    kept = {t: apart(t) for t in UNITS if t != RELU}
    assert defaults.text(traces[0], traces[1:], command, kept) == committed
    assert defaults.text(traces[0], traces[1:], command, {}) != committed  # Gemma's trace is not shipped


def test_the_default_is_near_every_measured_tensor() -> None:
    """2 to 64 rows, models that the curves are not from: median within 3 %, worst within 10 % from 30 % kept on."""
    checks = [c for folder in SHIPPED for c in defaults.judge(read_trace(ROOT / folder))]
    gated = [c for c in checks if "SmolLM2" in c.law]
    assert len(gated) == 16
    for c in gated:
        assert c.median <= 0.03, c
        assert c.worst_kept <= 0.10, c
        assert c.median < 0.2 * c.routers, c
    # What stands for a ReLU model's neurons is the routers, 36 % off on a model of 3 million parameters.
    (relu,) = [c for c in checks if "SmolLM2" not in c.law]
    assert relu.median == relu.routers


def test_the_verb_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [str(ROOT / folder) for folder in SHIPPED]
    rows = json.loads(run(trace_verb.app, "defaults", *folders, "--json", capsys=capsys, patch=monkeypatch)[0])["rows"]
    assert len(rows) == 17 + len(PUBLISHED)
    assert "tiny-llama-py" in run(trace_verb.app, "defaults", *folders, capsys=capsys, patch=monkeypatch)[0]
    out = tmp_path / "union.toml"
    shutil.copy(ROOT / "simulator/ops/union.toml", out)
    run(trace_verb.app, "defaults", *folders, "--out", str(out), capsys=capsys, patch=monkeypatch)
    assert (
        out.read_text("utf-8").splitlines()[3:]
        == (ROOT / "simulator/ops/union.toml").read_text("utf-8").splitlines()[3:]
    )


def test_how_far_models_differ_by_hand() -> None:
    """d = 3/4 of 4 rows, error 0.1 per ln B: (1 - d) ln 4 / d = 0.4621 by ln 4 = 1.3863 by 0.1; with half of it read
    whole, 0.875 read: 0.5 * 0.25 * ln 4 / 0.875.
    """
    law = UnionLaw("heads", "nobody", 256.0, 0.1)
    assert float(law.error(0.75, 4.0)) == pytest.approx(0.25 * math.log(4) / 0.75 * math.log(4) * 0.1)
    assert float(law.error(0.875, 4.0, 0.5)) == pytest.approx(0.5 * 0.25 * math.log(4) / 0.875 * math.log(4) * 0.1)
    np.testing.assert_allclose(law.error(np.array([0.5, 1.0]), np.array([1.0, 64.0])), 0.0, atol=1e-9)
    # To first order it is what another exponent of B makes of the density.
    d, other = (1.0 - 0.5 ** (4.0**a) for a in (0.9, 0.9 + 1e-6))
    assert math.log(other / d) / 1e-6 == pytest.approx(float(law.error(d, 4.0)) / 0.1, rel=1e-4)


def test_what_models_differ_by_widens_the_interval_of_a_batch_and_not_of_one_row() -> None:
    def error_s(batch: float) -> float:
        group = group_of(Scenario.of(model="llama-2-7b", device="rtx-4090", policy="teal(keep=0.5,fallback=none)"))
        points = evaluate(group, np.array([batch]), np.array([512.0]), np.array([128.0]))
        return float(np.max(points.decode.sums.details.density_s))

    assert error_s(1.0) == 0.0
    assert error_s(4.0) > 0.0


def test_teal_at_batch_four_is_slower_than_dense() -> None:
    """Llama-2-7B on RTX 4090, half of the inputs kept: the routers of OPT said 1.07 times as fast."""
    found = predict(Scenario.of(model="llama-2-7b", device="rtx-4090", policy="teal(keep=0.5,fallback=none)", batch=4))
    assert 1.0 / found.answer.speedup.mid == pytest.approx(1.11, abs=0.02)


PARAMETERS = {"powerinfer": "(attn_keep=0.5)", "turbosparse": "(attn_keep=0.5)"}


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_declares_what_it_unites(name: str) -> None:
    asked: set[str] = set()
    for model in ("llama-2-7b", "opt-13b"):
        spec = find_model(model)
        low = Lowering(spec, parse(name + PARAMETERS.get(name, "")), FORMATS[spec.dtype], 2.0)
        if not low.why_not():
            asked |= {law.units for law in united(low.ops(decode_step(4.0, 100.0)))}
    declared = {UNITS[n] for n in POLICIES[name].unites}
    # Stage 1 of ReLU-fication leaves the inputs' shares at 1.
    assert asked == (declared if name != "relu" else {UNITS[RELU]})


def test_the_answer_names_the_law_and_what_lies_beyond_it(
    opt: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ("--model", "opt-6.7b", "--device", "h100-sxm", "--policy", "shadowllm(keep=0.5)", "--prompt-tokens", "8")
    base += ("--output-tokens", "4")

    def line(*more: str) -> str:
        out = run(predict_verb, *base, *more, capsys=capsys, patch=monkeypatch)[0]
        (found,) = [text for text in out.splitlines() if text.startswith("union over rows: ")]
        return found

    plain = line("--batch", "16")
    assert "heads as in SmolLM2-135M-Instruct (silu, measured)" in plain
    assert "ReLU neurons as the routers of opt-6.7b (published)" in plain
    assert "beyond" not in plain
    assert line("--batch", "512").endswith("512 rows lie beyond the 256 measured, extrapolated")
    traced = line("--batch", "16", "--trace", str(opt))
    assert f"in opt-6.7b (--trace {opt})" in traced
    assert "SmolLM2" not in traced
    said = json.loads(run(predict_verb, *base, "--batch", "512", "--json", capsys=capsys, patch=monkeypatch)[0])
    assert {u["units"]: u["extrapolated"] for u in said["unions"]} == {"heads": True, "ReLU neurons": True}
    assert predict(Scenario.of(model="opt-6.7b", device="h100-sxm")).to_dict()["unions"] == []


def test_the_catalogue_says_which_law(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = run(policies_verb.app, "cats", capsys=capsys, patch=monkeypatch)[0]
    assert "union over rows: gates as in SmolLM2-135M-Instruct (silu, measured)" in out
    assert "union over rows" not in run(policies_verb.app, "quest", capsys=capsys, patch=monkeypatch)[0]
