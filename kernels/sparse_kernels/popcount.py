"""Number of set bits in a kernel, in the form that LLVM turns into the GPU's popc instruction."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def popcount(x):
    """Set bits of each element of x, uint32 [1]_.

    References
    ----------
    .. [1] Warren, "Hacker's Delight", section 5-1.
    """
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)
