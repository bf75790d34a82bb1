"""Points that form no grid: each row is the answer of its own scenario, in the order given."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.base.errors import InputError
from simulator.results.prediction import predict
from simulator.results.scatter import scattered
from simulator.scenario.scenario import Scenario

POINTS = {
    "model": ["llama-3.1-8b", "llama-2-7b", "llama-3.1-8b", "llama-2-7b", "llama-3.1-8b"],
    "device": ["h100-sxm", "rtx-4090", "h100-sxm", "a100-sxm-80g", "h100-sxm"],
    "policy": ["dense", "quest(budget=256)", "nm24", "dense", "dense"],
    "tp": [1, 1, 2, 1, 1],
    "batch": [3, 2, 7, 64, 1],
    "prompt_tokens": [100, 3000, 17, 900, 100],
    "output_tokens": [7, 33, 129, 2, 900],
}


def test_rows_are_the_single_predictions_in_order() -> None:
    block = scattered(POINTS)
    assert block.n == 5
    for i in range(5):
        one = predict(Scenario.of(**{name: values[i] for name, values in POINTS.items()}))
        for name in ("ttft_s", "tpot_s", "tpot_lo_s", "tpot_hi_s"):
            assert block.at(i).to_dict()[name] == pytest.approx(one.row[name], rel=1e-12)
        for name in ("model", "device", "policy", "status"):
            assert block.at(i).to_dict()[name] == one.row[name]


def test_order_of_the_rows_changes_no_row() -> None:
    order = np.array([4, 2, 0, 3, 1])
    turned = scattered({name: [values[i] for i in order] for name, values in POINTS.items()})
    straight = scattered(POINTS)
    np.testing.assert_allclose(turned.e2e_s.mid, straight.e2e_s.mid[order], rtol=1e-12)


def test_sizes_that_are_no_column_take_their_default() -> None:
    one = predict(Scenario.of(model="llama-2-7b", device="h100-sxm"))
    both = scattered({"model": ["llama-2-7b"] * 2, "device": ["h100-sxm"] * 2})
    assert both.tokens_per_s.mid.tolist() == [one.answer.tokens_per_s.mid] * 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"batch": [1, 2]}, "common length"),
        ({"batch": [1, 2, 3, 4, 0.5]}, "whole number"),
        ({"colour": ["red"] * 5}, "unknown column"),
    ],
)
def test_bad_columns_are_refused(change: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        scattered(POINTS | change)
