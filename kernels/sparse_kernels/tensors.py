"""Inputs of a case, and the poison that shows what a kernel did not write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Draw:
    """Random tensors of one seed, drawn on the device itself: a 64k-token cache is too slow to draw elsewhere."""

    def __init__(self, seed: int, device: str = "cpu"):
        self.generator = torch.Generator(device).manual_seed(seed)
        self.device = device

    def normal(self, *shape: int, dtype: str = "bf16", scale: float = 1.0) -> torch.Tensor:
        """Normal numbers of standard deviation `scale`."""
        x = torch.randn(*shape, generator=self.generator, device=self.device, dtype=DTYPES[dtype])
        return x.mul_(scale) if scale != 1.0 else x

    def quarters(self, *shape: int, dtype: str = "bf16") -> torch.Tensor:
        """Normal numbers rounded to quarters: sums of their products are exact in float32, in any order."""
        return self.normal(*shape, dtype=dtype).mul_(4.0).round_().div_(4.0)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Whole numbers in [low, high)."""
        return torch.randint(low, high, shape, generator=self.generator, device=self.device, dtype=dtype)

    def subset(self, size: int, count: int) -> torch.Tensor:
        """`count` distinct numbers of [0, size) in ascending order, int32."""
        x = torch.randperm(size, generator=self.generator, device=self.device)
        return x[:count].sort().values.to(torch.int32)


def tensors_of(values: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors among a kernel's inputs or buffers."""
    return {k: v for k, v in values.items() if isinstance(v, torch.Tensor)}


def clone(values: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs whose tensors may be overwritten."""
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in values.items()}


def poison(buffers: Mapping[str, Any]) -> None:
    """Fill every buffer with NaN (floats) or the lowest number of its type (integers)."""
    for tensor in tensors_of(buffers).values():
        if tensor.dtype.is_floating_point:
            tensor.fill_(float("nan"))
        else:
            tensor.fill_(torch.iinfo(tensor.dtype).min or torch.iinfo(tensor.dtype).max)
