"""The committed spreads of speed-ups are what the committed claims teach, and cover claims that taught nothing."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.base.interval import Z90, Interval
from simulator.claims.judge import Judged, judge
from simulator.claims.rows import committed
from simulator.claims.spread import learned
from simulator.claims.statistics import weights
from simulator.inference.paired import ANY, spreads
from simulator.results.verdict import Verdict, verdict


@pytest.fixture(scope="module")
def rows() -> list[Judged]:
    return [r for r in judge(committed()) if r.changed and r.speedup]


def test_the_committed_spreads_are_learned(rows: list[Judged]) -> None:
    """Within a fifth, which a change of some predictions may shift them: else run the command in the file."""
    now = {family: s.sigma for family, s in learned(rows).items()}
    assert spreads().keys() == now.keys()
    assert spreads() == {family: pytest.approx(sigma, rel=0.2) for family, sigma in now.items()}


def test_a_paper_left_out_is_covered_and_rightly_decided(rows: list[Judged]) -> None:
    """Each paper is judged by what the others teach: 85-97 % inside, at least 35 % decided, 95 % of those rightly."""
    found, papers = [], []
    for paper in sorted({r.paper for r in rows}):
        others = learned([r for r in rows if r.paper != paper])
        for r in (r for r in rows if r.paper == paper):
            half = np.exp(Z90 * others.get(r.changed, others[ANY]).sigma * r.share)
            mid, published = float(r.speedup or 0.0), float(r.published_speedup or 0.0)
            at = Interval(mid, mid / half, mid * half)
            word, truth = verdict(at), verdict(Interval.exact(published))
            decided = word is not Verdict.UNDECIDED
            found.append((at.lo <= published <= at.hi, decided, decided and word is truth))
            papers.append(paper)
    inside, decided, right = np.array(found, float).T
    w = weights(papers)
    assert 0.85 <= np.sum(w * inside) <= 0.97
    assert np.mean(inside) >= 0.8
    assert np.sum(w * decided) >= 0.35
    assert right.sum() / decided.sum() >= 0.94
    assert np.sum(w * right) / np.sum(w * decided) >= 0.95


def test_learned_by_hand() -> None:
    """Two families of one paper each, errors 0.1 and 0.4 over a share of a half.

    The middle of each error's weight is interpolated at nine tenths of all: alone a family weighs 1 + 1/2 for its own
    and 1/2 for the other's.
    """

    def row(paper: str, family: str, error: float) -> Judged:
        more = {"published_speedup": np.exp(0.5 * error), "speedup": 1.0, "changed": family, "share": 0.5}
        return Judged(paper, paper, "", "e2e", "tpot_s", 1.0, "judged", **more)

    found = learned([row("A", "a", 0.1), row("B", "b", 0.4)])
    assert {f: (s.papers, s.rows) for f, s in found.items()} == {"a": (1, 1), "b": (1, 1), ANY: (2, 2)}
    # a: weights 1.5 and 0.5, their middles at 0.75 and 1.75; 0.9 of 2 lies beyond, at the larger error. Two papers
    # count (its own and all together), of which Student's 0.95 quantile is 2.920 where the normal one is 1.645.
    assert found["a"].sigma == pytest.approx(0.4 / Z90 * 2.91999 / Z90, rel=1e-5)
    assert found[ANY].sigma == pytest.approx(0.4 / Z90 * 2.91999 / Z90, rel=1e-5)
