"""Column-skipping product in plain torch."""

from __future__ import annotations

import torch


def teal(x: torch.Tensor, weight: torch.Tensor, threshold: float) -> dict[str, torch.Tensor]:
    """(1, N): x (1, K) with every |x_k| <= threshold set to zero, times `weight` stored (K, N)."""
    x = x.float()
    kept = torch.where(x.abs() > threshold, x, torch.zeros_like(x))
    return {"y": kept @ weight.float()}
