"""Shared fitting of the small families: coefficients, a penalised residual surface, its error.

A family says how its physics is evaluated and which coordinates its surface has (`Recipe`); this
module turns prepared rows into `Fit`s per (device, key, library), and pooled ones per architecture.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import InputError
from simulator.device.fits import ANY, Fit, Residual
from simulator.device.surface import Surface
from simulator.fitting import judge

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
Coef = dict[str, float]
CLASS_ROWS = 45
TAILS = (0.045, 0.955)


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
    apart : callable
        library -> label that two libraries must share for one to stand in for the other.
    """

    family: str
    inputs: tuple[str, ...]
    log_model: Callable[[pd.DataFrame, Mapping[str, float], Surface | None], Array]
    coords: Callable[[pd.DataFrame], dict[str, Array]]
    axes: tuple[Axis, ...]
    start: Mapping[str, float]
    spread: Mapping[str, float]
    preferred: tuple[str, ...]
    between_source: float
    between_device: float
    signed: tuple[str, ...] = ()
    smallest: int = 8
    ridge: float = 1e-3
    huber: float = 0.1
    refit: bool = True
    apart: Callable[[str], str] = lambda library: ""


def solve(recipe: Recipe, rows: pd.DataFrame, parent: Mapping[str, float], passes: int = 40) -> Coef:
    """Robust least squares in log time, drawn towards `parent`."""
    from scipy.optimize import least_squares

    names = list(recipe.start)
    signed = np.array([n in recipe.signed for n in names])
    raw = np.array([parent[n] for n in names])
    centre = np.where(signed, raw, np.log(np.where(signed, 1.0, raw)))
    spread = np.array([recipe.spread[n] for n in names])
    target = np.log(rows["time_s"].to_numpy(float))

    def coefficients(p: Array) -> Coef:
        value = np.where(signed, p, np.exp(np.clip(p, -60.0, 60.0)))
        return dict(zip(names, (float(v) for v in value), strict=True))

    def miss(p: Array) -> Array:
        off = (recipe.log_model(rows, coefficients(p), None) - target) / 0.15
        soft = np.sign(off) * np.sqrt(2.0 * (np.sqrt(1.0 + off**2) - 1.0))
        return np.concatenate([soft, 0.7 * (p - centre) / spread])

    return coefficients(least_squares(miss, centre, max_nfev=passes).x)


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


