"""Decode attention of one new token over all tokens of a KV cache, or over listed runs of them.

Layout (b = 2 bytes). q, out (batch, hq, d); k_cache, v_cache (batch, hk, capacity, d); k_new, v_new (batch, hk, d): K
and V of the token being decoded, which the kernel uses and appends to the cache. runs (batch, lists, entries)
int32: numbers of the runs of `run` tokens that are read, a list for each KV head or for each query head.

One program takes the query heads of one list and a share of the tokens (split-K, as many as fill the GPU);
query rows are padded to the 16 of a tensor-core tile. Rows of K and V are contiguous, so each load is 128 bit wide.

Traffic: K and V of every token read 2 hk d b each once, also where the heads of a group list it twice; q, out hq d b;
the new token's K and V written once, 2 hk d b; the lists 4 B an entry.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl

from sparse_kernels import online_softmax
from sparse_kernels.launch import cdiv, launch, power_of_2
from sparse_kernels.online_softmax import FLOOR, LOG2E, finish, update, update_one
from sparse_kernels.registry import ACTIVATION, KV, WORKSPACE, Flow
from sparse_kernels.split_k import splits_for
from sparse_kernels.tensors import Draw

OPERANDS: Mapping[str, Flow] = {
    **dict.fromkeys(("q", "out"), ACTIVATION),
    **dict.fromkeys(("k_cache", "v_cache", "k_new", "v_new"), KV),
    **dict.fromkeys(("parts", "sums"), WORKSPACE),
}
"""Every tensor that `attend` touches, but for the lists."""
BLOCK_N = 64
CONFIG = {"num_warps": 4, "num_stages": 2}


@triton.jit
def over_rows(
    qt, k_rows, v_rows, start, end, scale, m, l, acc, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):
    """State after rows [start, end) of one KV head: qt (G, D), k_rows and v_rows point at row 0."""
    n = tl.arange(0, BLOCK_N)
    c = tl.arange(0, BLOCK_D)
    for block in range(start, end, BLOCK_N):
        i = block + n
        mask = (i < end)[:, None] & (c < D)[None, :]
        at = i.to(tl.int64)[:, None] * D + c[None, :]
        k = tl.load(k_rows + at, mask=mask, other=0.0)
        v = tl.load(v_rows + at, mask=mask, other=0.0)
        score = tl.dot(qt, tl.trans(k)) * scale
        m, l, acc = update(score, (i < end)[None, :], v, m, l, acc)  # type: ignore[misc]  # returns when compiled
    return m, l, acc


@triton.jit
def new_token(qt, k_new, v_new, k_slot, v_slot, append, scale, m, l, acc, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """State after the new token, which is written to k_slot and v_slot where `append`."""
    c = tl.arange(0, BLOCK_D)
    k = tl.load(k_new + c, mask=c < D, other=0.0)
    v = tl.load(v_new + c, mask=c < D, other=0.0)
    score = tl.sum(qt.to(tl.float32) * k.to(tl.float32)[None, :], 1) * scale
    tl.store(k_slot + c, k, mask=(c < D) & append)
    tl.store(v_slot + c, v, mask=(c < D) & append)
    return update_one(score, v, m, l, acc)


@triton.jit
def decode_kernel(
    q,
    k_cache,
    v_cache,
    k_new,
    v_new,
    runs,
    out,
    parts,
    sums,
    hq,
    hk,
    capacity,
    past,
    entries,
    blocks_per_split,
    scale,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    RUN: tl.constexpr,
    LISTED: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    lists = hq // HEADS
    batch = tl.program_id(0) // lists
    first_head = tl.program_id(0) % lists * HEADS
    group = hq // hk
    g = tl.arange(0, BLOCK_G)
    n = tl.arange(0, BLOCK_N)
    c = tl.arange(0, BLOCK_D)
    wide = c < D
    rows = g < HEADS
    row = (batch * hq + first_head).to(tl.int64) + g
    qt = tl.load(q + row[:, None] * D + c[None, :], mask=rows[:, None] & wide[None, :], other=0.0)
    kv = (batch * hk + first_head // group).to(tl.int64)
    base = kv * capacity * D

    m = tl.full((BLOCK_G,), FLOOR, tl.float32)
    l = tl.zeros((BLOCK_G,), tl.float32)
    acc = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    span = tl.cast(entries, tl.int64) * RUN if LISTED else tl.cast(past, tl.int64)
    start = tl.program_id(1).to(tl.int64) * blocks_per_split * BLOCK_N
    end = tl.minimum(start + blocks_per_split * BLOCK_N, span)
    for block in range(start, end, BLOCK_N):
        i = block + n
        visible = i < end
        if LISTED:
            at = tl.program_id(0).to(tl.int64) * entries + i // RUN
            i = tl.load(runs + at, mask=visible, other=0).to(tl.int64) * RUN + i % RUN
            visible = visible & (i < past)
        mask = visible[:, None] & wide[None, :]
        at = base + i[:, None] * D + c[None, :]
        k = tl.load(k_cache + at, mask=mask, other=0.0)
        v = tl.load(v_cache + at, mask=mask, other=0.0)
        score = tl.dot(qt, tl.trans(k)) * scale
        m, l, acc = update(score, visible[None, :], v, m, l, acc)

    if tl.program_id(1) == tl.num_programs(1) - 1:
        # Heads of one group may run apart; the first of them appends.
        m, l, acc = new_token(
            qt,
            k_new + kv * D,
            v_new + kv * D,
            k_cache + base + tl.cast(past, tl.int64) * D,
            v_cache + base + tl.cast(past, tl.int64) * D,
            first_head % group == 0,
            scale,
            m,
            l,
            acc,
            D,
            BLOCK_D,
        )
    finish(out, parts, sums, row, rows, m, l, acc, D, BLOCK_D, PARTS)


def inputs(draw: Draw, q: torch.Tensor, k: torch.Tensor, dtype: str) -> dict[str, torch.Tensor]:
    """q, caches and new token from k (batch, hk, tokens, d), whose last token becomes the new one; V is drawn."""
    batch, hk, _, d = k.shape
    k_new = k[:, :, -1].clone()
    k[:, :, -1] = 0.0
    return {
        "q": q,
        "k_cache": k,
        "v_cache": draw.normal(*k.shape, dtype=dtype),
        "k_new": k_new,
        "v_new": draw.normal(batch, hk, d, dtype=dtype),
    }


def splits(batch: int, lists: int, span: int) -> int:
    """Programs that share the `span` tokens of one list [-]."""
    return splits_for(batch * lists, cdiv(span, BLOCK_N))


def buffers(q: torch.Tensor, lists: int, span: int) -> dict[str, torch.Tensor]:
    """Output (batch, hq, d) and split-K states for `span` tokens per list."""
    batch, hq, d = q.shape
    parts = online_softmax.workspace(batch * hq, splits(batch, lists, span), d, q.device)
    return {"out": torch.empty_like(q), **parts}


def attend(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    out: torch.Tensor,
    parts: torch.Tensor,
    sums: torch.Tensor,
    *,
    tokens: int,
    runs: torch.Tensor | None = None,
    run: int = 1,
) -> None:
    """Attend from q to the first `tokens` - 1 of the cache (or to the listed runs of them) and to the new token.

    Parameters
    ----------
    tokens : int
        Context with the new token, which is appended at ``tokens - 1`` [-].
    runs : Tensor, optional
        (batch, lists, entries) int32, distinct within a list; `lists` is hk or hq.
    run : int
        Tokens of one run [-].
    """
    batch, hq, d = q.shape
    hk, capacity = k_cache.shape[1:3]
    if hq % hk:
        raise ValueError(f"{hq} query heads cannot share {hk} KV heads")
    if not 1 <= tokens <= capacity:
        raise ValueError(f"{tokens} tokens in a cache of {capacity}")
    lists = hk if runs is None else runs.shape[1]
    entries = 0 if runs is None else runs.shape[2]
    span = tokens - 1 if runs is None else entries * run
    n = splits(batch, lists, span)
    launch(
        decode_kernel,
        (batch * lists, n),
        **CONFIG,
        q=q,
        k_cache=k_cache,
        v_cache=v_cache,
        k_new=k_new,
        v_new=v_new,
        runs=runs,
        out=out,
        parts=parts,
        sums=sums,
        hq=hq,
        hk=hk,
        capacity=capacity,
        past=tokens - 1,
        entries=entries,
        blocks_per_split=cdiv(cdiv(span, BLOCK_N), n),
        scale=LOG2E * d**-0.5,
        HEADS=hq // lists,
        D=d,
        RUN=run,
        LISTED=runs is not None,
        PARTS=n > 1,
        BLOCK_G=max(16, power_of_2(hq // lists)),
        BLOCK_N=BLOCK_N,
        BLOCK_D=max(16, power_of_2(d)),
    )
    online_softmax.combine(parts, sums, out)
