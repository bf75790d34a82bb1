"""Quality against time at equal sparsity: figures of the trace beside those of `predict`, on any model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from simulator.base import console
from simulator.base.errors import InputError, NothingFeasibleError
from simulator.policies import parse
from simulator.results.prediction import predict
from simulator.results.speed_quality import picture, sentence, traded
from simulator.scenario.scenario import Scenario
from simulator.trace import read_trace

RANKS = "mlp_rank=64,attn_rank=64"
ROWS = (
    {"policy": "shadowllm(keep=0.5,rank=64)", "perplexity": 16.0},
    {"policy": "shadowllm(keep=0.5,rank=64)", "perplexity": 25.0, "seed": 1},
    {"policy": "shadowllm(keep=0.5,rank=64)", "perplexity": 11.0, "mask": "sequence"},
    {"policy": f"dejavu(keep=0.5,{RANKS})", "method": "dejavu", "budget": "layer", "perplexity": 25.0},
    {"policy": "oracle(keep=0.5)", "method": "oracle", "perplexity": 11.0},
    {"policy": "quest(budget=64)", "method": "quest", "sparsity": 0.4, "perplexity": 10.1},
)


@pytest.fixture
def judged(tmp_path: Path, synthetic: SimpleNamespace) -> Path:
    """opt-6.7b with ShadowLLM at twice dense's perplexity and Deja Vu at 2.5 times, both at half sparsity."""
    return synthetic.make(tmp_path / "trace", quality=synthetic.quality_rows(*ROWS))


def test_each_setting_has_the_quality_of_the_trace_and_the_time_of_predict(judged: Path) -> None:
    asked = Scenario.of(model="opt-6.7b", device="a100-sxm-80g", batch=4)
    found, left_out = traded(read_trace(judged), asked)
    assert left_out == {}
    assert [(t.method, t.sparsity) for t in found] == [("shadowllm", 0.5), ("dejavu", 0.5)]
    assert [t.quality.perplexity_ratio for t in found] == pytest.approx([2.0, 2.5])
    for t in found:
        alone = predict(asked.model_copy(update={"policy": t.policy, "trace": str(judged)})).answer
        for name in ("tpot_s", "tpot_speedup"):
            a, b = getattr(t.answer, name), getattr(alone, name)
            assert (a.mid, a.lo, a.hi) == (b.mid, b.lo, b.hi)
    one, other = (t.answer.tpot_s.mid for t in found)
    # A mask per sequence is another way to run and is no point; 2.0 / 2.5 is 20 % less.
    assert sentence(found).startswith("shadowllm against dejavu: at 50\u202f% ")
    assert f"{100 * (one / other - 1):+.1f}\u202f% time per token" in sentence(found)
    assert "-20.0\u202f% perplexity" in sentence(found)
    drawn = picture(found, "measured")
    assert {line.name: list(line.x) for line in drawn.drawn.lines if not line.aside} == {
        "shadowllm": [pytest.approx(1e3 * one)],
        "dejavu": [pytest.approx(1e3 * other)],
    }


def test_on_another_model_both_predictors_are_as_wide_as_asked(judged: Path) -> None:
    asked = Scenario.of(model="opt-30b", device="a100-sxm-80g", tp=4)
    for rank in (2048, 512):
        first, second = traded(read_trace(judged), asked, rank)[0]
        one, other = (parse(t.policy).members[0].model_dump() for t in (first, second))
        assert (one["rank"], other["mlp_rank"], other["attn_rank"]) == (rank, rank, rank)
        assert first.answer.policy == first.policy
        assert first.quality.perplexity_ratio == pytest.approx(2.0)


def test_a_method_that_does_not_apply_is_left_out_by_name(judged: Path) -> None:
    found, left_out = traded(read_trace(judged), Scenario.of(model="llama-2-7b", device="a100-sxm-80g"))
    assert {t.method for t in found} == {"shadowllm"}
    assert "zeros of ReLU" in left_out["dejavu"]
    assert sentence(found) == ""


def test_what_cannot_run_or_was_not_judged_is_told(judged: Path, tmp_path: Path, synthetic: SimpleNamespace) -> None:
    with pytest.raises(NothingFeasibleError, match="exceed the model's 2048 tokens"):
        traded(read_trace(judged), Scenario.of(model="opt-6.7b", device="a100-sxm-80g", prompt_tokens=4096))
    bare = synthetic.make(tmp_path / "bare")
    with pytest.raises(InputError, match="holds no quality of shadowllm"):
        traded(read_trace(bare), Scenario.of(model="opt-6.7b", device="a100-sxm-80g"))


def test_the_verb_prints_draws_and_dumps(
    judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib not installed")
    from traces import shadow

    words = ["figure", str(judged), "--model", "opt-6.7b", "--device", "a100-sxm-80g", "--batch", "4"]

    def run(*more: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["traces", *words, *more])
        with pytest.raises(SystemExit) as left:
            console.main(shadow.app)
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    plot = tmp_path / "figure.svg"
    code, out, err = run("--plot", str(plot))
    assert code == 0, err
    assert "opt-6.7b on a100-sxm-80g, batch 4" in out
    assert "shadowllm against dejavu" in out
    assert "shadowllm" in plot.read_text()
    code, out, _ = run("--json")
    rows = json.loads(out)["rows"]
    assert [(r["method"], r["sparsity"], r["quality_perplexity_ratio"]) for r in rows] == [
        ("shadowllm", 0.5, pytest.approx(2.0)),
        ("dejavu", 0.5, pytest.approx(2.5)),
    ]
    assert all(r["tpot_s"] > 0.0 for r in rows)
    code, out, err = run("--prompt-tokens", "4096")
    assert (code, out, err.count("\n")) == (3, "", 1)
