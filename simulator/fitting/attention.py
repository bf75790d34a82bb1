"""Fit the attention time model (`simulator.roofline.attention`) on measured rows.

Coefficients go from the general to the special: all devices of a kernel library -> device; each
level starts at its parent and is held near it by a prior. What is left is smoothed per device,
library and number format into a knot table (`simulator.fitting.kriging`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simulator.device.fits import ANY, Fit
from simulator.device.surface import Surface
from simulator.fitting import judge
from simulator.fitting.attention_rows import INPUTS, Table, prepare
from simulator.fitting.kriging import Prior, clipped, krige, to_surface
from simulator.fitting.releases import releases, split
from simulator.fitting.residuals import Mask, out_of_fold, residual_of
from simulator.roofline.attention import AXES, COEFFICIENTS

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["INPUTS", "fit", "prepare", "without"]

Array = NDArray[np.float64]

FAMILY = "attention"

_COMMON = {
    "kv_eff": 0.85,
    "io_eff": 0.5,
    "tile_s": 1e-6,
    "window_leak": 0.02,
    "l2_gain": 2.0,
    "l2_share": 0.7,
    "dim_low": 0.15,
    "dim_high": 0.1,
    "alone_eff": 0.02,
    "group_max": 1e9,
    "packs_all": 1.0,
}
START: Mapping[str, Mapping[str, float]] = {
    "prefill": _COMMON
    | {"launch_s": 8e-6, "math_eff": 0.62, "token_s": 3e-9, "split_tokens": 1e9, "page_tokens": 1.0, "row_tile": 128.0},
    "decode": _COMMON
    | {
        "launch_s": 7e-6,
        "math_eff": 0.35,
        "token_s": 4e-9,
        "split_tokens": 1024.0,
        "page_tokens": 16.0,
        "row_tile": 16.0,
    },
    "decode-mla": _COMMON
    | {
        "launch_s": 12e-6,
        "math_eff": 0.6,
        "token_s": 4e-9,
        "split_tokens": 1024.0,
        "page_tokens": 16.0,
        "dim_high": 0.01,
        "row_tile": 64.0,
    },
}
PACKING: Mapping[str, Sequence[Mapping[str, float]]] = {
    "trtllm": ({"group_max": 32.0},),
    "vllm-fa2": ({}, {"packs_all": 0.0}),
}
"""Alternatives to the coefficients of query packing that are tried for a library's decode kernel."""
ROW_TILES = {"prefill": (128.0, 64.0), "decode": (16.0, 64.0), "decode-mla": (64.0,)}
BOUNDS: Mapping[str, tuple[float, float]] = {
    "launch_s": (5e-7, 2e-4),
    "math_eff": (0.01, 1.0),
    "kv_eff": (0.05, 1.0),
    "io_eff": (0.03, 8.0),
    "tile_s": (1e-9, 3e-5),
    "token_s": (1e-11, 3e-7),
    "split_tokens": (64.0, 2e9),
    "page_tokens": (0.1, 512.0),
    "window_leak": (1e-3, 1.0),
    "l2_gain": (1.0, 20.0),
    "l2_share": (0.1, 1.2),
    "dim_low": (0.01, 3.0),
    "dim_high": (0.01, 3.0),
    "alone_eff": (1e-3, 1.0),
}
FIXED = ("row_tile", "group_max", "packs_all")
FREE = tuple(c for c in COEFFICIENTS if c not in FIXED)
SPREAD = 0.7
"""Prior log standard deviation of a coefficient about its parent's."""
SCALE = 0.10
"""Log residual of a typical row; beyond it the loss turns linear."""
PRIOR = Prior(shared=0.25, library=0.0, device=0.0, own=0.0, offset=0.0, noise=0.05, octaves=3.0, huber=0.15)
LENGTHS = {"lanes": 4.0, "tokens": 3.5, "group": 2.2, "head_dim": 0.7}
"""Length scale of the residual along each axis [octaves]."""
KNOTS: Mapping[str, tuple[float, ...]] = {
    "lanes": (0, 2, 4, 5.5, 7, 8.5, 10, 12, 14, 17),
    "tokens": (1, 3, 5, 6.5, 8, 9.5, 11, 12.5, 14, 17),
    "group": (0, 1.5, 3, 5, 7),
    "head_dim": (6, 7, 8, 9),
}
COARSE_KNOTS: Mapping[str, tuple[float, ...]] = {
    "lanes": (0, 5, 9, 14),
    "tokens": (1, 6, 10, 15),
    "group": (0, 2.5, 6),
    "head_dim": (6, 7, 8, 9),
}
"""Knots of pooled fits: what siblings share, without one device's detail."""
POOL_ROWS = 700
"""Rows that a pooled surface is smoothed from; the shape hash picks them."""
SOLVE_ROWS = 600
"""Rows that the coefficients are found from, picked likewise: fourteen numbers need no more."""
REFIT_ROWS = 400
"""Rows up to which the coefficients are found again in every fold."""
SMALLEST = 20
SMALLEST_SURFACE = 40
UNSEEN_DEVICE = 0.15
"""Extra log standard deviation of a pooled fit on a device it has not seen."""
BETWEEN_SOURCE = 0.18
"""Log standard deviation between two sources on one device; see docs/calibration_attention.md."""


