"""What sparse kernels pay beyond bytes and flop: expansion, packing, short runs, searches."""

from __future__ import annotations

import math

from simulator.base.arrays import Array, clip, maximum, some
from simulator.ops.granularity import moved_bytes
from simulator.ops.ops import Expand
from simulator.roofline.hardware import Hardware

EXPAND_ELEMENTS_PER_SM_CYCLE = 17.7
"""Dense elements zero-filled, read back and multiplied per SM and cycle [-].

This and `EXPAND_NONZEROS_PER_SM_CYCLE`: Flash-LLM's published kernels on A100 (arXiv:2309.10285), 36864 x 12288,
B=8: t = MK/2.7e12 + NNZ/7.3e11 s with 108 SMs at 1.41 GHz; carried to other cards as EXTRAPOLATED.
"""
ISSUED_PER_SM_CYCLE = 128.0
"""Instructions of single lanes an SM can issue per cycle: four schedulers, a warp of 32 each [-]."""
SELECT_ELEMENTS_PER_SM_CYCLE = 0.22
"""Elements a radix selection searches per SM and cycle, all its passes counted [-].

From PyTorch's ``topk`` of 2048 x 8192 bfloat16 on GB10 (ml-explore/mlx issue 3064: 0.92 ms with a scatter that
copies the array, 0.27 ms at 250 GB/s), 48 SMs at 2.4 GHz. Carried to other cards as EXTRAPOLATED.
"""
SELECT_PIECE = 16384.0
"""Elements of a row above which several blocks search it [-]; assumed from PyTorch's switch, 10,000-20,000."""
L2_TILE_SHARE = 0.67
"""Share of the cache's rate at which a kernel loads a block of K and V per query [-].

Median of six kernels of OpenBMB/infllmv2_cuda_impl on H100 (64 blocks of 64, 32 to 128K tokens; its own 0.71-0.80,
Triton's NSA 0.52-0.63).
"""


def expand_s(expand: Expand | None, hw: Hardware) -> Array:
    """Seconds the ordinary lanes need to rebuild dense tiles, or to unpack values in registers [s].

    ``elements / (17.7 SM f) + nonzeros / (4.8 SM f) + instructions / min(128 SM f, lanes)``; 4.8 gives way to what was
    measured of the device, and lanes is its fp32 rate, a fused multiply-add counted twice.
    """
    if expand is None:
        return 0.0
    cycles = hw.sm_count * hw.clock_hz
    tiles = expand.elements / (EXPAND_ELEMENTS_PER_SM_CYCLE * cycles) + expand.nonzeros / (
        hw.nonzeros_per_cycle * cycles
    )
    if not some(expand.instructions):
        return tiles
    return tiles + expand.instructions / min(ISSUED_PER_SM_CYCLE * cycles, hw.vector_flop_per_s or math.inf)


def select_s(elements: Array, rows: Array, hw: Hardware) -> Array:
    """Seconds a top-k searches `elements` in `rows`: a row, or a piece of a long one, per SM [s].

    ``elements / (0.22 f min(SM, rows max(1, elements / rows / piece)))``
    """
    pieces = maximum(elements / maximum(rows, 1e-9) / SELECT_PIECE, 1.0)
    busy = clip(rows * pieces, 1e-9, hw.sm_count)
    return elements / (SELECT_ELEMENTS_PER_SM_CYCLE * hw.clock_hz * busy)


def tile_s(tile_bytes: Array, hw: Hardware) -> Array:
    """Seconds in which the SMs load `tile_bytes` from the last-level cache [s]."""
    return tile_bytes / (L2_TILE_SHARE * hw.l2_bytes_per_s)


def gathered_bytes(useful_bytes: Array, run_bytes: float, hw: Hardware) -> Array:
    """Bytes of a stream that takes as long as gathering `useful_bytes` in runs [B].

    Moved bytes over ``share run / (run + half)``: share 1 and half 256 B, or what was measured of the device.
    """
    if not math.isfinite(run_bytes):
        return useful_bytes
    moved = moved_bytes(useful_bytes, run_bytes, hw.sector_bytes)
    return moved * ((run_bytes + hw.gather_run_bytes) / (run_bytes * hw.gather_share))
