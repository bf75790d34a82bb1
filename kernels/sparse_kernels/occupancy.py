"""Blocks of a kernel that fit on one multiprocessor, from what the kernel uses and what the chip has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WARP_THREADS = 32
REGISTERS = 65_536
"""32-bit registers of a multiprocessor, all of compute capability 8.0 to 12.0 [-] [1]_."""
REGISTER_UNIT = 256
"""Registers are given to a warp in this granule [-]; the CUDA occupancy calculator's sheet."""
SHARED_UNIT_BYTES = 128
"""Granule of shared memory [B]; same sheet."""
RESERVED_SHARED_BYTES = 1024
"""Shared memory the system keeps per block [B] [1]_."""

Limit = Literal["registers", "shared memory", "warps", "blocks", "does not fit"]


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one compute capability.

    Attributes
    ----------
    warps, blocks : int
        Resident at once [-].
    shared_bytes : int
        Shared memory [B]; one block gets at most this less `RESERVED_SHARED_BYTES`.
    """

    warps: int
    blocks: int
    shared_bytes: int


# Technical specifications per compute capability [1].
MULTIPROCESSORS: dict[int, Multiprocessor] = {
    80: Multiprocessor(64, 32, 164 * 1024),
    86: Multiprocessor(48, 16, 100 * 1024),
    89: Multiprocessor(48, 24, 100 * 1024),
    90: Multiprocessor(64, 32, 228 * 1024),
    100: Multiprocessor(64, 32, 228 * 1024),
    120: Multiprocessor(48, 24, 100 * 1024),
}
"""By compute capability times ten.

References
----------
.. [1] NVIDIA, CUDA C++ Programming Guide, "Compute Capabilities", technical specifications.
"""


@dataclass(frozen=True)
class Occupancy:
    """Resident blocks of one kernel.

    Attributes
    ----------
    blocks_per_sm : int
        Blocks resident on a multiprocessor [-]; 0 where one does not fit.
    warp_share : float
        Resident warps over the most there can be [-].
    limit : Limit
        What stops one more block.
    """

    blocks_per_sm: int
    warp_share: float
    limit: Limit


def occupancy(cc: int, *, warps: int, registers: int, shared_bytes: int) -> Occupancy:
    """Resident blocks: the least of what registers, shared memory, warp slots and block slots allow.

    ``registers: floor(floor(R / ceil256(32 r)) / w)``, with warps given in fours to the SM's partitions;
    ``shared: floor(S / ceil128(s + 1024))``.

    Parameters
    ----------
    cc : int
        Compute capability times ten.
    warps : int
        Warps per block [-].
    registers : int
        Registers per thread [-].
    shared_bytes : int
        Static and dynamic shared memory per block [B].
    """
    sm = MULTIPROCESSORS[cc]
    per_warp = _round_up(max(registers, 1) * WARP_THREADS, REGISTER_UNIT)
    # Each of the four partitions owns a quarter of the registers.
    warps_by_registers = 4 * (REGISTERS // 4 // per_warp)
    shared = _round_up(shared_bytes + RESERVED_SHARED_BYTES, SHARED_UNIT_BYTES)
    allowed: dict[Limit, int] = {
        "registers": warps_by_registers // warps,
        "shared memory": sm.shared_bytes // shared,
        "warps": sm.warps // warps,
        "blocks": sm.blocks,
    }
    limit = min(allowed, key=lambda k: allowed[k])
    blocks = allowed[limit]
    return Occupancy(blocks, blocks * warps / sm.warps, limit if blocks else "does not fit")


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
