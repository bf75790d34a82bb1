"""What a policy costs in quality, from the predictors judged in a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from simulator.base.errors import ShadowlineError, UnknownNameError
from simulator.policies import Policies, parse

if TYPE_CHECKING:
    from simulator.inference.group import Group
    from simulator.policies import Policy
    from simulator.trace import Trace

VARIANT = ("method", "criterion", "targets", "budget", "mask")
"""Columns that tell apart two ways of running one policy."""
_NOUN = {"targets": " targets", "budget": " budget", "mask": " mask"}


@dataclass(frozen=True, slots=True)
class Quality:
    """Loss of quality against the dense model.

    Attributes
    ----------
    perplexity_ratio : float
        Perplexity over dense's on held-out text, geometric mean over seeds [-].
    agreement : float
        Share of next tokens that are dense's, mean over seeds [-].
    source : str
        How it was measured; empty where it was not.
    """

    perplexity_ratio: float = float("nan")
    agreement: float = float("nan")
    source: str = ""


NOT_MEASURED = Quality()


@dataclass(frozen=True, slots=True)
class _Point:
    """One measured spelling of a policy: means over its seeds."""

    policy: Policy
    variant: tuple[str, ...]
    sparsity: float
    log_ratio: float
    agreement: float
    context: float
    seeds: int


def quality_of(group: Group) -> Quality:
    """Quality of the group's policies as its trace measured it, never extrapolated or transferred."""
    trace = group.trace
    if trace is None or trace.quality is None:
        return NOT_MEASURED
    if not group.policies.members:
        return Quality(1.0, 1.0, "dense")
    return NOT_MEASURED if group.transferred else quality_at(trace, group.policies)


@lru_cache(maxsize=1024)
def quality_at(trace: Trace, policies: Policies) -> Quality:
    """Quality of `policies` between two measured sparsities of the same policy.

    ln(perplexity ratio) and agreement are linear between them. All parameters must lie on the line between
    two measured neighbours. Of several measured variants (criterion, targets, budget) the one with the
    lowest perplexity answers, and `Quality.source` names it; one mask per token, which is what the step
    pays for, goes before one mask per sequence.
    """
    if len(policies.members) != 1:
        return NOT_MEASURED
    wanted = policies.members[0]
    variants: dict[tuple[str, ...], list[_Point]] = {}
    for point in _points(trace):
        if type(point.policy) is type(wanted):
            variants.setdefault(point.variant, []).append(point)
    answers = [
        (variant[-1] == "sequence", found)
        for variant, points in variants.items()
        if (found := _between(wanted, points)) is not None
    ]
    best = min(answers, key=lambda a: (a[0], a[1].perplexity_ratio), default=None)
    return NOT_MEASURED if best is None else best[1]


@lru_cache(maxsize=16)
def _points(trace: Trace) -> tuple[_Point, ...]:
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
            points.append(point)
    return tuple(sorted(points, key=lambda p: p.sparsity))


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
    return _Point(members[0], variant, sparsity, log_ratio, agreement, context, len(at))


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
            at = f"sparsity {a.sparsity:.3g}"
        else:
            at = f"between sparsity {a.sparsity:.3g} and {b.sparsity:.3g}"
        return Quality(
            float(np.exp(a.log_ratio + t * (b.log_ratio - a.log_ratio))),
            a.agreement + t * (b.agreement - a.agreement),
            f"{', '.join(names)}; {at}; context {a.context:.0f}; seeds: {min(a.seeds, b.seeds)}",
        )
    return None


def _numbers(policy: Policy) -> np.ndarray:
    values = [getattr(policy, k) for k in type(policy).model_fields]
    return np.array([float(v) for v in values if _is_number(v)])


def _words(policy: Policy) -> tuple[object, ...]:
    """Parameters that are no number, and which ones are."""
    values = [getattr(policy, k) for k in type(policy).model_fields]
    return tuple(None if _is_number(v) else (v,) for v in values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def front(speed: Sequence[float], loss: Sequence[float]) -> np.ndarray:
    """Which of n are on the front of speed and quality: none is as fast and as good and better in one; shape (n,)."""
    v, q = np.asarray(speed, float), np.asarray(loss, float)
    as_good = (v[None, :] >= v[:, None]) & (q[None, :] <= q[:, None])
    better = (v[None, :] > v[:, None]) | (q[None, :] < q[:, None])
    return np.count_nonzero(as_good & better, axis=1) == 0
