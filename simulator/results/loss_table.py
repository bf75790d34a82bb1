"""How many losses of quality are known, and how wrong the ones that were carried over or converted are."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from simulator.base import console
from simulator.base.dtypes import FORMATS
from simulator.inference.lowering import Lowering
from simulator.model.hub import list_models
from simulator.policies import POLICIES, parse
from simulator.results.conversion import conversion, learned
from simulator.results.loss import LossBasis
from simulator.results.loss_curve import by_method, carried_over, settings
from simulator.results.loss_lookup import evidence, evident_points, loss_on
from simulator.results.published_quality import load_pairs, load_series
from simulator.scenario.catalogue import CATALOGUE


@dataclass(frozen=True)
class Counts:
    """Pairs of a bundled model and a registered policy that applies to it.

    Attributes
    ----------
    own : int
        Published for that very model at some setting [-].
    at_default : dict
        Basis of the loss at the policy's defaults to pairs [-].
    carried : int
        Not published for the model, but at some setting for others [-].
    """

    models: int
    policies: int
    pairs: int
    own: int
    at_default: dict[str, int]
    carried: int


def counts() -> Counts:
    """Count over every bundled model and every registered policy beside dense."""
    names = [n for n in POLICIES if n != "dense"]
    default = {n: parse(POLICIES[n]().spelling) for n in names}
    published = {(s.model, s.member.name) for s in load_series()}
    elsewhere = {n for n, series in by_method().items() if any(s.against == "dense" for s in series)}
    pairs = own = carried = 0
    bases: Counter[str] = Counter()
    models = [CATALOGUE.model(m) for m in list_models()]
    for model in models:
        for name in names:
            if Lowering(model, default[name], FORMATS["fp16"], 2.0).why_not() is not None:
                continue
            pairs += 1
            own += (model.name, name) in published
            carried += (model.name, name) not in published and name in elsewhere
            bases[str(loss_on(model, default[name], None).basis)] += 1
    return Counts(len(models), len(names), pairs, own, dict(bases), carried)


@lru_cache(maxsize=1)
def coverage() -> dict[str, tuple[int, int, float]]:
    """Published losses that fall in the band carried over from the other models of the method.

    Returns
    -------
    dict
        Method to rows in the band, rows, and the median half width of the band on the scale of `spread` [-].
    """
    inside: dict[str, list[bool]] = defaultdict(list)
    widths: dict[str, list[float]] = defaultdict(list)
    for name, policy, losses in settings():
        for model, loss in losses.items():
            others = {m: v for m, v in losses.items() if m != model}
            if others:
                band = carried_over(CATALOGUE.model(model), policy, others)
                inside[name].append(band.lo <= loss.points.mid <= band.hi)
                widths[name].append(float(np.arcsinh(band.hi) - np.arcsinh(band.lo)) / 2.0)
    return {name: (sum(found), len(found), float(np.median(widths[name]))) for name, found in inside.items()}


def small_model_covers() -> tuple[int, int]:
    """Published losses that fall in the band of what a small model showed at that setting, and all of them."""
    hits = rows = 0
    for _, policy, losses in settings():
        found = evidence(policy)
        if found is None:
            continue
        for model, loss in losses.items():
            band = evident_points(CATALOGUE.model(model), policy, found[1])
            rows += 1
            hits += band.lo <= loss.points.mid <= band.hi
    return hits, rows


def converted() -> tuple[int, int]:
    """Pairs whose points lie in the interval of a conversion learned without their model, and all pairs."""
    pairs = load_pairs()
    hits = 0
    for model in {p.model for p in pairs}:
        law = learned(tuple(p for p in pairs if p.model != model))
        for pair in (p for p in pairs if p.model == model):
            band = law.interval(pair.log_ratio, CATALOGUE.model(model).n_params)
            hits += band.lo <= pair.points <= band.hi
    return hits, len(pairs)


def show(*, as_json: bool) -> None:
    """Print the counts, the conversion and the coverage."""
    found, bands, law = counts(), coverage(), conversion()
    hits, pairs = converted()
    evident = small_model_covers()
    rows = sum(n for _, n, _ in bands.values())
    known = sum(k for k, _, _ in bands.values())
    methods = float(np.mean([k / n for k, n, _ in bands.values()]))
    if as_json:
        out: dict[str, Any] = {"counts": vars(found), "conversion": vars(law), "conversion_covered": [hits, pairs]}
        out["small_model_covered"] = evident
        console.out_json({**out, "covered": {k: list(v) for k, v in bands.items()}, "rows": [known, rows]})
        return
    console.out(
        f"{found.pairs:,} pairs of {found.models} models and {found.policies} policies apply:"
        f" loss published for {found.own:,} of them, and for other models under {found.carried:,} more (EXTRAPOLATED)"
    )
    told = ", ".join(f"{found.at_default.get(str(b), 0):,} {b}" for b in LossBasis if str(b) in found.at_default)
    console.out(f"at each policy's defaults: {told}")
    console.out(
        f"perplexity to points: {law.rate:.1f} points a nat at 10 billion parameters, as (parameters)^{law.slope:.2f},"
        f" error a factor of {np.exp(1.645 * law.log_error):.1f} (90 %) over {law.models} models;"
        f" {hits} of {pairs} pairs of a model left out lie in its interval"
    )
    console.out(
        f"carried over: {known} of {rows} published losses lie in the band of the other models"
        f" ({known / rows:.0%}; methods alike {methods:.0%})"
    )
    console.out(
        f"measured on a small model: {evident[0]} of {evident[1]} published losses lie in the band of its evidence"
    )
    console.table(
        "A model left out, predicted from the others of its method",
        ["method", "rows", "in the band", "half width"],
        [[name, f"{n}", f"{k}", f"{w:.1f}"] for name, (k, n, w) in sorted(bands.items())],
        note="half width: of asinh(points); 1 is a factor of 2.7 on a large loss, and 1.2 points about none",
    )
