"""Statistics of judged rows, in which every paper weighs the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from simulator.base.interval import Interval
from simulator.claims.judge import STATUSES, WITHIN, Judged
from simulator.claims.rows import MISSES
from simulator.results.verdict import Verdict, verdict

TARGETS = {"geometric_mean": (0.9, 1.1), "within_20": 0.75, "rank_correlation": 0.9, "balanced_accuracy": 0.8}
WORDS = (Verdict.WINS, Verdict.LOSES, Verdict.EVEN)
"""Words that decide."""


def weights(papers: Sequence[str]) -> np.ndarray:
    """Weight of each row so that every paper adds up to the same and all to 1, shape (rows,) [-]."""
    names, index, counts = np.unique(np.asarray(papers), return_inverse=True, return_counts=True)
    return 1.0 / (len(names) * counts[index])


def rank_correlation(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> float | None:
    """Spearman's correlation of `x` and `y` with weights `w` [-]; None below three rows or without spread.

    The rank of a value is the weight below it plus half the weight at it; the correlation is Pearson's of the ranks.
    """
    if len(x) < 3:
        return None
    ranks = [_ranks(np.asarray(v, float), w) for v in (x, y)]
    centred = [r - np.sum(w * r) / np.sum(w) for r in ranks]
    spread = [np.sum(w * c * c) for c in centred]
    if min(spread) <= 1e-18:
        return None
    return float(np.sum(w * centred[0] * centred[1]) / math.sqrt(spread[0] * spread[1]))


def _ranks(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    _, index = np.unique(x, return_inverse=True)
    at = np.bincount(index, weights=w)
    below = np.cumsum(at) - at
    return (below + 0.5 * at)[index]


def figures(rows: Sequence[Judged]) -> dict[str, Any]:
    """Statistics of judged rows, papers weighing equally.

    ``geometric_mean`` of predicted over published, ``within_20`` the share of rows within 20 %, ``inside`` the share
    within the 90 % interval, ``rank_correlation`` of the speed-ups, ``median_ape`` over papers of each paper's median.
    """
    rows = [r for r in rows if r.status == "judged"]
    if not rows:
        return {"rows": 0, "papers": 0}
    w = weights([r.paper for r in rows])
    ratio = np.array([r.ratio for r in rows], float)
    paper = np.array([r.paper for r in rows])
    fast = [(r.paper, r.published_speedup, r.speedup) for r in rows if r.speedup is not None]
    by, published, predicted = zip(*fast, strict=True) if fast else ((), (), ())
    ape = np.abs(ratio - 1.0)
    return {
        "rows": len(rows),
        "papers": len(set(paper)),
        "geometric_mean": float(np.exp(np.sum(w * np.log(ratio)))),
        "within_20": float(np.sum(w * (ape <= WITHIN))),
        "median_ape": float(np.median([np.median(ape[paper == p]) for p in set(paper)])),
        "inside": float(np.sum(w * np.array([bool(r.inside) for r in rows]))),
        "speedups": len(fast),
        "rank_correlation": rank_correlation(np.array(published), np.array(predicted), weights(by)),
        "called": called(rows),
    }


class _Compared(NamedTuple):
    row: Judged
    published: float
    speedup: Interval[float]


def _compared(rows: Sequence[Judged]) -> list[_Compared]:
    found: list[_Compared] = []
    for r in rows:
        mid, lo, hi = r.speedup, r.speedup_lo, r.speedup_hi
        if r.status == "judged" and not (r.published_speedup is None or mid is None or lo is None or hi is None):
            found.append(_Compared(r, r.published_speedup, Interval(mid, lo, hi)))
    return found


def called(rows: Sequence[Judged]) -> dict[str, Any]:
    """How many of the published wins and losses are called, and what the words of the answers are worth.

    A win or a loss is called where the mid prediction lies on the same side; an answer decides where its interval
    earns a word, and is right where that is the published figure's own. Words are those of
    `simulator.results.verdict.verdict`, for the published figures too.

    Returns
    -------
    dict
        ``wins``, ``losses``, ``even`` rows; ``rows`` and ``papers`` with ``wins_called``, ``losses_called``,
        ``balanced_accuracy`` (their mean), ``decided``, ``decided_right`` and ``inside`` (published speed-ups in the
        90 % interval) [-], every row or every paper weighing the same; None where there is nothing to count.
    """
    both = _compared(rows)
    published = np.array([verdict(Interval.exact(c.published)) for c in both], object)
    mid = np.array([verdict(Interval.exact(c.speedup.mid)) for c in both], object)
    word = np.array([verdict(c.speedup) for c in both], object)
    decided = np.isin(word, WORDS)
    inside = np.array([c.speedup.lo <= c.published <= c.speedup.hi for c in both], bool)
    papers, every = np.array([c.row.paper for c in both]), np.ones(len(both), bool)

    def of(equal: bool) -> dict[str, float | None]:
        def share(hit: np.ndarray, among: np.ndarray) -> float | None:
            if not among.any():
                return None
            w = weights(list(papers[among])) if equal else 1.0 / among.sum()
            return float(np.sum(w * hit[among]))

        won, lost = (share(mid == v, published == v) for v in (Verdict.WINS, Verdict.LOSES))
        return {
            "wins_called": won,
            "losses_called": lost,
            "balanced_accuracy": None if won is None or lost is None else 0.5 * (won + lost),
            "decided": share(decided, every),
            "decided_right": share(word == published, decided),
            "inside": share(inside, every),
        }

    counts = {name: int(np.sum(published == v)) for name, v in zip(("wins", "losses", "even"), WORDS, strict=True)}
    return {**counts, "rows": of(equal=False), "papers": of(equal=True)}


def losses_missed(rows: Sequence[Judged]) -> list[dict[str, Any]]:
    """Published losses that are not called, by paper and cause: rows and the geometric means of both figures [-]."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row, published, speedup in _compared(rows):
        words = [verdict(Interval.exact(x)) for x in (published, speedup.mid)]
        if words[0] is Verdict.LOSES and words[1] is not Verdict.LOSES:
            cause = row.reason or f"within {WITHIN:.0%} of the published figure"
            found.setdefault((row.paper, cause), []).append((published, speedup.mid))
    means = {k: np.exp(np.mean(np.log(v), axis=0)) for k, v in found.items()}
    lines = [
        {"paper": p, "reason": why, "rows": len(v), "published": float(m[0]), "predicted": float(m[1])}
        for ((p, why), v), m in zip(found.items(), means.values(), strict=True)
    ]
    return sorted(lines, key=lambda line: (-line["rows"], line["paper"], line["reason"]))


