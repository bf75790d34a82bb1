"""Time of a streaming kernel (norm, activation, add, softmax, rope): bytes, and a launch."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import inf, log
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.base.arrays import Array, exp, maximum, minimum, real
from simulator.base.errors import UnknownNameError
from simulator.roofline.bandwidth import resident_bytes_per_s

if TYPE_CHECKING:
    from simulator.device.surface import Surface
    from simulator.roofline.hardware import Hardware

KINDS = ("norm", "activation", "add", "softmax", "rope", "unary", "binary", "copy")

DEFAULT: Mapping[str, float] = {"t0_s": 2.0e-6, "bw_share": 0.85}
"""Coefficients of a kernel that streams its operands once, used where nothing was fitted."""


@dataclass(frozen=True)
class ElementwiseTime:
    """Terms of a streaming kernel [s]; they broadcast against each other."""

    total_s: Array
    memory_s: Array
    launch_s: Array


def elementwise_floor(read_bytes: Any, write_bytes: Any, *, hw: Hardware) -> Array:
    """Least time of the bytes [s] beyond what L2 may hold from the kernel before."""
    moved = real(read_bytes) + real(write_bytes)
    return maximum(moved - hw.l2_bytes, 0.0) / hw.hbm_bytes_per_s


def elementwise_time(
    read_bytes: Any,
    write_bytes: Any,
    *,
    kind: str,
    hw: Hardware,
    coef: Mapping[str, float],
    surface: Surface | None = None,
) -> ElementwiseTime:
    """Time of one streaming kernel.

    t = (t0 + passes*(read + write)/(share*hbm)) * exp(surface), never below the bytes beyond L2 at
    full rate, and never less for more bytes. Number formats do not enter: bytes decide.

    Parameters
    ----------
    read_bytes, write_bytes : array_like
        Compulsory bytes of one pass [B].
    kind : str
        One of `KINDS`; `coef` may hold `passes_<kind>`, the traffic of that kernel over one pass,
        and `start_<kind>`, its start-up over `t0_s` (a norm waits for its row sums).
    hw : Hardware
        `hbm_bytes_per_s` [B/s] and `l2_bytes` [B].
    coef : mapping
        `t0_s` [s], `bw_share` [-], optional `passes_<kind>`, `start_<kind>` [-].
    surface : Surface, optional
        Log residual over axis `bytes`.
    """
    if kind not in KINDS:
        raise UnknownNameError("elementwise kind", kind, KINDS)
    moved = real(read_bytes) + real(write_bytes)
    rate = coef["bw_share"] * resident_bytes_per_s(moved, hw)
    memory = moved * (coef.get(f"passes_{kind}", 1.0) / rate)
    launch: Array = coef["t0_s"] * coef.get(f"start_{kind}", 1.0)
    if surface is not None:
        factor = exp(surface(bytes=moved))
        if hw.cached is None and isinstance(rate, float):
            bounds = _bounds(surface, launch, coef.get(f"passes_{kind}", 1.0) / rate)
            factor = bounds.between(moved, (memory + launch) * factor) / (memory + launch)
        memory, launch = memory * factor, launch * factor
    total = maximum(memory + launch, elementwise_floor(read_bytes, write_bytes, hw=hw))
    return ElementwiseTime(total, memory, launch)


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Least time of any kernel that moves more, most of any that moves less [s]; `sizes` hold every extreme [B]."""

    sizes: list[float]
    least_s: np.ndarray
    most_s: np.ndarray

    def between(self, moved: Array, time_s: Array) -> Array:
        """Time [s] that rises with the bytes: geometric middle of the rising bounds below and above `time_s`."""
        if isinstance(moved, np.ndarray):
            least = self.least_s[np.searchsorted(self.sizes, moved)]
            most = self.most_s[np.searchsorted(self.sizes, moved, side="right")]
        else:
            least = float(self.least_s[bisect_left(self.sizes, moved)])
            most = float(self.most_s[bisect_right(self.sizes, moved)])
        return (minimum(time_s, least) * maximum(time_s, most)) ** 0.5


@lru_cache(maxsize=4096)
def _bounds(surface: Surface, launch_s: float, s_per_byte: float) -> _Bounds:
    """Of ``t = (launch + b/rate) exp(s ln b)``: minima at knots or ``b = launch rate (-s)/(1 + s)``, maxima at knots.

    Small kernels are measured to a microsecond; a surface that follows that noise falls faster than bytes grow.
    """
    (_, knots), values = surface.axes[0], surface.values
    sizes = [2.0**k for k in knots]
    for (a, low), (b, high) in pairwise(zip(list(sizes), values.tolist(), strict=True)):
        slope = (high - low) / log(b / a)
        if -1.0 < slope < 0.0:
            at = launch_s / s_per_byte * -slope / (1.0 + slope)
            sizes += [at] if a < at < b else []
    sizes.sort()
    time = (launch_s + s_per_byte * np.array(sizes)) * exp(surface(bytes=np.array(sizes)))
    least = np.append(np.minimum.accumulate(time[::-1])[::-1], inf)
    return _Bounds(sizes, least, np.insert(np.maximum.accumulate(time), 0, 0.0))
