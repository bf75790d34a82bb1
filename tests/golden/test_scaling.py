"""Kinetics' formulas by hand, and the price of a solved problem."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.base.dtypes import FORMATS, DType
from simulator.base.errors import InputError
from simulator.device.catalogue import load
from simulator.inference.lowering import Lowering
from simulator.model.hub import find_model
from simulator.policies import parse
from simulator.results.prediction import predict
from simulator.results.scaling import best_of, cost_per_solved, demand, intensity, solved_share
from simulator.scenario.scenario import Scenario

LAYERS, HQ, HK, D = 32, 32, 8, 128


def lowered(policy: str = "dense") -> Lowering:
    return Lowering(find_model("llama-3.1-8b"), parse(policy), FORMATS["fp16"], 2.0)


def test_kv_bytes_of_a_chain() -> None:
    """(2c + g + 1) g hk d elements a layer of K and V together: c = 1000, g = 500; trials repeat them."""
    c, g = 1000, 500
    chain = LAYERS * (2 * c + g + 1) * g * HK * D * 2
    prompt = LAYERS * c * 2 * HK * D * 2
    for trials in (1, 8):
        assert demand(lowered(), c, g, trials).read_bytes == pytest.approx(prompt + trials * chain)


def test_attention_flop_of_a_chain() -> None:
    """2 (2c + g) g hq d a layer is what a longer context adds: c = 2000 over c = 1000 is 4 g hq d 1000."""
    few, many = (float(demand(lowered(), c, 500).flop) for c in (1000.0, 2000.0))
    prompts = [float(demand(lowered(), c, 0.0).flop) for c in (1000.0, 2000.0)]
    assert (many - prompts[1]) - (few - prompts[0]) == pytest.approx(LAYERS * 4 * 500 * HQ * D * 1000, rel=1e-3)


def test_sparse_reads_stop_growing() -> None:
    """Budget 1024 of mean-key pages: twice the chain reads S/32 more, not S; at intensity 0 only flop count."""
    dense, sparse = (demand(lowered(p), 1000.0, np.array([8000.0, 16_000.0])) for p in ("dense", "kinetics"))
    assert dense.read_bytes[1] / dense.read_bytes[0] > 3.5
    assert sparse.read_bytes[1] / sparse.read_bytes[0] < 2.3
    np.testing.assert_array_equal(sparse.eflop(0.0), sparse.flop)
    assert np.all(sparse.eflop(156.0) < dense.eflop(156.0))


def test_intensity_of_an_a100() -> None:
    """312 TFLOP/s over 2039 GB/s = 153 flop per byte."""
    assert intensity(load("a100-sxm-80g"), DType.FP16) == pytest.approx(153.0, abs=0.5)


def test_a_solved_problem() -> None:
    """p = 0.2: 4 tries solve 1 - 0.8^4 = 0.5904; at 10 a try 40 / 0.5904 = 67.75; nothing solved costs no end."""
    assert solved_share(0.2, 4) == pytest.approx(0.5904)
    assert cost_per_solved(40.0, 0.2, 4) == pytest.approx(40 / 0.5904)
    assert cost_per_solved(10.0, 1.0, 1) == 10.0
    assert cost_per_solved(10.0, 0.0, 5) == np.inf


def test_more_tries_never_make_a_solved_problem_cheaper() -> None:
    """Each further try is spent on problems already solved, too."""
    n = np.arange(1, 65)
    assert np.all(np.diff(cost_per_solved(n * 1.0, 0.1, n)) > 0.0)


def test_best_of_n_shares_one_prompt_and_one_batch() -> None:
    """Time: TTFT of one prompt and 99 steps of the batch; cost per solved problem divides by 1 - 0.8^4."""
    scenario = Scenario.of(model="llama-3.1-8b", device="h100-sxm", prompt_tokens=1000, output_tokens=100)
    one, four = best_of(scenario, (1, 4), solve_rate=0.2)
    rows = {b: predict(scenario.model_copy(update={"batch": b})).row for b in (1, 4)}
    assert one.time_s == pytest.approx(rows[1]["ttft_s"] + 99 * rows[1]["tpot_s"])
    assert four.time_s == pytest.approx(rows[1]["ttft_s"] + 99 * rows[4]["tpot_s"])
    assert four.solved == pytest.approx(0.5904)
    assert four.usd_per_solved == pytest.approx(four.usd / 0.5904)
    assert four.flop < 4 * one.flop


def test_trials_beyond_memory_run_in_waves() -> None:
    """On an RTX 4090 long chains fit a few at a time: four times as many take about four times as long."""
    scenario = Scenario.of(model="llama-3.1-8b", device="rtx-4090", prompt_tokens=1000, output_tokens=20_000)
    most = predict(scenario).row["max_batch"]
    full, over = best_of(scenario, (most, 4 * most))
    assert over.time_s == pytest.approx(4 * full.time_s, rel=0.02)


@pytest.mark.parametrize(
    ("words", "told"),
    [({"trials": (0,)}, "--trials: 0 trials"), ({"trials": (1,), "solve_rate": 2.0}, "--solve-rate: 2 is not a share")],
)
def test_bad_trials_are_named(words: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as caught:
        best_of(Scenario.of(model="llama-3.1-8b", device="h100-sxm"), **words)
    assert told in str(caught.value)
