"""Speed-up of sparse kernels over dense: fits by pattern family, and how wrong they are.

A speed-up is the ratio of two modelled times (`simulator.roofline.speedup`); both sides are fitted to measured
times in log space, every coefficient drawn towards its parent's: family, kernel, architecture, scope, device.
DSA rows are pairs of attention modules, answered by the fits of these (`fitting.dsa`), and prompts of whole models
by the prediction of their policy (`fitting.sparse_prompts`).
`simulator.fitting.sparse_judged` says how wrong they are; `write` makes the committed file.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from simulator.base.errors import UnsupportedError
from simulator.device.catalogue import load
from simulator.device.fit_file import dump
from simulator.device.fits import ANY, DEFAULT, Fit, Residual
from simulator.fitting import dsa, judge, smooth, sparse_prompts
from simulator.fitting.residuals import Mask, out_of_fold, residual_of
from simulator.fitting.sparse_ops import op_of, rates, shapes
from simulator.fitting.sparse_rows import INPUTS, TIMES, prepare
from simulator.fitting.sparse_stated import stated
from simulator.ops.dense import dense_of
from simulator.roofline.engine import get_engine
from simulator.roofline.optime import gain_of
from simulator.roofline.speedup import FAMILIES, SURFACE_AXES, Side, most, names, norm4, total_s
from simulator.roofline.timing import time_op

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FAMILY", "INPUTS", "fit", "predict", "prepare"]

FAMILY = "sparse"
Array = np.ndarray
Coef = dict[str, float]
SIDES = ("dense", "sparse")
PLACES = ("arch", "scope", "device")
LEVELS = (("family", 0.5), ("kernel", 2.0), ("arch", 1.0), ("scope", 1.0), ("device", 0.3))
"""Scope of a fit, and log spread of its rates about the wider scope's."""
FIXED = 0.15
"""Log spread of fixed seconds: products of a benchmark take so long that their launches are hardly told [-]."""
STREAM = 0.2
"""Log spread of a streaming coefficient: a bandwidth is known, and rows bound by products do not tell it [-]."""
COUPLED = ("2:4", "NSA")
"""Families whose two sides have the same terms."""
SURFACE = ("Sputnik", "CLASP")
PRODUCTS = tuple(f for f in FAMILIES if f != "NSA")
"""Families of matrix products, whose fits tell the rows (tokens) they were measured at."""
AXES = tuple(smooth.Axis(a, s, 0.3) for a, s in zip(SURFACE_AXES, (1.0, 2.0, 2.0), strict=True))
BETWEEN_SOURCE, BETWEEN_DEVICE, BETWEEN_ARCH = 0.15, 0.20, 0.35
"""Log sigma added to another source's, a sibling's and a stranger's speed-up [-]."""
FOLDS = 4


def sides(family: str, rows: pd.DataFrame) -> tuple[Side, Side]:
    """Terms of the dense and of the sparse time of `rows` of one family."""
    return FAMILIES[family](shapes(rows), rates(rows))


def log_slopes(side: Side, coef: Mapping[str, float], size: int) -> tuple[Array, Array]:
    """Time of `size` rows [s] and its slope d ln t / d ln c, shapes (rows,) and (rows, coefficients)."""
    total: Array = np.zeros(size)
    slopes: list[Array] = []
    for stage in side:
        parts = [[np.full(size, coef[t.name] * t.seconds) for t in resource] for resource in stage]
        sums = [np.sum(part, axis=0) for part in parts]
        time = sums[0] if len(sums) == 1 else norm4(sums)
        total = total + time
        for part, own in zip(parts, sums, strict=True):
            weight = (own / np.maximum(time, 1e-30)) ** 3
            slopes += [weight * p for p in part]
    return total, np.stack(slopes, axis=1) / total[:, None]


def _solve(family: str, side: int, rows: pd.DataFrame, centre: Coef, spread: Array) -> Coef:
    """Robust least squares in log time, drawn towards `centre`."""
    from scipy.optimize import least_squares

    terms = sides(family, rows)[side]
    keys, start = list(centre), np.log(list(centre.values()))
    target = np.log(rows[TIMES[side]].to_numpy(float))

    # Every generation of cards says as much about what is carried to another.
    counts = rows.groupby("scope")["m"].transform("size").to_numpy(float)
    weight = np.sqrt(len(rows) / (rows["scope"].nunique() * counts))

    def evaluate(p: Array) -> tuple[Array, Array]:
        time, slopes = log_slopes(terms, dict(zip(keys, np.exp(p), strict=True)), len(rows))
        off = (np.log(time) - target) / 0.15
        root = np.sqrt(1.0 + off**2)
        soft = np.sign(off) * np.sqrt(2.0 * (root - 1.0))
        bend = np.where(np.abs(off) < 1e-6, 1.0, off / (root * np.where(soft == 0, 1.0, soft)))
        prior = 0.7 * (p - start) / spread
        bend = weight * bend / 0.15
        return np.concatenate([weight * soft, prior]), np.concatenate([bend[:, None] * slopes, np.diag(0.7 / spread)])

    def slopes(p: Array) -> Any:
        return evaluate(p)[1]

    # scipy's stubs take the name of a difference scheme only.
    found = least_squares(lambda p: evaluate(p)[0], start, jac=cast("Any", slopes), method="lm", max_nfev=60)
    return dict(zip(keys, (float(v) for v in np.exp(found.x)), strict=True))


