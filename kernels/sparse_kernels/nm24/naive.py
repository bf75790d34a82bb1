"""2:4 pruning and its product in plain torch."""

from __future__ import annotations

import torch


def prune(weight: torch.Tensor) -> torch.Tensor:
    """The two of every four neighbours along k that are largest in magnitude; of equal ones the first."""
    n, k = weight.shape
    if k % 4:
        raise ValueError(f"2:4 needs k to be a multiple of 4, got {k}")
    fours = weight.view(n, k // 4, 4)
    order = fours.abs().float().sort(dim=2, descending=True, stable=True).indices[..., :2]
    kept = torch.zeros_like(fours, dtype=torch.bool).scatter(2, order, True)
    return torch.where(kept, fours, torch.zeros_like(fours)).view(n, k)


def nm24(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(M, n), float32: x (M, k) times the pruned `weight` (n, k)."""
    return x.float() @ prune(weight).float().T
