"""Fit the GEMM time model (`simulator.roofline.gemm`) on measured rows.

Coefficients are fitted from the general to the special, each level starting at its parent and held
near it by a prior: all devices -> compute capability -> device -> kernel library on the device.
What is left is smoothed by `simulator.fitting.kriging` over devices of one compute capability.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simulator.device import catalogue as devices
from simulator.device.fits import ANY, VENDOR, Fit
from simulator.device.releases import version
from simulator.fitting import judge
from simulator.fitting.gemm_rows import KEYS, Table, klass, library_of, prepare
from simulator.fitting.gemm_train import KNOTS, Model, estimate, libraries_of, train, within
from simulator.fitting.kriging import clipped, to_surface
from simulator.fitting.releases import split
from simulator.fitting.residuals import Mask, out_of_fold, residual_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["INPUTS", "KEYS", "fit", "library_of", "prepare", "without"]

Array = NDArray[np.float64]

FAMILY = "gemm"
INPUTS: tuple[str, ...] = ("batch", "m", "n", "k")
"""A shape is held out on every device and in every dtype at once: siblings share their surface."""

HOST_TIMED = ("apex_plus", "apex_plus_glassml", "NeuSight", "vidur_opt_scheduler", "vidur")
"""Sources timed without a CUDA graph: their floor is not what a kernel inside a graph pays."""
BETWEEN_SOURCE = 0.12
"""Log standard deviation of two good sources about each other; see docs/calibration_gemm.md."""
UNSEEN_DEVICE = 0.15
"""Extra log standard deviation of a pooled fit on a device it has not seen."""
SCOPE_KNOTS: Mapping[str, tuple[float, ...]] = {
    "m": (0, 2, 4, 6, 8, 10, 12, 15, 17),
    "n": (0, 5, 7, 9, 11, 13, 16, 18),
    "k": (0, 5, 7, 9, 11, 13, 16, 18),
}
"""Knots of pooled fits [octaves]: what siblings share, without one device's detail."""


def fit(
    rows: pd.DataFrame, *, date: str | None = None, residuals: bool = True, scopes: Collection[str] | None = None
) -> list[Fit]:
    """Fits of every device, dtype and library in prepared `rows`, and the pooled ones.

    Parameters
    ----------
    rows : DataFrame
        From `prepare`.
    date : str, optional
        Date written into the fits; today by default.
    residuals : bool
        Whether to train five more times for out-of-fold errors; False leaves them at zero.
    scopes : collection of str, optional
        Capabilities (`Device.scope`) to fit; all by default. The fits of one do not depend on the others asked for.

    Returns
    -------
    list of Fit
        `device` is a profile name, or a `Device.scope` or ``any`` for the pooled fits.
    """
    rows = split(rows.reset_index(drop=True), INPUTS, ("dtype",))
    table = Table.of(rows)
    model = train(table, scopes=scopes)
    groups = judge.shape_group(rows, INPUTS)
    named, unnamed = _out_of_fold(table, model, groups, scopes) if residuals else (table.time_s, table.time_s)
    away = _device_out(table, scopes) if residuals else table.time_s
    general = estimate(model, table, ANY) if residuals else table.time_s
    day = date or dt.date.today().isoformat()
    fits: list[Fit] = []
    for kind in np.unique(table.klass):
        of_kind = table.klass == kind
        fits.append(_make(model, table, of_kind, general, day, (ANY, str(kind)), None))
        for where in within(scopes, table.scope[of_kind]):
            here = of_kind & (table.scope == where)
            several = len(np.unique(table.device[here])) > 1
            error = away if several else general
            fits.append(_make(model, table, here, error, day, (where, str(kind)), where))
            for name, mask in libraries_of(table, here):
                if len(np.unique(table.device[mask])) > 1:
                    fits.append(_make(model, table, mask, error, day, (where, str(kind), name), where))
            for device in np.unique(table.device[here]):
                on = here & (table.device == device)
                fits.append(_make(model, table, on, unnamed, day, (str(device), str(kind)), where))
                for name, mask in libraries_of(table, on):
                    fits.append(_make(model, table, mask, named, day, (str(device), str(kind), name), where))
    return [graph_launch(f, fits) for f in fits]