def _chains(
    family: str, rows: pd.DataFrame, side: int, dense: Mapping[tuple[str, ...], Coef] | None = None
) -> dict[tuple[str, ...], Coef]:
    """Coefficients of one side by scope: (), (kernel,), (kernel, arch), ... of `PLACES`.

    With `dense`, a coefficient starts from its dense namesake of the same scope times the parent's ratio:
    what a card does to one side it does to the other.
    """
    column = ("baseline", "library")[side]
    found: dict[tuple[str, ...], Coef] = {}
    start = names(sides(family, rows)[side])
    keys = [column, *PLACES]
    for depth, (_, rate) in enumerate(LEVELS):
        groups = rows.groupby(keys[:depth]) if depth else [((), rows)]
        for names_, part in groups:
            key = tuple(map(str, cast("tuple[object, ...]", names_)))
            parent = found[key[:-1]] if depth else start
            if dense is not None and depth:
                here, above = (_of(dense, part, d) for d in (depth, depth - 1))
                parent = {n: c * here.get(n, 1.0) / above.get(n, 1.0) for n, c in parent.items()}
            spread = np.array([{"launch_s": FIXED, "stream": STREAM}.get(n, rate) for n in parent])
            found[key] = _solve(family, side, part, parent, spread)
    return found


def _of(dense: Mapping[tuple[str, ...], Coef], rows: pd.DataFrame, depth: int) -> Coef:
    """Dense coefficients at `depth` for rows of one scope."""
    return dense[tuple(str(rows[c].iloc[0]) for c in ("baseline", *PLACES)[:depth])]


def fit(rows: pd.DataFrame, *, date: str | None = None, residuals: bool = True) -> list[Fit]:
    """Fits of prepared `rows` per pattern family: each device, architecture, kernel pair, and pooled.

    A fit's library is the sparse kernel. Residuals are out of folds by shape.
    """
    date = date or dt.date.today().isoformat()
    of_modules = rows["family"].isin(dsa.FAMILIES)
    modules = dsa.fit(rows[of_modules], date=date, residuals=residuals) if of_modules.any() else []
    rows = rows[rows["family"].isin(FAMILIES)]
    fits = modules + _fit(rows, date)
    if not residuals or rows.empty:
        return fits
    errors, devices = _residuals(rows, date), set(rows["device"])
    out = []
    for f in fits:
        if f.family != FAMILY:
            out.append(f)
            continue
        error = errors.get((f.dtype, f.library), errors[(f.dtype, ANY)])
        if f.device == ANY:
            error = error.widened(BETWEEN_ARCH)
        elif f.device not in devices:
            error = error.widened(BETWEEN_DEVICE)
        out.append(replace(f, residual=error))
    return out


def _fit(rows: pd.DataFrame, date: str) -> list[Fit]:
    import pandas as pd

    if (rows["family"] == "2:4").any():
        rows = pd.concat([rows, stated()], ignore_index=True)
    out: list[Fit] = []
    plain = residual_of(np.zeros(0), np.zeros(0), BETWEEN_SOURCE)
    for family, group in rows.groupby("family"):
        dense_chain = _chains(str(family), group, 0)
        coupled = dense_chain if family in COUPLED else None
        chain = [dense_chain, _chains(str(family), group, 1, coupled)]

        def make(
            part: pd.DataFrame,
            device: str,
            pair: str,
            keys: list[tuple[str, ...]],
            family: str = str(family),
            chain: list[dict[tuple[str, ...], Coef]] = chain,
        ) -> Fit:
            coef = {f"{SIDES[i]}_{name}": value for i in (0, 1) for name, value in chain[i][keys[i]].items()}
            if family in PRODUCTS:
                coef |= {"from_m": float(part["m"].min()), "to_m": float(part["m"].max())}
            surface = None
            if family in SURFACE and len(part) >= 12 and pair != ANY:
                surface = _surface(family, part, coef)
            sources = tuple(sorted(part["source"].unique()))
            return Fit(FAMILY, device, family, pair, coef, surface, len(part), sources, date, plain)

        out.append(make(group, ANY, ANY, [(), ()]))
        for names_, pair_rows in group.groupby(["baseline", "library"]):
            dense, sparse = (str(n) for n in cast("tuple[object, ...]", names_))
            pair = sparse
            out.append(make(pair_rows, ANY, pair, [(dense,), (sparse,)]))
            for depth in range(1, len(PLACES) + 1):
                for place, part in pair_rows.groupby(list(PLACES[:depth])):
                    at = tuple(str(p) for p in cast("tuple[object, ...]", place))
                    # An architecture of one generation is its own scope.
                    if at[-1] not in at[:-1]:
                        out.append(make(part, at[-1], pair, [(dense, *at), (sparse, *at)]))
    return out


