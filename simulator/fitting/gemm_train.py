"""Training of the GEMM model: coefficients level by level, then the pooled residual.

Levels, from general to special: all devices -> compute capability -> device -> kernel library.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from simulator.device.fits import ANY
from simulator.fitting.gemm_rows import Table
from simulator.fitting.kriging import Kriging, Prior, clipped, krige
from simulator.roofline.gemm import DEFAULTS

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Coef = dict[str, float]

LAUNCH_INCLUSIVE = ("apex_plus", "apex_plus_glassml", "NeuSight", "vidur_opt_scheduler")
"""Sources whose times contain the host's launch: they do not set a device's own launch floor."""

BOUNDS: Mapping[str, tuple[float, float]] = {
    "launch_s": (1e-7, 6e-5),
    "compute": (0.2, 1.3),
    "tile_load": (0.003, 3.0),
    "ramp_s": (5e-8, 2e-5),
    "quant": (0.02, 1.0),
    "split_s": (5e-8, 1e-5),
    "split_io": (0.01, 5.0),
    "memory": (0.3, 1.05),
    "overlap": (0.005, 1.0),
    "act_extra_bytes": (0.05, 60.0),
}
WIDE_DTYPES = ("fp32", "tf32", "bf16", "fp16", "w8a16", "w4a16")
"""Formats without an activation quantisation pass in their times."""
OF_LIBRARY = ("launch_s", "compute", "memory", "act_extra_bytes", "ramp_s")
"""Coefficients a library may have of its own; the others belong to the device."""
SPREAD = 0.35
"""Prior log standard deviation of a coefficient about its parent's."""
SCALE = 0.06
"""Log residual of a typical row; beyond it the loss turns linear."""
SMALLEST_LIBRARY = 25
"""Rows below which a library has no coefficients of its own."""
PRIOR = Prior(noise=0.045)
KNOTS: Mapping[str, tuple[float, ...]] = {
    "m": (0, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13.5, 15, 17),
    "n": (0, 3, 5, 7, 8.5, 10, 11, 12, 13, 14.5, 16, 18),
    "k": (0, 3, 5, 7, 8.5, 10, 11, 12, 13, 14.5, 16, 18),
}
"""Places of the lattice [octaves]: close where layers lie, wide beyond."""


@dataclass(eq=False)
class Model:
    """Everything one training run learns; keys go from general to special."""

    coef: dict[tuple[str, ...], Coef] = field(default_factory=dict)
    pools: dict[tuple[str, str], tuple[Kriging, dict[str, int], dict[str, int]]] = field(default_factory=dict)

    def best(self, *keys: tuple[str, ...]) -> Coef:
        """Coefficients of the first key that was fitted."""
        for key in keys:
            if key in self.coef:
                return self.coef[key]
        return dict(DEFAULTS)


def _descend(table: Table, parent: Coef, start: Coef | None, free: Sequence[str], passes: int) -> Coef:
    """Least squares in log time about `parent`: softL1((ln p/t)/SCALE) + ((ln c/c0)/SPREAD)^2."""
    from scipy.optimize import least_squares

    low = np.log([BOUNDS[c][0] for c in free])
    high = np.log([BOUNDS[c][1] for c in free])
    centre = np.clip(np.log([parent[c] for c in free]), low + 1e-6, high - 1e-6)
    first = np.clip(np.log([(start or parent)[c] for c in free]), low + 1e-6, high - 1e-6)
    target = np.log(table.time_s)

    def residual(log_coef: Array) -> Array:
        coef = dict(parent, **dict(zip(free, np.exp(log_coef), strict=True)))
        off = (np.log(table.time(coef)) - target) / SCALE
        # softL1 by hand: the prior terms must stay quadratic.
        soft = np.sign(off) * np.sqrt(2.0 * (np.sqrt(1.0 + off**2) - 1.0))
        return np.concatenate([soft, (log_coef - centre) / SPREAD])

    found = least_squares(residual, first, bounds=(low, high), max_nfev=passes, diff_step=1e-3, method="trf")
    return dict(parent, **{c: float(v) for c, v in zip(free, np.exp(found.x), strict=True)})


def _thin(mask: Mask, groups: NDArray[np.str_], most: int) -> Mask:
    """`mask` with at most `most` rows of each group, evenly spaced."""
    keep = np.zeros_like(mask)
    for name in np.unique(groups[mask]):
        at = np.flatnonzero(mask & (groups == name))
        keep[at[np.linspace(0, len(at) - 1, min(most, len(at))).astype(int)]] = True
    return keep


