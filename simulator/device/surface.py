"""A log residual over named coordinates: a knot table, interpolated multilinearly in log2."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import log2
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.base.arrays import Array, real
from simulator.base.errors import InputError

MAX_LINES = 4096
"""Contractions one surface remembers."""


@dataclass(frozen=True, eq=False)
class Surface:
    """Tensor-product multilinear surface over the log2 of its coordinates.

    Parameters
    ----------
    axes : tuple of (name, knots)
        Coordinate name and its knots in log2, strictly increasing; at least one knot per axis.
    values : ndarray, shape (len(knots_0), len(knots_1), ...)
        ln(measured/physics) at the knots [-].

    Examples
    --------
    >>> s = Surface((("m", (0.0, 10.0)),), np.array([0.0, 1.0]))
    >>> float(s(m=32.0))
    0.5
    """

    axes: tuple[tuple[str, tuple[float, ...]], ...]
    values: NDArray[np.float64]
    _knots: tuple[NDArray[np.float64], ...] = field(init=False, repr=False)
    _tables: dict[str, list[float]] = field(init=False, repr=False)
    _planes: dict[tuple[float, ...], list[Any]] = field(init=False, repr=False, default_factory=dict)
    _lines: dict[tuple[float | None, ...], NDArray[np.float64]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        shape = tuple(len(knots) for _, knots in self.axes)
        if self.values.shape != shape:
            raise InputError(f"surface values have shape {self.values.shape}, its axes say {shape}")
        for name, knots in self.axes:
            if any(b <= a for a, b in pairwise(knots)):
                raise InputError(f"surface axis {name!r}: knots must increase, got {knots}")
        object.__setattr__(self, "_knots", tuple(np.array(k, float) for _, k in self.axes))
        object.__setattr__(self, "_tables", {name: list(map(float, knots)) for name, knots in self.axes})

    @property
    def names(self) -> tuple[str, ...]:
        """Coordinate names, in the order of `values`."""
        return tuple(name for name, _ in self.axes)

    def __call__(self, **coords: Any) -> Array:
        """Log residual at `coords` (natural values, they broadcast), clamped at the ends."""
        if coords.keys() != self._tables.keys():
            raise InputError(f"surface needs coordinates {self.names}, got {tuple(coords)}")
        at = [coords[name] for name in self._tables]
        for x in at:
            if not isinstance(x, float):
                break
        else:
            return self._at_point(at)
        at = [real(x) for x in at]
        if not any(isinstance(x, np.ndarray) for x in at):
            return self._at_point(at)
        # Plain numbers are contracted first and kept: with n and k fixed only a line in m is left.
        fixed = tuple(None if isinstance(x, np.ndarray) else x for x in at)
        values = self._lines.get(fixed)
        if values is None:
            values = self._contracted(fixed)
            if len(self._lines) < MAX_LINES:
                self._lines[fixed] = values
        wide = [(x, knots) for x, knots in zip(at, self._knots, strict=True) if isinstance(x, np.ndarray)]
        if len(wide) == 1:
            x, knots = wide[0]
            return np.interp(np.log2(np.maximum(x, 1e-30)), knots, values)
        shape = np.broadcast_shapes(*(x.shape for x, _ in wide))
        # As many axes each, so that a product grid is recognised as one.
        cells = [_cell(x.reshape((1,) * (len(shape) - x.ndim) + x.shape), knots) for x, knots in wide]
        return np.broadcast_to(_multilinear(values, cells), shape)

    def thinned(self, tolerance: float, weight: NDArray[np.float64] | None = None) -> Surface:
        """The same surface on fewer knots: its values miss these by `tolerance` at most, root mean square [-].

        The knot that its neighbours' line stands in for best goes first; the ends of an axis stay.

        Parameters
        ----------
        weight : ndarray, optional
            What a miss at each knot counts, in the shape of `values`: the rows about it [-]; all alike by default.
        """
        kept = [list(range(len(knots))) for knots in self._knots]

        def miss(trial: list[list[int]]) -> float:
            values = self.values[np.ix_(*trial)]
            for axis, (knots, at) in enumerate(zip(self._knots, trial, strict=True)):
                hat = np.stack([np.interp(knots, knots[at], row) for row in np.eye(len(at))])
                values = np.moveaxis(np.tensordot(values, hat, (axis, 0)), -1, axis)
            return float(np.sqrt(np.average((values - self.values) ** 2, weights=weight)))

        while True:
            trials = [
                [*kept[:axis], [k for k in at if k != gone], *kept[axis + 1 :]]
                for axis, at in enumerate(kept)
                for gone in at[1:-1]
            ]
            best = min(trials, key=miss, default=None)
            if best is None or miss(best) > tolerance:
                break
            kept = best
        axes = zip(self.axes, kept, strict=True)
        return Surface(
            tuple((name, tuple(knots[k] for k in at)) for (name, knots), at in axes), self.values[np.ix_(*kept)]
        )

    def _at_point(self, at: list[float]) -> float:
        """Interpolation of plain numbers; the later half of the axes, a layer's shape, is contracted once and kept."""
        lead = (len(at) + 1) // 2
        rest = tuple(at[lead:])
        plane = self._planes.get(rest)
        if plane is None:
            plane = self._contracted((*(None,) * lead, *rest)).tolist()
            if len(self._planes) < MAX_LINES:
                self._planes[rest] = plane
        knots = list(self._tables.values())
        i, j, w = _place(at[0], knots[0])
        if lead == 1:
            return plane[i] + w * (plane[j] - plane[i])
        k, m, v = _place(at[1], knots[1])
        low = plane[i][k] + v * (plane[i][m] - plane[i][k])
        high = plane[j][k] + v * (plane[j][m] - plane[j][k])
        return low + w * (high - low)

    def _contracted(self, fixed: tuple[float | None, ...]) -> NDArray[np.float64]:
        """Values with the axes of plain numbers interpolated away."""
        values, axis = self.values, 0
        for number, knots in zip(fixed, self._knots, strict=True):
            if number is None:
                axis += 1
                continue
            i, j, w = _place(number, knots.tolist())
            values = np.take(values, i, axis) * (1.0 - w) + np.take(values, j, axis) * w
        return np.asarray(values)

    def inside(self, **coords: ArrayLike) -> NDArray[np.bool_]:
        """Whether every coordinate lies within its knots (half an octave of grace)."""
        ok: NDArray[np.bool_] = np.array(True)
        for name, knots in self.axes:
            x = np.log2(np.maximum(np.asarray(coords[name], float), 1e-30))
            ok = ok & (x >= knots[0] - 0.5) & (x <= knots[-1] + 0.5)
        return ok


