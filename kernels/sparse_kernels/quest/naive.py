"""Quest's decode step in plain torch."""

from __future__ import annotations

import torch

from sparse_kernels.plain import appended, attention, largest


def quest(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    bounds: torch.Tensor,
    tokens: int,
    page: int,
    budget: int,
) -> dict[str, torch.Tensor]:
    """Per query head, attend to the ``budget / page`` pages of the best bound, the newest always among them."""
    k, v = appended(k_cache, k_new, tokens - 1), appended(v_cache, v_new, tokens - 1)
    batch, hq, _ = q.shape
    group = hq // k.shape[1]
    out = torch.empty_like(q)
    pages = torch.empty(batch, hq, budget // page, dtype=torch.int32, device=q.device)
    for b in range(batch):
        for h in range(hq):
            low, high = bounds[b, h // group].float().unbind(1)
            row = q[b, h].float()
            best = torch.maximum(row * low, row * high).sum(-1)
            best[(tokens - 1) // page] = float("inf")
            pages[b, h] = largest(best, budget // page)
            seen = (pages[b, h, :, None] * page + torch.arange(page, device=q.device)).flatten()
            seen = seen[seen < tokens]
            out[b, h] = attention(q[b, h], k[b, h // group, seen], v[b, h // group, seen])
    return {"out": out, "k_cache": k, "v_cache": v, "pages": pages}
