"""How many (query, key) pairs attention computes."""

from __future__ import annotations

from math import inf

from simulator.base.arrays import Array, clip, minimum, where


def causal_pairs(q_len: Array, kv_len: Array, window: Array | None = None) -> Array:
    """(query, key) pairs of a causal chunk [-].

    Query i of the chunk (0-based) sees ``kv_len - q_len + i + 1`` keys, at most `window` of them.

    Parameters
    ----------
    q_len : Array
        New tokens of the chunk [-].
    kv_len : Array
        Context after the chunk [-].
    window : Array, optional
        Sliding window [tokens]; 0, as None, is no window.
    """
    past = kv_len - q_len
    if window is None or (isinstance(window, int | float) and not window):
        return q_len * past + q_len * (q_len + 1.0) / 2.0
    reach = minimum(where(window > 0, window, inf), kv_len)
    # Queries whose reach is still below the window see past + i + 1 keys, the others see `window`.
    growing = clip(reach - past, 0.0, q_len)
    return growing * past + growing * (growing + 1.0) / 2.0 + (q_len - growing) * reach
