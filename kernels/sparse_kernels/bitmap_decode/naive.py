"""Mustafar's decode step in plain torch."""

from __future__ import annotations

import torch

from sparse_kernels.bitmap import unpack
from sparse_kernels.plain import appended, attention


def bitmap_decode(
    q: torch.Tensor,
    k_bits: torch.Tensor,
    k_offset: torch.Tensor,
    k_values: torch.Tensor,
    k_window: torch.Tensor,
    k_new: torch.Tensor,
    v_bits: torch.Tensor,
    v_offset: torch.Tensor,
    v_values: torch.Tensor,
    v_window: torch.Tensor,
    v_new: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Attend to the packed tokens and to the dense window, whose last token is the new one."""
    d, recent = q.shape[2], k_window.shape[2]
    k_dense, v_dense = appended(k_window, k_new, recent - 1), appended(v_window, v_new, recent - 1)
    k_old = unpack({"bits": k_bits, "offset": k_offset, "values": k_values}, d, "tokens")
    v_old = unpack({"bits": v_bits, "offset": v_offset, "values": v_values}, d, "channels")
    k, v = torch.cat([k_old, k_dense], 2), torch.cat([v_old, v_dense], 2)
    group = q.shape[1] // k.shape[1]
    out = torch.empty_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            out[b, h] = attention(q[b, h], k[b, h // group], v[b, h // group])
    return {"out": out, "k_window": k_dense, "v_window": v_dense}
