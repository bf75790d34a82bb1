"""Loss of a policy on a model as papers tell it: published for it, or carried over from the models of the method."""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from math import log

import numpy as np

from simulator.base.interval import Interval
from simulator.model.spec import ModelSpec
from simulator.policies import POLICIES, Aspect, Policies, Policy, parse
from simulator.results.conversion import around, conversion, spread, student
from simulator.results.loss import NO_LOSS, UNKNOWN, Loss, LossBasis
from simulator.results.published_quality import Series, load_series, masks
from simulator.scenario.catalogue import CATALOGUE

PLACES = frozenset((Aspect.KV_PLACE, Aspect.KV_ALLOCATION, Aspect.WEIGHT_PLACE))
"""What a policy may rewrite and still compute what dense computes."""
SEEN = frozenset((Aspect.KV_TOKENS, Aspect.KV_READS, Aspect.PREFILL_MASK))
"""Aspects of methods that choose what attention sees, about which tests of long contexts disagree."""
BORROWED = 5.0
"""Weight of other methods' spread between models, in models of the method's own [-]."""
NAMED = 3
"""Models a source names."""


def loss_of(model: ModelSpec, policies: Policies) -> Loss:
    """Loss of quality of `policies` on `model` against dense.

    Of what papers say: published for this very model where it is, the worst measure of several; else a mean of the
    models that were published at this setting, nearer sizes weighing more, with a band of their spread. Beyond the
    settings that were published, and of several policies that change the result, it is unknown.
    """
    changing = changed_by(policies)
    if not changing:
        return NO_LOSS
    if len(changing) > 1:
        return UNKNOWN
    spelling = changing[0].spelling
    return _of_model(model.name, spelling) or _carried(model, spelling)


def changed_by(policies: Policies) -> list[Policy]:
    """Members that compute something else than dense."""
    return [p for p in policies.members if not p.aspects <= PLACES]


def published(model: str, policy: Policy) -> list[tuple[Series, float]]:
    """Series of `model` that cover `policy`, with the quality there; empty where nobody published it."""
    found = [(s, s.quality(policy)) for s in by_method().get(type(policy).name, ()) if s.model == model]
    return [(s, q) for s, q in found if q is not None]


@lru_cache(maxsize=1)
def by_method() -> dict[str, tuple[Series, ...]]:
    """Series of each policy, by its name."""
    found: dict[str, list[Series]] = defaultdict(list)
    for series in load_series():
        found[series.member.name].append(series)
    return {name: tuple(series) for name, series in found.items()}


@lru_cache(maxsize=8192)
def _of_model(model: str, spelling: str) -> Loss | None:
    """The worst published measure: scores go before perplexities, which need a conversion."""
    known = published(model, parse(spelling).members[0])
    if not known:
        return None
    series, quality = max(known, key=lambda sq: (sq[0].unit == "points", sq[0].loss(sq[1])))
    if series.unit == "points":
        points = Interval.exact(series.loss(quality))
    else:
        points = conversion().interval(log(quality / series.dense), CATALOGUE.model(model).n_params)
    return Loss(points, LossBasis.PUBLISHED, series.told(quality), series.source)


def _others(policy: Policy, but: str) -> dict[str, Loss]:
    """Loss of each published model but one at the setting of `policy`; figures that are not against dense left out."""
    models = {s.model for s in by_method().get(type(policy).name, ()) if s.against == "dense"} - {but}
    found = ((m, _of_model(m, policy.spelling)) for m in sorted(models))
    return {m: loss for m, loss in found if loss is not None}


