"""StreamingLLM's decode step in plain torch."""

from __future__ import annotations

import torch

from sparse_kernels.plain import appended, attention, rotated


def places(kept: int, slot: int, sinks: int, device: torch.device) -> torch.Tensor:
    """Position in the cache of each of `kept` slots when `slot` holds the newest token [tokens]."""
    i = torch.arange(kept, device=device)
    ring = max(kept - sinks, 1)
    return torch.where(i < sinks, i, sinks + (i - slot - 1) % ring)


def streaming_llm(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    kept: int,
    slot: int,
    sinks: int,
    theta: float,
) -> dict[str, torch.Tensor]:
    """Attend to the `kept` tokens in the cache, the new one in `slot`, keys rotated by their place in it."""
    k, v = appended(k_cache, k_new, slot), appended(v_cache, v_new, slot)
    group = q.shape[1] // k.shape[1]
    turned = rotated(k[:, :, :kept].float(), places(kept, slot, sinks, q.device), theta)
    turned = turned.to(k.dtype)
    out = torch.empty_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            out[b, h] = attention(q[b, h], turned[b, h // group], v[b, h // group, :kept])
    return {"out": out, "k_cache": k, "v_cache": v}
