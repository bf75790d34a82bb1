"""GQSA: 4-bit weights of which whole groups of 16 are dropped, times one vector.

    y_r = sum over the kept groups g of row r:  scale_g (sum_i code_gi x_gi - zero_g sum_i x_gi)

Layout (own; block CSR as the paper's). starts int32 per row; per kept group its int16 number along the row, 8 bytes of
codes (weight i low, weight i + 8 high, so that a byte's halves meet two contiguous pieces of x), a 16-bit scale and
an 8-bit zero: 13 B for 16 weights. A program takes a few whole rows; a row's groups are contiguous in every array, so
all weight loads stream, and only x is gathered, from cache. Rows of unequal length cost the longest of their program.
One row of x: the method is a GEMV; wider batches dequantise the whole tile (Marlin's way).

Traffic (bytes; G kept groups): 13 G, starts 4 (n + 1), x 2 k where every group of x is used by some row, y 2 n.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparse_kernels.launch import cdiv, launch


@triton.jit
def group_w4_kernel(
    x, starts, columns, codes, scale, zero, y, N, BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr, STAGES: tl.constexpr
):
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    start = tl.load(starts + n, mask=n < N, other=0).to(tl.int64)
    end = tl.load(starts + n + 1, mask=n < N, other=0).to(tl.int64)
    longest = tl.max(end - start, 0)
    byte = tl.arange(0, 8)
    acc = tl.zeros((BLOCK_N, BLOCK_G), tl.float32)
    for g0 in tl.range(0, longest, BLOCK_G, num_stages=STAGES):
        g = start[:, None] + g0 + tl.arange(0, BLOCK_G)[None, :]
        live = g < end[:, None]
        column = tl.load(columns + g, mask=live, other=0).to(tl.int64)
        s = tl.load(scale + g, mask=live, other=0.0).to(tl.float32)
        z = tl.load(zero + g, mask=live, other=0).to(tl.float32)
        each = live[:, :, None] & (byte < 8)[None, None, :]
        code = tl.load(codes + g[:, :, None] * 8 + byte[None, None, :], mask=each, other=0)
        at = column[:, :, None] * 16 + byte[None, None, :]
        low = tl.load(x + at, mask=each, other=0.0).to(tl.float32)
        high = tl.load(x + at + 8, mask=each, other=0.0).to(tl.float32)
        product = (code & 15).to(tl.float32) * low + (code >> 4).to(tl.float32) * high
        acc += s * (tl.sum(product, 2) - z * tl.sum(low + high, 2))
    total = tl.sum(acc, 1)
    tl.store(y + n, total.to(y.dtype.element_ty), mask=n < N)


def config() -> dict[str, int]:
    """Two rows, 64 groups of each at a time: 1 KiB of codes per step."""
    return {"BLOCK_N": 2, "BLOCK_G": 64, "STAGES": 3, "num_warps": 4}


def buffers(x: torch.Tensor, starts: torch.Tensor, **_: object) -> dict[str, torch.Tensor]:
    """y (1, n)."""
    return {"y": torch.empty((1, starts.numel() - 1), dtype=x.dtype, device=x.device)}


def group_w4(
    x: torch.Tensor,
    starts: torch.Tensor,
    columns: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    y: torch.Tensor,
) -> None:
    """y (1, n) of x (1, k) and the matrix that `naive.compress` made."""
    if x.shape[0] != 1:
        raise ValueError(f"group_w4 takes one row, got {x.shape[0]}")
    n, tile = y.shape[1], config()
    launch(
        group_w4_kernel,
        (cdiv(n, tile["BLOCK_N"]),),
        x=x,
        starts=starts,
        columns=columns,
        codes=codes,
        scale=scale,
        zero=zero,
        y=y,
        N=n,
        **tile,
    )