def _solve(table: Table, parent: Mapping[str, float], start: Mapping[str, float]) -> tuple[dict[str, float], float]:
    """Coefficients near `parent` and the loss they leave."""
    from scipy.optimize import least_squares

    if len(table) > SOLVE_ROWS:
        table = table.where(np.argsort(np.argsort(table.groups)) < SOLVE_ROWS)
    centre = np.log([parent[c] for c in FREE])
    low, high = np.log([BOUNDS[c] for c in FREE]).T
    fixed = {c: start[c] for c in FIXED}

    def coefficients(p: Array) -> dict[str, float]:
        return dict(zip(FREE, np.exp(p).tolist(), strict=True)) | fixed

    def miss(p: Array) -> Array:
        off = (table.log_model(coefficients(p)) - table.log_time) / SCALE
        return np.concatenate([off, (p - centre) / SPREAD])

    first = np.clip(np.log([start[c] for c in FREE]), low + 1e-6, high - 1e-6)
    found = least_squares(miss, first, bounds=(low, high), loss="soft_l1", max_nfev=25, x_scale=1.0)
    return coefficients(found.x), float(found.cost)


def _coefficients(table: Table, parent: Mapping[str, float], library: str) -> dict[str, float]:
    """Best coefficients over the row tiles of the phase and the ways to pack query groups."""
    ways = PACKING.get(library, ({},)) if table.phase == "decode" else ({},)
    tries = [
        _solve(table, parent, dict(parent) | {"row_tile": tile} | dict(way))
        for tile in _row_tiles(table)
        for way in ways
    ]
    return min(tries, key=lambda t: t[1])[0]


def _row_tiles(table: Table) -> tuple[float, ...]:
    """Query rows a kernel may pad to; a CPU's BLAS pads none."""
    return (1.0,) if table.hw.arch.startswith("cpu-") else ROW_TILES[table.phase]


def _surface(
    table: Table, coef: Mapping[str, float], places: Mapping[str, tuple[float, ...]] | None = None
) -> Surface | None:
    """Knot table of what `coef` leaves, or None with too few rows."""
    if len(table) < SMALLEST_SURFACE:
        return None
    x = table.x()
    lengths = np.array([LENGTHS[a] for a in AXES]) / PRIOR.octaves
    zero = np.zeros(len(table), np.int64)
    axes = [clipped((places or KNOTS)[name], column) for name, column in zip(AXES, x.T, strict=True)]
    scaled = [tuple(k / step for k in knots) for knots, step in zip(axes, lengths, strict=True)]
    model = krige(x / lengths, table.log_time - table.log_model(coef), zero, zero, PRIOR, scaled)
    surface = to_surface(model, AXES, scaled, None, None, x / lengths)
    # Of one length scale along every axis to smooth it, in octaves again to store it.
    octaves = [
        (name, tuple(round(k * step, 3) for k in at)) for (name, at), step in zip(surface.axes, lengths, strict=True)
    ]
    return Surface(tuple(octaves), surface.values)


