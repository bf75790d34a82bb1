"""Error of a fit from rows it has not seen: one way for every family."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from simulator.device.fits import Residual
from simulator.fitting import judge

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

TAIL = 0.05
"""Share of errors beyond either end of the interval [-]."""
SPARSE_ROWS = 12.0
"""Rows that hold no 5 % tail of their own: their extremes stand for it [-]."""
CLASS_ROWS = 45
"""Rows of a class of predicted times with quantiles of its own [-]."""
MOST_CLASSES = 3
FEWEST = 8
"""Rows below which nothing is told of the error; `UNKNOWN` stands [-]."""
UNKNOWN = Residual(sigma_in=0.25, sigma_cross=0.3, q05=-0.5, q95=0.5)


def out_of_fold(
    groups: NDArray[np.uint64], answer: Callable[[Mask, Mask], Array], start: Array, *, fewest: int = 1, folds: int = 5
) -> Array:
    """Predictions of every row by a fit that has not seen its shape.

    Parameters
    ----------
    groups : ndarray, shape (rows,)
        `judge.shape_group` of the rows.
    answer : callable
        (rows to fit, rows to predict) as masks -> predictions of the latter, shape (..., rows predicted).
    start : ndarray, shape (..., rows)
        What stands where fewer than `fewest` rows are left to fit.
    """
    out = start.copy()
    for train, test in judge.folds(groups, folds):
        if test.any() and train.sum() >= fewest:
            out[..., test] = answer(train, test)
    return out


def residual_of(off: Array, predicted_s: Array, between_source: float, class_rows: int = CLASS_ROWS) -> Residual:
    """Statistics of e = ln(measured/predicted), and their quantiles by class of predicted time where rows allow.

    Parameters
    ----------
    off : ndarray, shape (rows,)
        e of rows that their own fit has not seen [-].
    predicted_s : ndarray, shape (rows,)
        Predictions [s].
    between_source : float
        Standard deviation of the offset between two good sources on one device [-].
    class_rows : int
        Rows of a class at least [-].
    """
    low, high, centre, sigma = UNKNOWN.q05, UNKNOWN.q95, 0.0, UNKNOWN.sigma_in
    if len(off) >= FEWEST:
        centre = float(np.median(off))
        sigma = 1.4826 * float(np.median(np.abs(off - centre)))
        low, high = tails(off)
    count = int(np.clip(len(off) // class_rows, 1, MOST_CLASSES))
    edges = (0.0, *(float(e) for e in np.quantile(predicted_s, np.arange(1, count) / count))) if count > 1 else ()
    classes = []
    for edge, until in zip(edges, (*edges[1:], np.inf), strict=False):
        here = off[(predicted_s >= edge) & (predicted_s < until)]
        # Predictions may tie at an edge, which leaves a class without rows.
        if len(here) >= class_rows // 3:
            classes.append((edge, *tails(here)))
    return Residual(
        sigma_in=sigma,
        sigma_cross=float(np.hypot(sigma, between_source)),
        q05=low,
        q95=high,
        bias=centre,
        between_source=between_source,
        n_eff=float(len(off)),
        classes=tuple(classes) if len(classes) > 1 else (),
    )


def tails(off: Array) -> tuple[float, float]:
    """Quantiles of `off` that leave ``TAIL (1 - (SPARSE_ROWS/n)^3)`` beyond either end [-].

    The 5 % quantile of few rows lies too far in: 20 rows held out covered 76 % of the next ones.
    """
    beyond = TAIL * max(0.0, 1.0 - (SPARSE_ROWS / len(off)) ** 3)
    low, high = np.quantile(off, [beyond, 1.0 - beyond])
    return float(low), float(high)
