"""Predictor of the neurons to keep, in plain torch."""

from __future__ import annotations

import torch

from sparse_kernels.plain import largest


def predictor(x: torch.Tensor, w_in: torch.Tensor, w_out: torch.Tensor, keep: int) -> dict[str, torch.Tensor]:
    """scores = relu(x w_in^T) w_out^T and the top `keep` of each row, every step rounded to 16 bits as stored."""
    hidden = torch.relu(x.float() @ w_in.float().T).to(x.dtype)
    scores = (hidden.float() @ w_out.float().T).to(x.dtype)
    return {"hidden": hidden, "scores": scores, "index": largest(scores.float(), keep)}
