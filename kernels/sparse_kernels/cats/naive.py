"""CATS MLP in plain torch."""

from __future__ import annotations

import torch


def cats(
    x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, threshold: float
) -> dict[str, torch.Tensor]:
    """h (1, neurons) and y (1, hidden) without the neurons of |SiLU(x gate_j)| < threshold; y uses h in 16 bits."""
    v = torch.nn.functional.silu(x.float() @ gate.float().T)
    h = torch.where(v.abs() >= threshold, v * (x.float() @ up.float().T), torch.zeros_like(v))
    return {"h": h, "y": h.to(x.dtype).float() @ down.float()}
