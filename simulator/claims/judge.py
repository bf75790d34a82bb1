"""Predictions beside published figures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from simulator.base.errors import ShadowlineError
from simulator.base.interval import Interval
from simulator.claims.asked import Asked, asked, faster, runs
from simulator.claims.eligibility import why_not
from simulator.claims.metrics import RATES, SIZES, Value, base
from simulator.claims.rows import MISSES, Claim, PaperClaims
from simulator.inference.paired import SPECULATION, changing, differing

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
    changed : str
        Family of the policies that make the difference; empty where they are of several, or more differs than policies.
    share : float
        Of the longer run, what they change [-].
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
    changed: str = ""
    share: float = 0.0

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
    seen: dict[str, Asked] = {}
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


def _judged(claim: Claim, paper: PaperClaims, seen: dict[str, Asked]) -> Judged:
    label = (claim.claim_id, claim.paper, claim.family, claim.kind, claim.metric, claim.value)
    extra: dict[str, Any] = {
        "wrong": paper.wrong.get(claim.claim_id),
        "used_for_calibration": claim.used_for_calibration,
    }
    reason = why_not(claim)
    if reason is not None:
        return Judged(*label, "not eligible", reason, **extra)
    try:
        own = asked(claim.scenario, claim.kind, seen)
        value = own.value(claim.metric)
        beside = None if claim.baseline is None else asked(claim.baseline, claim.kind, seen)
        speedup = None if beside is None else faster(claim.metric, own, beside)
    except ShadowlineError as error:
        return Judged(*label, "not predicted", str(error), **extra)
    if beside is not None and speedup is not None:
        published = _published_speedup(claim)
        if published is not None:
            names = ("published_speedup", "speedup", "speedup_lo", "speedup_hi")
            extra |= zip(names, (published, *speedup), strict=True)
            extra |= _changed(claim.metric, own, beside)
        if claim.metric.endswith("_speedup"):
            value = speedup
        elif claim.metric != base(claim.metric):
            value = speedup if base(claim.metric) in RATES else Interval(*(1.0 / end for end in _turned(speedup)))
    mid, lo, hi = value
    row = Judged(*label, "judged", "", mid, lo, hi, **extra)
    if row.within:
        return row
    miss, why = paper.explained.get(claim.claim_id, (MISSES[-1], "no cause found yet"))
    return replace(row, reason=f"{miss}: {why}", miss=miss)


def _changed(metric: str, own: Asked, beside: Asked) -> dict[str, Any]:
    both = runs(metric, own, beside)
    families = {p.family for p in changing(own.group.policies.members, beside.group.policies.members)}
    families |= {SPECULATION} if own.group.speculation != beside.group.speculation else set()
    if both is None or len(families) != 1:
        return {}
    return {"changed": families.pop(), "share": float(differing(*both))}


def _turned(figure: Value) -> Value:
    return Interval(figure.mid, figure.hi, figure.lo)


def _published_speedup(claim: Claim) -> float | None:
    if base(claim.metric) in SIZES:
        return None
    up = base(claim.metric) in RATES
    if claim.metric.endswith("_speedup"):
        return claim.value
    if claim.metric.endswith("_ratio"):
        return claim.value if up else 1.0 / claim.value
    if claim.baseline_value is None:
        return None
    return claim.value / claim.baseline_value if up else claim.baseline_value / claim.value
