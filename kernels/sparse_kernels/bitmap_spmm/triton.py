"""Unstructured sparse weights loaded as sparse and multiplied as dense (Flash-LLM's idea, bitmaps as SpInfer).

    y = x W^T,   W (n, k) in tiles of 64 x 64: a 64-bit word per tile row, the non-zeros of the tile after one another

Layout (own). bitmap (tiles_n, tiles_k, 64 rows, 2 words of 32 bits); values, tile by tile and row by row; one int32
offset per tile. A program walks the tiles of 64 output features: it reads a tile's words, ranks every set bit by a
prefix sum along the row and over the rows' counts, gathers the values into a dense register tile (zero elsewhere) and
feeds tensor cores; 512 B of bitmap and 4 B of offset per 4096 weights replace an index per value, so it wins bytes
below a keep of about 0.93. All flop of the dense product are done. Split over k with partials (`split_k`).

Traffic (bytes; b = 2): values nnz b, bitmap 8 n ceil(k / 64), offsets 4 ceil(n / 64) ceil(k / 64), x M k b, y M n b,
and with S > 1 splits 8 S M n of workspace.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparse_kernels import split_k
from sparse_kernels.gathered_mlp.triton import block_m
from sparse_kernels.launch import cdiv, launch


@triton.jit
def bitmap_kernel(
    x, bitmap, values, offsets, out, M, N, K, tiles_k, tiles_per_split, BLOCK_M: tl.constexpr, STAGES: tl.constexpr
):
    tile_n = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    start = split * tiles_per_split
    end = tl.minimum(start + tiles_per_split, tiles_k)
    row = tl.arange(0, 64)
    n = tile_n * 64 + row
    column = tl.arange(0, 64)
    half = tl.arange(0, 128)
    m = tl.arange(0, BLOCK_M).to(tl.int64)
    if BLOCK_M == 1:
        acc = tl.zeros((64, 64), tl.float32)
    else:
        acc = tl.zeros((64, BLOCK_M), tl.float32)
    for t in tl.range(start, end, num_stages=STAGES):
        tile = tile_n * tiles_k + t
        word = tl.load(bitmap + tile * 128 + half, mask=tile_n * 64 + half // 2 < N, other=0)
        bit = (tl.reshape(word, (64, 2, 1)) >> tl.arange(0, 32)[None, None, :]) & 1
        bit = tl.reshape(bit, (64, 64))
        counts = tl.sum(bit, 1)
        before = (tl.cumsum(counts, 0) - counts)[:, None] + tl.cumsum(bit, 1) - bit
        base = tl.load(offsets + tile, mask=t < end, other=0).to(tl.int64)
        w = tl.load(values + base + before, mask=bit != 0, other=0.0)
        k = t * 64 + column
        if BLOCK_M == 1:
            xv = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
            acc += w.to(tl.float32) * xv[None, :]
        else:
            xt = tl.load(x + m[None, :] * K + k[:, None], mask=(k < K)[:, None] & (m < M)[None, :], other=0.0)
            acc = tl.dot(w, xt, acc)
    if BLOCK_M == 1:
        y = tl.sum(acc, 1)
        tl.store(out + split.to(tl.int64) * N + n, y.to(out.dtype.element_ty), mask=n < N)
    else:
        tl.store(
            out + (split.to(tl.int64) * M + m[None, :]) * N + n[:, None],
            acc.to(out.dtype.element_ty),
            mask=(n < N)[:, None] & (m < M)[None, :],
        )


def config(m: int) -> dict[str, int]:
    """Eight warps to a tile of 64 output features: 16 weights to a thread, whose ranks fit the registers."""
    return {"BLOCK_M": block_m(m), "STAGES": 1 if m == 1 else 2, "num_warps": 8}


def buffers(x: torch.Tensor, bitmap: torch.Tensor, n: int, **_: object) -> dict[str, torch.Tensor]:
    """y (M, n) and the partials."""
    m, (tiles_n, tiles_k) = x.shape[0], bitmap.shape[:2]
    splits = split_k.splits_for(tiles_n, tiles_k)
    return {
        "y": torch.empty((m, n), dtype=x.dtype, device=x.device),
        "partial": split_k.workspace(splits, m, n, x.device),
    }


def bitmap_spmm(
    x: torch.Tensor,
    bitmap: torch.Tensor,
    values: torch.Tensor,
    offsets: torch.Tensor,
    n: int,
    y: torch.Tensor,
    partial: torch.Tensor,
) -> None:
    """y (M, n) of x (M, k) and the matrix that `naive.compress` made."""
    m, k = x.shape
    tiles_n, tiles_k = bitmap.shape[:2]
    splits = max(partial.shape[0], 1)
    launch(
        bitmap_kernel,
        (tiles_n, splits),
        x=x,
        bitmap=bitmap,
        values=values,
        offsets=offsets,
        out=y if splits == 1 else partial,
        M=m,
        N=n,
        K=k,
        tiles_k=tiles_k,
        tiles_per_split=cdiv(tiles_k, splits),
        **config(m),
    )
    if splits > 1:
        split_k.reduce(partial, y)