def _recipe(family: str) -> smooth.Recipe:
    def log_speedup(part: pd.DataFrame, coef: Mapping[str, float], _: object) -> Array:
        return np.log(speedup(family, part, coef))

    def coords(part: pd.DataFrame) -> dict[str, Array]:
        return {a.name: part[a.name].to_numpy(float) for a in AXES}

    return smooth.Recipe(FAMILY, INPUTS, log_speedup, coords, AXES, {}, {}, 0.0, 0.0)


def _surface(family: str, rows: pd.DataFrame, coef: Coef) -> smooth.Surface:
    return smooth.surface(_recipe(family), rows.assign(time_s=rows["speedup"]), coef)


def _residuals(rows: pd.DataFrame, date: str) -> dict[tuple[str, str], Residual]:
    """Out-of-fold errors of ln(measured/predicted) per family, and per kernel pair of 30 rows on."""
    judged = unseen(rows, date)
    out: dict[tuple[str, str], Residual] = {}
    for family, part in judged.groupby("family"):
        for pair, own in (*part.groupby("library"), (ANY, part)):
            if len(own) >= 30 or pair == ANY:
                off = np.log(own["speedup"].to_numpy() / own["mid"].to_numpy())
                out[str(family), str(pair)] = residual_of(off, own["mid"].to_numpy(), BETWEEN_SOURCE)
    return out


def unseen(rows: pd.DataFrame, date: str = "") -> pd.DataFrame:
    """Every row predicted by fits that have not seen its shape, column `mid`."""

    def answer(train: Mask, test: Mask) -> Array:
        return predict(rows[test], _fit(rows[train], date))[0]

    groups = judge.shape_group(rows, INPUTS)
    mid = out_of_fold(groups, answer, np.full(len(rows), np.nan), folds=FOLDS)
    return rows.assign(mid=mid)[np.isfinite(mid)]


def speedup(family: str, rows: pd.DataFrame, coef: Mapping[str, float]) -> Array:
    """Modelled dense over sparse time of `rows` without a surface, shape (rows,) [-]."""
    dense, sparse = (total_s(s, coef, p) for s, p in zip(sides(family, rows), ("dense_", "sparse_"), strict=True))
    return np.minimum(dense / sparse, most(family, shapes(rows)))


def predict(rows: pd.DataFrame, fits: list[Fit] | None, *, cross: bool = False) -> tuple[Array, Array, Array]:
    """Speed-up over dense of prepared `rows` and its 90 % interval; NaN where no fit covers them.

    A kernel that an op carries is timed as a prediction times it, beside its dense op.

    Parameters
    ----------
    fits : list of Fit or None
        What devices answer from; None: the committed ones.
    """
    mid, lo, hi = (np.full(len(rows), np.nan) for _ in range(3))
    engine = get_engine("kernels")
    of_modules = rows["family"].isin(dsa.FAMILIES).to_numpy()
    if of_modules.any():
        own = None if fits is None else [f for f in fits if f.family != FAMILY]
        mid[of_modules], lo[of_modules], hi[of_modules] = dsa.speedup(rows[of_modules], own)
    whole = (rows["family"] == sparse_prompts.FAMILY).to_numpy()
    if whole.any():
        mid[whole], lo[whole], hi[whole] = sparse_prompts.speedup(rows[whole])
    of_kernels = None if fits is None else [f for f in fits if f.family == FAMILY]
    for key, at in rows.groupby(["family", "device", "baseline", "library", "dtype"]).indices.items():
        family, name, *_ = (str(part) for part in cast("tuple[object, ...]", key))
        if family not in FAMILIES:
            continue
        device = load(name)
        part = rows.iloc[at]
        op = op_of(part)
        answering = device if of_kernels is None else device.with_fits(FAMILY, of_kernels)
        try:
            t, dense = (time_op(o, answering, engine) for o in (op, dense_of(op)))
        except UnsupportedError:
            continue
        mid[at], lo[at], hi[at] = gain_of(t, dense, cross=cross)
    return mid, lo, hi


def write(rows: pd.DataFrame, out: Path) -> list[Fit]:
    """Fit all `rows` and write ``_default/sparse.toml`` under `out`."""
    fits = fit(rows)
    dump(out / DEFAULT / f"{FAMILY}.toml", [f for f in fits if f.family == FAMILY])
    return fits
