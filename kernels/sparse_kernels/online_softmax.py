"""Softmax over blocks of keys in one pass, and the sum of split-K parts; shared by all attention kernels.

Scores are in units of log2 (``q.k * scale * log2 e``), because exp2 is the GPU's own exponential. State per query
row: running maximum m, sum l of weights, and acc, the weighted sum of values, all float32 [1]_.

References
----------
.. [1] Milakov and Gimelshein, "Online normalizer calculation for softmax", arXiv:1805.02867.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparse_kernels.launch import launch, power_of_2

LOG2E = 1.4426950408889634
FLOOR = tl.constexpr(-1.0e30)
"""Score of a key nobody sees: finite, so that the maximum of nothing minus itself is 0 and not NaN."""


@triton.jit
def update(score, visible, value, m, l, acc):
    """State after a block: score, visible (G, N); value (N, D); m, l (G); acc (G, D)."""
    score = tl.where(visible, score, FLOOR)
    top = tl.maximum(m, tl.max(score, 1))
    old = tl.exp2(m - top)
    weight = tl.where(visible, tl.exp2(score - top[:, None]), 0.0)
    acc = tl.dot(weight.to(value.dtype), value, acc * old[:, None])
    return top, l * old + tl.sum(weight, 1), acc


@triton.jit
def update_one(score, value, m, l, acc):
    """State after one key: score (G), value (D)."""
    top = tl.maximum(m, score)
    old = tl.exp2(m - top)
    weight = tl.exp2(score - top)
    return (top, l * old + weight, acc * old[:, None] + weight[:, None] * value.to(tl.float32)[None, :])


@triton.jit
def finish(out, parts, sums, row, rows, m, l, acc, D: tl.constexpr, BLOCK_D: tl.constexpr, PARTS: tl.constexpr):
    """Write ``acc / l`` to out (rows, D), or the state to parts (rows, splits, D) and sums (rows, splits, 2)."""
    c = tl.arange(0, BLOCK_D)
    mask = rows[:, None] & (c < D)[None, :]
    if PARTS:
        slot = row * tl.num_programs(1) + tl.program_id(1)
        tl.store(parts + slot[:, None] * D + c[None, :], acc, mask=mask)
        tl.store(sums + slot * 2, m, mask=rows)
        tl.store(sums + slot * 2 + 1, l, mask=rows)
    else:
        tl.store(out + row[:, None] * D + c[None, :], (acc / l[:, None]).to(out.dtype.element_ty), mask=mask)


@triton.jit
def combine_kernel(parts, sums, out, splits, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr):
    """One query row: its splits weighed by ``2^(m - max m)``."""
    row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, BLOCK_S)
    c = tl.arange(0, BLOCK_D)
    inside = s < splits
    slot = row * splits + s
    m = tl.load(sums + slot * 2, mask=inside, other=FLOOR)
    l = tl.load(sums + slot * 2 + 1, mask=inside, other=0.0)
    weight = tl.where(inside, tl.exp2(m - tl.max(m, 0)), 0.0)
    mask = inside[:, None] & (c < D)[None, :]
    acc = tl.load(parts + slot[:, None] * D + c[None, :], mask=mask, other=0.0)
    total = tl.sum(acc * weight[:, None], 0) / tl.sum(l * weight, 0)
    tl.store(out + row * D + c, total.to(out.dtype.element_ty), mask=c < D)


def workspace(rows: int, splits: int, d: int, device: torch.device, *, always: bool = False) -> dict[str, torch.Tensor]:
    """Uninitialised states of `rows` query rows, float32; none for one split unless `always`."""
    n = rows if splits > 1 or always else 0
    return {
        "parts": torch.empty((n, splits, d), dtype=torch.float32, device=device),
        "sums": torch.empty((n, splits, 2), dtype=torch.float32, device=device),
    }


def combine(parts: torch.Tensor, sums: torch.Tensor, out: torch.Tensor) -> None:
    """Add up the splits of every query row into `out` (..., d); nothing to do where there is one split."""
    if not parts.numel():
        return
    rows, splits, d = parts.shape
    launch(
        combine_kernel,
        (rows,),
        num_warps=4,
        parts=parts,
        sums=sums,
        out=out,
        splits=splits,
        D=d,
        BLOCK_D=power_of_2(d),
        BLOCK_S=power_of_2(splits),
    )
