"""How many (query, key) pairs attention computes."""

from __future__ import annotations

from math import inf

from simulator.base.arrays import Array, clip, floor, maximum, minimum, where


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


def in_chunks(q_len: Array, kv_len: Array, chunk: float) -> tuple[Array, Array, Array]:
    """Causal attention within chunks as sequences of their own: how many, their queries and their keys [-].

    The keys of position p are those of its chunk up to p, so ``P(s) = c (c+1) / 2 floor(s/c) + r (r+1) / 2`` pairs
    lie before position s, with ``r = s mod c``. The sequences have all `q_len` queries and exactly these pairs; engines
    run chunks as such. One query past the first chunk sees half a chunk, the mean over where it stands.

    Parameters
    ----------
    q_len, kv_len : Array
        New tokens, and the context after them [-].
    chunk : float
        Tokens of a chunk, c [-].
    """

    def before(position: Array) -> Array:
        left = position - chunk * floor(position / chunk)
        return floor(position / chunk) * chunk * (chunk + 1.0) / 2.0 + left * (left + 1.0) / 2.0

    exact = before(kv_len) - before(kv_len - q_len)
    pairs = where((q_len <= 1.0) & (kv_len > chunk), (chunk + 1.0) / 2.0, exact)
    mean = pairs / maximum(q_len, 1e-30)
    queries = minimum(q_len, maximum(2.0 * mean - 1.0, 1.0))
    return q_len / queries, queries, mean + (queries - 1.0) / 2.0