def train(table: Table, start: Model | None = None, scopes: Collection[str] | None = None) -> Model:
    """Coefficients of every level and the pooled residuals.

    `start` saves steps in the folds; `scopes` names the capabilities wanted below the top level.
    """
    model = Model()
    passes = 3 if start else 15
    for kind in np.unique(table.klass):
        of_kind = table.klass == kind
        free = tuple(c for c in BOUNDS if c != "act_extra_bytes" or kind not in WIDE_DTYPES)
        special = tuple(c for c in OF_LIBRARY if c in free)
        parent = dict(DEFAULTS, act_extra_bytes=0.0 if kind in WIDE_DTYPES else 3.0)

        def learn(key: tuple[str, ...], mask: Mask, above: Coef, which: tuple[str, ...]) -> Coef:
            begin = start.coef.get(key) if start else None
            model.coef[key] = _descend(table.where(mask), above, begin, which, passes)
            return model.coef[key]

        top = learn((ANY, kind), _thin(of_kind, table.device, 200), parent, free)
        for scope in within(scopes, table.scope[of_kind]):
            in_scope = of_kind & (table.scope == scope)
            above = learn((scope, kind), _thin(in_scope, table.device, 500), top, free)
            for name, mask in libraries_of(table, in_scope):
                learn((scope, kind, name), _thin(mask, table.device, 500), above, special)
            for device in np.unique(table.device[in_scope]):
                on = in_scope & (table.device == device)
                graph = on & ~np.isin(table.source, LAUNCH_INCLUSIVE)
                base = graph if graph.sum() >= 30 else on
                own = learn((device, kind), _thin(base, table.library, 300), above, free)
                for name, mask in libraries_of(table, on):
                    learn((device, kind, name), _thin(mask, table.device, 500), own, special)
            model.pools[scope, kind] = _pool(model, table, in_scope, kind)
    return model


def within(scopes: Collection[str] | None, present: NDArray[np.str_]) -> list[str]:
    """Scopes among the `present` ones that are wanted; None wants all."""
    return [str(s) for s in np.unique(present) if scopes is None or s in scopes]


def libraries_of(table: Table, mask: Mask) -> Iterator[tuple[str, Mask]]:
    """Libraries of the masked rows that have enough of them for a fit of their own."""
    for name in np.unique(table.library[mask]):
        here = mask & (table.library == name)
        if here.sum() >= SMALLEST_LIBRARY:
            yield str(name), here


def _pool(model: Model, table: Table, mask: Mask, kind: str) -> tuple[Kriging, dict[str, int], dict[str, int]]:
    sub = table.where(mask)
    y = np.log(sub.time_s / physics(model, sub, "library"))
    devices = {str(d): i for i, d in enumerate(np.unique(sub.device))}
    libraries = {str(d): i for i, d in enumerate(np.unique(sub.library))}
    codes = [
        np.array([index[str(v)] for v in values]) for index, values in ((devices, sub.device), (libraries, sub.library))
    ]
    axes = [clipped(KNOTS[name], column) for name, column in zip(KNOTS, sub.x.T, strict=True)]
    return krige(sub.x, y, codes[0], codes[1], PRIOR, axes), devices, libraries


def _keys(level: str, scope: str, device: str, kind: str, library: str) -> list[tuple[str, ...]]:
    """Coefficient keys to try, best first, at a level of knowledge about a row."""
    general: list[tuple[str, ...]] = [(scope, kind), (ANY, kind)]
    if level == "library":
        return [(device, kind, library), (device, kind), (scope, kind, library), *general]
    if level == "device":
        return [(device, kind), *general]
    if level == "scope":
        return [(scope, kind, library), *general]
    return [(ANY, kind)]


def _groups(table: Table) -> Iterator[tuple[Mask, str, str, str, str]]:
    """Rows that share scope, device, class and library."""
    label = np.array(["|".join(v) for v in zip(table.scope, table.device, table.klass, table.library, strict=True)])
    for name in np.unique(label):
        scope, device, kind, library = name.split("|")
        yield label == name, scope, device, kind, library


def physics(model: Model, table: Table, level: str) -> Array:
    """Time of the physical model alone at a level of sharing [s]."""
    out = np.empty(len(table))
    for mask, *names in _groups(table):
        scope, device, kind, library = names
        coef = model.best(*_keys(level, scope, device, kind, library))
        out[mask] = table.where(mask).time(coef)
    return out


def estimate(model: Model, table: Table, level: str) -> Array:
    """Physics times the pooled residual [s], knowing the row's `level`."""
    out = physics(model, table, level)
    if level == ANY:
        return out
    for mask, scope, device, kind, library in _groups(table):
        if (scope, kind) not in model.pools:
            continue
        kriging, devices, libraries = model.pools[scope, kind]
        at_device = devices.get(device) if level in ("library", "device") else None
        at_library = libraries.get(library) if level in ("library", "scope") else None
        out[mask] *= np.exp(kriging.mean(table.x[mask], at_device, at_library))
    return out
