"""ShadowKV's rebuilding of keys in plain torch."""

from __future__ import annotations

import torch

from sparse_kernels.plain import rotated


def shadowkv_rebuild(
    factor: torch.Tensor, basis: torch.Tensor, picked: torch.Tensor, chunk: int, theta: float
) -> dict[str, torch.Tensor]:
    """Keys (batch, hk, chunks * chunk, d) of the picked chunks, rotated to their positions."""
    batch, hk, _rank, d = basis.shape
    tokens = picked.shape[2] * chunk
    keys = torch.empty(batch, hk, tokens, d, dtype=basis.dtype, device=basis.device)
    for b in range(batch):
        for h in range(hk):
            step = torch.arange(chunk, device=basis.device)
            position = (picked[b, h].long()[:, None] * chunk + step).flatten()
            rebuilt = factor[b, position].float() @ basis[b, h].float()
            keys[b, h] = rotated(rebuilt, position, theta)
    return {"keys": keys}
