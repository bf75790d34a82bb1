"""Predictions beside published figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
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
    published_speedup : float or None
        Over the baseline, where the row has one [-].
    speedup, speedup_lo, speedup_hi : float or None
        The predicted one and its 90 % interval [-].
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
    published_speedup: float | None = None
    speedup: float | None = None
    speedup_lo: float | None = None
    speedup_hi: float | None = None
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
            "published_speedup": self.published_speedup,
            "speedup": self.speedup,
            "speedup_lo": self.speedup_lo,
            "speedup_hi": self.speedup_hi,
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
            Judged(
                c,
                of,
                paper.family,
                "",
                "",
                None,
                "incomplete",
                f"incomplete: {why}",
                used_for_calibration=c in paper.calibrating,
            )
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
    if baseline is not None:
        published = _published_speedup(claim)
        if published is not None:
            names = ("published_speedup", "speedup", "speedup_lo", "speedup_hi")
            speedup = compare(f"{base(claim.metric)}_speedup", value, baseline)
            extra |= zip(names, (published, *speedup), strict=True)
        if claim.metric != base(claim.metric):
            value = compare(claim.metric, value, baseline)
    mid, lo, hi = value
    row = Judged(*label, "judged", "", mid, lo, hi, **extra)
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
