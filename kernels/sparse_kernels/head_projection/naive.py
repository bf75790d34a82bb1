"""Projections of the kept attention heads in plain torch."""

from __future__ import annotations

import torch

from sparse_kernels.gathered_mlp import naive


def qkv_groups(heads: torch.Tensor, n_heads: int, n_kv_heads: int) -> torch.Tensor:
    """Groups of the stacked Q, K, V heads that `heads` needs: itself and its group's K and V head, ascending."""
    kv = torch.unique(heads.long() // (n_heads // n_kv_heads))
    parts = (heads.long().sort().values, n_heads + kv, n_heads + n_kv_heads + kv)
    return torch.cat(parts).to(torch.int32)


def head_projection(
    x: torch.Tensor,
    w_qkv: torch.Tensor,
    groups: torch.Tensor,
    context: torch.Tensor,
    w_o: torch.Tensor,
    heads: torch.Tensor,
    head_dim: int,
) -> dict[str, torch.Tensor]:
    """qkv (M, listed heads, head_dim) and y (M, hidden) from the kept heads' context (M, kept, head_dim)."""
    qkv = naive.gathered_rows(x, w_qkv, groups, group=head_dim)
    return {
        "qkv": qkv.unflatten(1, (-1, head_dim)),
        "y": naive.gathered_columns(context.flatten(1), w_o, heads, group=head_dim),
    }
