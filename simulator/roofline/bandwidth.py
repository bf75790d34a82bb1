"""Achievable memory bandwidth: against bytes in flight, and of gathers against run length.

Little's law gives the first curve: with `latency` seconds between request and data, B bytes in
flight cannot move faster than B / latency; the two limits meet smoothly,

    rate(B) = peak / (1 + half / B),    half = peak * latency.

A gather of runs of r bytes moves whole sectors and pays a fixed cost per run:

    time = moved(r) / rate * (1 + RUN_BYTES / r)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from simulator.roofline.hardware import Hardware

Array = Any
"""float or ndarray; everything broadcasts."""

DRAM_LATENCY_S = 0.65e-6
"""Load-to-use latency of device memory under no load; assumed, not fitted [s]."""
RUN_BYTES = 128.0
"""Extra bytes a run costs [B]. Page-16 runs of 4 KiB lose 3 % (measured: nothing against dense at
equal bytes, RTX 4090 Quest figures 8-9), token runs of 512 B lose 20 %, of 256 B 33 %."""


def achievable_bytes_per_s(
    bytes_in_flight: Array, peak_bytes_per_s: float, latency_s: float = DRAM_LATENCY_S
) -> Array:
    """Bandwidth that `bytes_in_flight` outstanding bytes can draw [B/s].

    Parameters
    ----------
    bytes_in_flight : array_like
        Bytes requested and not yet arrived, over the whole device [B].
    peak_bytes_per_s : float
        Rate with unlimited requests [B/s].
    latency_s : float
        Unloaded latency [s].
    """
    half_bytes = peak_bytes_per_s * latency_s
    return peak_bytes_per_s / (1.0 + half_bytes / np.maximum(bytes_in_flight, 1.0))


def bytes_in_flight(
    blocks: Array, sm_count: float, blocks_per_sm: Array, block_bytes: Array
) -> Array:
    """Most bytes that a launch has on their way from memory at once [B].

    ``min(blocks, SMs * blocks_per_sm) * block_bytes``: `blocks` of the launch, of which `blocks_per_sm` are resident
    on an SM by their registers and shared memory (occupancy), each with at most `block_bytes` requested.
    """
    return np.minimum(blocks, sm_count * blocks_per_sm) * block_bytes


def latency_floor_s(
    total_bytes: Array, bytes_in_flight: Array, latency_s: float = DRAM_LATENCY_S
) -> Array:
    """Least time to bring `total_bytes` with never more than `bytes_in_flight` on their way: Little's law [s]."""
    return total_bytes * latency_s / np.maximum(bytes_in_flight, 1.0)


def kernel_bytes_per_s(total_bytes: Array, peak_bytes_per_s: float, ramp_s: float) -> Array:
    """Average rate of a kernel that streams `total_bytes` and needs `ramp_s` to fill and drain.

    ``total / (total / peak + ramp)``: Quest's page-16 decode on an RTX 4090 is 8.5 us + bytes /
    683 GB/s; RTX 6000 Ada, 475-578 GB/s of 960 at 16-64 MiB, is 8.5 us + bytes / 623 GB/s.
    """
    return total_bytes / (total_bytes / peak_bytes_per_s + ramp_s)


def resident_bytes_per_s(total_bytes: Array, hw: Hardware) -> Array:
    """Streaming rate of a kernel that touches `total_bytes` and comes round again [B/s].

    ``hbm exp(cached(max(total, touched)))``, touched = all that is read in between. A CPU serves small operands
    from nearer caches, and `cached`, measured by ``sparse_kernels.calibrate``, is the logarithm of the rate over
    that of main memory. Without it the rate of main memory, as on GPUs, whose fits hold their L2's effect.
    """
    if hw.cached is None:
        return hw.hbm_bytes_per_s
    return hw.hbm_bytes_per_s * np.exp(
        hw.cached(bytes=np.maximum(np.maximum(total_bytes, hw.touched_bytes), 1.0))
    )


def gather_efficiency(run_bytes: Array, sector_bytes: float) -> Array:
    """Useful bytes per byte-time of a stream when reading runs of `run_bytes` [-].

    1 for a stream (`run_bytes` inf); whole sectors are moved, each run costs `RUN_BYTES` more.
    """
    run = np.asarray(run_bytes, float)
    finite = np.isfinite(run)
    safe = np.where(finite, np.maximum(run, 1.0), 1.0)
    moved = np.ceil(safe / sector_bytes) * sector_bytes
    return np.where(finite, safe / (moved + RUN_BYTES), 1.0)
