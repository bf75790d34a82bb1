"""Products with the rows of a weight matrix that an index list names: Deja Vu's and ShadowLLM's sparse MLP.

    rows:     h[:, j] = act(x gate_j^T) (x up_j^T)        gated (SiLU), or act(x up_j^T) (OPT's ReLU)
    columns:  y       = sum_j h[:, j] down_j              j runs over the list

Layout. gate and up are (neurons, hidden) as models store them; down is stored transposed, also (neurons, hidden),
so that a neuron is one contiguous row of 2 hidden bytes in all three. The list names groups of `GROUP` rows:
1 for neurons, head_dim for attention heads. It is int32, shared by all M rows of x (the union over the batch).

Columns are split over programs, which write float32 partials that `split_k.reduce` adds: no atomics.
M = 1 multiplies and adds in registers; M > 1 uses tensor cores with the weight rows as the long side of the tile.

Traffic (bytes; L listed rows, I listed groups, b = 2):
    rows:     weights L K b (twice that if gated), x M K b, list 4 I, h M L b
    columns:  weights L N b, h M L b, list 4 I, y M N b, and with S > 1 splits 8 S M N of workspace
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparse_kernels import split_k
from sparse_kernels.launch import cdiv, launch, power_of_2


@triton.jit
def activate(v, ACT: tl.constexpr):
    if ACT == "silu":
        v = v / (1.0 + tl.exp(-v))
    elif ACT == "relu":
        v = tl.maximum(v, 0.0)
    return v


@triton.jit
def rows_kernel(
    x,
    gate,
    up,
    index,
    h,
    M,
    K,
    listed_rows,
    GATED: tl.constexpr,
    ACT: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = slot < listed_rows
    row = tl.load(index + slot // GROUP, mask=live, other=0).to(tl.int64) * GROUP + slot % GROUP
    k = tl.arange(0, BLOCK_K)
    if BLOCK_M == 1:
        g = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        u = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for k0 in tl.range(0, K, BLOCK_K, num_stages=STAGES):
            inside = k0 + k < K
            mask = live[:, None] & inside[None, :]
            at = row[:, None] * K + (k0 + k)[None, :]
            xv = tl.load(x + k0 + k, mask=inside, other=0.0).to(tl.float32)[None, :]
            u += tl.load(up + at, mask=mask, other=0.0).to(tl.float32) * xv
            if GATED:
                g += tl.load(gate + at, mask=mask, other=0.0).to(tl.float32) * xv
        value = tl.sum(u, 1)
        if GATED:
            value *= activate(tl.sum(g, 1), ACT)
        else:
            value = activate(value, ACT)
        tl.store(h + slot, value.to(h.dtype.element_ty), mask=live)
    else:
        m = tl.arange(0, BLOCK_M).to(tl.int64)
        gt = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        ut = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for k0 in tl.range(0, K, BLOCK_K, num_stages=STAGES):
            inside = k0 + k < K
            mask = live[:, None] & inside[None, :]
            at = row[:, None] * K + (k0 + k)[None, :]
            xt = tl.load(x + m[None, :] * K + (k0 + k)[:, None], mask=inside[:, None] & (m < M)[None, :], other=0.0)
            ut = tl.dot(tl.load(up + at, mask=mask, other=0.0), xt, ut)
            if GATED:
                gt = tl.dot(tl.load(gate + at, mask=mask, other=0.0), xt, gt)
        if GATED:
            ut *= activate(gt, ACT)
        else:
            ut = activate(ut, ACT)
        tl.store(
            h + m[None, :] * listed_rows + slot[:, None],
            ut.to(h.dtype.element_ty),
            mask=live[:, None] & (m < M)[None, :],
        )


@triton.jit
def columns_kernel(
    h,
    down,
    index,
    out,
    M,
    N,
    listed_rows,
    rows_per_split,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    start = split * rows_per_split
    end = tl.minimum(start + rows_per_split, listed_rows)
    within = n < N
    if BLOCK_M == 1:
        y = tl.zeros((BLOCK_K, BLOCK_N), tl.float32)
        for r0 in tl.range(start, end, BLOCK_K, num_stages=STAGES):
            slot = r0 + tl.arange(0, BLOCK_K)
            live = slot < end
            row = tl.load(index + slot // GROUP, mask=live, other=0).to(tl.int64) * GROUP
            row += slot % GROUP
            hv = tl.load(h + slot, mask=live, other=0.0).to(tl.float32)
            w = tl.load(down + row[:, None] * N + n[None, :], mask=live[:, None] & within[None, :], other=0.0)
            y += w.to(tl.float32) * hv[:, None]
        total = tl.sum(y, 0)
        tl.store(out + split.to(tl.int64) * N + n, total.to(out.dtype.element_ty), mask=within)
    else:
        m = tl.arange(0, BLOCK_M).to(tl.int64)
        yt = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for r0 in tl.range(start, end, BLOCK_K, num_stages=STAGES):
            slot = r0 + tl.arange(0, BLOCK_K)
            live = slot < end
            row = tl.load(index + slot // GROUP, mask=live, other=0).to(tl.int64) * GROUP
            row += slot % GROUP
            ht = tl.load(h + m[None, :] * listed_rows + slot[:, None], mask=live[:, None] & (m < M)[None, :], other=0.0)
            w = tl.load(down + row[:, None] * N + n[None, :], mask=live[:, None] & within[None, :], other=0.0)
            yt = tl.dot(tl.trans(w), ht, yt)
        tl.store(
            out + (split.to(tl.int64) * M + m[None, :]) * N + n[:, None],
            yt.to(out.dtype.element_ty),
            mask=within[:, None] & (m < M)[None, :],
        )


def block_m(m: int) -> int:
    """Rows of the tile: 1 multiplies in registers, else at least the 16 of a tensor-core tile."""
    return 1 if m == 1 else max(16, power_of_2(m))


def rows_config(m: int, k: int, gated: bool) -> dict[str, int]:
    """Tile of `rows_kernel`: at batch 1, 8 KiB of rows a step and few registers, so that a selection is one wave."""
    if m == 1:
        block_k = min(power_of_2(k), 1024)
        rows = 2 if gated else 4
        return {"BLOCK_M": 1, "BLOCK_N": rows, "BLOCK_K": block_k, "STAGES": 4, "num_warps": 4}
    return {"BLOCK_M": block_m(m), "BLOCK_N": 32, "BLOCK_K": 128, "STAGES": 3, "num_warps": 4}


def columns_config(m: int, n: int) -> dict[str, int]:
    """Tile of `columns_kernel`: at batch 1 eight pieces of 1 KiB of a row at a time."""
    if m == 1:
        block_n = min(power_of_2(n), 512)
        return {"BLOCK_M": 1, "BLOCK_N": block_n, "BLOCK_K": 8, "STAGES": 3, "num_warps": 4}
    return {"BLOCK_M": block_m(m), "BLOCK_N": 128, "BLOCK_K": 32, "STAGES": 4, "num_warps": 4}


def columns_splits(m: int, n: int, listed: int) -> int:
    """Programs along the list, for `split_k.workspace`."""
    tile = columns_config(m, n)
    return split_k.splits_for(cdiv(n, tile["BLOCK_N"]), cdiv(listed, tile["BLOCK_K"]))


def rows(
    x: torch.Tensor,
    weight: torch.Tensor,
    index: torch.Tensor,
    h: torch.Tensor,
    *,
    group: int = 1,
    gate: torch.Tensor | None = None,
    activation: str = "none",
) -> None:
    """h (M, listed rows) from x (M, K) and the listed rows of `weight` (rows, K), times the activated gate."""
    m, k = x.shape
    listed, tile = index.numel() * group, rows_config(m, k, gate is not None)
    launch(
        rows_kernel,
        (cdiv(listed, tile["BLOCK_N"]),),
        x=x,
        gate=weight if gate is None else gate,
        up=weight,
        index=index,
        h=h,
        M=m,
        K=k,
        listed_rows=listed,
        GATED=gate is not None,
        ACT=activation,
        GROUP=group,
        **tile,
    )


def columns(
    h: torch.Tensor,
    weight: torch.Tensor,
    index: torch.Tensor,
    partial: torch.Tensor,
    y: torch.Tensor,
    *,
    group: int = 1,
) -> None:
    """y (M, N) from h (M, listed rows) and the listed rows of `weight` (rows, N), a matrix stored transposed."""
    m, listed = h.shape
    n = weight.shape[1]
    tile = columns_config(m, n)
    splits, step = max(partial.shape[0], 1), tile["BLOCK_K"]
    launch(
        columns_kernel,
        (cdiv(n, tile["BLOCK_N"]), splits),
        h=h,
        down=weight,
        index=index,
        out=y if splits == 1 else partial,
        M=m,
        N=n,
        listed_rows=listed,
        rows_per_split=cdiv(cdiv(listed, splits), step) * step,
        GROUP=group,
        **tile,
    )
    if splits > 1:
        split_k.reduce(partial, y)


def buffers(
    x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, index: torch.Tensor, **_: object
) -> dict[str, torch.Tensor]:
    """h (M, listed), y (M, hidden) and the partials of the second product."""
    m, n, listed = x.shape[0], down.shape[1], index.numel()
    return {
        "h": torch.empty((m, listed), dtype=x.dtype, device=x.device),
        "y": torch.empty((m, n), dtype=x.dtype, device=x.device),
        "partial": split_k.workspace(columns_splits(m, n, listed), m, n, x.device),
    }


def gathered_mlp(
    x: torch.Tensor,
    gate: torch.Tensor | None,
    up: torch.Tensor,
    down: torch.Tensor,
    index: torch.Tensor,
    activation: str,
    h: torch.Tensor,
    y: torch.Tensor,
    partial: torch.Tensor,
) -> None:
    """The MLP with every neuron outside `index` left out; `down` is (neurons, hidden)."""
    rows(x, up, index, h, gate=gate, activation=activation)
    columns(h, down, index, partial, y)
