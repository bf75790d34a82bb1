"""A linear layer of few rows: ``y[m, n] = sum_k x[m, k] W[n, k]``, bound by the read of W.

Layout. W (n, k), rows contiguous, so a tile of W is read in 128-bit pieces along k. One row of x multiplies on the
vector units; more rows take tensor cores with W as the left operand, so that 16 rows of W meet x padded to 16
columns. Split over k with float32 partials (`split_k`) until about 256 programs stream W.

Traffic (b = 2 bytes): W n k b, x m k b, y m n b.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from sparse_kernels import split_k
from sparse_kernels.launch import cdiv, launch, power_of_2

MOST_ROWS = 64


@triton.jit
def gemv_kernel(x, weight, out, n, k, steps, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, BLOCK_K)
    start = split * steps * BLOCK_K
    end = tl.minimum(start + steps * BLOCK_K, k)
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for block in tl.range(start, end, BLOCK_K):
        i = block + lane
        xt = tl.load(x + i, mask=i < end, other=0.0).to(tl.float32)
        mask = (rows < n)[:, None] & (i < end)[None, :]
        w = tl.load(weight + rows[:, None] * k + i[None, :], mask=mask, other=0.0)
        acc += w.to(tl.float32) * xt[None, :]
    y = tl.sum(acc, 1).to(out.dtype.element_ty)
    tl.store(out + split * n + rows, y, mask=rows < n)


@triton.jit
def skinny_kernel(x, weight, out, m, n, k, steps, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_M).to(tl.int64)
    split = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, BLOCK_K)
    start = split * steps * BLOCK_K
    end = tl.minimum(start + steps * BLOCK_K, k)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for block in tl.range(start, end, BLOCK_K):
        i = block + lane
        inside = (i < end)[None, :]
        w = tl.load(weight + rows[:, None] * k + i[None, :], mask=(rows < n)[:, None] & inside, other=0.0)
        xt = tl.load(x + columns[:, None] * k + i[None, :], mask=(columns < m)[:, None] & inside, other=0.0)
        acc = tl.dot(w, tl.trans(xt), acc)
    at = (split * m + columns)[None, :] * n + rows[:, None]
    mask = (rows < n)[:, None] & (columns < m)[None, :]
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=mask)


def tile(m: int) -> dict[str, int]:
    """Tile and warps: 16 KiB of W in flight per stage."""
    if m == 1:
        return {"BLOCK_N": 16, "BLOCK_K": 512, "num_warps": 4, "num_stages": 2}
    return {"BLOCK_N": 64, "BLOCK_K": 128, "num_warps": 4, "num_stages": 3}


def splits(m: int, n: int, k: int) -> int:
    """Programs that share the k of one tile [-]."""
    t = tile(m)
    return split_k.splits_for(cdiv(n, t["BLOCK_N"]), cdiv(k, t["BLOCK_K"]))


def buffers(*, x: torch.Tensor, weight: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
    """Output (m, n) and split-K partials."""
    (m, k), n = x.shape, weight.shape[0]
    return {
        "out": torch.empty((m, n), dtype=x.dtype, device=x.device),
        "partial": split_k.workspace(splits(m, n, k), m, n, x.device),
    }


def skinny_gemm(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, partial: torch.Tensor) -> None:
    """``out = x W^T`` for x (m, k) of at most `MOST_ROWS` rows."""
    (m, k), n = x.shape, weight.shape[0]
    if not 1 <= m <= MOST_ROWS:
        raise ValueError(f"{m} rows; this kernel takes 1 to {MOST_ROWS}")
    t, s = tile(m), splits(m, n, k)
    into = out if s == 1 else partial
    grid = (cdiv(n, t["BLOCK_N"]), s)
    steps = cdiv(cdiv(k, t["BLOCK_K"]), s)
    if m == 1:
        launch(gemv_kernel, grid, x=x, weight=weight, out=into, n=n, k=k, steps=steps, **t)
    else:
        launch(
            skinny_kernel,
            grid,
            x=x,
            weight=weight,
            out=into,
            m=m,
            n=n,
            k=k,
            steps=steps,
            BLOCK_M=max(16, power_of_2(m)),
            **t,
        )
    if s > 1:
        split_k.reduce(partial, out)
