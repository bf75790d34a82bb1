"""What one GPU holds and reads of the K and V of one layer."""

from __future__ import annotations

from simulator.base.arrays import Array
from simulator.model.layer import AttentionSpec
from simulator.ops.pairs import in_chunks


def sequences(a: AttentionSpec, rows: Array, q_len: Array, kv_len: Array) -> tuple[Array, Array, Array]:
    """Sequences, their queries and their keys as the attention kernel sees them: chunks are sequences of their own."""
    if not a.chunked or a.window is None:
        return rows, q_len, kv_len
    chunks, queries, keys = in_chunks(q_len, kv_len, float(a.window))
    return rows * chunks, queries, keys


def kv_heads_here(a: AttentionSpec, tp: int) -> float:
    """KV heads one GPU holds: at least one, so KV is replicated when tp exceeds them [-]."""
    return max(a.n_kv_heads / tp, 1.0)


def kv_bytes_per_token(a: AttentionSpec, tp: int, element_bytes: float) -> float:
    """Dense KV bytes of one token in one layer on one GPU; a latent is on every GPU [B]."""
    if a.latents:
        return a.kv_elements_per_token * element_bytes
    return kv_heads_here(a, tp) * (a.head_dim + a.v_head_dim) * element_bytes
