"""Attention projections of the kept heads: rows of the stacked QKV matrix, columns of the output matrix.

The kernels are those of `gathered_mlp`, with a head of head_dim rows as the group that the list names. W_o is stored
transposed, (hq head_dim, hidden): a head's columns become head_dim contiguous rows. With grouped queries a K and V
head is read when any query head of its group is kept (`qkv_groups`).

Traffic (bytes; I listed heads, b = 2): weights I d K b, x M K b, list 4 I, out M I d b; likewise for the output.
"""

from __future__ import annotations

import torch

from sparse_kernels import split_k
from sparse_kernels.gathered_mlp.triton import columns, columns_splits, rows


def buffers(
    x: torch.Tensor,
    w_qkv: torch.Tensor,
    w_o: torch.Tensor,
    groups: torch.Tensor,
    heads: torch.Tensor,
    head_dim: int,
    **_: object,
) -> dict[str, torch.Tensor]:
    """qkv (M, listed heads, head_dim), y (M, hidden) and the partials of the second product."""
    m, n = x.shape[0], w_o.shape[1]
    splits = columns_splits(m, n, heads.numel() * head_dim)
    return {
        "qkv": torch.empty((m, groups.numel(), head_dim), dtype=x.dtype, device=x.device),
        "y": torch.empty((m, n), dtype=x.dtype, device=x.device),
        "partial": split_k.workspace(splits, m, n, x.device),
    }


def head_projection(
    x: torch.Tensor,
    w_qkv: torch.Tensor,
    groups: torch.Tensor,
    context: torch.Tensor,
    w_o: torch.Tensor,
    heads: torch.Tensor,
    head_dim: int,
    qkv: torch.Tensor,
    y: torch.Tensor,
    partial: torch.Tensor,
) -> None:
    """Both projections of a step; the attention between them is another kernel's."""
    rows(x, w_qkv, groups, qkv.flatten(1), group=head_dim)
    columns(context.flatten(1), w_o, heads, partial, y, group=head_dim)
