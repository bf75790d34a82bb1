"""CATS: the gate decides, neuron by neuron, whether the rows of up and down are read at all.

    v_j = SiLU(x gate_j),   h_j = v_j (x up_j) where |v_j| >= t else 0,   y = sum_j h_j down_j

Layout. gate, up (neurons, hidden) and down stored transposed, (neurons, hidden): rows of 2 hidden bytes each.
The first kernel computes the gates of a few neurons and then loads only their surviving up rows; the second is
`teal` with threshold 0 on h, so a dropped neuron costs one comparison. One row of x, as in the method's paper.

Traffic (bytes; F neurons, L kept, d hidden, b = 2): gate F d b, up L d b, down L d b, x d b, h F b written and
read, y d b, and with S > 1 splits 8 S d of workspace.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparse_kernels.launch import cdiv, launch, power_of_2
from sparse_kernels.teal import triton as teal


@triton.jit
def cats_kernel(x, gate, up, h, threshold, F, K, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr):
    j = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    live = j < F
    g = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for k0 in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        inside = k0 + k < K
        xv = tl.load(x + k0 + k, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(gate + j[:, None] * K + (k0 + k)[None, :], mask=live[:, None] & inside[None, :], other=0.0)
        g += w.to(tl.float32) * xv[None, :]
    s = tl.sum(g, 1)
    v = s / (1.0 + tl.exp(-s))
    keep = live & (tl.abs(v) >= threshold)
    u = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for k0 in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        inside = k0 + k < K
        xv = tl.load(x + k0 + k, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(up + j[:, None] * K + (k0 + k)[None, :], mask=keep[:, None] & inside[None, :], other=0.0)
        u += w.to(tl.float32) * xv[None, :]
    value = tl.where(keep, v * tl.sum(u, 1), 0.0)
    tl.store(h + j, value.to(h.dtype.element_ty), mask=live)


def config(k: int) -> dict[str, int]:
    """Four neurons to a program: many programs, so that one's second pass hides behind another's first."""
    return {"BLOCK_N": 4, "BLOCK_K": min(power_of_2(k), 1024), "STAGES": 3, "num_warps": 4}


def buffers(x: torch.Tensor, down: torch.Tensor, **_: object) -> dict[str, torch.Tensor]:
    """h (1, neurons), y (1, hidden) and the partials of the second product."""
    h = torch.empty((1, down.shape[0]), dtype=x.dtype, device=x.device)
    return {"h": h, **teal.buffers(h, down)}


def cats(
    x: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    threshold: float,
    h: torch.Tensor,
    y: torch.Tensor,
    partial: torch.Tensor,
) -> None:
    """h (1, neurons) and y (1, hidden) of x (1, hidden); `down` is stored (neurons, hidden)."""
    neurons, k = gate.shape
    tile = config(k)
    launch(
        cats_kernel,
        (cdiv(neurons, tile["BLOCK_N"]),),
        x=x,
        gate=gate,
        up=up,
        h=h,
        threshold=threshold,
        F=neurons,
        K=k,
        **tile,
    )
    teal.teal(h, down, 0.0, y, partial)
