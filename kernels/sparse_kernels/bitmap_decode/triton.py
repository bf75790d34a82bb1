"""Mustafar's decode attention: K and V stay packed in memory and are expanded tile by tile [1]_.

    element j of a tile = bit j of its bitmap ? values[offset + popcount(bits below j)] : 0

Two launches and a sum of splits, as in the original: scores of all tokens are written in float32 and read once by the
product with V. Each element costs a mask, a population count and one predicated 16-bit load; lanes of a warp take the
elements of one tile, whose values lie together, so a load is one or two lines. Products run on tensor cores with query
rows padded to 16. The newest tokens are dense: one more program per KV head attends to them and appends the new one.

Format: `sparse_kernels.bitmap`. Layout of the rest as in `sparse_kernels.decode`; scores (batch, hq, tokens) float32.

Traffic (b = 2 bytes): ``12 + b n`` per tile of n values, 2 hk d b per dense token, q and out hq d b each, scores 4 hq
per token written and read, 2 hk d b written.

References
----------
.. [1] "Mustafar", arXiv:2505.22913.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from sparse_kernels import online_softmax
from sparse_kernels.bitmap import TILE
from sparse_kernels.launch import cdiv, launch, power_of_2
from sparse_kernels.online_softmax import FLOOR, LOG2E, finish, update, update_one
from sparse_kernels.popcount import popcount
from sparse_kernels.split_k import splits_for

BLOCK_T = 32
"""Tokens of V expanded at a time."""
CONFIG = {"num_warps": 8, "num_stages": 1}


@triton.jit
def expand(values, word, first):
    """Elements (..., 32) of bitmap words (...), whose values start at `first` of `values`.

    A thread takes eight elements of a byte in turn: one population count finds the first, a bit each moves on.
    """
    byte = tl.arange(0, 4).to(tl.uint32) * 8
    below = (tl.full((4,), 1, tl.uint32) << byte) - 1
    if len(word.shape) == 1:
        word, first, byte, below = word[:, None], first[:, None], byte[None, :], below[None, :]
    else:
        word, first = word[:, :, None], first[:, :, None]
        byte, below = byte[None, None, :], below[None, None, :]
    bits = (word >> byte).to(tl.int32)
    at = first + popcount(word & below)
    e0, at = element(values, bits, at, 0)
    e1, at = element(values, bits, at, 1)
    e2, at = element(values, bits, at, 2)
    e3, at = element(values, bits, at, 3)
    e4, at = element(values, bits, at, 4)
    e5, at = element(values, bits, at, 5)
    e6, at = element(values, bits, at, 6)
    e7, at = element(values, bits, at, 7)
    # A join adds the fastest axis, so the first pairs are four apart, the next two.
    even = tl.join(tl.join(e0, e4), tl.join(e2, e6))
    odd = tl.join(tl.join(e1, e5), tl.join(e3, e7))
    return tl.reshape(tl.join(even, odd), first.shape[:-1] + [32])  # noqa: RUF005  no stars in a kernel


@triton.jit
def element(values, bits, at, J: tl.constexpr):
    """Element J of every byte, whose value is at `at` if its bit is set, and the place of the next."""
    live = (bits >> J) & 1
    return tl.load(values + at, mask=live == 1, other=0.0), at + live


@triton.jit
def score_kernel(
    q,
    k_bits,
    k_offset,
    k_values,
    k_window,
    k_new,
    scores,
    hq,
    hk,
    groups,
    size,
    recent,
    scale,
    D: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    kv = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    heads = hq // hk
    tokens = tl.cast(groups, tl.int64) * 64 + recent
    g = tl.arange(0, BLOCK_G)
    c = tl.arange(0, D)
    t = tl.arange(0, 32)
    rows = g < heads
    row = kv * heads + g
    qt = tl.load(q + row[:, None] * D + c[None, :], mask=rows[:, None] & (c < D)[None, :], other=0.0)
    out = scores + row[:, None] * tokens
    if group < groups:
        tile = (kv * groups + group) * D + c
        low = tl.load(k_bits + tile * 2, mask=c < D, other=0).to(tl.uint32, bitcast=True)
        high = tl.load(k_bits + tile * 2 + 1, mask=c < D, other=0).to(tl.uint32, bitcast=True)
        first = tl.load(k_offset + tile, mask=c < D, other=0)
        values = k_values + kv * size
        at = group * 64 + t
        k = expand(values, low, first)
        tl.store(out + at[None, :], tl.dot(qt, k) * scale, mask=rows[:, None] & (t < 32)[None, :])
        k = expand(values, high, first + popcount(low))
        tl.store(out + at[None, :] + 32, tl.dot(qt, k) * scale, mask=rows[:, None] & (t < 32)[None, :])
    else:
        dense = k_window + kv * recent * D
        for start in range(0, recent, 32):
            i = start + t
            old = (i < recent - 1)[:, None] & (c < D)[None, :]
            new = (i == recent - 1)[:, None] & (c < D)[None, :]
            at = i[:, None] * D + c[None, :]
            # Exactly one of the two loads of an element is live; the other adds 0.
            fresh = tl.load(k_new + kv * D + tl.zeros_like(i)[:, None] + c[None, :], mask=new, other=0.0)
            k = tl.load(dense + at, mask=old, other=0.0) + fresh
            tl.store(dense + at, fresh, mask=new)
            place = tl.cast(groups, tl.int64) * 64 + i
            mask = rows[:, None] & (i < recent)[None, :]
            tl.store(out + place[None, :], tl.dot(qt, tl.trans(k)) * scale, mask=mask)


@triton.jit
def value_kernel(
    q,
    v_bits,
    v_offset,
    v_values,
    v_window,
    v_new,
    scores,
    parts,
    sums,
    hq,
    hk,
    old,
    size,
    recent,
    blocks_per_split,
    D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    kv = tl.program_id(0).to(tl.int64)
    heads = hq // hk
    g = tl.arange(0, BLOCK_G)
    c = tl.arange(0, D)
    t = tl.arange(0, BLOCK_T)
    w = tl.arange(0, D // 32)
    rows = g < heads
    row = kv * heads + g
    of_row = scores + row[:, None] * (tl.cast(old, tl.int64) + recent)
    m = tl.full((BLOCK_G,), FLOOR, tl.float32)
    l = tl.zeros((BLOCK_G,), tl.float32)
    acc = tl.zeros((BLOCK_G, D), tl.float32)
    if tl.program_id(1) < tl.num_programs(1) - 1:
        start = tl.program_id(1) * blocks_per_split * BLOCK_T
        end = tl.minimum(start + blocks_per_split * BLOCK_T, old)
        for block in range(start, end, BLOCK_T):
            i = block + t
            live = (i < end)[:, None] & (w < D // 32)[None, :]
            at = (kv * old + i)[:, None] * (D // 32) + w[None, :]
            word = tl.load(v_bits + at, mask=live, other=0).to(tl.uint32, bitcast=True)
            odd = (w % 2 == 1)[None, :]
            before = tl.load(v_bits + at - 1, mask=live & odd, other=0).to(tl.uint32, bitcast=True)
            first = tl.load(v_offset + at // 2, mask=live, other=0) + popcount(before)
            v = tl.reshape(expand(v_values + kv * size, word, first), (BLOCK_T, D))
            seen = rows[:, None] & (i < end)[None, :]
            score = tl.load(of_row + i[None, :], mask=seen, other=FLOOR)
            m, l, acc = update(score, seen, v, m, l, acc)
    else:
        dense = v_window + kv * recent * D
        for block in range(0, recent - 1, BLOCK_T):
            i = block + t
            mask = (i < recent - 1)[:, None] & (c < D)[None, :]
            v = tl.load(dense + i[:, None] * D + c[None, :], mask=mask, other=0.0)
            seen = rows[:, None] & (i < recent - 1)[None, :]
            score = tl.load(of_row + (old + i)[None, :], mask=seen, other=FLOOR)
            m, l, acc = update(score, seen, v, m, l, acc)
        fresh = tl.load(v_new + kv * D + c, mask=c < D, other=0.0)
        tl.store(dense + (recent - 1) * D + c, fresh, mask=c < D)
        last = scores + row * (tl.cast(old, tl.int64) + recent) + old + recent - 1
        m, l, acc = update_one(tl.load(last, mask=rows, other=0.0), fresh, m, l, acc)
    # Always in parts: the window's program is one more split.
    finish(q, parts, sums, row, rows, m, l, acc, D, D, True)


def splits(batch: int, hk: int, old: int) -> int:
    """Programs per KV head: those that share the packed tokens, and one for the dense window [-]."""
    return 1 + (splits_for(batch * hk, old // BLOCK_T) if old else 0)


def buffers(*, q: torch.Tensor, k_window: torch.Tensor, k_offset: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
    """Output (batch, hq, d), scores (batch, hq, tokens) and the states of the splits."""
    batch, hq, d = q.shape
    hk, recent = k_window.shape[1:3]
    old = k_offset.shape[2] * TILE // d
    n = splits(batch, hk, old)
    return {
        "out": torch.empty_like(q),
        "scores": torch.empty((batch, hq, old + recent), dtype=torch.float32, device=q.device),
        **online_softmax.workspace(batch * hq, n, d, q.device, always=True),
    }


def bitmap_decode(
    q: torch.Tensor,
    k_bits: torch.Tensor,
    k_offset: torch.Tensor,
    k_values: torch.Tensor,
    k_window: torch.Tensor,
    k_new: torch.Tensor,
    v_bits: torch.Tensor,
    v_offset: torch.Tensor,
    v_values: torch.Tensor,
    v_window: torch.Tensor,
    v_new: torch.Tensor,
    out: torch.Tensor,
    scores: torch.Tensor,
    parts: torch.Tensor,
    sums: torch.Tensor,
) -> None:
    """Attend to packed tokens and to the dense window, in whose last slot the new token is written."""
    batch, hq, d = q.shape
    hk, recent = k_window.shape[1:3]
    if d not in (64, 128, 256):
        raise ValueError(f"d is {d}; tiles of {TILE} channels need 64, 128 or 256")
    groups = k_offset.shape[2] // d
    n = parts.shape[1]
    shared = {"hq": hq, "hk": hk, "recent": recent, "D": d, **CONFIG}
    shared["BLOCK_G"] = max(16, power_of_2(hq // hk))
    launch(
        score_kernel,
        (batch * hk, groups + 1),
        q=q,
        k_bits=k_bits,
        k_offset=k_offset,
        k_values=k_values,
        k_window=k_window,
        k_new=k_new,
        scores=scores,
        groups=groups,
        size=k_values.shape[2],
        scale=LOG2E * d**-0.5,
        **shared,
    )
    blocks = cdiv(groups * TILE, BLOCK_T)
    launch(
        value_kernel,
        (batch * hk, n),
        q=q,
        v_bits=v_bits,
        v_offset=v_offset,
        v_values=v_values,
        v_window=v_window,
        v_new=v_new,
        scores=scores,
        parts=parts,
        sums=sums,
        old=groups * TILE,
        size=v_values.shape[2],
        blocks_per_split=cdiv(blocks, max(n - 1, 1)),
        BLOCK_T=BLOCK_T,
        **shared,
    )
    online_softmax.combine(parts, sums, out)
