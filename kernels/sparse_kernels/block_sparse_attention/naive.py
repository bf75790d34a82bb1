"""Block-sparse causal attention in plain torch, float32, and the lists that a block mask becomes."""

from __future__ import annotations

import torch


def block_lists(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Starts (batch * heads * rows + 1) and key blocks, ascending, of a mask (batch, heads, rows, columns); int32."""
    counts = mask.flatten(0, 2).sum(1)
    starts = torch.zeros(counts.numel() + 1, dtype=torch.int32, device=mask.device)
    starts[1:] = torch.cumsum(counts, 0).to(torch.int32)
    return starts, mask.flatten(0, 2).nonzero()[:, 1].to(torch.int32)


def block_sparse_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor, blocks: torch.Tensor, block: int
) -> dict[str, torch.Tensor]:
    """softmax(q k^T / sqrt(d)) v over the listed blocks and the causal triangle; a row without keys gives zeros."""
    batch, tokens, hq, d = q.shape
    group, n_blocks = hq // k.shape[2], -(-tokens // block)
    counts = (starts[1:] - starts[:-1]).long()
    mask = torch.zeros(batch * hq * n_blocks, n_blocks, dtype=torch.bool, device=q.device)
    row = torch.arange(counts.numel(), device=q.device)
    mask[torch.repeat_interleave(row, counts), blocks.long()] = True
    mask = mask.view(batch, hq, n_blocks, n_blocks)
    full = mask.repeat_interleave(block, 2).repeat_interleave(block, 3)[:, :, :tokens, :tokens]
    full = full & torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril()
    kf = k.float().repeat_interleave(group, 2).transpose(1, 2)
    vf = v.float().repeat_interleave(group, 2).transpose(1, 2)
    scores = q.float().transpose(1, 2) @ kf.transpose(2, 3) * d**-0.5
    weights = torch.softmax(scores.masked_fill(~full, float("-inf")), -1).nan_to_num(0.0)
    return {"o": (weights @ vf).transpose(1, 2), "k_cache": k.clone(), "v_cache": v.clone()}
