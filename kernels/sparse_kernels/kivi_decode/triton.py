"""KIVI: decode attention that dequantises as it reads [1]_.

    K[t, c] = code s[g(t), c] + z[g(t), c]      V[t, c] = code s[t, g(c)] + z[t, g(c)]
    q . K[t] = sum_c (q_c s_c) code[t, c] + q . z

A block is one group of tokens, so K's scale multiplies q once per block instead of every element: codes are exact in
16 bits and go to the tensor cores as they are. V is dequantised per element.

Layout. Codes are packed along d, 8 / bits to a byte (batch, hk, tokens, d bits / 8); K's scale and zero
(batch, hk, tokens / group, d), V's (batch, hk, tokens, d / group), fp16. The newest `recent` tokens are dense in
k_window, v_window; one more program per KV head attends to them and appends the new token.

Traffic: 2 hk d (bits / 8 + 4 / group) per old token, 4 hk d per dense one, q and out 2 hq d each, 4 hk d written.

References
----------
.. [1] Liu et al., "KIVI", arXiv:2402.02750.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from sparse_kernels import online_softmax
from sparse_kernels.decode import new_token, over_rows
from sparse_kernels.launch import cdiv, launch, power_of_2
from sparse_kernels.online_softmax import FLOOR, LOG2E, finish, update
from sparse_kernels.split_k import splits_for

CONFIG = {"num_warps": 8, "num_stages": 2}


@triton.jit
def unpack(byte, BITS: tl.constexpr):
    """Codes (N, 8 W / BITS) of bytes (N, W), the lowest bits first."""
    if BITS == 8:
        codes = byte
    elif BITS == 4:
        codes = tl.join(byte & 15, byte >> 4)
    else:
        even = tl.join(byte & 3, (byte >> 4) & 3)
        odd = tl.join((byte >> 2) & 3, byte >> 6)
        codes = tl.join(even, odd)
    return tl.reshape(codes, (byte.shape[0], byte.shape[1] * (8 // BITS)))


@triton.jit
def kivi_kernel(
    q,
    k_codes,
    k_scale,
    k_zero,
    v_codes,
    v_scale,
    v_zero,
    k_window,
    v_window,
    k_new,
    v_new,
    parts,
    sums,
    hq,
    hk,
    old,
    window,
    recent,
    blocks_per_split,
    scale,
    D: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    kv = tl.program_id(0).to(tl.int64)
    heads = hq // hk
    g = tl.arange(0, BLOCK_G)
    n = tl.arange(0, GROUP)
    c = tl.arange(0, D)
    w = tl.arange(0, D * BITS // 8)
    u = tl.arange(0, D // GROUP)
    rows = g < heads
    row = kv * heads + g
    qt = tl.load(q + row[:, None] * D + c[None, :], mask=rows[:, None] & (c >= 0)[None, :], other=0.0)
    q32 = qt.to(tl.float32)
    m = tl.full((BLOCK_G,), FLOOR, tl.float32)
    l = tl.zeros((BLOCK_G,), tl.float32)
    acc = tl.zeros((BLOCK_G, D), tl.float32)

    last = tl.num_programs(1) - 1
    first = tl.program_id(1) * blocks_per_split
    groups = tl.where(tl.program_id(1) < last, tl.minimum(first + blocks_per_split, old // GROUP), first)
    for block in tl.range(first, groups):
        i = kv * old + block * GROUP + n
        live = (n < GROUP)[:, None]
        s = tl.load(k_scale + (kv * (old // GROUP) + block) * D + c, mask=c < D, other=0.0)
        z = tl.load(k_zero + (kv * (old // GROUP) + block) * D + c, mask=c < D, other=0.0)
        byte = tl.load(k_codes + i[:, None] * (D * BITS // 8) + w[None, :], mask=live, other=0)
        k = unpack(byte, BITS).to(tl.float32).to(qt.dtype)
        offset = tl.sum(q32 * z.to(tl.float32)[None, :], 1)
        score = tl.dot((q32 * s.to(tl.float32)[None, :]).to(qt.dtype), tl.trans(k))
        score = (score + offset[:, None]) * scale

        byte = tl.load(v_codes + i[:, None] * (D * BITS // 8) + w[None, :], mask=live, other=0)
        s = tl.load(v_scale + i[:, None] * (D // GROUP) + u[None, :], mask=live, other=0.0)
        z = tl.load(v_zero + i[:, None] * (D // GROUP) + u[None, :], mask=live, other=0.0)
        v = tl.reshape(unpack(byte, BITS).to(tl.float32), (GROUP, D // GROUP, GROUP))
        v = v * s.to(tl.float32)[:, :, None] + z.to(tl.float32)[:, :, None]
        v = tl.reshape(v, (GROUP, D)).to(qt.dtype)
        m, l, acc = update(score, (n < GROUP)[None, :], v, m, l, acc)

    if tl.program_id(1) == last:
        base = kv * window * D
        place = base + (tl.cast(recent, tl.int64) - 1) * D
        m, l, acc = over_rows(qt, k_window + base, v_window + base, 0, recent - 1, scale, m, l, acc, D, GROUP, D)
        m, l, acc = new_token(
            qt, k_new + kv * D, v_new + kv * D, k_window + place, v_window + place, True, scale, m, l, acc, D, D
        )
    # Always in parts: the window's program is one more split.
    finish(q, parts, sums, row, rows, m, l, acc, D, D, True)


def splits(batch: int, hk: int, groups: int) -> int:
    """Programs per KV head: those that share the groups, and one for the dense window [-]."""
    return 1 + (splits_for(batch * hk, groups) if groups else 0)


def buffers(*, q: torch.Tensor, k_codes: torch.Tensor, group: int, **_: Any) -> dict[str, torch.Tensor]:
    """Output (batch, hq, d) and the states of the splits."""
    batch, hq, d = q.shape
    n = splits(batch, k_codes.shape[1], k_codes.shape[2] // group)
    return {"out": torch.empty_like(q), **online_softmax.workspace(batch * hq, n, d, q.device, always=True)}


def kivi_decode(
    q: torch.Tensor,
    k_codes: torch.Tensor,
    k_scale: torch.Tensor,
    k_zero: torch.Tensor,
    v_codes: torch.Tensor,
    v_scale: torch.Tensor,
    v_zero: torch.Tensor,
    k_window: torch.Tensor,
    v_window: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    recent: int,
    bits: int,
    group: int,
    out: torch.Tensor,
    parts: torch.Tensor,
    sums: torch.Tensor,
) -> None:
    """Attend to the quantised tokens and to `recent` dense ones; appends the new token at ``recent - 1``."""
    batch, hq, d = q.shape
    hk, old = k_codes.shape[1:3]
    if d & (d - 1) or d % group or old % group:
        raise ValueError(f"groups of {group} need d a power of two of at least {group}, got {d}")
    n = parts.shape[1]
    launch(
        kivi_kernel,
        (batch * hk, n),
        **CONFIG,
        q=q,
        k_codes=k_codes,
        k_scale=k_scale,
        k_zero=k_zero,
        v_codes=v_codes,
        v_scale=v_scale,
        v_zero=v_zero,
        k_window=k_window,
        v_window=v_window,
        k_new=k_new,
        v_new=v_new,
        parts=parts,
        sums=sums,
        hq=hq,
        hk=hk,
        old=old,
        window=k_window.shape[2],
        recent=recent,
        blocks_per_split=cdiv(old // group, max(n - 1, 1)),
        scale=LOG2E * d**-0.5,
        D=d,
        BITS=bits,
        GROUP=group,
        BLOCK_G=max(16, power_of_2(hq // hk)),
    )
    online_softmax.combine(parts, sums, out)
