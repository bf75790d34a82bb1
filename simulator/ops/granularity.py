"""From useful bytes to moved bytes: what a gather of short runs really pulls over a bus of fixed sectors."""

from __future__ import annotations

import numpy as np

from simulator.base.arrays import Array, ceil, where


def moved_bytes(useful_bytes: Array, run_bytes: Array, sector_bytes: float) -> Array:
    """Bytes moved when `useful_bytes` lie in runs of `run_bytes` at random offsets [B].

    A run of r bytes aligned to its own element size touches ceil(r / s) sectors when it starts on a
    sector boundary, the usual case of rows that are multiples of the sector; shorter runs move a whole sector.

    Parameters
    ----------
    useful_bytes : Array
        Bytes the maths needs [B].
    run_bytes : Array
        Contiguous bytes per piece [B]; inf for a stream.
    sector_bytes : float
        Smallest transfer of the tier [B].
    """
    finite = (run_bytes < np.inf) & (run_bytes > 0)
    safe = where(finite, run_bytes, sector_bytes)
    return useful_bytes * where(finite, ceil(safe / sector_bytes) * sector_bytes / safe, 1.0)


def paged_tokens(tokens: Array, block_tokens: int) -> Array:
    """Tokens a paged KV cache reserves for `tokens`: whole blocks [tokens]."""
    return ceil(tokens / block_tokens) * block_tokens
