"""The bitmap format of a pruned KV cache (Mustafar), in plain torch: what both bitmap kernels read and write.

A tile is 64 elements: a 64-bit bitmap as two int32 words (bit j = element j is kept), the int32 place of its first
value in the values of its KV head, and its kept values in order, padded with zeros to a multiple of eight [1]_. Tiles
of K run along 64 tokens of one channel, tiles of V along 64 channels of one token, so that new groups of 64 tokens
append.

    bits (batch, hk, tiles, 2)    offset (batch, hk, tiles)    values (batch, hk, capacity)
    tile of K: group * d + channel        tile of V: token * d / 64 + channel / 64

References
----------
.. [1] "Mustafar", arXiv:2505.22913.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

TILE = 64
PAD = 8

Axis = Literal["tokens", "channels"]
AXES: Mapping[str, Axis] = {"k": "tokens", "v": "channels"}
"""Along what the tiles of keys and of values run."""


def capacity(tokens: int, d: int, kept: int) -> int:
    """Values one KV head can need at `kept` elements per token: every tile padded at worst [-]."""
    return tokens * kept + (PAD - 1) * tokens * d // TILE


def largest(x: torch.Tensor, kept: int) -> torch.Tensor:
    """Mask of the `kept` largest magnitudes of each row of x (..., d); of equal ones the first."""
    order = x.float().abs().sort(dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(x, dtype=torch.bool).scatter_(-1, order[..., :kept], True)


def tiles(x: torch.Tensor, axis: Axis) -> torch.Tensor:
    """Elements of x (batch, hk, tokens, d) tile by tile: (batch, hk, tiles, 64)."""
    batch, hk, tokens, d = x.shape
    if axis == "tokens":
        return x.view(batch, hk, tokens // TILE, TILE, d).transpose(3, 4).reshape(batch, hk, -1, TILE)
    return x.reshape(batch, hk, -1, TILE)


def pack(x: torch.Tensor, kept: int, axis: Axis) -> dict[str, torch.Tensor]:
    """Bits, offset and values of x (batch, hk, tokens, d) pruned to `kept` per row; NaN where nothing is stored."""
    batch, hk, tokens, d = x.shape
    mask, element = tiles(largest(x, kept), axis), tiles(x, axis)
    words = mask.view(batch, hk, -1, 2, TILE // 2).long()
    bits = (words << torch.arange(TILE // 2, device=x.device)).sum(-1)
    count = mask.sum(-1)
    padded = (count + PAD - 1) // PAD * PAD
    offset = padded.cumsum(-1) - padded
    size = capacity(tokens, d, kept)
    lane = torch.arange(TILE, device=x.device)
    # Zeros of the padding first, then the kept values; what belongs to neither goes to a slot past the end.
    blank = torch.where((lane >= count[..., None]) & (lane < padded[..., None]), offset[..., None] + lane, size)
    place = torch.where(mask, offset[..., None] + mask.cumsum(-1) - 1, size)
    values = x.new_full((batch, hk, size + 1), float("nan"))
    values.scatter_(2, blank.flatten(2), 0.0).scatter_(2, place.flatten(2), element.flatten(2))
    return {"bits": bits.to(torch.int32), "offset": offset.to(torch.int32), "values": values[..., :size].contiguous()}


def unpack(packed: dict[str, torch.Tensor], d: int, axis: Axis) -> torch.Tensor:
    """The dense (batch, hk, tokens, d) that `packed` stands for, zeros where pruned."""
    bits, offset, values = packed["bits"], packed["offset"].long(), packed["values"]
    batch, hk, n, _ = bits.shape
    lane = torch.arange(TILE // 2, device=bits.device)
    mask = ((bits.long()[..., None] >> lane) & 1).bool().view(batch, hk, n, TILE)
    place = torch.where(mask, offset[..., None] + mask.cumsum(-1) - 1, 0)
    element = values.gather(2, place.flatten(2)).view(batch, hk, n, TILE)
    element = torch.where(mask, element, torch.zeros_like(element))
    if axis == "tokens":
        groups = element.view(batch, hk, n // d, d, TILE).transpose(3, 4)
        return groups.reshape(batch, hk, n // d * TILE, d)
    return element.view(batch, hk, n * TILE // d, d)


def spread(tokens: int, d: int, base: int, axis: Axis, device: str) -> torch.Tensor:
    """Mask (tokens, d) of ``d (base + 3.5) / 64`` per row whose tiles hold base + 0...7 values, equally often.

    Then the padding is 3.5 values per tile on average, which is what the simulator expects of any data.
    """
    if axis == "tokens":
        count = base + torch.arange(d, device=device) % PAD
        first = count.cumsum(0) - count
        row = torch.arange(TILE, device=device)[:, None]
        group = (row - first) % TILE < count
        return group.repeat(tokens // TILE, 1)
    row = torch.arange(tokens, device=device)[:, None]
    low = base + row % PAD
    count = torch.cat([low, 2 * base + PAD - 1 - low], 1)[:, :, None]
    lane = torch.arange(TILE, device=device)[None, None, :]
    return ((lane - 5 * row[:, :, None]) % TILE < count).reshape(tokens, 2 * TILE)
