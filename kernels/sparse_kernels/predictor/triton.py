"""Predictor MLP and top-k: which neurons (or heads) a token needs (Deja Vu, ShadowLLM).

    z = relu(x W_1^T),   s = z W_2^T,   index = ascending argtop_k(s)

Both products are `gathered_mlp.rows_kernel` over a list of all rows, which the weights' shapes imply, so no list is
read: `skinny_kernel` below. Scores are stored in 16 bits, which is what makes the top-k cheap: the k-th largest is
found two bits at a time in eight passes that count scores, which stay in L1, and the winners are written in ascending
order by a prefix sum (gathers then walk the weights forwards). `torch.topk` sorts, takes several launches and gives an
int64 list. One program per row: beyond some 10^5 scores a row, several programs would be needed and torch's is better.
Of equal scores the first are taken, so that the list always has exactly k entries.

Layout. W_1 (rank, hidden), W_2 (outputs, rank), rows contiguous.

Traffic (bytes; b = 2): W_1 rank K b, W_2 F rank b, x M K b, z M rank b and s M F b written and read, list 4 M k.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparse_kernels.gathered_mlp.triton import activate, block_m
from sparse_kernels.launch import cdiv, launch, power_of_2

MOST_SCORES = 2**20 - 1
"""Scores of a row: a count has 20 bits [-]."""


@triton.jit
def skinny_kernel(
    x,
    weight,
    out,
    M,
    K,
    N,
    ACT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = n < N
    k = tl.arange(0, BLOCK_K)
    if BLOCK_M == 1:
        y = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for k0 in tl.range(0, K, BLOCK_K, num_stages=STAGES):
            inside = k0 + k < K
            xv = tl.load(x + k0 + k, mask=inside, other=0.0).to(tl.float32)
            at = n[:, None] * K + (k0 + k)[None, :]
            w = tl.load(weight + at, mask=live[:, None] & inside[None, :], other=0.0)
            y += w.to(tl.float32) * xv[None, :]
        total = activate(tl.sum(y, 1), ACT)
        tl.store(out + n, total.to(out.dtype.element_ty), mask=live)
    else:
        m = tl.arange(0, BLOCK_M).to(tl.int64)
        yt = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for k0 in tl.range(0, K, BLOCK_K, num_stages=STAGES):
            inside = k0 + k < K
            at = n[:, None] * K + (k0 + k)[None, :]
            w = tl.load(weight + at, mask=live[:, None] & inside[None, :], other=0.0)
            xt = tl.load(x + m[None, :] * K + (k0 + k)[:, None], mask=inside[:, None] & (m < M)[None, :], other=0.0)
            yt = tl.dot(w, xt, yt)
        tl.store(
            out + m[None, :] * N + n[:, None],
            activate(yt, ACT).to(out.dtype.element_ty),
            mask=live[:, None] & (m < M)[None, :],
        )


@triton.jit
def ranked(scores, row, start, N, BLOCK: tl.constexpr):
    """Scores as whole numbers in the same order: 0 to 65 535, and -1 past the end."""
    n = start + tl.arange(0, BLOCK)
    s = tl.load(scores + row * N + n, mask=n < N, other=0.0)
    # The bits of a float, its sign folded, order as integers do; -0 is made equal to 0.
    bits = s.to(tl.int16, bitcast=True).to(tl.int32)
    key = tl.where(s == 0.0, 0, bits ^ ((bits >> 15) & 0x7FFF)) + 32768
    return tl.where(n < N, key, -1)


@triton.jit
def top_k_kernel(scores, index, N, keep, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    threshold = tl.cast(keep, tl.int32) * 0
    # Two bits of the k-th largest score at a time: the three counts of a pass share one 64-bit sum.
    for i in tl.static_range(8):  # type: ignore[misc]  # iterates when compiled
        step = 1 << (14 - 2 * i)
        seen = tl.zeros((BLOCK,), tl.int64)
        for start in tl.range(0, N, BLOCK):
            over = ranked(scores, row, start, N, BLOCK) - threshold
            seen += (over >= step).to(tl.int64)
            seen += (over >= 2 * step).to(tl.int64) << 20
            seen += (over >= 3 * step).to(tl.int64) << 40
        counts = tl.sum(seen, 0)
        first = ((counts & 0xFFFFF) >= keep).to(tl.int32)
        second = (((counts >> 20) & 0xFFFFF) >= keep).to(tl.int32)
        third = ((counts >> 40) >= keep).to(tl.int32)
        threshold += step * (first + second + third)
    above = tl.zeros((BLOCK,), tl.int32)
    for start in tl.range(0, N, BLOCK):
        above += (ranked(scores, row, start, N, BLOCK) > threshold).to(tl.int32)
    room = keep - tl.sum(above, 0)
    written = tl.cast(keep, tl.int32) * 0
    for start in tl.range(0, N, BLOCK):
        key = ranked(scores, row, start, N, BLOCK)
        tied = (key == threshold).to(tl.int32)
        chosen = (key > threshold).to(tl.int32) | (tied & (tl.cumsum(tied, 0) <= room).to(tl.int32))
        at = written + tl.cumsum(chosen, 0) - 1
        tl.store(index + row * keep + at, start + tl.arange(0, BLOCK), mask=chosen != 0)
        written += tl.sum(chosen, 0)
        room -= tl.sum(tied, 0)


def skinny_config(m: int, k: int) -> dict[str, int]:
    """At batch 1 four rows of up to 2 KiB at a time."""
    if m == 1:
        block_k = min(power_of_2(k), 1024)
        return {"BLOCK_M": 1, "BLOCK_N": 4, "BLOCK_K": block_k, "STAGES": 3, "num_warps": 4}
    return {"BLOCK_M": block_m(m), "BLOCK_N": 64, "BLOCK_K": 64, "STAGES": 4, "num_warps": 4}


def top_k_config(n: int) -> dict[str, int]:
    """Sixteen warps with 16 B of scores per thread, or fewer for a short row."""
    block = min(max(power_of_2(n), 256), 4096)
    return {"BLOCK": block, "num_warps": block // 256}


def skinny(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, activation: str) -> None:
    """out (M, N) = act(x weight^T), N rows of `weight` spread over programs."""
    (m, k), n = x.shape, weight.shape[0]
    tile = skinny_config(m, k)
    launch(
        skinny_kernel, (cdiv(n, tile["BLOCK_N"]),), x=x, weight=weight, out=out, M=m, K=k, N=n, ACT=activation, **tile
    )


def top_k(scores: torch.Tensor, index: torch.Tensor) -> None:
    """index (M, keep), int32, ascending: the largest of each row of 16-bit `scores` (M, N)."""
    m, n = scores.shape
    if n > MOST_SCORES:
        raise ValueError(f"top_k counts at most {MOST_SCORES} scores, got {n}; use torch.topk")
    if index.shape[1]:
        launch(top_k_kernel, (m,), scores=scores, index=index, N=n, keep=index.shape[1], **top_k_config(n))


def buffers(x: torch.Tensor, w_in: torch.Tensor, w_out: torch.Tensor, keep: int) -> dict[str, torch.Tensor]:
    """hidden (M, rank), scores (M, outputs), index (M, keep)."""
    m = x.shape[0]
    return {
        "hidden": torch.empty((m, w_in.shape[0]), dtype=x.dtype, device=x.device),
        "scores": torch.empty((m, w_out.shape[0]), dtype=x.dtype, device=x.device),
        "index": torch.empty((m, keep), dtype=torch.int32, device=x.device),
    }


def predictor(
    x: torch.Tensor,
    w_in: torch.Tensor,
    w_out: torch.Tensor,
    keep: int,
    hidden: torch.Tensor,
    scores: torch.Tensor,
    index: torch.Tensor,
) -> None:
    """Three launches: two products and the selection; no count comes back to the host, so a CUDA graph holds them."""
    skinny(x, w_in, hidden, "relu")
    skinny(hidden, w_out, scores, "none")
    top_k(scores, index)
