"""Time of a streaming kernel (norm, activation, add, softmax, rope): bytes, and a launch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simulator.base.arrays import Array, exp, maximum, real
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
    full rate. Number formats do not enter: bytes decide.

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
        memory, launch = memory * factor, launch * factor
    total = maximum(memory + launch, elementwise_floor(read_bytes, write_bytes, hw=hw))
    return ElementwiseTime(total, memory, launch)
