"""Families whose op counts what it asks of its device: that stands beside the rows, and a solve works on it alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.device.fits import Fit
from simulator.device.surface import Surface
from simulator.device.types import Device
from simulator.fitting.smooth import Array, Axis, Recipe

if TYPE_CHECKING:
    import pandas as pd

Counted = Callable[["pd.DataFrame"], Any]
"""Rows -> what a time function takes, as arrays of shape (rows,)."""


def beside(
    rows: pd.DataFrame,
    fixed: Sequence[str],
    names: Sequence[str],
    asked: Callable[[pd.DataFrame, Device], tuple[str, Sequence[Any]]],
) -> pd.DataFrame:
    """`rows` with ``key`` and the columns ``_NAME``.

    Parameters
    ----------
    fixed : sequence of str
        Columns that rows of one op share, the device apart.
    names : sequence of str
        Of what is asked.
    asked : callable
        Rows of one op and their device -> key of its fit, and the values of `names`, numbers or shape (rows,).
    """
    from simulator.device.catalogue import load

    values = {name: np.empty(len(rows)) for name in names}
    key = np.empty(len(rows), dtype=object)
    for at in rows.groupby(["device", *fixed], sort=False).indices.values():
        part = rows.iloc[at]
        key[at], demand = asked(part, load(str(part["device"].iloc[0])))
        for name, value in zip(names, demand, strict=True):
            values[name][at] = value
    return rows.assign(key=key, **{f"_{name}": value for name, value in values.items()})


def columns(rows: pd.DataFrame, names: Sequence[str]) -> Array:
    """Columns that `beside` wrote, shape (names, rows)."""
    return rows[[f"_{name}" for name in names]].to_numpy(float).T


def recipe(
    family: str,
    inputs: tuple[str, ...],
    counted: Counted,
    total_s: Callable[[Any, Mapping[str, float], Surface | None], Any],
    start: Mapping[str, float],
    axes: tuple[Axis, ...],
    *,
    smallest: int,
    ridge: float = 0.02,
    passes: int = 20,
) -> Recipe:
    """How such a family is fitted: coefficients of one device drawn towards those of its scope, and one surface.

    Parameters
    ----------
    counted : callable
        Rows -> what `total_s` takes first.
    total_s : callable
        (what is counted, coefficients, surface) -> time [s].
    axes : tuple of Axis
        Of the surface; their names are columns of `beside`.
    """

    def log_model(rows: Any, coef: Mapping[str, float], surface: Surface | None) -> Array:
        asked = counted(rows) if hasattr(rows, "columns") else rows
        return np.log(total_s(asked, coef, surface))

    names = [axis.name for axis in axes]
    return Recipe(
        family=family,
        inputs=inputs,
        log_model=log_model,
        coords=lambda rows: dict(zip(names, columns(rows, names), strict=True)),
        axes=axes,
        start=start,
        spread=dict.fromkeys(start, 1.0),
        between_source=0.2,
        between_device=0.15,
        smallest=smallest,
        ridge=ridge,
        huber=0.15,
        refit=False,
        pool_by="scope",
        passes=passes,
        counted=counted,
    )


def without(fit: Callable[[Any], list[Fit]]) -> Callable[[pd.DataFrame], Callable[[Any], list[Fit]]]:
    """Function from rows to one that takes a mask of left-out rows and fits again only the libraries it touches.

    Parameters
    ----------
    fit : callable
        Fits of rows, each of one key and library alone.
    """

    def of(rows: pd.DataFrame) -> Callable[[Any], list[Fit]]:
        base = fit(rows)
        labels = (rows["key"].astype(str) + "|" + rows["library"].astype(str)).to_numpy(str)

        def rest(left_out: Any) -> list[Fit]:
            gone = set(labels[left_out].tolist())
            kept = [f for f in base if f"{f.dtype}|{f.library}" not in gone]
            again = rows[np.isin(labels, list(gone)) & ~left_out]
            return kept + (fit(again) if len(again) else [])

        return rest

    return of