def without(rows: pd.DataFrame) -> Callable[[Mask], list[Fit]]:
    """Function from a mask of left-out rows to the fits of the rest, for the capabilities they are of."""
    scope = Table.of(rows).scope

    def rest(left_out: Mask) -> list[Fit]:
        return fit(rows[~left_out], scopes=frozenset(map(str, scope[left_out])))

    return rest


def graph_launch(fit: Fit, fits: Sequence[Fit]) -> Fit:
    """`fit`, its launch floor graph-timed where host-timed sources took part in a vendor fit.

    The floor becomes the median of the device's graph-timed libraries, else that of its scope.
    """
    if fit.library != VENDOR or not set(fit.sources) & set(HOST_TIMED):
        return fit
    near = [f for f in fits if f.device == fit.device and klass(f.dtype) == klass(fit.dtype)]
    clean = [f for f in near if f.library != VENDOR and not set(f.sources) & set(HOST_TIMED)]
    if not clean:
        scopes = {devices.load(fit.device).scope} if fit.device in devices.list_devices() else ()
        clean = [
            f
            for f in fits
            if f.device in scopes
            and f.library == VENDOR
            and klass(f.dtype) == klass(fit.dtype)
            and not set(f.sources) <= set(HOST_TIMED)
        ]
    if not clean:
        return fit
    launch_s = float(np.median([f.coefficients["launch_s"] for f in clean]))
    return replace(fit, coefficients=dict(fit.coefficients, launch_s=launch_s))


def _make(
    model: Model, table: Table, mask: Mask, predicted_s: Array, date: str, key: tuple[str, ...], scope: str | None
) -> Fit:
    """The `Fit` of one key; `scope` None = physics only."""
    device, kind = key[0], key[1]
    library = key[2] if len(key) > 2 else VENDOR
    sub = table.where(mask)
    surface = None
    if scope is not None:
        kriging, cards, libraries = model.pools[scope, kind]
        places = SCOPE_KNOTS if device == scope else KNOTS
        axes = [clipped(places[name], column) for name, column in zip(KNOTS, sub.x.T, strict=True)]
        surface = to_surface(kriging, tuple(KNOTS), axes, cards.get(device), libraries.get(library), sub.x)
    names, counts = np.unique(sub.dtype, return_counts=True)
    residual = residual_of(np.log(sub.time_s / predicted_s[mask]), predicted_s[mask], BETWEEN_SOURCE)
    return Fit(
        family=FAMILY,
        device=device,
        dtype=str(names[np.argmax(counts)]) if kind not in names else kind,
        library=library,
        coefficients=model.best(key),
        surface=surface,
        n=int(mask.sum()),
        sources=tuple(sorted({str(s) for s in sub.source})),
        date=date,
        residual=residual.widened(UNSEEN_DEVICE) if device in (scope, ANY) else residual,
        releases=tuple(sorted(set(sub.release.tolist()) - {""}, key=version)) if library != VENDOR else (),
    )


def _out_of_fold(
    table: Table, model: Model, groups: NDArray[np.uint64], scopes: Collection[str] | None
) -> tuple[Array, Array]:
    """Every row by a model that never saw its shape, its library named and not named [s]."""

    def answer(learn: Mask, test: Mask) -> Array:
        fold, part = train(table.where(learn), model, scopes), table.where(test)
        return np.stack([estimate(fold, part, "library"), estimate(fold, part, "device")])

    seen = np.stack([estimate(model, table, "library"), estimate(model, table, "device")])
    named, unnamed = out_of_fold(groups, answer, seen)
    return named, unnamed


def _device_out(table: Table, scopes: Collection[str] | None) -> Array:
    """Prediction of every row by siblings of its device; without any, by its own [s]."""
    out = np.full(len(table), np.nan)
    for scope in within(scopes, table.scope):
        here = table.scope == scope
        for device in np.unique(table.device[here]):
            test = here & (table.device == device)
            rest = here & ~test
            model = train(table.where(rest)) if rest.any() else train(table.where(test))
            out[test] = estimate(model, table.where(test), "scope")
    return out
