"""What sparse kernels pay beyond bytes and flop: expansion, packing, short runs, 2:4 metadata."""

from __future__ import annotations

import numpy as np

from simulator.arrays import Array
from simulator.granularity import moved_bytes
from simulator.ops import Expand
from simulator.roofline.hardware import Hardware

EXPAND_ELEMENTS_PER_SM_CYCLE = 17.7
"""Dense elements zero-filled, read back and multiplied per SM and cycle [-]."""
EXPAND_NONZEROS_PER_SM_CYCLE = 4.8
"""Stored values scattered into a tile per SM and cycle [-].

Both from Flash-LLM's published kernels on A100 (arXiv:2309.10285, 36864 x 12288, B=8):
t = MK/2.7e12 + NNZ/7.3e11 s with 108 SMs at 1.41 GHz; carried to other cards as EXTRAPOLATED.
"""
PACK_ELEMENTS_PER_SM_CYCLE = 5.3e-3
"""Elements pruned by k-th value and packed per SM and cycle [-].

From Mustafar's published TTFT (arXiv:2505.22913, appendix C.3): 4.29 GB of KV in 1.14 s on 142 SMs at 2.5 GHz.
"""
GATHER_RUN_BYTES = 256.0
"""Run length at which a gather reaches half the streaming rate [B]; 4 KiB runs lose 6 %."""


def expand_s(expand: Expand | None, hw: Hardware) -> Array:
    """Seconds the ordinary lanes need to rebuild dense tiles [s].

    ``elements / (17.7 SM f) + nonzeros / (4.8 SM f)``.
    """
    if expand is None:
        return 0.0
    cycles = hw.sm_count * hw.clock_hz
    return expand.elements / (EXPAND_ELEMENTS_PER_SM_CYCLE * cycles) + expand.nonzeros / (
        EXPAND_NONZEROS_PER_SM_CYCLE * cycles
    )


def pack_s(elements: Array, hw: Hardware) -> Array:
    """Seconds to prune and pack `elements` [s]."""
    return elements / (PACK_ELEMENTS_PER_SM_CYCLE * hw.sm_count * hw.clock_hz)


def gathered_bytes(useful_bytes: Array, run_bytes: float, hw: Hardware) -> Array:
    """Bytes of a stream that takes as long as gathering `useful_bytes` in runs [B].

    Moved bytes over ``run / (run + 256 B)``.
    """
    if not np.isfinite(run_bytes):
        return useful_bytes
    moved = moved_bytes(useful_bytes, run_bytes, hw.sector_bytes)
    return moved * ((run_bytes + GATHER_RUN_BYTES) / run_bytes)


NM24_STREAM_SHARE = {"ampere": 0.83, "ada": 0.83, "hopper": 0.58, "blackwell": 0.58}
"""Achieved stream rate of a 2:4 product over the dense one's, by architecture [-].

cuSPARSELt block products of the SlideSparse repository: 1.11 of 1.33 TB/s (A100), 1.01 of 1.73 (H100).
"""
NM24_MATH_SHARE = {"ampere": 0.70, "ada": 0.75, "hopper": 0.80, "blackwell": 0.75}
"""Achieved share of the doubled tensor rate, relative to the dense product's share [-]; same source."""
NM24_OTHER = (0.60, 0.70)
"""Stream and math share where nothing was measured (EXTRAPOLATED)."""


def nm24_shares(arch: str) -> tuple[float, float]:
    """(stream, math) shares of a 2:4 product on `arch` [-]."""
    stream, math = NM24_OTHER
    return NM24_STREAM_SHARE.get(arch, stream), NM24_MATH_SHARE.get(arch, math)
