"""Pooled smoothing of log residuals, kept as small knot tables.

The residual of a group (a device and a kernel library) is the sum of independent smooth parts: one
shared by all, one by groups of the same library, one by groups of the same device, one of its own,

    y_g(x) = f(x) + f_library(x) + f_device(x) + f_g(x) + c_g + noise.

Every part is a table of values at the knots of a lattice, interpolated linearly between them, whose prior
is a Gaussian process with a Matern-3/2 kernel at the knots [1]_. The posterior mean is found part by part,
from the general to the special, until nothing moves (block Gauss-Seidel): the work grows with the rows and
with the knots cubed, not with the rows cubed. No training row is stored.

.. [1] Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, eq. 2.25, 4.17 and 8.14.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.device.surface import Surface

Array = NDArray[np.float64]
Codes = NDArray[np.int64]
Axes = Sequence[tuple[float, ...]]

SWEEPS = 4
"""Rounds over the parts; a further one moves predictions by less than 0.2 % (rms) on the GEMM pools [-]."""
NUGGET = 1e-6
"""Share of a part's variance added to its diagonal, so that close knots can be told apart [-]."""


@dataclass(frozen=True)
class Prior:
    """Standard deviations of the parts [-] and their common length scale [octaves]."""

    shared: float = 0.12
    library: float = 0.10
    device: float = 0.05
    own: float = 0.03
    offset: float = 0.10
    noise: float = 0.03
    octaves: float = 3.0
    huber: float = 0.08


@lru_cache(maxsize=2)
def _precision(axes: tuple[tuple[float, ...], ...], octaves: float) -> Array:
    """Inverse of the prior covariance at the knots, for a part of variance 1."""
    from scipy.linalg import cho_factor, cho_solve

    covariance = _matern(np.array(list(product(*axes))), octaves)
    covariance[np.diag_indices(len(covariance))] += NUGGET
    return np.asarray(cho_solve(cho_factor(covariance, lower=True, overwrite_a=True), np.eye(len(covariance))))


def _matern(a: Array, octaves: float) -> Array:
    square = np.maximum((a**2).sum(1)[:, None] + (a**2).sum(1)[None, :] - 2.0 * a @ a.T, 0.0)
    r = np.sqrt(3.0 * square) / octaves
    return (1.0 + r) * np.exp(-r)


Part = tuple[int | None, int | None]
"""Device and library that a part belongs to; None: to all of them."""


@dataclass(frozen=True, eq=False)
class Kriging:
    """Posterior mean of the parts of a pool at the knots of its lattice.

    Attributes
    ----------
    axes : sequence of tuple of float
        Knots of every axis.
    parts : mapping of (device, library) to ndarray
        Values in the shape of the lattice; the offset of a group is part of its own [-].
    """

    axes: Axes
    parts: Mapping[Part, Array]

    def values(self, device: int | None, library: int | None) -> Array:
        """Log residual at the knots; None drops the parts of that kind (never seen)."""
        keys: list[Part] = [(None, None)]
        keys += [(None, library)] if library is not None else []
        keys += [(device, None)] if device is not None else []
        keys += [(device, library)] if device is not None and library is not None else []
        zero = np.zeros(tuple(map(len, self.axes)))
        return np.asarray(sum((self.parts.get(k, zero) for k in keys), zero))

    def mean(self, x: Array, device: int | None, library: int | None) -> Array:
        """Posterior mean at `x`, shape (rows, axes)."""
        at, weight = _corners(x, self.axes)
        return np.asarray((self.values(device, library).reshape(-1)[at] * weight).sum(1))


def _corners(x: Array, axes: Axes) -> tuple[Codes, Array]:
    """Flat knot indices and weights of the 2^d corners about each row, clamped; shape (rows, corners)."""
    at = np.zeros((len(x), 1), np.int64)
    weight = np.ones((len(x), 1))
    for column, axis in zip(x.T, axes, strict=True):
        places = np.array(axis)
        if len(places) == 1:
            continue
        left = np.clip(np.searchsorted(places, column, side="right") - 1, 0, len(places) - 2)
        share = np.clip((column - places[left]) / (places[left + 1] - places[left]), 0.0, 1.0)
        corners = 2 * at.shape[1]
        at = (at[:, :, None] * len(places) + (left[:, None] + np.arange(2))[:, None, :]).reshape(len(x), corners)
        weight = (weight[:, :, None] * np.stack([1.0 - share, share], 1)[:, None, :]).reshape(len(x), corners)
    return at, weight


@dataclass(frozen=True, eq=False)
class _Part:
    """Rows that a part is seen by, its prior, and the lattice weights of these rows."""

    key: Part
    rows: NDArray[np.bool_]
    sigma: float
    offset: float
    basis: Any


