"""What a policy costs in quality, as it was measured: by the predictors judged in a trace, or by `traces.quality`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import log
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.base.errors import ShadowlineError, UnknownNameError
from simulator.policies import Policies, parse
from simulator.results.published_quality import COST_ONLY

if TYPE_CHECKING:
    from simulator.inference.group import Group
    from simulator.policies import Policy
    from simulator.trace import QualityFile, Trace

VARIANT = ("method", "criterion", "targets", "budget", "mask")
"""Columns that tell apart two ways of running one policy."""
NO_VARIANT = ("",) * len(VARIANT)
_NOUN = {"targets": " targets", "budget": " budget", "mask": " mask"}


@dataclass(frozen=True, slots=True)
class Quality:
    """Measured quality against the dense model.

    Attributes
    ----------
    perplexity_ratio : float
        Perplexity over dense's on held-out text, geometric mean over seeds [-].
    agreement : float
        Share of next tokens that are dense's, mean over seeds [-].
    source : str
        How it was measured; empty where it was not.
    log_error : float
        Standard error of ln(perplexity ratio); 0 where none was measured [nat].
    """

    perplexity_ratio: float = float("nan")
    agreement: float = float("nan")
    source: str = ""
    log_error: float = 0.0


NOT_MEASURED = Quality()
DENSE = Quality(1.0, 1.0, "dense")


@dataclass(frozen=True, slots=True)
class _Point:
    """One measured spelling of a policy: means over its seeds."""

    policy: Policy
    variant: tuple[str, ...]
    at: str
    log_ratio: float
    agreement: float
    told: str
    seeds: int = 1
    log_error: float = 0.0


@dataclass(frozen=True, eq=False)
class Measured:
    """Policies measured on one model; `together` holds those of several members by spelling."""

    points: tuple[_Point, ...]
    together: Mapping[str, Quality]

    @property
    def policies(self) -> tuple[Policies, ...]:
        """Every spelling measured."""
        return tuple(dict.fromkeys((*(Policies((p.policy,)) for p in self.points), *map(parse, self.together))))

    def at(self, policies: Policies) -> Quality:
        """Quality of `policies` between two measured settings of the same policy, never beyond them.

        ln(perplexity ratio) and agreement are linear between them. All parameters must lie on the line between
        two measured neighbours. Of several measured variants (criterion, targets, budget) the one with the
        lowest perplexity answers, and `Quality.source` names it; one mask per token, which is what the step
        pays for, goes before one mask per sequence.
        """
        if len(policies.members) != 1:
            return self.together.get(policies.spelling, NOT_MEASURED)
        wanted = policies.members[0]
        variants: dict[tuple[str, ...], list[_Point]] = {}
        for point in self.points:
            if type(point.policy) is type(wanted):
                variants.setdefault(point.variant, []).append(point)
        answers = [
            (variant[-1] == "sequence", found)
            for variant, points in variants.items()
            if (found := _between(wanted, points)) is not None
        ]
        best = min(answers, key=lambda a: (a[0], a[1].perplexity_ratio), default=None)
        return NOT_MEASURED if best is None else best[1]


def measured_of(group: Group) -> Measured | None:
    """What was measured on the group's model: its file of quality goes before its trace; never transferred."""
    if group.quality is not None:
        return of_file(group.quality)
    trace = group.trace
    return None if trace is None or trace.quality is None or group.transferred else of_trace(trace)


def quality_of(group: Group) -> Quality:
    """Measured quality of the group's policies."""
    found = measured_of(group)
    if found is None:
        return NOT_MEASURED
    return found.at(group.policies) if group.policies.members else DENSE


@lru_cache(maxsize=16)
def of_trace(trace: Trace) -> Measured:
    """Rows of a trace's ``quality.parquet``, seeds together."""
    q = trace.quality or {}
    rows: dict[tuple[str, ...], list[int]] = {}
    for i, policy in enumerate(q.get("policy", ())):
        if policy:
            key = (str(policy), *(str(q[c][i] or "") for c in VARIANT))
            rows.setdefault(key, []).append(i)
    points = []
    for (text, *variant), at in rows.items():
        point = _point(q, text, tuple(variant), at, str(trace.path))
        if point is not None:
            points.append((float(np.mean(q["sparsity"][at])), point))
    return Measured(tuple(point for _, point in sorted(points, key=lambda found: found[0])), {})


