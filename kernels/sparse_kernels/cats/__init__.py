"""MLP whose gate decides which neurons are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from simulator.base.dtypes import FORMATS
from simulator.ops.ops import Linear, Op
from sparse_kernels.cats import naive, triton
from sparse_kernels.registry import ACTIVATION, WEIGHT, WORKSPACE, Case, Kernel, Tolerance, case
from sparse_kernels.teal import threshold_keeping
from sparse_kernels.tensors import Draw


def inputs(case: Case, seed: int, device: str) -> dict[str, Any]:
    """The threshold keeps about ``keep * neurons`` of this x, in a gap between gates, so that rounding moves none."""
    draw = Draw(seed, device)
    hidden, neurons = case["hidden"], case["neurons"]
    x = draw.normal(1, hidden, dtype=case.dtype)
    gate = draw.normal(neurons, hidden, dtype=case.dtype, scale=hidden**-0.5)
    return {
        "x": x,
        "gate": gate,
        "up": draw.normal(neurons, hidden, dtype=case.dtype, scale=hidden**-0.5),
        "down": draw.normal(neurons, hidden, dtype=case.dtype, scale=neurons**-0.5),
        "threshold": threshold_keeping(gates(x, gate), round(case.keep * neurons)),
    }


def gates(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """|SiLU(x gate_j)|."""
    return torch.nn.functional.silu(x.float() @ gate.float().T).abs()


def ops(case: Case, inputs: Mapping[str, Any]) -> tuple[Op, ...]:
    """Gate and up as one product of rows twice as long, all of the gate's half read; then a product that skips."""
    hidden, neurons, fmt = case["hidden"], case["neurons"], FORMATS[case.dtype]
    live = int((gates(inputs["x"], inputs["gate"]) >= inputs["threshold"]).sum()) / neurons
    return (
        Linear(
            role="mlp.gate_up",
            m=1,
            n=neurons,
            k=hidden,
            fmt=fmt,
            read_keep=(1 + live) / 2,
            flop_keep=1 + live,
            bytes_per_weight=2 * fmt.weight_bytes,
            run_bytes=2.0 * hidden,
        ),
        Linear(
            role="mlp.down", m=1, n=hidden, k=neurons, fmt=fmt, read_keep=live, flop_keep=live, run_bytes=2.0 * hidden
        ),
    )


KERNEL = Kernel(
    name="cats",
    family="contextual",
    summary="dense gate, threshold, then only the surviving rows of up and down",
    citation="Lee et al. 2024, arXiv:2404.08763",
    cases=(
        case("half", "test", "traffic", hidden=256, neurons=320, keep=0.5),
        case("odd", "test", "traffic", dtype="fp16", hidden=203, neurons=131, keep=0.3),
        case("full", "test", "traffic", hidden=96, neurons=64, keep=1.0),
        case("empty", "test", "traffic", hidden=96, neurons=64, keep=0.0),
        case("two steps of k", "test", dtype="fp16", hidden=1100, neurons=24, keep=0.5),
        case("llama-2-7b", "compile", "hot", hidden=4096, neurons=2048, keep=0.5),
        case("llama-2-7b 50 %", "quick", "full", hidden=4096, neurons=11008, keep=0.5),
        case("llama-2-7b 70 %", "full", hidden=4096, neurons=11008, keep=0.3),
    ),
    inputs=inputs,
    buffers=triton.buffers,
    naive=naive.cats,
    triton=triton.cats,
    operands={
        "x": ACTIVATION,
        "gate": WEIGHT,
        "up": WEIGHT,
        "down": WEIGHT,
        "h": ACTIVATION,
        "y": ACTIVATION,
        "partial": WORKSPACE,
    },
    ops=ops,
    tolerance=Tolerance(
        2**-6,
        2**-7,
        "h and y are rounded to 16 bits (2^-8 relative for bf16); a sum in another order rounds some h the other way",
    ),
    dense="skinny_gemm",
)
