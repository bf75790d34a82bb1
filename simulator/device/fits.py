"""Fitted coefficients: a few physical ones times a compact log-space residual surface, with their own error.

`simulator.device.fit_file` stores them, `simulator.device.measured` finds those of a device, and
`simulator.roofline.lookup` says which one answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.base.arrays import Array
from simulator.device.surface import Surface

DEFAULT = "_default"
ANY = "any"
VENDOR = "vendor"
"""Library of the fit that answers when nobody names one."""
LOCAL = "local"
"""Library of fits made by ``sparse_kernels.calibrate``: they answer for any kernel."""

LAUNCH_SPREAD_S = 2e-6
"""Standard deviation of a kernel's launch floor between sources: timed inside a CUDA graph or from the host [s]."""


class Basis(StrEnum):
    """Where a number comes from, best first; a sum is as good as its worst part."""

    CALIBRATED = "CALIBRATED"
    EXTRAPOLATED = "EXTRAPOLATED"
    DATASHEET = "DATASHEET"

    @property
    def rank(self) -> int:
        """0 for the best basis, 2 for the worst."""
        return _RANKS[self]

    def merge(self, other: Basis) -> Basis:
        """The worse of the two."""
        return self if self is other or self.rank >= other.rank else other

    @classmethod
    def worst(cls, rank: Array) -> Basis:
        """The worst of the ranks of points."""
        return _BY_RANK[int(np.max(rank))]


_BY_RANK = list(Basis)
_RANKS = {basis: rank for rank, basis in enumerate(Basis)}


@dataclass(frozen=True)
class Residual:
    """Out-of-fold error of a fit, as e = ln(measured/predicted).

    Attributes
    ----------
    sigma_in, sigma_cross : float
        Robust standard deviation within the source, and against another source [-].
    q05, q95 : float
        Quantiles of e within the source [-].
    bias : float
        Median of e [-].
    between_source : float
        Standard deviation of the offset between two good sources on one device [-].
    n_eff : float
        Shape groups behind the quantiles [-].
    classes : tuple of (from_s, q05, q95)
        Quantiles by predicted time, ascending in `from_s`; empty = `q05`, `q95` hold throughout.
    """

    sigma_in: float
    sigma_cross: float
    q05: float
    q95: float
    bias: float = 0.0
    between_source: float = 0.0
    n_eff: float = 0.0
    classes: tuple[tuple[float, float, float], ...] = ()

    def quantiles(self, time_s: ArrayLike, *, cross: bool = False) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """5 % and 95 % quantiles of e for predictions of `time_s`.

        `cross` adds the between-source term in quadrature, 1.645 sigma to each side: `between_source`
        and, in a class of short times, `LAUNCH_SPREAD_S` over half the next class's edge.
        """
        t = np.asarray(time_s, float)
        lo, hi = np.full(t.shape, self.q05), np.full(t.shape, self.q95)
        extra = np.full(t.shape, self.between_source)
        edges = [c[0] for c in self.classes[1:]]
        for (from_s, q05, q95), until_s in zip(self.classes, [*edges, np.inf], strict=False):
            here = t >= from_s
            lo, hi = np.where(here, q05, lo), np.where(here, q95, hi)
            floor = LAUNCH_SPREAD_S / (0.5 * until_s)
            extra = np.where(here, np.hypot(self.between_source, floor), extra)
        if cross:
            centre = (lo + hi) / 2
            lo = centre - np.hypot(centre - lo, 1.645 * extra)
            hi = centre + np.hypot(hi - centre, 1.645 * extra)
        return lo, hi

    def widened(self, extra_sigma: float) -> Residual:
        """The same residual with an independent error of `extra_sigma` added."""
        z = 1.645 * extra_sigma
        return replace(
            self,
            sigma_in=float(np.hypot(self.sigma_in, extra_sigma)),
            sigma_cross=float(np.hypot(self.sigma_cross, extra_sigma)),
            q05=-float(np.hypot(self.q05, z)),
            q95=float(np.hypot(self.q95, z)),
            classes=tuple((t, -float(np.hypot(a, z)), float(np.hypot(b, z))) for t, a, b in self.classes),
        )

    def over(self, gain: Residual) -> Residual:
        """The residual of a time divided by a speed-up of residual `gain`, errors independent."""
        low, high = max(gain.q95, 0.0), min(gain.q05, 0.0)

        def apart(q05: float, q95: float) -> tuple[float, float]:
            return -float(np.hypot(min(q05, 0.0), low)), float(np.hypot(max(q95, 0.0), high))

        q05, q95 = apart(self.q05, self.q95)
        return replace(
            self,
            sigma_in=float(np.hypot(self.sigma_in, gain.sigma_in)),
            sigma_cross=float(np.hypot(self.sigma_cross, gain.sigma_cross)),
            q05=q05,
            q95=q95,
            bias=self.bias - gain.bias,
            between_source=float(np.hypot(self.between_source, gain.between_source)),
            classes=tuple((t, *apart(a, b)) for t, a, b in self.classes),
        )


@dataclass(frozen=True, eq=False)
class Fit:
    """One fitted member of a family: coefficients, residual surface and their error.

    `device` is a profile name; in the ``_default`` file a `Device.scope`, an architecture or ``any``. `by_user`: it was
    read from the user's own folder, not shipped. `library` may carry the release from which on it holds, `releases` are
    those that were measured (see `simulator.device.releases`).
    """

    family: str
    device: str
    dtype: str
    library: str
    coefficients: Mapping[str, float]
    surface: Surface | None
    n: int
    sources: tuple[str, ...]
    date: str
    residual: Residual
    releases: tuple[str, ...] = ()
    by_user: bool = field(default=False, kw_only=True)
