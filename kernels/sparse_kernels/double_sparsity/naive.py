"""Double Sparsity's decode step in plain torch."""

from __future__ import annotations

import torch

from sparse_kernels.plain import appended, attention, largest


def double_sparsity(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    labels: torch.Tensor,
    channels: torch.Tensor,
    tokens: int,
    budget: int,
) -> dict[str, torch.Tensor]:
    """Per query head, attend to the new token and the ``budget - 1`` others of the largest label product."""
    k, v = appended(k_cache, k_new, tokens - 1), appended(v_cache, v_new, tokens - 1)
    batch, hq, _ = q.shape
    group = hq // k.shape[1]
    out = torch.empty_like(q)
    picked = torch.empty(batch, hq, budget, dtype=torch.int32, device=q.device)
    for b in range(batch):
        for h in range(hq):
            kv = h // group
            score = labels[b, kv].float() @ q[b, h, channels[kv].long()].float()
            score[tokens - 1] = float("inf")
            picked[b, h] = largest(score, budget)
            seen = picked[b, h].long()
            out[b, h] = attention(q[b, h], k[b, kv, seen], v[b, kv, seen])
    return {"out": out, "k_cache": k, "v_cache": v, "picked": picked}