def _out_of_fold(table: Table, parent: Mapping[str, float], coef: Mapping[str, float]) -> tuple[Array, Array]:
    """ln(measured/predicted) and predicted seconds of rows left out in turn."""

    def answer(train: Mask, test: Mask) -> Array:
        part = table.where(train)
        # Fourteen numbers from so many rows are not what a fold changes.
        own = coef if len(part) > REFIT_ROWS else _solve(part, parent, coef)[0]
        return table.where(test).log_model(own, _surface(part, own))

    predicted = out_of_fold(table.groups, answer, np.full(len(table), np.nan), fewest=SMALLEST // 2)
    done = np.isfinite(predicted)
    return (table.log_time - predicted)[done], np.exp(predicted[done])


def fit(
    rows: pd.DataFrame, *, date: str | None = None, residuals: bool = True, scopes: Collection[str] | None = None
) -> list[Fit]:
    """Fits of every device, key and library of prepared `rows`, then the pooled ones.

    `residuals` False skips the out-of-fold pass (learning curves, tests): in-sample error instead. `scopes` names the
    capabilities (`Device.scope`) to fit below the pool of all devices; None = all.
    """
    from simulator.device import catalogue as devices

    date = date or dt.date.today().isoformat()
    of = {d: devices.load(d).scope for d in rows["device"].unique()}
    rows = split(rows, INPUTS, ("key",)).assign(scope=rows["device"].map(of))
    out: list[Fit] = []
    parents: dict[tuple[str, str], dict[str, float]] = {}
    for (key, library), group in rows.groupby(["key", "library"]):
        if len(group) < SMALLEST:
            continue
        table = Table(group)
        coef = _coefficients(table, START[table.phase], str(library))
        parents[str(key), str(library)] = coef
        out.append(_pooled(group, ANY, coef, date))
        for scope, part in group.groupby("scope"):
            if len(part) >= SMALLEST and (scopes is None or scope in scopes):
                inner = Table(part)
                near = _solve(inner, coef, coef)[0]
                out.append(_pooled(part, str(scope), near, date))
    for (device, key, library), group in rows.groupby(["device", "key", "library"]):
        if len(group) < SMALLEST or (scopes is not None and of[device] not in scopes):
            continue
        table = Table(group)
        parent = parents[str(key), str(library)]
        coef = _coefficients(table, parent, str(library))
        surface = _surface(table, coef)
        if residuals:
            off, predicted = _out_of_fold(table, parent, coef)
        else:
            model = table.log_model(coef, surface)
            off, predicted = table.log_time - model, np.exp(model)
        sources = tuple(sorted(group["source"].unique()))
        out.append(
            Fit(
                FAMILY,
                str(device),
                str(key),
                str(library),
                coef,
                surface,
                len(group),
                sources,
                date,
                residual_of(off, predicted, BETWEEN_SOURCE),
                releases(group),
            )
        )
    return out


def without(rows: pd.DataFrame) -> Callable[[Mask], list[Fit]]:
    """Function from a mask of left-out rows to the fits of the rest; fits only what the mask touches."""
    base = fit(rows)
    labels = (rows["key"].astype(str) + "|" + rows["library"].astype(str)).to_numpy(str)

    def rest(left_out: Mask) -> list[Fit]:
        gone = set(labels[left_out].tolist())
        kept = [f for f in base if f"{f.dtype}|{f.library}" not in gone]
        return kept + fit(rows[np.isin(labels, list(gone)) & ~left_out])

    return rest


def _pooled(rows: pd.DataFrame, scope: str, coef: dict[str, float], date: str) -> Fit:
    """A fit over devices: physics and a coarse surface; its interval is widened for an unseen device."""
    order = np.argsort(judge.shape_group(rows, INPUTS))
    table = Table(rows.iloc[order[:POOL_ROWS]])
    surface = _surface(table, coef, COARSE_KNOTS)
    model = table.log_model(coef, surface)
    residual = residual_of(table.log_time - model, np.exp(model), BETWEEN_SOURCE).widened(UNSEEN_DEVICE)
    sources = tuple(sorted(rows["source"].unique()))
    key, library = str(rows["key"].iloc[0]), str(rows["library"].iloc[0])
    return Fit(FAMILY, scope, key, library, coef, surface, len(rows), sources, date, residual, releases(rows))
