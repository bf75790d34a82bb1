"""Loss of quality of a policy on a model, by the one order in which figures answer.

1. measured on the very model, by its file of quality or its trace;
2. published for it;
3. published for other models at the same setting (EXTRAPOLATED);
4. measured on one small model (``simulator/results/small_model/*.json``): evidence, with the widest band;
5. unknown.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from math import isfinite, log
from typing import TYPE_CHECKING

import numpy as np

from simulator.base.interval import Interval
from simulator.model.spec import ModelSpec
from simulator.policies import Policies, Policy, parse
from simulator.results.conversion import conversion, spread
from simulator.results.loss import Loss, LossBasis
from simulator.results.loss_curve import band, borrowed, changed_by, loss_of
from simulator.results.quality import NOT_MEASURED, Measured, Quality, measured_of, of_file
from simulator.scenario.catalogue import CATALOGUE
from simulator.trace import QualityFile, quality_of_text

if TYPE_CHECKING:
    from simulator.inference.group import Group

FOLDER = "small_model"


def loss_in(group: Group, policies: Policies | None = None) -> Loss:
    """Loss of the group's policies, or of others on its model."""
    return loss_on(group.model, group.policies if policies is None else policies, measured_of(group))


def loss_on(model: ModelSpec, policies: Policies, measured: Measured | None) -> Loss:
    """Loss of `policies` on `model`: what was measured of them, what papers say, else what a small model showed."""
    found = NOT_MEASURED if measured is None else measured.at(policies)
    if isfinite(found.perplexity_ratio):
        points = conversion().interval(log(found.perplexity_ratio), model.n_params, found.log_error)
        return Loss(points, LossBasis.MEASURED, f"{found.perplexity_ratio:.3f}x dense perplexity; {found.source}")
    told = loss_of(model, policies)
    return told if told.known else _evident(model, policies) or told


def loss_named(model: str, policy: str, quality: str = "") -> Loss:
    """Loss of a spelling on a model named, with what a file of ``python -m traces.quality`` measured of it.

    Examples
    --------
    >>> loss_named("llama-3.1-8b", "kivi").short
    '1.56 points'
    """
    spec = CATALOGUE.model(model)
    return loss_on(spec, parse(policy), of_file(CATALOGUE.quality(quality)) if quality else None)


@lru_cache(maxsize=1)
def small_model() -> tuple[QualityFile, ...]:
    """What was measured on a small model, one file per length of context."""
    folder = resources.files("simulator.results") / FOLDER
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".json")), key=lambda f: f.name)
    return tuple(quality_of_text(f.read_bytes(), f"simulator/results/{FOLDER}/{f.name}") for f in files)


def evidence(policy: Policy) -> tuple[QualityFile, Quality] | None:
    """The worst that was measured of `policy` on a small model, between measured settings, and where; else None."""
    found = [(f, of_file(f).at(Policies((policy,)))) for f in small_model()]
    known = [(f, q) for f, q in found if isfinite(q.perplexity_ratio)]
    return max(known, key=lambda fq: fq[1].perplexity_ratio, default=None)


def _evident(model: ModelSpec, policies: Policies) -> Loss | None:
    changing = changed_by(policies)
    found = evidence(changing[0]) if len(changing) == 1 else None
    if found is None:
        return None
    file, quality = found
    points = evident_points(model, changing[0], quality)
    source = f"{file.model} at {file.context:,.0f} tokens: {quality.perplexity_ratio:.3f}x dense perplexity"
    return Loss(points, LossBasis.SMALL_MODEL, source)


def evident_points(model: ModelSpec, policy: Policy, quality: Quality) -> Interval[float]:
    """Points `model` would lose if its perplexity rose as the small one's did, in the band of one model for another."""
    points = conversion().points(log(quality.perplexity_ratio), model.n_params)
    one = np.ones(1)
    return band(one * float(spread(points)), one, 1.0, borrowed(policy.name))
