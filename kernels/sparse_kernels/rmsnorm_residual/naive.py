"""Residual addition and RMSNorm in plain torch."""

from __future__ import annotations

import torch


def rmsnorm_residual(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> dict[str, torch.Tensor]:
    """summed = x + residual; out = summed / rms(summed) * weight, rows of (m, hidden)."""
    summed = (x.float() + residual.float()).to(x.dtype)
    h = summed.float()
    rms = (h.square().mean(1, keepdim=True) + epsilon).sqrt()
    return {"summed": summed, "out": (h / rms * weight.float()).to(x.dtype)}
