"""Rate of memory: what a cache curve says of small operands, and what bytes in flight allow (Little's law)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.base.arrays import Array, exp, maximum, minimum

if TYPE_CHECKING:
    from simulator.roofline.hardware import Hardware

DRAM_LATENCY_S = 0.65e-6
"""Load-to-use latency of device memory under no load; assumed, not fitted [s]."""


def bytes_in_flight(blocks: Array, sm_count: float, blocks_per_sm: Array, block_bytes: Array) -> Array:
    """Most bytes that a launch has on their way from memory at once [B].

    ``min(blocks, SMs * blocks_per_sm) * block_bytes``: `blocks` of the launch, of which `blocks_per_sm` are resident
    on an SM by their registers and shared memory (occupancy), each with at most `block_bytes` requested.
    """
    return minimum(blocks, sm_count * blocks_per_sm) * block_bytes


def latency_floor_s(total_bytes: Array, bytes_in_flight: Array, latency_s: float = DRAM_LATENCY_S) -> Array:
    """Least time to bring `total_bytes` with never more than `bytes_in_flight` on their way: Little's law [s]."""
    return total_bytes * latency_s / maximum(bytes_in_flight, 1.0)


def resident_bytes_per_s(total_bytes: Array, hw: Hardware) -> Array:
    """Streaming rate of a kernel that touches `total_bytes` and comes round again [B/s].

    ``hbm exp(cached(max(total, touched)))``, touched = all that is read in between. A CPU serves small operands
    from nearer caches, and `cached`, measured by ``sparse_kernels.calibrate``, is the logarithm of the rate over
    that of main memory. Without it the rate of main memory, as on GPUs, whose fits hold their L2's effect.
    """
    if hw.cached is None:
        return hw.hbm_bytes_per_s
    return hw.hbm_bytes_per_s * exp(hw.cached(bytes=maximum(maximum(total_bytes, hw.touched_bytes), 1.0)))
