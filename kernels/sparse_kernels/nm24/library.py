"""2:4 product by ``torch.sparse.to_sparse_semi_structured``; needs a CUDA GPU of compute capability 8.0 or later.

Stored: half the values and 2 bits of index for each, 9/16 of the dense bytes at 16 bits, as `simulator`'s nm24 says.
Rows of x are padded by the library to a multiple of 8 (cuSPARSELt) or 32 and more (CUTLASS).
"""

from __future__ import annotations

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


def nm24(x: torch.Tensor, compressed: torch.Tensor) -> torch.Tensor:
    """(M, n): x (M, k) times the packed weight."""
    return torch.nn.functional.linear(x, compressed)