@lru_cache(maxsize=8192)
def _carried(model: ModelSpec, spelling: str) -> Loss:
    """EXTRAPOLATED: a policy on a model that nobody published it for."""
    policy = parse(spelling).members[0]
    stored = masks().get(policy.name, "")
    if stored:
        as_pruned = POLICIES[stored](**policy.model_dump())
        own = _of_model(model.name, as_pruned.spelling)
        if own is not None:
            return Loss(own.points, LossBasis.EXTRAPOLATED, f"{stored} on {model.name}", own.citation)
        policy = as_pruned
    others = _others(policy, model.name)
    if not others:
        return UNKNOWN
    points = carried_over(model, policy, others)
    names = sorted(others, key=lambda m: -_nearness(model, m))
    sizes = [CATALOGUE.model(m).n_params / 1e9 for m in names]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    range_ = f"{min(sizes):.3g}B" if max(sizes) < 1.05 * min(sizes) else f"{min(sizes):.3g}B to {max(sizes):.3g}B"
    families = " and ".join(sorted({CATALOGUE.model(m).architecture for m in names}))
    source = f"{', '.join(names[:NAMED])}{more} ({families}, {range_})"
    if stored:
        source = f"{stored} on {source}"
    return Loss(points, LossBasis.EXTRAPOLATED, source, "; ".join(dict.fromkeys(o.citation for o in others.values())))


def _nearness(model: ModelSpec, other: str) -> float:
    """Weight of another model: its size over this one's, or the inverse [-]."""
    a, b = float(model.n_params), float(CATALOGUE.model(other).n_params)
    return min(a, b) / max(a, b)


def carried_over(
    model: ModelSpec, policy: Policy, others: dict[str, Loss], variance: float | None = None
) -> Interval[float]:
    """Mean of `others` on the scale of `spread`, and the 90 % band a model not among them falls in [points].

    Parameters
    ----------
    variance : float, optional
        Of other methods between models; None takes `borrowed`.
    """
    y = np.array([float(spread(o.points.mid)) for o in others.values()])
    w = np.array([_nearness(model, m) for m in others])
    # The rate of a conversion errs for all models together, which their spread does not show.
    converted = float(w @ np.array([o.points.lo < o.points.hi for o in others.values()], float) / w.sum())
    return band(y, w / w.sum(), converted, borrowed(policy.name) if variance is None else variance)


def band(y: np.ndarray, w: np.ndarray, converted: float, variance: float) -> Interval[float]:
    """Mean of losses `y` on the scale of `spread` with weights `w`, and the 90 % band of one more model [points].

    Parameters
    ----------
    converted : float
        Weight of those among them that were converted from a perplexity [-].
    variance : float
        Of other methods between models, which weighs as `BORROWED` models of the method's own.
    """
    mid = float(w @ y)
    freedom = BORROWED + len(y) - 1.0
    own = (BORROWED * variance + float(((y - mid) ** 2).sum())) / freedom
    law = conversion()
    shared = converted * law.log_error * law.share(float(np.sinh(mid)))
    half = student(freedom) * float(np.sqrt(own * (1.0 + w @ w) + shared**2))
    return around(float(np.sinh(mid)), half)


@lru_cache(maxsize=256)
def borrowed(name: str) -> float:
    """Median over the other methods of its kind of their variance between models, on the scale of `spread` [-]."""
    looks = bool(POLICIES[name].aspects & SEEN)
    others = ((POLICIES[other].aspects, v) for other, v in _variances().items() if other != name)
    return float(np.median([v for aspects, v in others if bool(aspects & SEEN) is looks]))


@lru_cache(maxsize=1)
def _variances() -> dict[str, float]:
    """Variance between models of each method published for two or more, mean over its settings."""
    found: dict[str, list[float]] = defaultdict(list)
    for name, _, losses in settings():
        if len(losses) > 1:
            y = [float(spread(v.points.mid)) for v in losses.values()]
            found[name].append(float(np.var(y, ddof=1)))
    return {name: float(np.mean(v)) for name, v in found.items()}


@lru_cache(maxsize=1)
def settings() -> tuple[tuple[str, Policy, dict[str, Loss]], ...]:
    """Every published setting of every method, with the loss of each model published there."""
    out = []
    for name, series in by_method().items():
        published_ = {p.spelling: p for s in series if s.against == "dense" for p in s.published}
        out += [(name, policy, _others(policy, "")) for policy in published_.values()]
    return tuple(out)
