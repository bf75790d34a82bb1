"""Group-sparse 4-bit weights (GQSA) and their product in plain torch."""

from __future__ import annotations

import torch

GROUP = 16
"""Neighbouring weights of a row that are kept or dropped together and share a scale and a zero."""


def compress(weight: torch.Tensor, keep: float) -> dict[str, torch.Tensor]:
    """Rows of kept groups, as block CSR: the `keep` share of groups with the largest norm, at 4 bits.

    starts (n + 1), int32; columns (groups kept), int16: group number along the row, ascending; codes
    (groups kept, 8), uint8: weight i in the low half and weight i + 8 in the high half of byte i; scale, 16 bit,
    and zero, uint8, per group: w = scale (code - zero).
    """
    n, k = weight.shape
    if k % GROUP or k // GROUP >= 2**15:
        raise ValueError(f"k must be a multiple of {GROUP} below {GROUP * 2**15}, got {k}")
    groups = weight.float().view(n, k // GROUP, GROUP)
    norm = groups.norm(dim=2)
    kept = torch.zeros(norm.numel(), dtype=torch.bool, device=weight.device)
    kept[norm.flatten().argsort(descending=True, stable=True)[: round(keep * norm.numel())]] = True
    kept = kept.view_as(norm)
    chosen = groups[kept]
    low, high = chosen.amin(1).clamp(max=0.0), chosen.amax(1).clamp(min=0.0)
    scale = ((high - low) / 15.0).clamp(min=1e-6).to(weight.dtype)
    zero = (-low / scale.float()).round().clamp(0, 15)
    codes = ((chosen / scale.float()[:, None]).round() + zero[:, None]).clamp(0, 15).to(torch.uint8)
    starts = torch.zeros(n + 1, dtype=torch.int32, device=weight.device)
    starts[1:] = kept.sum(1).cumsum(0).to(torch.int32)
    return {
        "starts": starts,
        "columns": kept.nonzero()[:, 1].to(torch.int16),
        "codes": codes[:, :8] | (codes[:, 8:] << 4),
        "scale": scale,
        "zero": zero.to(torch.uint8),
    }


def decompress(
    starts: torch.Tensor, columns: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, k: int
) -> torch.Tensor:
    """The dense float32 matrix (n, k)."""
    n = starts.numel() - 1
    rows = torch.repeat_interleave(torch.arange(n, device=starts.device), (starts[1:] - starts[:-1]).long())
    code = torch.cat((codes & 15, codes >> 4), 1).float()
    dense = torch.zeros(n, k // GROUP, GROUP, device=scale.device)
    dense[rows, columns.long()] = (code - zero.float()[:, None]) * scale.float()[:, None]
    return dense.view(n, k)


def group_w4(
    x: torch.Tensor,
    starts: torch.Tensor,
    columns: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """y (1, n) = x W^T with W dequantised first."""
    weight = decompress(starts, columns, codes, scale, zero, x.shape[1])
    return {"y": x.float() @ weight.T}