def by_family(rows: Sequence[Judged]) -> dict[str, dict[str, Any]]:
    """`called` per family of policy, by its name."""
    families = dict.fromkeys(c.row.family for c in _compared(rows))
    return {f: called([r for r in rows if r.family == f]) for f in families}


def told(found: dict[str, Any]) -> str:
    """What `called` found, in one sentence; empty where no row compares two figures."""
    rows, papers = found["rows"], found["papers"]
    if rows["decided"] is None:
        return ""

    def part(noun: str) -> str:
        n, share = found[noun], rows[f"{noun}_called"]
        return f"{round(share * n)} of {n} {noun}" if n else f"no {noun}"

    text = f"called {part('wins')} and {part('losses')}"
    if papers["balanced_accuracy"] is not None:
        text += (
            f", balanced accuracy {papers['balanced_accuracy']:.0%} with papers weighing the same and"
            f" {rows['balanced_accuracy']:.0%} by row"
        )
    text += f"; the interval decides {rows['decided']:.0%} of the rows"
    return text + (f", {rows['decided_right']:.0%} of them rightly" if rows["decided"] else "")


GROUPS = {
    "all": "all",
    "kernel": "kernels",
    "e2e": "end to end",
    "other_papers": "papers no constant was fitted on",
    "used_for_calibration": "used for calibration",
}
"""Groups of rows whose figures `summary` gives: the fourth leaves out every paper that calibrated anything."""


def summary(rows: Sequence[Judged]) -> dict[str, Any]:
    """Figures of all rows by kind, calibration rows apart, by paper, and misses by class."""
    judged = [r for r in rows if r.status == "judged"]
    free = [r for r in judged if not r.used_for_calibration]
    fitted_on = {r.paper for r in rows if r.used_for_calibration}
    return {
        "targets": {k: list(v) if isinstance(v, tuple) else v for k, v in TARGETS.items()},
        "counts": {s: sum(r.status == s for r in rows) for s in STATUSES},
        "eligible": sum(r.status in ("judged", "not predicted") for r in rows),
        "eligible_papers": len({r.paper for r in rows if r.status in ("judged", "not predicted")}),
        "all": figures(free),
        "kernel": figures([r for r in free if r.kind == "kernel"]),
        "e2e": figures([r for r in free if r.kind == "e2e"]),
        "other_papers": figures([r for r in free if r.paper not in fitted_on]),
        "used_for_calibration": figures([r for r in judged if r.used_for_calibration]),
        "papers": {
            p: {**figures([r for r in free if r.paper == p]), **_status_counts(rows, p)}
            for p in dict.fromkeys(r.paper for r in rows)
        },
        "misses": {
            c: {"rows": sum(r.miss == c for r in free), "papers": len({r.paper for r in free if r.miss == c})}
            for c in MISSES
        },
        "families": by_family(free),
        "losses_missed": losses_missed(free),
        "wrong": sum(r.wrong is not None for r in judged),
    }


def _status_counts(rows: Sequence[Judged], paper: str) -> dict[str, int]:
    return {s.replace(" ", "_"): sum(r.paper == paper and r.status == s for r in rows) for s in STATUSES}
