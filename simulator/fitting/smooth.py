"""Shared fitting of the small families: coefficients, a penalised residual surface, its error.

A family says how its physics is evaluated and which coordinates its surface has (`Recipe`); this
module turns prepared rows into `Fit`s per (device, key, library), and pooled ones per architecture.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from simulator.device.fits import ANY, Fit, Residual
from simulator.device.surface import Surface
from simulator.fitting import judge
from simulator.fitting.releases import releases
from simulator.fitting.residuals import CLASS_ROWS, Mask, out_of_fold, residual_of

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
Coef = dict[str, float]


@dataclass(frozen=True)
class Axis:
    """One coordinate of a residual surface: knot spacing [octaves] and smoothness penalty [-]."""

    name: str
    step: float
    penalty: float


@dataclass(frozen=True)
class Recipe:
    """How one family is fitted.

    Attributes
    ----------
    log_model : callable
        (rows, coefficients, surface) -> ln seconds, before floors.
    coords : callable
        rows -> natural coordinates of the surface by axis name.
    start, spread : mapping
        First guess of the free coefficients (all positive unless in `signed`), and the log standard
        deviation of each about its parent's.
    refit : bool
        Fit the coefficients again in each fold; False refits the surface only (large groups).
    class_rows : int
        Rows of a class of times with error quantiles of its own.
    pool_by : {'arch', 'scope'}
        Devices that share a pooled fit: those of an architecture, or those that run the same kernels.
    passes : int
        Evaluations of the model that a solve makes at most, slopes apart.
    counted : callable, optional
        rows -> what `log_model` takes in their place, faster, with coefficients as columns: a solve asks for all
        slopes at once.
    solve_rows : int, optional
        Rows that the coefficients are found from at most, picked by the hash of their shape; the surface takes all.
    """

    family: str
    inputs: tuple[str, ...]
    log_model: Callable[[Any, Mapping[str, float], Surface | None], Array]
    coords: Callable[[pd.DataFrame], dict[str, Array]]
    axes: tuple[Axis, ...]
    start: Mapping[str, float]
    spread: Mapping[str, float]
    between_source: float
    between_device: float
    signed: tuple[str, ...] = ()
    smallest: int = 8
    ridge: float = 1e-3
    huber: float = 0.1
    refit: bool = True
    class_rows: int = CLASS_ROWS
    pool_by: Literal["arch", "scope"] = "arch"
    passes: int = 40
    counted: Callable[[pd.DataFrame], Any] | None = None
    solve_rows: int | None = None


STEP = 1e-6
"""Step of a slope along the log of a coefficient [-]."""


def solve(recipe: Recipe, rows: pd.DataFrame, parent: Mapping[str, float], passes: int | None = None) -> Coef:
    """Robust least squares in log time, drawn towards `parent`."""
    from scipy.optimize import least_squares

    if recipe.solve_rows is not None and len(rows) > recipe.solve_rows:
        rank = np.argsort(np.argsort(judge.shape_group(rows, recipe.inputs)))
        rows = rows[rank < recipe.solve_rows]
    names = list(recipe.start)
    signed = np.array([n in recipe.signed for n in names])
    raw = np.array([parent[n] for n in names])
    centre = np.where(signed, raw, np.log(np.where(signed, 1.0, raw)))
    spread = np.array([recipe.spread[n] for n in names])
    target = np.log(rows["time_s"].to_numpy(float))

    asked = rows if recipe.counted is None else recipe.counted(rows)

    def coefficients(p: Array) -> dict[str, Any]:
        value = np.where(signed, p, np.exp(np.clip(p, -60.0, 60.0)))
        return dict(zip(names, value.T[..., None] if p.ndim > 1 else map(float, value), strict=True))

    def soft(p: Array) -> Array:
        off = (recipe.log_model(asked, coefficients(p), None) - target) / 0.15
        return np.sign(off) * np.sqrt(2.0 * (np.sqrt(1.0 + off**2) - 1.0))

    def miss(p: Array) -> Array:
        return np.concatenate([soft(p), 0.7 * (p - centre) / spread])

    def slopes(p: Array) -> Array:
        rise = soft(p + STEP * np.eye(len(p))) - soft(p)
        return np.concatenate([rise.T / STEP, np.diag(0.7 / spread)])

    # scipy's stubs take the name of a difference scheme only.
    jac = cast("Any", slopes if recipe.counted is not None else "2-point")
    return coefficients(least_squares(miss, centre, jac=jac, max_nfev=passes or recipe.passes).x)


def knots(values: Array, step: float) -> tuple[float, ...]:
    """Evenly spaced log2 knots over the range of natural `values`; one if they are all equal."""
    u = np.log2(values)
    low, high = np.floor(u.min() / step) * step, np.ceil(u.max() / step) * step
    return tuple(float(k) for k in np.arange(low, high + step / 2, step))


def surface(recipe: Recipe, rows: pd.DataFrame, coef: Mapping[str, float]) -> Surface:
    """Tensor-product linear surface through the log residuals.

    Minimises the (Huber) squared misfit + penalty * squared second differences per axis [1]_.

    .. [1] Eilers and Marx, Flexible smoothing with B-splines and penalties, 1996.
    """
    coords = recipe.coords(rows)
    off = np.log(rows["time_s"].to_numpy(float)) - recipe.log_model(rows, coef, None)
    axes = [knots(coords[a.name], a.step) for a in recipe.axes]
    basis = np.ones((len(rows), 1))
    for axis, at in zip(recipe.axes, axes, strict=True):
        hat = _hat(np.log2(coords[axis.name]), np.array(at))
        basis = (basis[:, :, None] * hat[:, None, :]).reshape(len(rows), -1)
    sizes = [len(a) for a in axes]
    prior = recipe.ridge * np.eye(basis.shape[1])
    for i, axis in enumerate(recipe.axes):
        rough = _roughness(sizes[i])
        before, after = np.eye(int(np.prod(sizes[:i]))), np.eye(int(np.prod(sizes[i + 1 :])))
        prior += axis.penalty * np.kron(np.kron(before, rough), after)
    weight, values = np.ones(len(rows)), np.zeros(basis.shape[1])
    for _ in range(4):
        weighted = basis * weight[:, None]
        values = np.linalg.solve(weighted.T @ basis + prior, weighted.T @ off)
        miss = np.abs(off - basis @ values)
        weight = np.minimum(1.0, recipe.huber / np.maximum(miss, 1e-12))
    named = tuple((a.name, at) for a, at in zip(recipe.axes, axes, strict=True))
    return Surface(named, np.round(values.reshape(sizes), 3).astype(np.float64))


def _hat(u: Array, at: Array) -> Array:
    """Linear B-splines of `at` at `u`, shape (rows, knots), clamped at the ends."""
    if len(at) == 1:
        return np.ones((len(u), 1))
    return np.stack([np.interp(u, at, row) for row in np.eye(len(at))], axis=1)


def _roughness(size: int) -> Array:
    """Gram matrix of second differences (first, where only two knots are left)."""
    order = 2 if size > 2 else 1
    d = np.diff(np.eye(size), n=order, axis=0) if size > 1 else np.zeros((1, 1))
    return d.T @ d


def _out_of_fold(recipe: Recipe, rows: pd.DataFrame, coef: Coef) -> tuple[Array, Array]:
    """ln(measured/predicted) and predicted seconds of five folds by shape group."""

    def answer(train: Mask, test: Mask) -> Array:
        part = rows.loc[train]
        own = solve(recipe, part, coef, 12) if recipe.refit else coef
        return recipe.log_model(rows.loc[test], own, surface(recipe, part, own))

    groups = judge.shape_group(rows, recipe.inputs)
    fewest = max(4, recipe.smallest // 2)
    predicted = out_of_fold(groups, answer, np.full(len(rows), np.nan), fewest=fewest)
    done = np.isfinite(predicted)
    measured = np.log(rows["time_s"].to_numpy(float))
    return (measured - predicted)[done], np.exp(predicted[done])


def fit_family(recipe: Recipe, rows: pd.DataFrame, *, date: str | None = None, residuals: bool = True) -> list[Fit]:
    """Fits of every (device, key, library) of prepared `rows`, then per architecture and of all."""
    from simulator.device import catalogue as devices

    date = date or dt.date.today().isoformat()
    scopes = {d: getattr(devices.load(d), recipe.pool_by) for d in rows["device"].unique()}
    rows = rows.assign(scope=[scopes[d] for d in rows["device"]])
    out: list[Fit] = []

    def make(part: pd.DataFrame, scope: str, coef: Coef, shape: Surface, err: Residual) -> Fit:
        key, library = str(part["key"].iloc[0]), str(part["library"].iloc[0])
        sources = tuple(sorted(part["source"].unique()))
        return Fit(recipe.family, scope, key, library, coef, shape, len(part), sources, date, err, releases(part))

    for _, group in rows.groupby(["key", "library"]):
        if len(group) < recipe.smallest:
            continue
        parent = solve(recipe, group, dict(recipe.start))
        own: list[Fit] = []
        for device, part in group.groupby("device"):
            if len(part) < recipe.smallest:
                continue
            coef = solve(recipe, part, parent)
            shape = surface(recipe, part, coef)
            if residuals:
                off, predicted = _out_of_fold(recipe, part, coef)
            else:
                model = recipe.log_model(part, coef, shape)
                off, predicted = np.log(part["time_s"].to_numpy(float)) - model, np.exp(model)
            err = residual_of(off, predicted, recipe.between_source, recipe.class_rows)
            own.append(make(part, str(device), coef, shape, err))
        out += own
        for scope, part in (*group.groupby("scope"), (ANY, group)):
            if len(part) >= recipe.smallest:
                coef = solve(recipe, part, parent)
                shape = surface(recipe, part, coef)
                off = np.log(part["time_s"].to_numpy(float)) - recipe.log_model(part, coef, shape)
                err = residual_of(off, np.exp(recipe.log_model(part, coef, shape)), 0.0, recipe.class_rows)
                out.append(make(part, str(scope), coef, shape, err.widened(recipe.between_device)))
    return out
