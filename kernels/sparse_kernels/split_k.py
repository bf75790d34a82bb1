"""Second half of a split-K product: partial sums of several programs added in a fixed order, without atomics.

Programs that share an output tile write float32 partials to a workspace (splits, elements), which stays in L2,
and this kernel adds them. Runs are repeatable to the bit, unlike atomic adds, and one launch dearer.

Traffic: ``4 splits elements`` read, ``2 elements`` written, and ``4 splits elements`` written before by the product.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparse_kernels.launch import cdiv, launch

BLOCK = 256
WARPS = 4


@triton.jit
def reduce_kernel(partial, out, elements, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < elements
    total = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(partial + tl.cast(elements, tl.int64) * split + i, mask=inside, other=0.0)
    tl.store(out + i, total.to(out.dtype.element_ty), mask=inside)


def workspace(splits: int, m: int, n: int, device: torch.device) -> torch.Tensor:
    """Uninitialised float32 partials (splits, m, n); none are needed for one split."""
    return torch.empty((splits if splits > 1 else 0, m, n), dtype=torch.float32, device=device)


def reduce(partial: torch.Tensor, out: torch.Tensor) -> None:
    """Sum of `partial` (splits, m, n), float32, into `out` (m, n)."""
    elements = out.numel()
    launch(
        reduce_kernel,
        (cdiv(elements, BLOCK),),
        num_warps=WARPS,
        partial=partial,
        out=out,
        elements=elements,
        SPLITS=partial.shape[0],
        BLOCK=BLOCK,
    )


def splits_for(programs: int, steps: int, wanted: int = 256) -> int:
    """Power of two of splits that brings `programs` to about `wanted`, each keeping at least one of `steps`.

    256 programs are about two for each of a large GPU's 108 to 148 SMs; more would only add partials to write and read.
    """
    splits = 1
    while splits * 2 * programs <= wanted and splits * 2 <= max(steps, 1):
        splits *= 2
    return splits
