"""Residual addition and RMSNorm in plain torch."""

from __future__ import annotations

import torch


def rmsnorm_residual(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> dict[str, torch.Tensor]:
    """stream = x + residual; out = stream / rms(stream) * weight, rows of (m, hidden)."""
    stream = (x.float() + residual.float()).to(x.dtype)
    h = stream.float()
    rms = (h.square().mean(1, keepdim=True) + epsilon).sqrt()
    return {"stream": stream, "out": (h / rms * weight.float()).to(x.dtype)}
