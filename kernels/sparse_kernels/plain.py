"""Attention as in a textbook, float32, for the naive twins."""

from __future__ import annotations

import torch


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt d) v for one row: q (d), k, v (tokens, d), float32 inside."""
    score = k.float() @ q.float() * q.shape[-1] ** -0.5
    return torch.softmax(score, 0) @ v.float()


def largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Places of the `count` largest of each row of `scores` (..., n), ascending, int32; of equal ones the first."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :count].sort(dim=-1).values.to(torch.int32)


def appended(cache: torch.Tensor, new: torch.Tensor, slot: int) -> torch.Tensor:
    """A copy of `cache` (batch, hk, capacity, d) with `new` (batch, hk, d) at `slot`."""
    out = cache.clone()
    out[:, :, slot] = new
    return out


def rotated(x: torch.Tensor, position: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary embedding of x (..., tokens, d), halves paired as in Llama, at `position` (tokens) [1]_.

    References
    ----------
    .. [1] Su et al., "RoFormer", arXiv:2104.09864.
    """
    half = x.shape[-1] // 2
    rate = theta ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angle = position[..., None] * rate
    cos, sin = angle.cos().float(), angle.sin().float()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
