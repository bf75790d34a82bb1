"""Histogram of magnitudes that merges by addition, and the thresholds read from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BINS = 2**15
"""One bin per non-negative bfloat16: exact for bf16 models, at most 2^-8 relative rounding for others."""

INFINITE = 0x7F80
"""First bin that is no number."""


def histogram(x: torch.Tensor) -> torch.Tensor:
    """Number of elements of each bfloat16 magnitude.

    Parameters
    ----------
    x : Tensor, any shape
        Rounded to bfloat16, whose bits without the sign grow with the magnitude.

    Returns
    -------
    Tensor, shape (BINS,), int64
    """
    import torch

    bits = x.detach().abs().to(torch.bfloat16).contiguous().view(torch.int16)
    return torch.bincount(bits.flatten().to(torch.int32), minlength=BINS)


def magnitude_of(bins: torch.Tensor) -> torch.Tensor:
    """Magnitude that each bin number stands for, as float32."""
    import torch

    return bins.to(torch.int16).view(torch.bfloat16).to(torch.float32)


def quantile(counts: torch.Tensor, probability: torch.Tensor) -> torch.Tensor:
    """Smallest magnitude t with P(|a| <= t) >= `probability`.

    Parameters
    ----------
    counts : Tensor, shape (BINS,)
    probability : Tensor, shape (n,), float64
        In (0, 1].

    Returns
    -------
    Tensor, shape (n,), float32
    """
    import torch

    below = torch.cumsum(counts, 0).to(torch.float64)
    # The share is met up to rounding of `probability * total`, as k of n elements would be.
    wanted = probability.to(below) * below[-1] * (1.0 - 1e-12)
    return magnitude_of(torch.searchsorted(below, wanted).clamp(max=BINS - 1))


def thresholds(counts: torch.Tensor, keeps: torch.Tensor) -> torch.Tensor:
    """Threshold that leaves the share `keeps` of the elements at or above it; 0 where zeros would be kept.

    Parameters
    ----------
    counts : Tensor, shape (BINS,)
    keeps : Tensor, shape (n,), float64

    Returns
    -------
    Tensor, shape (n,), float32
    """
    import torch

    at_least = torch.flip(torch.cumsum(torch.flip(counts, [0]), 0), [0]).to(torch.float64)
    total = at_least[0]
    # The largest bin with P(|a| >= t) >= keep: ascending in -at_least, so the last index that holds.
    met = (at_least[None, :] >= keeps.to(at_least)[:, None] * total * (1.0 - 1e-12)).sum(1) - 1
    return magnitude_of(met)
