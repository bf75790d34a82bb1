"""What keys and values say about compressing a KV cache: pruning, rounding, rank and channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GROUP = 32
"""Elements that share a scale and an offset, as in KIVI (arXiv:2402.02750)."""


def dropped_energy(x: torch.Tensor, keeps: Sequence[float]) -> torch.Tensor:
    """Squared norm lost by keeping the ``ceil(keep * width)`` largest elements of each vector.

    Parameters
    ----------
    x : Tensor, shape (..., width)
    keeps : sequence of float

    Returns
    -------
    Tensor, shape (..., len(keeps)), float64
    """
    import torch

    width = x.shape[-1]
    ascending = torch.sort(x.float() ** 2, -1).values.double()
    below = torch.cat([torch.zeros_like(ascending[..., :1]), ascending.cumsum(-1)], -1)
    dropped = [width - math.ceil(k * width - 1e-9) for k in keeps]
    return below[..., dropped]


def rounded(x: torch.Tensor, bits: int, axis: int, group: int = GROUP) -> torch.Tensor:
    """`x` rounded to 2^bits levels between minimum and maximum of each group along `axis`.

    ``q = round((x - min) / s)``, ``s = (max - min) / (2^bits - 1)``; a shorter last group has its own scale.

    Parameters
    ----------
    x : Tensor
    bits : int
    axis : int
        Tokens for keys (per channel), channels for values (per token).
    group : int
        Elements that share a scale and an offset.
    """
    import torch

    moved = x.float().movedim(axis, -1)
    parts = []
    for part in torch.split(moved, group, -1):
        low = part.amin(-1, keepdim=True)
        step = (part.amax(-1, keepdim=True) - low) / (2**bits - 1)
        step = torch.where(step > 0, step, torch.ones_like(step))
        parts.append(torch.round((part - low) / step) * step + low)
    return torch.cat(parts, -1).movedim(-1, axis)


def second_moment(x: torch.Tensor) -> torch.Tensor:
    """``X^T X`` of each head, whose eigenvalues are the squared singular values of X; adds up over text.

    Parameters
    ----------
    x : Tensor, shape (heads, tokens, width)

    Returns
    -------
    Tensor, shape (heads, width, width), float64
    """
    wide = x.double()
    return wide.transpose(1, 2) @ wide


def rank_energy(moment: torch.Tensor, ranks: Sequence[int]) -> torch.Tensor:
    """Share of the squared norm in the largest singular directions.

    Parameters
    ----------
    moment : Tensor, shape (heads, width, width)
        Of `second_moment`, summed.
    ranks : sequence of int

    Returns
    -------
    Tensor, shape (heads, len(ranks)), float64
    """
    import torch

    energy = torch.linalg.eigvalsh(moment).clamp(min=0.0).flip(-1)
    share = energy.cumsum(-1) / energy.sum(-1, keepdim=True)
    return share[..., [r - 1 for r in ranks]]


def channel_share(query: torch.Tensor, key: torch.Tensor, keeps: Sequence[float]) -> torch.Tensor:
    """Share of ``m_c = E|q_c| E|k_c|`` in the largest channels (label channels of Double Sparsity).

    Parameters
    ----------
    query, key : Tensor, shape (heads, width)
        Mean magnitude of each channel; E|q_c k_c| over all pairs of tokens is their product.
    keeps : sequence of float
        Shares of the channels.

    Returns
    -------
    Tensor, shape (heads, len(keeps)), float64
    """
    import torch

    width = query.shape[-1]
    weight = torch.sort(query.double() * key.double(), -1, descending=True).values
    share = weight.cumsum(-1) / weight.sum(-1, keepdim=True)
    return share[..., [math.ceil(k * width - 1e-9) - 1 for k in keeps]]
