"""Break-even along an axis: exact crossings, honest sentences, the same numbers as a single prediction."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest

from simulator import predict
from simulator.base import console
from simulator.base.errors import InputError, NothingFeasibleError
from simulator.base.interval import Interval
from simulator.policies import POLICIES, parse
from simulator.results import break_even as module
from simulator.results import prediction
from simulator.results.break_even import BreakEven, break_even
from simulator.results.verdict import as_times, runs
from simulator.scenario.scenario import Scenario

BASE = {"model": "llama-3-8b", "device": "h100-sxm", "prompt_tokens": 4096, "batch": 8}


def test_a_crossing_is_found_to_the_whole_number() -> None:
    def rising(v: np.ndarray) -> Interval:
        return Interval.exact(np.where(v >= 137, 1.5, 0.5))

    values = module._crossed(rising, module._whole(1, 4096))
    assert {136.0, 137.0} <= set(values)
    assert np.all(np.diff(values) > 0)
    falling = module._crossed(lambda v: Interval.exact(np.where(v <= 20, 1.5, 0.5)), module._whole(1, 100))
    assert {20.0, 21.0} <= set(falling)


def test_a_hair_more_is_not_a_win() -> None:
    speedup = Interval.exact(np.array([1.019, np.nan, 1.02]))
    one = BreakEven("batch", np.array([1.0, 2.0, 4.0]), speedup, np.ones(3, bool))
    assert one.wins == [(4.0, 4.0)]
    assert runs(np.array([True, False, True, True])) == [(0, 0), (2, 3)]


def test_the_axes_of_quest_agree_with_single_predictions() -> None:
    scenario = Scenario.of(**BASE, policy="quest(budget=1024)")
    batch, prompt, budget = break_even(scenario)
    assert [b.axis for b in (batch, prompt, budget)] == ["batch", "prompt_tokens", "budget"]
    for b in (batch, prompt):
        mid, lo, hi = b.speedup
        at = int(np.argmax(mid))
        one = prediction.predict(scenario.model_copy(update={b.axis: int(b.values[at])}))
        assert one.row["throughput_speedup_same_batch"] == pytest.approx(mid[at], rel=1e-9)
        assert as_times(mid[at]) in b.sentence
        assert np.all((lo <= mid) & (mid <= hi))
    assert batch.values[-1] == prediction.predict(scenario).row["max_batch"]
    # Contexts inside the budget pay for the statistics alone, and a smaller budget never reads more.
    assert 0.97 < prompt.speedup.mid[0] < 1.0
    assert budget.speedup.mid[0] >= budget.speedup.mid[-1]


def test_sparsity_is_an_axis_of_a_share() -> None:
    scenario = Scenario.of(model="opt-30b", device="a100-sxm-80g", tp=4, policy="shadowllm(keep=0.5)")
    keep = break_even(scenario)[-1]
    assert keep.axis == "keep"
    here = keep.speedup.mid[np.flatnonzero(keep.values == 0.5)[0]]
    row = prediction.predict(scenario).row
    assert here == pytest.approx(row["throughput_speedup_same_batch"], rel=1e-9)
    assert re.search(r"at \d+% sparsity \(shadowllm\)", keep.sentence)


@pytest.mark.parametrize(
    "policy",
    ["nm24", "flexgen(weights=0.5,kv=1)", "contiguous_kv(tokens=2048)", "rps", "sparse_weights(depth=0.6:0.4)"],
)
def test_a_policy_without_a_dial_has_two_axes(policy: str) -> None:
    """Shares of memory placed or reserved are no sparsity, and a schedule over depth is no single share."""
    found = break_even(Scenario.of(model="llama-2-7b", device="h100-pcie", policy=policy, dtype="fp16"))
    assert [b.axis for b in found] == ["batch", "prompt_tokens"]


def test_what_is_swept_is_a_parameter_of_its_kind() -> None:
    """A share lies in (0, 1] and 1 is dense; tokens are whole numbers. Two thirds of the policies have one."""
    swept = {n: POLICIES[n] for n in POLICIES if POLICIES[n].swept}
    assert len(swept) > 40
    for name, cls in swept.items():
        assert cls.swept is not None
        field, counts = cls.swept
        default = cls.model_fields[field].default
        assert isinstance(default, float if counts == "share" else int), name
        if counts == "share":
            assert parse(f"{name}({field}=1)").members
            with pytest.raises(InputError):
                parse(f"{name}({field}=1.1)")


def test_an_explicit_share_wins_over_a_schedule() -> None:
    """mixed_sparsity's own schedule gives way to keep; a schedule and another share are refused in one line."""
    low, high = (parse(f"mixed_sparsity(keep={k})").members[0] for k in (0.3, 1))
    assert (low.spelling, high.spelling) == ("mixed_sparsity(keep=0.3)", "mixed_sparsity(keep=1)")
    plain = parse("mixed_sparsity")
    assert plain.spelling == "mixed_sparsity(keep=0.5,depth=0.6:0.4)"
    assert parse(plain.spelling) == plain
    assert parse("sparse_weights(depth=0.2:0.3:0.4)").spelling == "sparse_weights(keep=0.3,depth=0.2:0.3:0.4)"
    with pytest.raises(InputError, match=r"cfsp: keep=0.9 and depth=0.9:0.7 \(mean 0.8\) disagree"):
        parse("cfsp(keep=0.9,depth=0.9:0.7)")
    base = {"model": "llama-2-7b", "device": "h100-pcie", "dtype": "fp16"}
    ends = [prediction.predict(Scenario.of(**base, policy=f"mixed_sparsity(keep={k})")).row["tpot_s"] for k in (0.3, 1)]
    assert ends[0] < ends[1]


def test_dense_has_no_break_even() -> None:
    with pytest.raises(InputError, match="add --policy"):
        break_even(Scenario.of(**BASE))


def test_lengths_beyond_the_model_are_refused() -> None:
    with pytest.raises(NothingFeasibleError, match="8192 tokens"):
        break_even(Scenario.of(**{**BASE, "prompt_tokens": 8192}, policy="quest"))


def test_the_flag_prints_one_sentence_per_axis(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "llama-2-7b", "--device", "h100-pcie", "--policy", "nm24", "--break-even"]
    for more in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["predict", *words, *more])
        with pytest.raises(SystemExit) as left:
            console.main(predict.app)
        assert not left.value.code
    text, _, last = capsys.readouterr().out.rstrip().rpartition("\n")
    assert [line.split(":")[0] for line in text.splitlines()[1:]] == ["batch", "prompt_tokens"]
    rows = json.loads(last)["rows"]
    assert [r["axis"] for r in rows] == ["batch", "prompt_tokens"]
    assert len(rows[0]["values"]) == len(rows[0]["speedup"])


def test_what_fits_nowhere_has_no_verdict_and_no_break_even() -> None:
    """A sweep says 'no row fits' of it; predict and break-even must not say that it wins."""
    scenario = Scenario.of(model="llama-3.1-70b", device="rtx-4090", policy="w4a16")
    answer = prediction.predict(scenario)
    assert answer.row["status"] == "does_not_fit"
    assert "wins" not in answer.sentence
    assert "does not fit (largest batch 0)" in answer.sentence
    with pytest.raises(NothingFeasibleError, match="fits at no batch"):
        break_even(scenario)
