"""summed = x + residual;  out = summed / sqrt(mean(summed^2) + epsilon) * weight, one program per row.

Layout. Rows of (m, hidden) are contiguous and one row fits the registers of a program.

Traffic (b = 2 bytes): 2 m hidden b read, 2 m hidden b written, and hidden b of weight.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparse_kernels.launch import launch, power_of_2


@triton.jit
def rmsnorm_residual_kernel(x, residual, weight, out, summed, hidden, epsilon, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < hidden
    a = tl.load(x + row * hidden + i, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(residual + row * hidden + i, mask=inside, other=0.0).to(tl.float32)
    kept = (a + b).to(summed.dtype.element_ty)
    tl.store(summed + row * hidden + i, kept, mask=inside)
    h = kept.to(tl.float32)
    scale = tl.rsqrt(tl.sum(h * h, 0) / hidden + epsilon)
    w = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * hidden + i, (h * scale * w).to(out.dtype.element_ty), mask=inside)


def rmsnorm_residual(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    epsilon: float,
    out: torch.Tensor,
    summed: torch.Tensor,
) -> None:
    """Rows of x and residual (m, hidden); `summed` is the sum that the next block adds to."""
    rows, hidden = x.shape
    block = power_of_2(hidden)
    launch(
        rmsnorm_residual_kernel,
        (rows,),
        num_warps=min(max(block // 512, 1), 16),
        num_stages=1,
        x=x,
        residual=residual,
        weight=weight,
        out=out,
        summed=summed,
        hidden=hidden,
        epsilon=epsilon,
        BLOCK=block,
    )
