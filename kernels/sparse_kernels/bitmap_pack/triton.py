"""Mustafar's compressor: prune each row of K and V to its largest magnitudes and pack them as bitmap tiles.

Format: `sparse_kernels.bitmap`. Three launches for K and three for V:
1. mark: one program per 64 tokens finds the k-th largest magnitude of each row by halving the 15 bits below the sign,
   writes the bitmaps and how many values its tiles need;
2. scan: one program per KV head adds those up;
3. fill: one program per 64 tokens reads its tile and the bitmaps again and writes offsets and values.

Traffic (b = 2 bytes): K and V 2 hk d b per token read, ``12 + b ceil8(n)`` written per tile of n values. Bitmaps are
read back from L2, as are the sums, 4 B per 64 tokens, written and read.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from sparse_kernels.bitmap import PAD, TILE, capacity
from sparse_kernels.launch import launch, power_of_2
from sparse_kernels.popcount import popcount

CONFIG = {"num_warps": 8, "num_stages": 1}


@triton.jit
def padded(count):
    """`count` rounded up to a multiple of eight."""
    return (count + 7) // 8 * 8


@triton.jit
def mark_kernel(x, bits, totals, groups, kept, D: tl.constexpr, BY_TOKEN: tl.constexpr):
    head = tl.program_id(0).to(tl.int64)
    group = head * groups + tl.program_id(1)
    t = tl.arange(0, 64)
    c = tl.arange(0, D)
    at = (group * 64 + t)[:, None] * D + c[None, :]
    inside = (t < 64)[:, None] & (c < D)[None, :]
    size = tl.load(x + at, mask=inside, other=0.0).to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
    least = tl.zeros((64,), tl.int32)
    for step in tl.static_range(15):
        trial = least | (1 << (14 - step))
        enough = tl.sum((size >= trial[:, None]).to(tl.int32), 1) >= kept
        least = tl.where(enough, trial, least)
    above = (size > least[:, None]).to(tl.int32)
    tie = (size == least[:, None]).to(tl.int32)
    room = kept - tl.sum(above, 1)
    keep = above | (tie & (tl.cumsum(tie, 1) <= room[:, None]).to(tl.int32))
    if BY_TOKEN:
        # Word w of channel c holds tokens 32 w to 32 w + 31.
        word = tl.sum(tl.reshape(keep, (2, 32, D)).to(tl.uint32) << tl.arange(0, 32).to(tl.uint32)[None, :, None], 1)
        w = tl.arange(0, 2)
        place = (group * D + c)[None, :] * 2 + w[:, None]
        tl.store(bits + place, word.to(tl.int32, bitcast=True), mask=(w < 2)[:, None] & (c < D)[None, :])
        count = tl.sum(keep, 0)
        need = tl.sum(padded(count), 0)
    else:
        word = tl.sum(
            tl.reshape(keep, (64, D // 32, 32)).to(tl.uint32) << tl.arange(0, 32).to(tl.uint32)[None, None, :], 2
        )
        w = tl.arange(0, D // 32)
        place = (group * 64 + t)[:, None] * (D // 32) + w[None, :]
        tl.store(bits + place, word.to(tl.int32, bitcast=True), mask=(t < 64)[:, None] & (w >= 0)[None, :])
        count = tl.sum(tl.reshape(keep, (64 * D // 64, 64)), 1)
        need = tl.sum(padded(count), 0)
    tl.store(totals + group, need, mask=group >= 0)


@triton.jit
def scan_kernel(totals, groups, BLOCK: tl.constexpr):
    head = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    sum_so_far = tl.zeros((1,), tl.int32)
    for start in tl.range(0, groups, BLOCK):
        i = start + lane
        need = tl.load(totals + head * groups + i, mask=i < groups, other=0)
        tl.store(totals + head * groups + i, sum_so_far + tl.cumsum(need, 0) - need, mask=i < groups)
        sum_so_far += tl.sum(need, 0)


@triton.jit
def fill_kernel(x, bits, offset, values, totals, groups, size, D: tl.constexpr, BY_TOKEN: tl.constexpr):
    head = tl.program_id(0).to(tl.int64)
    group = head * groups + tl.program_id(1)
    start = tl.load(totals + group, mask=group >= 0, other=0)
    # A program's tiles: D channels of 64 tokens, or 64 tokens of D / 64 pieces of 64 channels.
    tile = tl.arange(0, D)
    lane = tl.arange(0, 64)
    at = (group * D + tile) * 2
    low = tl.load(bits + at, mask=tile < D, other=0).to(tl.uint32, bitcast=True)
    high = tl.load(bits + at + 1, mask=tile < D, other=0).to(tl.uint32, bitcast=True)
    count = popcount(low) + popcount(high)
    first = start + tl.cumsum(padded(count), 0) - padded(count)
    tl.store(offset + group * D + tile, first, mask=tile < D)
    word = tl.where((lane < 32)[None, :], low[:, None], high[:, None])
    keep = (word >> (lane & 31).to(tl.uint32)[None, :]) & 1
    before = word & ((tl.full((64,), 1, tl.uint32) << (lane & 31).to(tl.uint32)) - 1)[None, :]
    rank = popcount(before) + tl.where((lane < 32)[None, :], 0, popcount(low)[:, None])
    if BY_TOKEN:
        source = (group * 64 + lane)[None, :] * D + tile[:, None]
    else:
        source = (group * D + tile)[:, None] * 64 + lane[None, :]
    live = keep == 1
    value = tl.load(x + source, mask=live, other=0.0)
    base = values + head * size
    tl.store(base + first[:, None] + rank, value, mask=live)
    pad = tl.arange(0, 8)
    blank = (count[:, None] + pad[None, :]) < padded(count)[:, None]
    tl.store(base + (first + count)[:, None] + pad[None, :], tl.zeros((D, 8), value.dtype), mask=blank)


def buffers(*, k: torch.Tensor, v: torch.Tensor, kept: int, **_: Any) -> dict[str, torch.Tensor]:
    """Bitmaps, offsets, values at their worst-case capacity, and the sums of K's and V's groups."""
    batch, hk, tokens, d = k.shape
    n = tokens * d // TILE
    out = {}
    for name, x in (("k", k), ("v", v)):
        out[f"{name}_bits"] = torch.empty((batch, hk, n, 2), dtype=torch.int32, device=x.device)
        out[f"{name}_offset"] = torch.empty((batch, hk, n), dtype=torch.int32, device=x.device)
        shape = (batch, hk, capacity(tokens, d, kept))
        out[f"{name}_values"] = torch.empty(shape, dtype=x.dtype, device=x.device)
    out["totals"] = torch.empty((2, batch, hk, tokens // TILE), dtype=torch.int32, device=k.device)
    return out


def bitmap_pack(
    k: torch.Tensor,
    v: torch.Tensor,
    kept: int,
    k_bits: torch.Tensor,
    k_offset: torch.Tensor,
    k_values: torch.Tensor,
    v_bits: torch.Tensor,
    v_offset: torch.Tensor,
    v_values: torch.Tensor,
    totals: torch.Tensor,
) -> None:
    """Pack k and v (batch, hk, tokens, d), `kept` of every row; tokens a multiple of 64, d 64, 128 or 256."""
    batch, hk, tokens, d = k.shape
    if tokens % TILE or d not in (64, 128, 256) or not 1 <= kept <= d:
        raise ValueError(f"{tokens} tokens of {d} channels, {kept} kept, make no whole tiles of {TILE} and {PAD}")
    groups = tokens // TILE
    grid = (batch * hk, groups)
    for side, (x, bits, offset, values) in enumerate(
        ((k, k_bits, k_offset, k_values), (v, v_bits, v_offset, v_values))
    ):
        mine = {"D": d, "BY_TOKEN": side == 0, **CONFIG}
        launch(mark_kernel, grid, x=x, bits=bits, totals=totals[side], groups=groups, kept=kept, **mine)
        launch(
            scan_kernel,
            grid[:1],
            num_warps=4,
            num_stages=1,
            totals=totals[side],
            groups=groups,
            BLOCK=min(power_of_2(groups), 1024),
        )
        launch(
            fill_kernel,
            grid,
            x=x,
            bits=bits,
            offset=offset,
            values=values,
            totals=totals[side],
            groups=groups,
            size=values.shape[2],
            **mine,
        )
