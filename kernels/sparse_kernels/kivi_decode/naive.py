"""KIVI in plain torch: quantisation in groups, its inverse, and attention over it."""

from __future__ import annotations

from typing import Literal

import torch

from sparse_kernels.plain import appended, attention


def quantised(
    x: torch.Tensor, bits: int, group: int, along: Literal["tokens", "channels"]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scale and zero of x (batch, hk, tokens, d): ``x = code * scale + zero`` in groups of `group`.

    Codes are packed along d, the lowest bits of a byte first: (batch, hk, tokens, d bits / 8) uint8. Scale and
    zero are fp16: (batch, hk, tokens / group, d) along tokens, (batch, hk, tokens, d / group) along channels.
    """
    batch, hk, tokens, d = x.shape
    axis = 3 if along == "tokens" else 4
    split = (tokens // group, group, d) if along == "tokens" else (tokens, d // group, group)
    grouped = x.float().reshape(batch, hk, *split)
    low = grouped.amin(axis, keepdim=True)
    high = grouped.amax(axis, keepdim=True)
    zero = low.half()
    scale = ((high - zero.float()) / (2**bits - 1)).clamp_min(2.0**-14).half()
    codes = ((grouped - zero.float()) / scale.float()).round().clamp(0, 2**bits - 1)
    codes = codes.reshape(x.shape).to(torch.uint8)
    packed = torch.zeros_like(codes[..., :: 8 // bits])
    for place in range(8 // bits):
        packed |= codes[..., place :: 8 // bits] << (place * bits)
    return packed.contiguous(), scale.squeeze(axis), zero.squeeze(axis)


def dequantised(packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    """Float32 numbers that `quantised` stands for."""
    places = [(packed >> (p * bits)) & (2**bits - 1) for p in range(8 // bits)]
    codes = torch.stack(places, -1).flatten(-2).float()
    if scale.shape[-1] == codes.shape[-1]:
        each = codes.shape[2] // max(scale.shape[2], 1)
        scale, zero = scale.repeat_interleave(each, 2), zero.repeat_interleave(each, 2)
    else:
        each = codes.shape[3] // scale.shape[3]
        scale, zero = scale.repeat_interleave(each, 3), zero.repeat_interleave(each, 3)
    return codes * scale.float() + zero.float()


def kivi_decode(
    q: torch.Tensor,
    k_codes: torch.Tensor,
    k_scale: torch.Tensor,
    k_zero: torch.Tensor,
    v_codes: torch.Tensor,
    v_scale: torch.Tensor,
    v_zero: torch.Tensor,
    k_window: torch.Tensor,
    v_window: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    recent: int,
    bits: int,
    group: int,
) -> dict[str, torch.Tensor]:
    """Attend to the quantised tokens and to `recent` dense ones, the last of which is the new one."""
    k_dense, v_dense = appended(k_window, k_new, recent - 1), appended(v_window, v_new, recent - 1)
    k = torch.cat([dequantised(k_codes, k_scale, k_zero, bits), k_dense[:, :, :recent].float()], 2)
    v = torch.cat([dequantised(v_codes, v_scale, v_zero, bits), v_dense[:, :, :recent].float()], 2)
    heads = q.shape[1] // k.shape[1]
    out = torch.empty_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            out[b, h] = attention(q[b, h], k[b, h // heads], v[b, h // heads])
    return {"out": out, "k_window": k_dense, "v_window": v_dense}