@lru_cache(maxsize=16)
def of_file(found: QualityFile) -> Measured:
    """Rows of a file of ``python -m traces.quality``."""
    points: list[_Point] = []
    together: dict[str, Quality] = {}
    for row in found.rows:
        policies = parse(row.policy)
        ratio = row.perplexity / row.dense_perplexity
        told = f"{found.tokens:,} tokens, context {found.context:.0f}, standard error {row.log_ratio_se:.1%}"
        if len(policies.members) == 1:
            one = policies.members[0]
            points.append(_Point(one, NO_VARIANT, one.spelling, log(ratio), row.agreement, told, 1, row.log_ratio_se))
        else:
            together[policies.spelling] = Quality(ratio, row.agreement, told, row.log_ratio_se)
    return Measured(tuple(sorted(points, key=lambda p: tuple(_numbers(p.policy)))), together)


def _point(
    q: Mapping[str, np.ndarray], text: str, variant: tuple[str, ...], at: list[int], where: str
) -> _Point | None:
    try:
        members = parse(text).members
    except UnknownNameError:
        # Reference methods (oracle, random, static) are no policy that could be swept.
        return None
    except ShadowlineError as error:
        raise type(error)(error.message, where=f"{where}/quality.parquet") from None
    log_ratio = float(np.mean(np.log(q["perplexity"][at] / q["dense_perplexity"][at])))
    if len(members) != 1 or not np.isfinite(log_ratio):
        return None
    means = (float(np.mean(q[c][at])) for c in ("sparsity", "agreement", "context"))
    sparsity, agreement, context = means
    told = f"context {context:.0f}; seeds: {len(at)}"
    return _Point(members[0], variant, f"sparsity {sparsity:.3g}", log_ratio, agreement, told, len(at))


def _between(wanted: Policy, points: list[_Point]) -> Quality | None:
    """`wanted` on the line between two neighbours of `points`, or at one of them."""
    same = [p for p in points if _words(p.policy) == _words(wanted)]
    target = _numbers(wanted)
    for a, b in zip(same, same[1:] or same, strict=False):
        low, high = _numbers(a.policy), _numbers(b.policy)
        step = high - low
        widest = int(np.argmax(np.abs(step))) if len(step) else 0
        span = step[widest] if len(step) else 0.0
        t = float((target[widest] - low[widest]) / span) if span else 0.0
        if not -1e-9 <= t <= 1.0 + 1e-9 or not np.allclose(low + t * step, target, atol=1e-9):
            continue
        names = [f"{w}{_NOUN.get(c, '')}" for c, w in zip(VARIANT, a.variant, strict=True) if w]
        if t < 1e-9 or t > 1.0 - 1e-9:
            a = b = a if t < 1e-9 else b
            at = a.at
        else:
            at = f"between {a.at} and {b.at}"
        return Quality(
            float(np.exp(a.log_ratio + t * (b.log_ratio - a.log_ratio))),
            a.agreement + t * (b.agreement - a.agreement),
            "; ".join(filter(None, (", ".join(names), at, min(a, b, key=lambda p: p.seeds).told))),
            max(a.log_error, b.log_error),
        )
    return None


def _numbers(policy: Policy) -> np.ndarray:
    return np.array([float(v) for v in _values(policy) if _is_number(v)])


def _words(policy: Policy) -> tuple[object, ...]:
    """Parameters that are no number, and which ones are."""
    return tuple(None if _is_number(v) else (v,) for v in _values(policy))


def _values(policy: Policy) -> list[Any]:
    """Parameters that change what is computed."""
    return [getattr(policy, k) for k in type(policy).model_fields if k not in COST_ONLY]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
