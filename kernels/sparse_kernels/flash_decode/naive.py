"""Dense decode attention in plain torch."""

from __future__ import annotations

import torch

from sparse_kernels.plain import appended, attention


def flash_decode(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, k_new: torch.Tensor, v_new: torch.Tensor, tokens: int
) -> dict[str, torch.Tensor]:
    """Attend from q (batch, hq, d) to `tokens` tokens, the last of which is the new one."""
    k, v = appended(k_cache, k_new, tokens - 1), appended(v_cache, v_new, tokens - 1)
    group = q.shape[1] // k.shape[1]
    out = torch.empty_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            out[b, h] = attention(q[b, h], k[b, h // group, :tokens], v[b, h // group, :tokens])
    return {"out": out, "k_cache": k, "v_cache": v}
