"""Predictions beside published figures, and statistics in which every paper weighs the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simulator.base.errors import ShadowlineError, UnsupportedError
from simulator.base.interval import Interval
from simulator.claims.eligibility import why_not
from simulator.claims.kernel import KernelScenario, kernel_time
from simulator.claims.metrics import RATES, Value, base, compare, e2e_values
from simulator.claims.rows import MISSES, Claim, PaperClaims
from simulator.inference.evaluate import evaluate, rate

WITHIN = 0.2
"""A prediction reproduces a claim within this relative error [-]."""
TARGETS = {"geometric_mean": (0.9, 1.1), "within_20": 0.75, "rank_correlation": 0.9}
STATUSES = ("judged", "not eligible", "not predicted", "incomplete")


@dataclass(frozen=True)
class Judged:
    """One published row with its prediction, or the reason there is none.

    Attributes
    ----------
    status : str
        One of `STATUSES`.
    miss : str or None
        Class of the reason where the prediction is off by more than `WITHIN`.
    speedups : tuple or None
        (published, predicted) speed-up over the baseline, where the row has one [-].
    """

    claim_id: str
    paper: str
    family: str
    kind: str
    metric: str
    published: float | None
    status: str
    reason: str = ""
    predicted: float | None = None
    lo: float | None = None
    hi: float | None = None
    miss: str | None = None
    wrong: str | None = None
    speedups: tuple[float, float] | None = None
    used_for_calibration: bool = False

    @property
    def ratio(self) -> float | None:
        """Predicted over published [-]."""
        return None if self.predicted is None else self.predicted / (self.published or math.nan)

    @property
    def inside(self) -> bool | None:
        """Whether the published figure lies in the prediction's 90 % interval."""
        if self.published is None or self.lo is None or self.hi is None:
            return None
        return self.lo <= self.published <= self.hi

    @property
    def within(self) -> bool | None:
        """Whether the prediction is within `WITHIN` of the published figure."""
        return None if self.ratio is None else abs(self.ratio - 1.0) <= WITHIN

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "id": self.claim_id,
            "paper": self.paper,
            "family": self.family,
            "kind": self.kind,
            "metric": self.metric,
            "published": self.published,
            "predicted": self.predicted,
            "lo": self.lo,
            "hi": self.hi,
            "ratio": self.ratio,
            "inside": self.inside,
            "status": self.status,
            "reason": self.reason,
            "miss": self.miss,
            "wrong": self.wrong,
            "used_for_calibration": self.used_for_calibration,
        }


def judge(papers: Iterable[PaperClaims]) -> list[Judged]:
    """Every row of `papers`, judged or with the reason why not."""
    out: list[Judged] = []
    seen: dict[str, Mapping[str, Value]] = {}
    for paper in papers:
        out += [_judged(claim, paper, seen) for claim in paper.claims]
        out += [
            Judged(c, of, paper.family, "", "", None, "incomplete", f"incomplete: {why}")
            for c, (of, why) in paper.incomplete.items()
        ]
    return out


def _judged(claim: Claim, paper: PaperClaims, seen: dict[str, Mapping[str, Value]]) -> Judged:
    label = (claim.claim_id, claim.paper, claim.family, claim.kind, claim.metric, claim.value)
    extra: dict[str, Any] = {
        "wrong": paper.wrong.get(claim.claim_id),
        "used_for_calibration": claim.used_for_calibration,
    }
    reason = why_not(claim)
    if reason is not None:
        return Judged(*label, "not eligible", reason, **extra)
    try:
        value = _quantity(claim.scenario, claim, seen)
        baseline = None if claim.baseline is None else _quantity(claim.baseline, claim, seen)
    except ShadowlineError as error:
        return Judged(*label, "not predicted", str(error), **extra)
    speedups = None
    if baseline is not None:
        predicted = compare(f"{base(claim.metric)}_speedup", value, baseline).mid
        published = _published_speedup(claim)
        speedups = None if published is None else (published, predicted)
        if claim.metric != base(claim.metric):
            value = compare(claim.metric, value, baseline)
    mid, lo, hi = value
    row = Judged(*label, "judged", "", mid, lo, hi, speedups=speedups, **extra)
    if row.within:
        return row
    miss, why = paper.explained.get(claim.claim_id, (MISSES[-1], "no cause found yet"))
    return replace(row, reason=f"{miss}: {why}", miss=miss)


def _published_speedup(claim: Claim) -> float | None:
    up = base(claim.metric) in RATES
    if claim.metric.endswith("_speedup"):
        return claim.value
    if claim.metric.endswith("_ratio"):
        return claim.value if up else 1.0 / claim.value
    if claim.baseline_value is None:
        return None
    return claim.value / claim.baseline_value if up else claim.baseline_value / claim.value


def _quantity(scenario: dict[str, Any], claim: Claim, seen: dict[str, Mapping[str, Value]]) -> Value:
    """The metric of one scenario; scenarios that several rows share are predicted once."""
    key = repr(sorted(scenario.items()))
    if key not in seen:
        seen[key] = _kernel(scenario) if claim.kind == "kernel" else _whole(scenario)
    name = base(claim.metric)
    if name not in seen[key]:
        raise UnsupportedError(f"{name} needs output_tokens of 2 or more")
    return seen[key][name]


def _kernel(scenario: Mapping[str, Any]) -> dict[str, Value]:
    t = kernel_time(KernelScenario.of(scenario))
    time = Interval(t.time_s, t.lo_s, t.hi_s)
    return {
        "time_s": time,
        "dense_flop_per_s": rate(t.dense_flop, time),
        "kv_read_bytes": Interval.exact(t.kv_read_bytes),
    }


def _whole(scenario: Mapping[str, Any]) -> dict[str, Value]:
    from simulator.inference.group import group_of
    from simulator.inference.status import TIMED
    from simulator.results.prediction import predict
    from simulator.results.rows import load_of
    from simulator.scenario.scenario import Scenario

    s = Scenario.of(**scenario)
    group = group_of(s)
    points = None if group.problem else evaluate(group, *load_of(s))
    # No comparison with dense is asked for, so `predict` need not make one.
    if points is None or points.status.ravel()[0] not in TIMED:
        raise UnsupportedError(predict(s).sentence)
    ttft, tpot = (figure.each(lambda end: float(end[0])) for figure in (points.ttft_s, points.tpot_s))
    return e2e_values(s, group.gpus, ttft, tpot, float(np.ravel(points.footprint.total_bytes)[0]))


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
    fast = [r for r in rows if r.speedups is not None]
    pairs = np.array([r.speedups for r in fast], float).reshape(-1, 2)
    ape = np.abs(ratio - 1.0)
    return {
        "rows": len(rows),
        "papers": len(set(paper)),
        "geometric_mean": float(np.exp(np.sum(w * np.log(ratio)))),
        "within_20": float(np.sum(w * (ape <= WITHIN))),
        "median_ape": float(np.median([np.median(ape[paper == p]) for p in set(paper)])),
        "inside": float(np.sum(w * np.array([bool(r.inside) for r in rows]))),
        "speedups": len(fast),
        "rank_correlation": rank_correlation(
            pairs[:, 0], pairs[:, 1], weights([r.paper for r in fast]) if fast else np.zeros(0)
        ),
    }


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
        "wrong": sum(r.wrong is not None for r in judged),
    }


def _status_counts(rows: Sequence[Judged], paper: str) -> dict[str, int]:
    return {s.replace(" ", "_"): sum(r.paper == paper and r.status == s for r in rows) for s in STATUSES}
