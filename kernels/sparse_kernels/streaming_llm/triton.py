"""StreamingLLM: sinks and a ring of the newest tokens, keys rotated by their place in the cache [1]_.

The cache keeps unrotated keys. Each step rotates those that are kept to their present place and writes them out,
as the method does (a fused kernel would save that write); a second kernel attends to them.

Layout (b = 2 bytes). k_cache, v_cache (batch, hk, sinks + window, d): sinks in the first slots, then a ring in which
the new token takes `slot`, where the oldest was. k_rotated alike. q is rotated already, to place ``kept - 1``.

Traffic, n = kept tokens: K read and written once to rotate, 2 hk d b n; rotated K and V read, 2 hk d b n; q and out
hq d b each; the new token's K and V written, 2 hk d b.

References
----------
.. [1] Xiao et al., "Efficient Streaming Language Models with Attention Sinks", arXiv:2309.17453.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from sparse_kernels import online_softmax
from sparse_kernels.decode import BLOCK_N, CONFIG
from sparse_kernels.launch import cdiv, launch, power_of_2
from sparse_kernels.online_softmax import FLOOR, LOG2E, finish, update
from sparse_kernels.rotary import rotate
from sparse_kernels.split_k import splits_for


@triton.jit
def rotate_kernel(
    k_cache,
    k_new,
    k_rotated,
    slots,
    kept,
    slot,
    sinks,
    D: tl.constexpr,
    LOG2_THETA: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    kv = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    p = tl.arange(0, BLOCK_P)
    ring = tl.maximum(kept - sinks, 1)
    place = tl.where(i < sinks, i, sinks + (i - slot - 1 + ring) % ring)
    pairs = (p < D // 2)[None, :]
    old = ((i < kept) & (i != slot))[:, None] & pairs
    new = ((i < kept) & (i == slot))[:, None] & pairs
    at = (kv * slots + i)[:, None] * D + p[None, :]
    fresh = kv * D + tl.zeros_like(i)[:, None] + p[None, :]
    # Of the two loads of an element exactly one is live; the other adds 0.
    a1 = tl.load(k_new + fresh, mask=new, other=0.0)
    b1 = tl.load(k_new + fresh + D // 2, mask=new, other=0.0)
    a = tl.load(k_cache + at, mask=old, other=0.0) + a1
    b = tl.load(k_cache + at + D // 2, mask=old, other=0.0) + b1
    tl.store(k_cache + at, a1, mask=new)
    tl.store(k_cache + at + D // 2, b1, mask=new)
    a, b = rotate(a.to(tl.float32), b.to(tl.float32), place, p, LOG2_THETA, D // 2)
    live = (i < kept)[:, None] & pairs
    tl.store(k_rotated + at, a.to(k_rotated.dtype.element_ty), mask=live)
    tl.store(k_rotated + at + D // 2, b.to(k_rotated.dtype.element_ty), mask=live)


@triton.jit
def ring_kernel(
    q,
    k_rotated,
    v_cache,
    v_new,
    out,
    parts,
    sums,
    hq,
    hk,
    slots,
    kept,
    slot,
    blocks_per_split,
    scale,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    kv = tl.program_id(0).to(tl.int64)
    group = hq // hk
    g = tl.arange(0, BLOCK_G)
    n = tl.arange(0, BLOCK_N)
    c = tl.arange(0, BLOCK_D)
    wide = (c < D)[None, :]
    rows = g < group
    row = kv * group + g
    qt = tl.load(q + row[:, None] * D + c[None, :], mask=rows[:, None] & wide, other=0.0)
    m = tl.full((BLOCK_G,), FLOOR, tl.float32)
    l = tl.zeros((BLOCK_G,), tl.float32)
    acc = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    start = tl.program_id(1) * blocks_per_split * BLOCK_N
    end = tl.minimum(start + blocks_per_split * BLOCK_N, kept)
    for block in tl.range(start, end, BLOCK_N):
        i = block + n
        visible = i < end
        at = (kv * slots + i)[:, None] * D + c[None, :]
        k = tl.load(k_rotated + at, mask=visible[:, None] & wide, other=0.0)
        v = tl.load(v_cache + at, mask=(visible & (i != slot))[:, None] & wide, other=0.0)
        fresh = kv * D + tl.zeros_like(i)[:, None] + c[None, :]
        new = (visible & (i == slot))[:, None] & wide
        v1 = tl.load(v_new + fresh, mask=new, other=0.0)
        tl.store(v_cache + at, v1, mask=new)
        score = tl.dot(qt, tl.trans(k)) * scale
        m, l, acc = update(score, visible[None, :], v + v1, m, l, acc)
    finish(out, parts, sums, row, rows, m, l, acc, D, BLOCK_D, PARTS)


def buffers(*, q: torch.Tensor, k_cache: torch.Tensor, kept: int, **_: Any) -> dict[str, torch.Tensor]:
    """Output (batch, hq, d), rotated keys and the states of the splits."""
    batch, hq, d = q.shape
    n = splits_for(batch * k_cache.shape[1], cdiv(kept, BLOCK_N))
    return {
        "out": torch.empty_like(q),
        "k_rotated": torch.empty_like(k_cache),
        **online_softmax.workspace(batch * hq, n, d, q.device),
    }


def streaming_llm(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    kept: int,
    slot: int,
    sinks: int,
    theta: float,
    out: torch.Tensor,
    k_rotated: torch.Tensor,
    parts: torch.Tensor,
    sums: torch.Tensor,
) -> None:
    """Attend to the `kept` tokens of the cache; the new one is written to `slot`."""
    batch, hq, d = q.shape
    hk, slots = k_cache.shape[1:3]
    blocks = cdiv(kept, BLOCK_N)
    launch(
        rotate_kernel,
        (batch * hk, blocks),
        num_warps=4,
        num_stages=1,
        k_cache=k_cache,
        k_new=k_new,
        k_rotated=k_rotated,
        slots=slots,
        kept=kept,
        slot=slot,
        sinks=sinks,
        D=d,
        LOG2_THETA=math.log2(theta),
        BLOCK_N=BLOCK_N,
        BLOCK_P=power_of_2(d // 2),
    )
    n = splits_for(batch * hk, blocks)
    launch(
        ring_kernel,
        (batch * hk, n),
        **CONFIG,
        q=q,
        k_rotated=k_rotated,
        v_cache=v_cache,
        v_new=v_new,
        out=out,
        parts=parts,
        sums=sums,
        hq=hq,
        hk=hk,
        slots=slots,
        kept=kept,
        slot=slot,
        blocks_per_split=cdiv(blocks, n),
        scale=LOG2E * d**-0.5,
        D=d,
        PARTS=n > 1,
        BLOCK_G=max(16, power_of_2(hq // hk)),
        BLOCK_N=BLOCK_N,
        BLOCK_D=max(16, power_of_2(d)),
    )
    online_softmax.combine(parts, sums, out)
