"""Product that skips the columns of small inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from simulator.base.dtypes import FORMATS
from simulator.ops.ops import Linear, Op
from sparse_kernels.registry import ACTIVATION, WEIGHT, WORKSPACE, Case, Kernel, Tolerance, case
from sparse_kernels.teal import naive, triton
from sparse_kernels.tensors import Draw


def threshold_keeping(magnitude: torch.Tensor, count: int) -> float:
    """A threshold that keeps `count` of `magnitude`, halfway between the smallest kept and the largest dropped.

    Of the counts within a thousandth of all, the one with the widest gap: a sum in another order moves no unit over it.
    """
    ordered = magnitude.flatten().double().sort(descending=True).values
    if count == 0 or count >= len(ordered):
        return float(ordered[0]) + 1.0 if count == 0 else float(ordered[-1]) / 2
    gaps = ordered[:-1] - ordered[1:]
    first = max(count - 1 - len(ordered) // 1000, 0)
    last = first + int(gaps[first : count + len(ordered) // 1000].argmax())
    return float(ordered[last : last + 2].mean())


def inputs(case: Case, seed: int, device: str) -> dict[str, Any]:
    """x normal; the threshold keeps ``keep * k`` of it, up to values equal in 16 bits."""
    draw = Draw(seed, device)
    k, n = case["k"], case["n"]
    x = draw.normal(1, k, dtype=case.dtype)
    return {
        "x": x,
        "weight": draw.normal(k, n, dtype=case.dtype, scale=max(case.keep * k, 1.0) ** -0.5),
        "threshold": threshold_keeping(x.abs(), round(case.keep * k)),
    }


def ops(case: Case, inputs: Mapping[str, Any]) -> tuple[Op, ...]:
    """A product that reads the weight columns of the inputs above the threshold and all of x."""
    live = int((inputs["x"].float().abs() > inputs["threshold"]).sum()) / case["k"]
    return (
        Linear(
            role="linear",
            m=1,
            n=case["n"],
            k=case["k"],
            fmt=FORMATS[case.dtype],
            read_keep=live,
            flop_keep=live,
            run_bytes=2.0 * case["n"],
        ),
    )


KERNEL = Kernel(
    name="teal",
    family="contextual",
    summary="matrix-vector product without the columns of small inputs",
    citation="Liu et al. 2024, arXiv:2408.14690",
    cases=(
        case("half", "test", "traffic", k=256, n=256, keep=0.5),
        case("odd", "test", "traffic", dtype="fp16", k=301, n=611, keep=0.3),
        case("full", "test", "traffic", k=96, n=128, keep=1.0),
        case("empty", "test", "traffic", k=96, n=128, keep=0.0),
        case("llama-2-7b down", "compile", "hot", k=2048, n=4096, keep=0.5),
        case("llama-2-7b down 50 %", "quick", "full", k=11008, n=4096, keep=0.5),
        case("llama-2-7b up 40 %", "full", k=4096, n=11008, keep=0.6),
    ),
    inputs=inputs,
    buffers=triton.buffers,
    naive=naive.teal,
    triton=triton.teal,
    operands={"x": ACTIVATION, "weight": WEIGHT, "y": ACTIVATION, "partial": WORKSPACE},
    ops=ops,
    tolerance=Tolerance(2**-7, 2**-8, "outputs of order one rounded to 16 bits: 2^-8 relative for bf16, doubled"),
    dense="skinny_gemm",
)
