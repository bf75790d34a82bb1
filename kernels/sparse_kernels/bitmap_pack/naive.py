"""Pruning and packing in plain torch."""

from __future__ import annotations

import torch

from sparse_kernels.bitmap import AXES, pack


def bitmap_pack(k: torch.Tensor, v: torch.Tensor, kept: int) -> dict[str, torch.Tensor]:
    """Bitmap tiles of k and v (batch, hk, tokens, d) pruned to `kept` per row; NaN where nothing is stored."""
    out = {}
    for name, x in (("k", k), ("v", v)):
        out |= {f"{name}_{part}": t for part, t in pack(x, kept, AXES[name]).items()}
    return out