def residual_of(off: Array, predicted_s: Array, between_source: float) -> Residual:
    """Error statistics of out-of-fold log residuals ln(measured/predicted), by class of time."""
    if len(off) < 8:
        return Residual(0.2, 0.3, -0.5, 0.5, between_source=between_source, n_eff=float(len(off)))
    sigma = 1.4826 * float(np.median(np.abs(off - np.median(off))))
    low, high = (float(q) for q in np.quantile(off, TAILS))
    count = int(np.clip(len(off) // CLASS_ROWS, 1, 4))
    edges = (0.0, *(float(e) for e in np.quantile(predicted_s, np.arange(1, count) / count)))
    classes = []
    for edge, until in zip(edges, (*edges[1:], np.inf), strict=True):
        here = off[(predicted_s >= edge) & (predicted_s < until)]
        if len(here) >= 15:
            classes.append((edge, *(float(q) for q in np.quantile(here, TAILS))))
    return Residual(
        sigma_in=sigma,
        sigma_cross=float(np.hypot(sigma, between_source)),
        q05=low,
        q95=high,
        bias=float(np.median(off)),
        between_source=between_source,
        n_eff=float(len(off)),
        classes=tuple(classes) if len(classes) > 1 else (),
    )


def _out_of_fold(recipe: Recipe, rows: pd.DataFrame, coef: Coef) -> tuple[Array, Array]:
    """ln(measured/predicted) and predicted seconds of five folds by shape group."""
    groups = judge.shape_group(rows, recipe.inputs)
    predicted = np.full(len(rows), np.nan)
    for train, test in judge.folds(groups):
        if not test.any() or train.sum() < max(4, recipe.smallest // 2):
            continue
        part = rows.loc[train]
        own = solve(recipe, part, coef, 12) if recipe.refit else coef
        predicted[test] = recipe.log_model(rows.loc[test], own, surface(recipe, part, own))
    done = np.isfinite(predicted)
    measured = np.log(rows["time_s"].to_numpy(float))
    return (measured - predicted)[done], np.exp(predicted[done])


def fit_family(recipe: Recipe, rows: pd.DataFrame, *, date: str | None = None, residuals: bool = True) -> list[Fit]:
    """Fits of every (device, key, library) of prepared `rows`, then per architecture and of all."""
    from simulator.device import catalogue as devices

    date = date or dt.date.today().isoformat()
    scopes = {d: devices.load(d).arch for d in rows["device"].unique()}
    rows = rows.assign(scope=[scopes[d] for d in rows["device"]])
    out: list[Fit] = []

    def make(part: pd.DataFrame, scope: str, coef: Coef, shape: Surface, err: Residual) -> Fit:
        key, library = str(part["key"].iloc[0]), str(part["library"].iloc[0])
        sources = tuple(sorted(part["source"].unique()))
        return Fit(recipe.family, scope, key, library, coef, shape, len(part), sources, date, err)

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
            err = residual_of(off, predicted, recipe.between_source)
            own.append(make(part, str(device), coef, shape, err))
        out += own
        for scope, part in (*group.groupby("scope"), (ANY, group)):
            if len(part) >= recipe.smallest:
                coef = solve(recipe, part, parent)
                shape = surface(recipe, part, coef)
                off = np.log(part["time_s"].to_numpy(float)) - recipe.log_model(part, coef, shape)
                err = residual_of(off, np.exp(recipe.log_model(part, coef, shape)), 0.0)
                out.append(make(part, str(scope), coef, shape, err.widened(recipe.between_device)))
    return out


def choose(recipe: Recipe, fits: Sequence[Fit], device: str, scope: str, key: str, library: str) -> tuple[Fit, bool]:
    """Fit that answers for a row, and whether it stands in for another library or device.

    On the device itself: the library named, else its kin (the same last word), then `preferred`, then
    the largest. Elsewhere the library named counts for more than the architecture.
    """
    apart = recipe.apart(library)
    pool = [f for f in fits if f.dtype == key and recipe.apart(f.library) == apart]
    own = [f for f in pool if f.device == device]
    places = (device,) if own else (scope, ANY)
    for place in places:
        named = [f for f in pool if f.device == place and f.library == library]
        if named:
            return max(named, key=lambda f: f.n), place != device
    rank = {name: i for i, name in enumerate(recipe.preferred)}
    for place in places:
        here = [f for f in pool if f.device == place]
        if here:
            kin = [f for f in here if f.library.split("_")[-1] == library.split("_")[-1]]
            return min(kin or here, key=lambda f: (rank.get(f.library, 99), -f.n)), True
    raise InputError(f"no {recipe.family} fit covers {key} on {device}; fit rows of that kind first")


def predict_family(
    recipe: Recipe,
    rows: pd.DataFrame,
    fits: Iterable[Fit],
    floor: Callable[[pd.DataFrame], Array],
    *,
    cross: bool = False,
) -> tuple[Array, Array, Array]:
    """Predicted seconds of `rows` and their 90 % interval; NaN where nothing covers them."""
    from simulator.device import catalogue as devices

    fits = list(fits)
    mid, lo, hi = (np.full(len(rows), np.nan) for _ in range(3))
    placed = rows.assign(_at=np.arange(len(rows)))
    for names, group in placed.groupby(["device", "key", "library"]):
        device, key, library = cast("tuple[str, str, str]", names)
        scope = devices.load(str(device)).arch
        apart = recipe.apart(str(library))
        if not any(f.dtype == key and recipe.apart(f.library) == apart for f in fits):
            continue
        found, stand_in = choose(recipe, fits, str(device), scope, str(key), str(library))
        at, low = group["_at"].to_numpy(), floor(group)
        model = recipe.log_model(group, found.coefficients, found.surface)
        q05, q95 = found.residual.quantiles(np.exp(model), cross=cross or stand_in)
        mid[at] = np.maximum(np.exp(model), low)
        lo[at], hi[at] = np.exp(model + q05), np.maximum(np.exp(model + q95), low)
    return mid, lo, hi
