"""Predictor of the neurons to keep, in plain torch."""

from __future__ import annotations

import torch


def top_k(scores: torch.Tensor, keep: int) -> torch.Tensor:
    """Indices of the `keep` largest of each row, ascending, int32; of equal scores the first are taken."""
    order = torch.sort(scores.float(), dim=1, descending=True, stable=True).indices
    return order[:, :keep].sort(dim=1).values.to(torch.int32)


def predictor(
    x: torch.Tensor, w_in: torch.Tensor, w_out: torch.Tensor, keep: int
) -> dict[str, torch.Tensor]:
    """scores = relu(x w_in^T) w_out^T and the top `keep` of each row, every step rounded to 16 bits as stored."""
    hidden = torch.relu(x.float() @ w_in.float().T).to(x.dtype)
    scores = (hidden.float() @ w_out.float().T).to(x.dtype)
    return {"hidden": hidden, "scores": scores, "index": top_k(scores, keep)}
