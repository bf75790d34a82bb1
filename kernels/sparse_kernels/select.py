"""The k largest of a row of float32 scores, as an ascending list of int32.

One program per row finds the k-th largest by its bits, eight at a time (radix select): four histograms of 256
bins over the scores, mapped to integers of the same order, then one pass that writes the winners by a prefix sum.
Of equal scores the first are taken, so that a list has exactly k entries. Rows stay in L1 or L2 between passes.

Traffic: 4 B a score read, 4 B an entry written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparse_kernels.launch import launch, power_of_2

BINS = tl.constexpr(256)
CONFIG = {"num_warps": 8, "num_stages": 1}


@triton.jit
def ordered(score):
    """Unsigned integers that order as the float32 `score` does."""
    bits = score.to(tl.int32, bitcast=True)
    flip = (bits >> 31) | tl.full(bits.shape, -(2**31), tl.int32)
    return (bits ^ flip).to(tl.uint32, bitcast=True)


@triton.jit
def top_k_kernel(scores, picked, n, k, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    bins = tl.arange(0, BINS)
    found = tl.zeros((1,), tl.uint32)
    left = tl.zeros((1,), tl.int32) + k
    for step in tl.static_range(4):
        shift = 24 - 8 * step
        known = (0xFFFFFFFF << (32 - 8 * step)) & 0xFFFFFFFF
        count = tl.zeros((BINS,), tl.int32)
        for start in tl.range(0, n, BLOCK):
            i = start + lane
            key = ordered(tl.load(scores + row * n + i, mask=i < n, other=0.0))
            here = (i < n) & ((key & known) == found)
            digit = ((key >> shift) & 255).to(tl.int32)
            count += tl.histogram(digit, BINS, mask=here)
        above = tl.sum(count, 0) - tl.cumsum(count, 0)
        chosen = tl.sum((above >= left).to(tl.int32), 0)
        left -= tl.sum(tl.where(bins == chosen, above, 0), 0)
        found = found | (chosen.to(tl.uint32) << shift)
    taken = tl.zeros((1,), tl.int32)
    equal = tl.zeros((1,), tl.int32)
    for start in tl.range(0, n, BLOCK):
        i = start + lane
        key = ordered(tl.load(scores + row * n + i, mask=i < n, other=0.0))
        tie = ((i < n) & (key == found)).to(tl.int32)
        rank = equal + tl.cumsum(tie, 0) - tie
        win = ((i < n) & ((key > found) | ((tie == 1) & (rank < left)))).to(tl.int32)
        place = taken + tl.cumsum(win, 0) - win
        tl.store(picked + row * k + place, i, mask=win == 1)
        taken += tl.sum(win, 0)
        equal += tl.sum(tie, 0)


def top_k(scores: torch.Tensor, picked: torch.Tensor) -> None:
    """Into `picked` (..., k), int32, the places of the k largest of `scores` (..., n), float32, ascending."""
    n, k = scores.shape[-1], picked.shape[-1]
    if not 0 < k <= n:
        raise ValueError(f"top {k} of {n} scores")
    block = min(power_of_2(n), 4096)
    launch(top_k_kernel, (scores.numel() // n,), **CONFIG, scores=scores, picked=picked, n=n, k=k, BLOCK=block)
