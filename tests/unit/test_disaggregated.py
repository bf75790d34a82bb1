"""Pools of prefill and decode under a closed loop, by hand, and the measured rows of such pools."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from simulator.base.errors import InputError
from simulator.fitting import disaggregated
from simulator.fitting.disaggregated import NEEDED, Pools, closed_loop, validate

PREFILL_S, DECODE_S = 0.1, 0.01
"""A prompt a tenth of a second; 100 steps after the first token a second."""


@pytest.fixture
def by_hand(monkeypatch):
    def step_time(group: Any, step: Any) -> Any:
        time = DECODE_S if step.prefill_rows is None or not step.prefill_rows else PREFILL_S
        return SimpleNamespace(total_s=time, lo_s=time / 2.0, hi_s=time * 2.0)

    monkeypatch.setattr(disaggregated, "step_time", step_time)
    return SimpleNamespace(dp_attention=1, engine=SimpleNamespace(request_s=0.0, frontend_s=0.0))


def test_a_pool_that_keeps_up_makes_them_wait_in_the_first_round_alone(by_hand):
    # 5 decode, half a one is prefilled: X = 5/s. At first (5.5 - 1) / 2 of 10/s wait, in one of ten rounds.
    found = closed_loop(Pools(by_hand, by_hand, 1, 1, 5.5, 1000.0, 101.0, 10.0), 0.0)
    assert found["tpot"] == pytest.approx((0.01, 0.005, 0.02))
    assert found["ttft"][0] == pytest.approx(0.1 + 0.225 / 10.0)
    # Twice the steps' time is half the rate of the same clients.
    assert found["ttft"][1:] == pytest.approx((0.05 + 0.1125 / 10.0, 0.2 + 0.45 / 10.0))


def test_what_the_prefill_pool_cannot_take_waits_before_it(by_hand):
    # 10/s at most, 10 of 21 decode for a second: each of the others waits 21 / 10 - 1 s.
    found = closed_loop(Pools(by_hand, by_hand, 1, 1, 21.0, 1000.0, 101.0, 10.0), 0.0)
    assert found["ttft"][0] == pytest.approx(1.1)
    # Two workers of two groups each take 40/s: 20 decode, one is under way.
    twice = SimpleNamespace(dp_attention=2, engine=by_hand.engine)
    found = closed_loop(Pools(twice, by_hand, 2, 4, 22.0, 1000.0, 101.0, 1e9), 0.0)
    assert found["ttft"][0] == pytest.approx(0.1)


def test_the_transfer_is_part_of_the_first_token(by_hand):
    found = closed_loop(Pools(by_hand, by_hand, 1, 1, 1.0, 1000.0, 101.0, 1e9), 0.25)
    assert found["ttft"][0] == pytest.approx(0.35)


def test_rows_without_pools_are_counted():
    import pandas as pd

    blank = dict.fromkeys(NEEDED, None)
    with pytest.raises(InputError, match="no row can be judged: 2 workers and batch of the pools not stated"):
        validate(pd.DataFrame([blank, blank]), None)
    with pytest.raises(InputError, match="lack the columns"):
        validate(pd.DataFrame([{"isl": 1}]), None)
    with pytest.raises(InputError, match="nothing is fitted"):
        validate(pd.DataFrame([blank]), "0.3")


@pytest.mark.data
def test_time_per_token_of_measured_pools(data_dir):
    import pandas as pd

    found = validate(pd.read_parquet(data_dir / "e2e_disaggregated.parquet"), None)
    tpot = next(r for r in found["rows"] if (r["engine"], r["metric"]) == ("all", "tpot"))
    assert tpot["n"] >= 75
    assert tpot["median_ape"] <= tpot["target_median_ape"]
    assert found["excluded"]["workers and batch of the pools not stated"] == 631