def _place(x: float, knots: list[float]) -> tuple[int, int, float]:
    """Left and right knot and the weight of the right one, clamped, of a natural value `x`."""
    u = log2(max(x, 1e-30))
    if u >= knots[-1]:
        return len(knots) - 1, len(knots) - 1, 0.0
    j = bisect_right(knots, u)
    if not j:
        return 0, 0, 0.0
    return j - 1, j, (u - knots[j - 1]) / (knots[j] - knots[j - 1])


def _cell(x: NDArray[np.float64], knots: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Left knot index and weight of the right one, clamped, of natural values `x`."""
    if len(knots) == 1:
        return np.zeros(x.shape, np.int64), np.zeros(x.shape)
    u = np.log2(np.maximum(x, 1e-30))
    i = np.searchsorted(knots[1:-1], u, side="right")
    w = (u - knots[i]) / (knots[i + 1] - knots[i])
    return i.astype(np.int64), np.clip(w, 0.0, 1.0)


def _multilinear(
    values: NDArray[np.float64], cells: Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]]
) -> NDArray[np.float64]:
    """Sum over the 2^d corners of `values` at `cells`, one gather per corner."""
    if not cells:
        return values
    if len(cells) == 1:
        i, w = cells[0]
        low = values[i]
        return low + w * (values[np.minimum(i + 1, len(values) - 1)] - low)
    if len(cells) == 2 and _crossed(cells[0][0].shape, cells[1][0].shape):
        return _outer(values, cells[0], cells[1])
    (i, w), rest = cells[0], cells[1:]
    values = np.ascontiguousarray(values)
    flat = values.reshape(-1)
    strides = [s // values.itemsize for s in values.strides]
    corners = [(i * strides[0], 1.0 - w), (np.minimum(i + 1, values.shape[0] - 1) * strides[0], w)]
    for (j, v), stride, size in zip(rest, strides[1:], values.shape[1:], strict=True):
        nxt = np.minimum(j + 1, size - 1)
        corners = [
            (at + step * stride, weight * part) for at, weight in corners for step, part in ((j, 1.0 - v), (nxt, v))
        ]
    total = flat[corners[0][0]] * corners[0][1]
    for at, weight in corners[1:]:
        total = total + flat[at] * weight
    return total


def _crossed(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether shapes `a` and `b` broadcast to their outer product: no dimension is long in both."""
    return len(a) == len(b) and all(m == 1 or n == 1 for m, n in zip(a, b, strict=True))


def _outer(
    values: NDArray[np.float64],
    a: tuple[NDArray[np.int64], NDArray[np.float64]],
    b: tuple[NDArray[np.int64], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Bilinear interpolation on a product grid, as two small matrix products instead of gathers."""
    (i, _), (j, _) = a, b
    table = _hat(*a, len(values)) @ values @ _hat(*b, values.shape[1]).T
    n = i.ndim
    order = [axis for pair in zip(range(n), range(n, 2 * n), strict=True) for axis in pair]
    shape = np.broadcast_shapes(i.shape, j.shape)
    return table.reshape(i.shape + j.shape).transpose(order).reshape(shape)


def _hat(i: NDArray[np.int64], w: NDArray[np.float64], knots: int) -> NDArray[np.float64]:
    """Interpolation weights as a matrix, shape (points, knots)."""
    out = np.zeros((i.size, knots))
    at, left = np.arange(i.size), i.reshape(-1)
    out[at, left] = 1.0 - w.reshape(-1)
    out[at, np.minimum(left + 1, knots - 1)] += w.reshape(-1)
    return out
