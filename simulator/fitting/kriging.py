"""Pooled smoothing of log residuals, written out as small knot tables.

The residual of a group (a device and a kernel library) is the sum of independent smooth parts: one
shared by all, one by groups of the same library, one by groups of the same device, one of its own,

    y_g(x) = f(x) + f_library(x) + f_device(x) + f_g(x) + c_g + noise,

each a Gaussian process with a Matern-3/2 kernel over log2 of the inputs [1]_. Only its mean
at the knots is kept (a `Surface`); no training row is stored.

.. [1] Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, eq. 2.25 and 4.17.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from simulator.device.surface import Surface

Array = NDArray[np.float64]
Codes = NDArray[np.int64]


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


def _matern(a: Array, b: Array, octaves: float) -> Array:
    square = np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2.0 * a @ b.T, 0.0)
    r = np.sqrt(3.0 * square) / octaves
    return (1.0 + r) * np.exp(-r)


@dataclass(frozen=True, eq=False)
class Kriging:
    """Posterior of a pool; `x` is log2 of the inputs, shape (rows, axes)."""

    prior: Prior
    x: Array
    device: Codes
    library: Codes
    alpha: Array

    def mean(self, x: Array, device: int | Codes | None, library: int | Codes | None) -> Array:
        """Posterior mean at `x`; None drops the parts of that kind (never seen)."""
        share = _share(self.prior, device, library, self.device, self.library)
        smooth = _matern(x, self.x, self.prior.octaves)
        total = (smooth * share) @ self.alpha
        if device is not None and library is not None:
            same = _same(device, self.device) & _same(library, self.library)
            total = total + self.prior.offset**2 * (same * np.ones((len(x), 1))) @ self.alpha
        return total


def _same(mine: int | Codes, theirs: Codes) -> NDArray[np.bool_]:
    return np.atleast_1d(mine)[:, None] == theirs[None, :]


def _share(
    prior: Prior, device: int | Codes | None, library: int | Codes | None, to_device: Codes, to_library: Codes
) -> Array:
    """Variance two rows share, by what they have in common."""
    share: Array = np.full((1, len(to_device)), prior.shared**2)
    if library is not None:
        share = share + prior.library**2 * _same(library, to_library)
    if device is not None:
        share = share + prior.device**2 * _same(device, to_device)
        if library is not None:
            share = share + prior.own**2 * (_same(device, to_device) & _same(library, to_library))
    return np.asarray(share)


def krige(x: Array, y: Array, device: Codes, library: Codes, prior: Prior) -> Kriging:
    """Posterior given residuals `y`; outliers are down-weighted (one Huber pass)."""
    from scipy.linalg import cho_factor, cho_solve

    cov = _matern(x, x, prior.octaves) * _share(prior, device, library, device, library)
    cov += prior.offset**2 * (_same(device, device) & _same(library, library))
    weight = np.ones(len(y))
    alpha = np.zeros(len(y))
    for _ in range(2):
        noisy = cov.copy()
        noisy[np.diag_indices_from(noisy)] += prior.noise**2 / weight
        alpha = cho_solve(cho_factor(noisy, lower=True, overwrite_a=True), y)
        off = np.abs(y - cov @ alpha)
        weight = np.minimum(1.0, prior.huber / np.maximum(off, 1e-12))
    return Kriging(prior, x, device, library, alpha)


def knots(values: Array, step: float) -> tuple[float, ...]:
    """Evenly spaced knots over the range of log2 `values`, at most `step` octaves apart."""
    low, high = np.floor(values.min() * 2) / 2, np.ceil(values.max() * 2) / 2
    count = max(2, int(np.ceil((high - low) / step)) + 1)
    return tuple(float(v) for v in np.round(np.linspace(low, max(high, low + 0.5), count), 3))


def to_surface(
    model: Kriging, names: Sequence[str], axes: Sequence[tuple[float, ...]], device: int | None, library: int | None
) -> Surface:
    """Knot table of the posterior mean of one group."""
    grid = np.array(list(product(*axes)))
    values = model.mean(grid, device, library).reshape(tuple(len(a) for a in axes))
    return Surface(tuple(zip(names, axes, strict=True)), np.round(values, 3))