def _parts(basis: Any, device: Codes, library: Codes, prior: Prior) -> list[_Part]:
    """Parts with any variance, general ones first; one that only repeats a more general one is left out."""
    every = np.ones(len(device), bool)
    libraries, devices = np.unique(library).tolist(), np.unique(device).tolist()
    wanted: list[tuple[Part, NDArray[np.bool_], float, float]] = [((None, None), every, prior.shared, 0.0)]
    if len(libraries) > 1:
        wanted += [((None, n), library == n, prior.library, 0.0) for n in libraries]
    if len(devices) > 1:
        wanted += [((n, None), device == n, prior.device, 0.0) for n in devices]
    pairs = sorted(set(zip(device.tolist(), library.tolist(), strict=True)))
    wanted += [((d, n), (device == d) & (library == n), prior.own, prior.offset) for d, n in pairs]
    return [_Part(key, rows, s, c, basis[rows]) for key, rows, s, c in wanted if s or c]


def krige(x: Array, y: Array, device: Codes, library: Codes, prior: Prior, axes: Axes) -> Kriging:
    """Posterior on the lattice `axes` given residuals `y` at `x`; outliers are down-weighted (one Huber pass).

    Parameters
    ----------
    x : ndarray, shape (rows, axes)
        log2 of the inputs.
    y : ndarray, shape (rows,)
        ln(measured/physics) [-].
    device, library : ndarray of int, shape (rows,)
        Groups of each row.
    """
    from scipy.linalg import cho_factor, cho_solve
    from scipy.sparse import csr_matrix

    at, weight = _corners(x, axes)
    shape = tuple(len(a) for a in axes)
    size, corners = int(np.prod(shape)), at.shape[1]
    basis = csr_matrix((weight.reshape(-1), at.reshape(-1), np.arange(len(x) + 1) * corners), shape=(len(x), size))
    inverse = _precision(tuple(axes), prior.octaves)
    parts = _parts(basis, device, library, prior)
    values = {part.key: np.zeros(size) for part in parts}
    trust = np.full(len(x), prior.noise**-2)
    for _ in range(2):
        total = sum((_spread(part, part.basis @ values[part.key]) for part in parts), np.zeros(len(x)))
        factors = []
        for part in parts:
            normal = (part.basis.T @ part.basis.multiply(trust[part.rows][:, None])).toarray()
            factors.append(cho_factor(normal + inverse / max(part.sigma, 1e-3) ** 2, lower=True, overwrite_a=True))
        for _ in range(SWEEPS):
            for part, factor in zip(parts, factors, strict=True):
                seen, scale = part.basis @ values[part.key], trust[part.rows]
                rest = y[part.rows] - total[part.rows] + seen
                # Of a group the constant first: a lattice that knows few rows falls back to it.
                shift = float((scale * rest).sum() / (scale.sum() + part.offset**-2)) if part.offset else 0.0
                values[part.key] = cho_solve(factor, part.basis.T @ (scale * (rest - shift))) + shift
                total[part.rows] += part.basis @ values[part.key] - seen
        trust = np.minimum(1.0, prior.huber / np.maximum(np.abs(y - total), 1e-12)) / prior.noise**2
    return Kriging(axes, {key: found.reshape(shape) for key, found in values.items()})


def _spread(part: _Part, values: Array) -> Array:
    """Values of a part's rows at the places of all rows, zero elsewhere."""
    out = np.zeros(len(part.rows))
    out[part.rows] = values
    return out


def clipped(places: Sequence[float], values: Array) -> tuple[float, ...]:
    """Knots among `places` that span log2 `values`; one knot where these agree within a quarter octave."""
    low, high = float(values.min()), float(values.max())
    if high - low < 0.25:
        return (round((low + high) / 2, 3),)
    first = max((i for i, k in enumerate(places) if k <= low + 0.1), default=0)
    last = min((i for i, k in enumerate(places) if k >= high - 0.1), default=len(places) - 1)
    return tuple(float(k) for k in places[first : last + 1])


THIN_LN = 0.012
"""Root mean square over the rows that a surface may miss its posterior by: knots stay where it bends [-]."""


def to_surface(
    model: Kriging, names: Sequence[str], axes: Axes, device: int | None, library: int | None, x: Array
) -> Surface:
    """Knot table of the posterior mean of one group at those of the knots `axes` that its rows `x` need.

    Parameters
    ----------
    x : ndarray, shape (rows, axes)
        log2 of the inputs of the group's rows.
    """
    shape = tuple(len(a) for a in axes)
    values = model.mean(np.array(list(product(*axes))), device, library).reshape(shape)
    at, weight = _corners(x, axes)
    rows = np.bincount(at.reshape(-1), weight.reshape(-1), int(np.prod(shape))).reshape(shape)
    # A hundredth of a row everywhere: what no row has seen may bend less, not anyhow.
    surface = Surface(tuple(zip(names, axes, strict=True)), np.round(values, 3))
    return surface.thinned(THIN_LN, np.asarray(rows + 0.01, np.float64))
