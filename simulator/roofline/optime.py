"""Time terms of one op, with the interval and the fit behind them."""

from __future__ import annotations

from typing import NamedTuple

from simulator.base.arrays import Array
from simulator.device.fits import Basis, Fit
from simulator.ops.ops import Op


class OpTime(NamedTuple):
    """Seconds of one op, all its repetitions in the step together.

    Attributes
    ----------
    total_s : Array
        Time on the GPU stream [s].
    math_s, memory_s, link_s, launch_s : Array
        What each resource alone would take [s]; they overlap, so they do not add up to `total_s`.
    lo_s, hi_s : Array
        90 % interval of this op alone [s].
    family : str
        Error family: ops of one family err together.
    """

    op: Op
    total_s: Array
    math_s: Array
    memory_s: Array
    link_s: Array
    launch_s: Array
    lo_s: Array
    hi_s: Array
    family: str
    basis: Basis
    fit: Fit

    @property
    def source(self) -> str:
        """The fit behind it: device, family, format and library."""
        return f"{self.fit.device}/{self.fit.family}/{self.fit.dtype}/{self.fit.library}"
