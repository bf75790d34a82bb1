"""Time terms of one op, with the interval and the fit behind them."""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from simulator.base.arrays import Array, every, maximum, some, where
from simulator.base.interval import Interval
from simulator.device.fits import Basis, Fit, Residual
from simulator.ops.ops import Op

CARRIED_WIDENING = 1.5
"""Interval beyond what a fit was measured at, in log width, over that of the fit [-]."""


class OpTime(NamedTuple):
    """Seconds of one op, all its repetitions in the step together.

    Attributes
    ----------
    total_s : Array
        Time on the GPU stream [s].
    math_s, memory_s, link_s, launch_s : Array
        What each resource alone would take [s]; they overlap, so they do not add up to `total_s`.
    call_s : Array
        Time of one call, from which its error class is told [s].
    family : str
        Error family: ops of one family err together.
    fitted : Basis
        How good the fit is for the op's kernel, format and device.
    carried : Array of bool
        Where it is beyond what the fit was measured at (a sparse kernel timed by the dense one's, rows far from the
        measured ones): the interval is `CARRIED_WIDENING` times as wide, in log, and holds the spread between sources.
    apart : float
        Further factor between the figure and either end, for what no fit of calls contains [-].
    stands_in : bool
        The fit was made for another kernel or device, so that the spread between sources is added everywhere.
    gain : Residual, optional
        Error of its speed-up over the dense op, where that of its sparse kernel was measured.
    """

    op: Op
    total_s: Array
    math_s: Array
    memory_s: Array
    link_s: Array
    launch_s: Array
    call_s: Array
    family: str
    fitted: Basis
    fit: Fit
    carried: Array = False
    apart: float = 1.0
    stands_in: bool = False
    gain: Residual | None = None

    @property
    def source(self) -> str:
        """The fit behind it: device, family, format and library, and whether the user measured it."""
        own = " (your own)" if self.fit.by_user else ""
        return f"{self.fit.device}/{self.fit.family}/{self.fit.dtype}/{self.fit.library}{own}"

    @property
    def rank(self) -> Array:
        """`Basis.rank` of each point [-]."""
        return maximum(self.fitted.rank, where(self.carried, Basis.EXTRAPOLATED.rank, Basis.CALIBRATED.rank))

    @property
    def basis(self) -> Basis:
        """The worst of its points."""
        return Basis.worst(self.rank)

    @property
    def factors(self) -> tuple[Array, Array]:
        """Ends of the 90 % interval over `total_s` [-]."""
        residual, far = self.fit.residual, self.carried
        low, high = (1.0, 1.0) if every(far) else interval_factors(residual, self.call_s, cross=self.stands_in)
        if some(far):
            lower, higher = interval_factors(residual, self.call_s, CARRIED_WIDENING, cross=True)
            low, high = where(far, lower, low), where(far, higher, high)
        return low / self.apart, high * self.apart

    @property
    def lo_s(self) -> Array:
        """Lower end of the interval of this op alone [s]."""
        return self.total_s * self.factors[0]

    @property
    def hi_s(self) -> Array:
        """Upper end of the interval of this op alone [s]."""
        return self.total_s * self.factors[1]


def gain_of(sparse: OpTime, dense: OpTime, *, cross: bool = False) -> Interval[Array]:
    """Speed-up of a sparse kernel over its dense op with the error of measured speed-ups [-].

    `sparse` has a `gain`; `cross` for another kernel or device than fitted.
    """
    assert sparse.gain is not None
    value = dense.total_s / sparse.total_s
    low, high = sparse.gain.quantiles(np.asarray(value), cross=cross)
    return Interval(value, value * np.exp(low), value * np.exp(high))


def interval_factors(residual: Residual, time_s: Array, widen: float = 1.0, cross: bool = False) -> tuple[Array, Array]:
    """Factors of the 90 % interval on predictions of `time_s` [-]; `cross` for another kernel or device than fitted."""
    edges, low, high = _factor_table(residual, widen, cross)
    if not edges:
        return low[0], high[0]
    if not isinstance(time_s, np.ndarray):
        i = bisect_right(edges, time_s)
        return low[i], high[i]
    first, last = bisect_right(edges, time_s.min()), bisect_right(edges, time_s.max())
    if first == last:
        return low[first], high[first]
    index = np.searchsorted(edges, time_s, side="right")
    return np.take(low, index), np.take(high, index)


@lru_cache(maxsize=4096)
def _factor_table(residual: Residual, widen: float, cross: bool) -> tuple[list[float], list[float], list[float]]:
    """Class edges [s] and the factors from each on."""
    edges = [c[0] for c in residual.classes if c[0] > 0.0]
    lo, hi = residual.quantiles([0.0, *edges], cross=cross)
    return edges, np.exp(lo * widen).tolist(), np.exp(hi * widen).tolist()
