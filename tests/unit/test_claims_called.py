"""Wins and losses of published figures: called, decided, by row and by paper."""

from dataclasses import replace

import pytest

from simulator.claims.judge import Judged, judge
from simulator.claims.rows import Claim, PaperClaims
from simulator.claims.statistics import by_family, called, losses_missed, told


def row(paper: str, published: float, speedup: float, half: float = 0.0, family: str = "f") -> Judged:
    return Judged(
        f"{paper}-{published}-{speedup}",
        paper,
        family,
        "e2e",
        "tpot_s",
        1.0,
        "judged",
        predicted=1.0,
        lo=1.0,
        hi=1.0,
        published_speedup=published,
        speedup=speedup,
        speedup_lo=speedup * (1.0 - half),
        speedup_hi=speedup * (1.0 + half),
    )


ROWS = [
    # A: three of four wins on the right side, one of two losses; B: its only loss.
    row("A", 2.0, 1.5),
    row("A", 2.0, 1.1),
    row("A", 1.2, 1.03),
    row("A", 1.2, 0.9),
    row("A", 0.5, 0.7),
    row("A", 0.9, 1.3),
    row("B", 0.8, 0.6, family="g"),
    row("B", 1.0, 1.5, family="g"),
]


def test_wins_and_losses_called_by_hand() -> None:
    """Rows: 3/4 wins and 2/3 losses; papers: losses (1/2 + 1)/2, wins of A alone. What is even counts for neither."""
    found = called(ROWS)
    assert (found["wins"], found["losses"], found["even"]) == (4, 3, 1)
    assert found["rows"]["wins_called"] == pytest.approx(3 / 4)
    assert found["rows"]["losses_called"] == pytest.approx(2 / 3)
    assert found["rows"]["balanced_accuracy"] == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert found["papers"]["wins_called"] == pytest.approx(3 / 4)
    assert found["papers"]["losses_called"] == pytest.approx(3 / 4)
    # Exact predictions decide everywhere: five words of eight are the published ones.
    assert found["rows"]["decided"] == pytest.approx(1.0)
    assert found["rows"]["decided_right"] == pytest.approx(5 / 8)
    assert found["rows"]["inside"] == 0.0


def test_always_calling_a_win_is_worth_a_half() -> None:
    always = called([row("A", p, 1.5) for p in (2.0, 1.5, 0.9, 1.0)])
    assert always["rows"]["balanced_accuracy"] == pytest.approx(0.5)


def test_what_compares_nothing_is_not_counted() -> None:
    lone = Judged("x", "A", "f", "e2e", "tpot_s", 1.0, "judged", predicted=1.0, lo=1.0, hi=1.0)
    assert called([lone, *ROWS]) == called(ROWS)
    none = called([lone])
    assert (none["wins"], none["rows"]["decided"], told(none)) == (0, None, "")
    wins = called([row("A", 2.0, 2.0, half=0.01)])
    assert wins["rows"]["losses_called"] is None
    assert told(wins) == "called 1 of 1 wins and no losses; the interval decides 100% of the rows, 100% of them rightly"


def test_families_are_counted_apart() -> None:
    found = by_family(ROWS)
    assert {f: v["losses"] for f, v in found.items()} == {"f": 2, "g": 1}
    assert found["g"]["rows"]["wins_called"] is None


def test_missed_losses_are_grouped_by_paper_and_cause() -> None:
    """0.9 called 1.3, and 0.4 called 1.0 with a reason; what is called a loss, however mild, is not listed."""
    cause = replace(row("A", 0.4, 1.0), reason="model gap: x")
    found = losses_missed([*ROWS, row("A", 0.4, 1.2), cause, row("C", 0.5, 0.97)])
    assert [(m["paper"], m["rows"], m["reason"]) for m in found] == [
        ("A", 2, "within 20% of the published figure"),
        ("A", 1, "model gap: x"),
    ]
    assert (found[0]["published"], found[0]["predicted"]) == pytest.approx(((0.9 * 0.4) ** 0.5, (1.3 * 1.2) ** 0.5))


def test_a_baseline_that_is_a_policy_has_an_error_of_its_own() -> None:
    """Dense over eager attention: what eager attention adds is uncertain, and so is the speed-up; dense over dense is
    exactly 1."""
    setup = {"model": "llama-2-7b", "device": "a100-sxm-80g", "engine": "hf", "batch": 8, "prompt_tokens": 2048}
    claim = {"paper": "X", "metric": "decode_tokens_per_s_speedup", "value": 2.0, "source": "s"}
    claim |= {"certainty": "read-primary", "used_for_calibration": False, "scenario": {**setup, "output_tokens": 2}}
    policies = ("eager_attention", "dense")
    rows = [Claim(claim_id=p, baseline_scenario={"policy": p}, **claim) for p in policies]
    eager, dense = judge([PaperClaims("X", "f", tuple(rows))])
    assert eager.speedup is not None
    assert eager.speedup_lo is not None
    assert eager.speedup_hi is not None
    assert eager.speedup_lo < 0.98 * eager.speedup < eager.speedup < 0.98 * eager.speedup_hi
    assert (dense.speedup_lo, dense.speedup, dense.speedup_hi) == (1.0, 1.0, 1.0)
