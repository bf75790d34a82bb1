"""2:4 product by ``torch.sparse.to_sparse_semi_structured``; needs a CUDA GPU of compute capability 8.0 or later.

Stored: half the values and 2 bits of index for each, 9/16 of the dense bytes at 16 bits, as `simulator`'s nm24 says.
Rows of x are padded by the library to a multiple of 8 (cuSPARSELt) or 32 and more (CUTLASS).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sparse_kernels.nm24.naive import prune


def why_not() -> str | None:
    """What is missing here, or None."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    if torch.cuda.get_device_capability() < (8, 0):
        return "sparse tensor cores need compute capability 8.0"
    return None


def compress(weight: torch.Tensor) -> torch.Tensor:
    """`weight` (n, k), 16 bit on a GPU, pruned and packed in the library's form."""
    reason = why_not()
    if reason is not None:
        raise RuntimeError(f"2:4 is not available: {reason}")
    return torch.sparse.to_sparse_semi_structured(prune(weight))


@dataclass(frozen=True)
class Packed:
    """A compressed weight, kept from code that treats every tensor as an array of numbers."""

    weight: torch.Tensor


def buffers(*, x: torch.Tensor, weight: torch.Tensor) -> dict[str, Any]:
    """The packed weight, and y, which takes the memory of the library's own answer."""
    return {"packed": Packed(compress(weight)), "y": torch.empty(0, dtype=x.dtype, device=x.device)}


def nm24(x: torch.Tensor, weight: torch.Tensor, packed: Packed, y: torch.Tensor) -> None:
    """y (M, n) = x (M, k) times the packed weight; the library has no output argument, and no copy is made."""
    y.set_(torch.nn.functional.linear(x, packed.weight))  # type: ignore[arg-type]  # its stub knows storages only
