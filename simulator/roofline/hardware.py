"""The handful of device numbers the time functions read, as plain floats."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING, Any

from simulator.base.dtypes import DType, Format, get_format
from simulator.base.errors import UnsupportedError
from simulator.device.surface import Surface

if TYPE_CHECKING:
    from simulator.device.catalogue import Device

GATHER_RUN_BYTES = 256.0
"""Run length at which a gather reaches half the streaming rate [B]; 4 KiB runs lose 6 %."""
EXPAND_NONZEROS_PER_SM_CYCLE = 4.8
"""Stored values scattered into a tile per SM and cycle [-]; source: see `simulator.roofline.sparse`."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a kernel of one number format sees of a device.

    Attributes
    ----------
    sm_count : float
        SMs, CUs or cores [-].
    math_flop_per_s : float
        Tensor (or matrix) rate of the format at boost clock [flop/s].
    vector_flop_per_s : float
        Rate of the ordinary fp32 lanes [flop/s].
    hbm_bytes_per_s : float
        Datasheet bandwidth of main memory [B/s].
    l2_bytes : float
        Last-level cache [B].
    sector_bytes : float
        Smallest useful read from main memory [B].
    link_bytes_per_s, link_latency_s : float
        Device-to-device link, one way per device [B/s], [s].
    clock_hz : float
        Boost clock [Hz].
    arch : str
        Architecture, e.g. ``hopper``.
    max_clock_ratio : float
        Maximum over boost clock; floors use ``math_flop_per_s * max_clock_ratio`` [-].
    gather_run_bytes : float
        Run length at which a gather reaches half the streaming rate [B].
    gather_share : float
        Rate of a gather of endless runs over that of a stream [-].
    nonzeros_per_cycle : float
        Indexed single elements fetched and used per SM (core) and cycle [-].
    cached : Surface, optional
        Log of the streaming rate over `hbm_bytes_per_s` against the ``bytes`` of a kernel, see
        `simulator.roofline.bandwidth.resident_bytes_per_s`.
    l2_bytes_per_s : float
        Rate at which the multiprocessors read the last-level cache [B/s].
    touched_bytes : Array
        What is read in all until the kernel's operands are read again, where `cached` is known [B].
    """

    sm_count: float
    math_flop_per_s: float
    vector_flop_per_s: float
    hbm_bytes_per_s: float
    l2_bytes: float
    sector_bytes: float
    link_bytes_per_s: float
    link_latency_s: float
    clock_hz: float
    arch: str
    max_clock_ratio: float = 1.0
    gather_run_bytes: float = GATHER_RUN_BYTES
    gather_share: float = 1.0
    nonzeros_per_cycle: float = EXPAND_NONZEROS_PER_SM_CYCLE
    cached: Surface | None = None
    l2_bytes_per_s: float = inf
    touched_bytes: Any = 0.0


@lru_cache(maxsize=1024)
def hardware(device: Device, dtype: Format | DType | str, *, fp16_accumulate: bool = False) -> Hardware:
    """Numbers of `device` for products in `dtype` (a format name, a `Format` or a math type).

    With `fp16_accumulate` 16-bit products run at the rate of an FP16 accumulator, twice the other on GeForce cards.
    """
    if isinstance(dtype, DType):
        math = dtype
    else:
        math = (get_format(dtype) if isinstance(dtype, str) else dtype).math
    if math is DType.FP16 and not device.has(math) and device.has(DType.BF16):
        math = DType.BF16
    hbm = device.tier("hbm")
    return Hardware(
        sm_count=float(device.sm_count),
        math_flop_per_s=_rate(device, math, fp16_accumulate),
        vector_flop_per_s=device.vector_flop_per_s,
        hbm_bytes_per_s=device.hbm_bytes_per_s,
        l2_bytes=float(device.l2_bytes),
        l2_bytes_per_s=device.tier("l2").bandwidth_bytes_per_s,
        sector_bytes=float(hbm.sector_bytes),
        link_bytes_per_s=device.link.bandwidth_bytes_per_s if device.link else 0.0,
        link_latency_s=device.link.latency_s if device.link else 0.0,
        clock_hz=device.clock_hz.boost,
        arch=device.arch,
        max_clock_ratio=device.clock_hz.max / device.clock_hz.boost,
        **_measured(device),
    )


def _rate(device: Device, math: DType, fp16_accumulate: bool) -> float:
    faster = device.fp16_accumulate_flop_per_s if math in (DType.FP16, DType.BF16) and fp16_accumulate else None
    return faster or device.peak_flop_per_s(math)


def _measured(device: Device) -> dict[str, Any]:
    """What ``sparse_kernels.calibrate`` measured of memory on this device; empty where nobody did."""
    found = next(iter(device.measured.own("memory")), None)
    if found is None:
        return {}
    names = ("gather_run_bytes", "gather_share", "nonzeros_per_cycle")
    return {n: found.coefficients[n] for n in names if n in found.coefficients} | {"cached": found.surface}


def math_of(device: Device, dtype: DType) -> DType:
    """`dtype`, or fp16 where a quantised model's 16-bit parts meet a device without bf16 (T4)."""
    if dtype is DType.BF16 and not device.has(dtype) and device.has(DType.FP16):
        return DType.FP16
    return dtype


def vector_dtype(device: Device) -> DType:
    """Format of element-wise arithmetic on `device`."""
    for dtype in (DType.BF16, DType.FP16, DType.FP32):
        if device.has(dtype):
            return dtype
    raise UnsupportedError(f"{device.name} has no floating-point rate in its profile")
