"""The unions that stand for models without a trace: written from one trace, judged on all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from simulator.base.files import toml_value
from simulator.ops.union import PUBLISHED, ROWS, UnionTable, published, union_density
from simulator.ops.union_law import RELU, UNITS, default_law, kind
from simulator.trace.curves import Trace
from simulator.trace.depth import over_layers

MOST_ROWS = 64.0
"""Rows up to which laws are judged; every batch from 2 on [-]."""
LEAST_KEEP = 0.3
"""Least share that methods are run at where a threshold picks the units [-]."""


@dataclass(frozen=True, slots=True)
class DefaultCheck:
    """The default law against one tensor of one trace, over shares kept and rows.

    Attributes
    ----------
    median, worst, worst_kept : float
        Relative error of the mean over layers; the last where `LEAST_KEEP` or more is kept, NaN if never [-].
    layers : float
        Median relative error of single layers [-].
    routers : float
        Median error of what stood for every tensor before: the published routers [-].
    log_error : float
        Least-squares error of ln r(B) per ln B [-].
    """

    source: str
    tensor: str
    law: str
    n: int
    median: float
    worst: float
    worst_kept: float
    layers: float
    routers: float
    log_error: float


def curves(trace: Trace, tensor: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows, and the densities of every layer at every share kept, shape (keeps, layers, rows); None if not measured.

    A threshold of zero keeps the same set at every larger share: the exact non-zeros stand for all of those. A share
    that only some layers have (exact zeros in one of them) is left out.
    """
    levels = trace.keeps(0, tensor, "union_density")
    found = [over_layers(trace, tensor, "union_density", k) for k in (None, *levels)]
    most = max((len(c.layers) for c in found if c is not None), default=0)
    there = sorted((c for c in found if c is not None and len(c.layers) == most), key=lambda c: float(c.mean[0]))
    apart = [c for i, c in enumerate(there) if i == 0 or c.mean[0] - there[i - 1].mean[0] > 1e-6]
    apart = [c for c in apart if 0.0 < c.mean[0] < 1.0]
    return (apart[0].x, np.stack([c.values for c in apart])) if apart else None


def text(base: Trace, others: Sequence[Trace], command: str, kept: Mapping[str, Mapping[str, float]]) -> str:
    """``union.toml``: the mean curves of `base`, and how far the others' lie from them.

    Parameters
    ----------
    kept : mapping of tensor to (mapping of model to log error)
        Of models whose traces are not at hand, as the file had them.
    """
    entries: list[str] = []
    rows: np.ndarray = ROWS
    for tensor in UNITS:
        found = curves(base, tensor) if tensor != RELU else None
        if found is None:
            continue
        rows, by_layer = found
        density = np.round(by_layer.mean(1), 4)
        table = UnionTable(rows, density)
        activation = base.manifest.facts.activation
        apart = dict(kept.get(tensor, {})) | {
            t.manifest.model: round(_spread([errors(table, *mean_of(t, tensor))]), 3)
            for t in others
            if kind(tensor, t.manifest.facts.activation) == kind(tensor, activation) and curves(t, tensor) is not None
        }
        lines = ",\n".join("  [" + ", ".join(f"{d:.4f}" for d in line) + "]" for line in density)
        told = toml_value(dict(sorted(apart.items())))
        entries.append(f'[union."{tensor}"]\napart = {told}\ndensity = [\n{lines},\n]')
    known = [(ROWS, d[None]) for d in PUBLISHED.values()]
    relu = [t for t in others if kind("ffn.down", t.manifest.facts.activation) == RELU]
    known += [mean_of(t, "ffn.down") for t in relu]
    pairs = [errors(UnionTable(x, d), *target) for (x, d), target in permutations(known, 2)]
    entries.append(f"[union.{RELU}]\nlog_error = {_spread(pairs):.3f}")
    head = (
        f"# Union densities by share kept (lines) and rows (columns), means over the layers of {base.manifest.model};\n"
        "# apart, log_error: how far other models and the routers differ, as ln r(B) per ln B. docs/traces.md.\n"
        f'command = "{command}"\nmodel = "{base.manifest.model}"\n'
        f'activation = "{base.manifest.facts.activation}"\nrows = [{", ".join(f"{x:g}" for x in rows)}]'
    )
    return "\n\n".join([head, *entries]) + "\n"


def mean_of(trace: Trace, tensor: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and mean densities over the layers, shape (keeps, rows)."""
    found = curves(trace, tensor)
    assert found is not None
    return found[0], found[1].mean(1)


def errors(table: UnionTable, rows: np.ndarray, density: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log of predicted over measured density at 2 to `MOST_ROWS` rows, and what 1 per ln B would make it."""
    judged = (rows > 1.0) & (rows <= MOST_ROWS)
    x, d = rows[judged], np.minimum(density[..., judged], 1.0 - 1e-9)
    said = union_density(density[..., :1], x.reshape((1,) * (density.ndim - 1) + (-1,)), table)
    return np.log(said / d), (1.0 - d) * -np.log1p(-d) / d * np.log(x)


def _spread(found: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Least-squares error of ln r(B) per ln B [-]."""
    both = [np.concatenate([part.ravel() for part in parts]) for parts in zip(*found, strict=True)]
    return float(np.sqrt(np.sum(both[0] ** 2) / np.sum(both[1] ** 2)))


def judge(trace: Trace) -> Iterator[DefaultCheck]:
    """The default law against every tensor of a trace."""
    activation = trace.manifest.facts.activation
    for tensor in UNITS:
        found = curves(trace, tensor) if tensor != RELU else None
        if found is not None:
            name = kind(tensor, activation)
            table, law = default_law(name, trace.manifest.model, activation)
            yield _check(trace.manifest.model, tensor, law.source, *found, table)


def judge_published() -> Iterator[DefaultCheck]:
    """Each published router by the mean of the others: what a ReLU model without a table gets."""
    for model, density in PUBLISHED.items():
        rest = ", ".join(name for name in PUBLISHED if name != model)
        table = published(without=model)
        yield _check(f"{model} (published)", "ffn.down", f"the routers of {rest}", ROWS, density[None, None], table)


def _check(
    model: str, tensor: str, source: str, rows: np.ndarray, by_layer: np.ndarray, table: UnionTable
) -> DefaultCheck:
    mean, single, before = (
        errors(of, rows, d) for of, d in ((table, by_layer.mean(1)), (table, by_layer), (published(), by_layer.mean(1)))
    )
    error = np.abs(np.expm1(mean[0]))
    kept = error[by_layer.mean(1)[:, 0] >= LEAST_KEEP]
    return DefaultCheck(
        model,
        tensor,
        source,
        error.size,
        float(np.median(error)),
        float(error.max()),
        float(kept.max()) if kept.size else float("nan"),
        float(np.median(np.abs(np.expm1(single[0])))),
        float(np.median(np.abs(np.expm1(before[0])))),
        _spread([mean]),
    )
