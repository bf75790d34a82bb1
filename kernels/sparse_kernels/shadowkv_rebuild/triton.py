"""ShadowKV: keys before rotation have low rank, so A (tokens, r) and B (hk, r, d) are kept and K is rebuilt [1]_.

    K[h, t] = rotate(A[t] B[h], t)      for the tokens of the chunks that head h picked

The two halves of d, which the rotation pairs, are two products of one program, so K leaves it rotated.

Layout (b = 2 bytes). factor (batch, tokens, r): a chunk is a run of chunk r b bytes; basis (batch, hk, r, d); picked
(batch, hk, chunks) int32; keys (batch, hk, chunks * chunk, d).

Traffic per sequence, n = chunks * chunk: A hk n r b where heads pick different chunks, B hk r d b, keys hk n d b, lists
4 B an entry.

References
----------
.. [1] Sun et al., "ShadowKV", arXiv:2410.21465.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from sparse_kernels.launch import cdiv, launch, power_of_2
from sparse_kernels.rotary import rotate

BLOCK_N = 64
BLOCK_R = 32
CONFIG = {"num_warps": 8, "num_stages": 3}


@triton.jit
def rebuild_kernel(
    factor,
    basis,
    picked,
    keys,
    hk,
    tokens,
    chunks,
    chunk,
    rank,
    D: tl.constexpr,
    LOG2_THETA: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    kv = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    p = tl.arange(0, BLOCK_P)
    live = i < chunks * chunk
    number = tl.load(picked + kv * chunks + i // chunk, mask=live, other=0).to(tl.int64)
    position = number * chunk + i % chunk
    row = (kv // hk * tokens + position) * rank
    low = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)
    high = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)
    for start in tl.range(0, rank, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        inside = r < rank
        a = tl.load(factor + row[:, None] + r[None, :], mask=live[:, None] & inside[None, :], other=0.0)
        at = (kv * rank + r)[:, None] * D + p[None, :]
        mask = inside[:, None] & (p < D // 2)[None, :]
        low = tl.dot(a, tl.load(basis + at, mask=mask, other=0.0), low)
        high = tl.dot(a, tl.load(basis + at + D // 2, mask=mask, other=0.0), high)
    low, high = rotate(low, high, position, p, LOG2_THETA, D // 2)
    at = (kv * chunks * chunk + i)[:, None] * D + p[None, :]
    mask = live[:, None] & (p < D // 2)[None, :]
    tl.store(keys + at, low.to(keys.dtype.element_ty), mask=mask)
    tl.store(keys + at + D // 2, high.to(keys.dtype.element_ty), mask=mask)


def shadowkv_rebuild(
    factor: torch.Tensor, basis: torch.Tensor, picked: torch.Tensor, chunk: int, theta: float, keys: torch.Tensor
) -> None:
    """Rotated keys of the chunks each KV head picked."""
    batch, hk, rank, d = basis.shape
    tokens, chunks = factor.shape[1], picked.shape[2]
    launch(
        rebuild_kernel,
        (batch * hk, cdiv(chunks * chunk, BLOCK_N)),
        **CONFIG,
        factor=factor,
        basis=basis,
        picked=picked,
        keys=keys,
        hk=hk,
        tokens=tokens,
        chunks=chunks,
        chunk=chunk,
        rank=rank,
        D=d,
        LOG2_THETA=math.log2(theta),
        BLOCK_N=BLOCK_N,
        BLOCK_R=BLOCK_R,
        BLOCK_P=max(16, power_of_2(d // 2)),
    )
