"""The bitmap weight format and its product in plain torch."""

from __future__ import annotations

import torch

TILE = 64
"""Rows and columns of a tile; a row of a tile is one 64-bit word of the bitmap."""


def prune(weight: torch.Tensor, keep: float) -> torch.Tensor:
    """The `keep` share of largest magnitude; the rest zero. Kept zeros stay zeros and are not stored."""
    count = round(keep * weight.numel())
    flat = weight.flatten()
    kept = torch.zeros_like(flat)
    top = flat.abs().float().argsort(descending=True, stable=True)[:count]
    kept[top] = flat[top]
    return kept.view_as(weight)


def compress(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Bitmap, values and offsets of `weight` (n, k): the non-zeros tile by tile, in a tile row by row.

    bitmap (tiles_n, tiles_k, 64, 2), int32: bit c % 32 of word c // 32 says that column c of the row is stored.
    values (nnz), the weights' type; offsets (tiles_n, tiles_k), int32: where a tile's values begin.
    """
    n, k = weight.shape
    tiles_n, tiles_k = -(-n // TILE), -(-k // TILE)
    full = torch.zeros(tiles_n * TILE, tiles_k * TILE, dtype=weight.dtype, device=weight.device)
    full[:n, :k] = weight
    tiles = full.view(tiles_n, TILE, tiles_k, TILE).transpose(1, 2).contiguous()
    stored = tiles != 0
    words = stored.view(tiles_n, tiles_k, TILE, 2, 32).long() << torch.arange(32, device=weight.device)
    bits = words.sum(-1)
    counts = stored.sum((2, 3)).flatten()
    if counts.sum() >= 2**31:
        raise ValueError("more than 2^31 non-zeros in one matrix: offsets are 32 bit")
    return {
        "bitmap": torch.where(bits >= 2**31, bits - 2**32, bits).to(torch.int32),
        "values": tiles[stored],
        "offsets": (counts.cumsum(0) - counts).to(torch.int32).view(tiles_n, tiles_k),
    }


def decompress(bitmap: torch.Tensor, values: torch.Tensor, n: int, k: int) -> torch.Tensor:
    """The dense (n, k) matrix back."""
    tiles_n, tiles_k = bitmap.shape[:2]
    stored = (bitmap.long()[..., None] >> torch.arange(32, device=bitmap.device)) & 1
    stored = stored.view(tiles_n, tiles_k, TILE, TILE).bool()
    tiles = torch.zeros(stored.shape, dtype=values.dtype, device=values.device)
    tiles[stored] = values
    return tiles.transpose(1, 2).reshape(tiles_n * TILE, tiles_k * TILE)[:n, :k]


def bitmap_spmm(
    x: torch.Tensor, bitmap: torch.Tensor, values: torch.Tensor, offsets: torch.Tensor, n: int
) -> dict[str, torch.Tensor]:
    """y = x W^T with W decompressed first."""
    weight = decompress(bitmap, values, n, x.shape[1])
    return {"y": x.float() @ weight.float().T}
