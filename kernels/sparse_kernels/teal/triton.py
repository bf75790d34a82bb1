"""TEAL: a matrix-vector product that skips the columns of small inputs.

    y = sum_k [|x_k| > t] x_k W[:, k]

Layout. W is stored transposed, (K, N), so that a column is a contiguous row and a program reads runs of
2 BLOCK_N bytes of it. The test is fused: no list is built, a dropped row is a masked load that moves nothing.
Split over K with float32 partials and a second kernel (`split_k`), where the original adds 16-bit atomics.
One row of x only, as in the method's paper: rows of a batch would each keep other columns.

Traffic (bytes; L live inputs, b = 2): weight L N b, x K b, y N b, and with S > 1 splits 8 S N of workspace.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparse_kernels import split_k
from sparse_kernels.launch import cdiv, launch, power_of_2


@triton.jit
def teal_kernel(
    x, weight, out, threshold, K, N, rows_per_split, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr
):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1).to(tl.int64)
    start = split * rows_per_split
    end = tl.minimum(start + rows_per_split, K)
    within = n < N
    y = tl.zeros((BLOCK_K, BLOCK_N), tl.float32)
    for k0 in tl.range(start, end, BLOCK_K, num_stages=STAGES):
        k = k0 + tl.arange(0, BLOCK_K)
        xv = tl.load(x + k, mask=k < end, other=0.0).to(tl.float32)
        live = (k < end) & (tl.abs(xv) > threshold)
        w = tl.load(weight + k[:, None] * N + n[None, :], mask=live[:, None] & within[None, :], other=0.0)
        y += w.to(tl.float32) * tl.where(live, xv, 0.0)[:, None]
    total = tl.sum(y, 0)
    tl.store(out + split * N + n, total.to(out.dtype.element_ty), mask=within)


def config(n: int) -> dict[str, int]:
    """Runs of 512 B, sixteen rows at a time."""
    block_n = min(power_of_2(n), 256)
    return {"BLOCK_N": block_n, "BLOCK_K": 16, "STAGES": 3, "num_warps": 4}


def splits_for(k: int, n: int) -> int:
    """Programs along K, for `split_k.workspace`."""
    tile = config(n)
    return split_k.splits_for(cdiv(n, tile["BLOCK_N"]), cdiv(k, tile["BLOCK_K"]))


def buffers(x: torch.Tensor, weight: torch.Tensor, **_: object) -> dict[str, torch.Tensor]:
    """y (1, N) and the partials."""
    k, n = weight.shape
    return {
        "y": torch.empty((1, n), dtype=x.dtype, device=x.device),
        "partial": split_k.workspace(splits_for(k, n), 1, n, x.device),
    }


def teal(x: torch.Tensor, weight: torch.Tensor, threshold: float, y: torch.Tensor, partial: torch.Tensor) -> None:
    """y (1, N) from x (1, K) thresholded and `weight` stored (K, N)."""
    k, n = weight.shape
    tile = config(n)
    splits, step = max(partial.shape[0], 1), tile["BLOCK_K"]
    launch(
        teal_kernel,
        (cdiv(n, tile["BLOCK_N"]), splits),
        x=x,
        weight=weight,
        out=y if splits == 1 else partial,
        threshold=threshold,
        K=k,
        N=n,
        rows_per_split=cdiv(cdiv(k, splits), step) * step,
        **tile,
    )
    if splits > 1:
        split_k.reduce(partial, y)
