"""4-bit weights without the groups that were dropped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.base.dtypes import FORMATS
from simulator.ops.ops import Expand, Linear, Op
from sparse_kernels.group_w4 import naive, triton
from sparse_kernels.registry import ACTIVATION, WEIGHT, Case, Kernel, Tolerance, case
from sparse_kernels.tensors import Draw

GROUP_BYTES = 2 + 8 + 2 + 1
"""Column, codes, scale and zero of a kept group [B]."""


def inputs(case: Case, seed: int, device: str) -> dict[str, Any]:
    """Normal weights, 4 bits, of which the ``keep`` share of groups of largest norm stays."""
    draw = Draw(seed, device)
    k = case["k"]
    weight = draw.normal(case["n"], k, dtype=case.dtype, scale=k**-0.5)
    return {"x": draw.normal(1, k, dtype=case.dtype), **naive.compress(weight, case.keep)}


def ops(case: Case, inputs: Mapping[str, Any]) -> tuple[Op, ...]:
    """A product that stores 13 B per kept group and 4 B per row and one more, multiplied in 16 bits."""
    n, k, groups = case["n"], case["k"], len(inputs["columns"])
    share = groups * naive.GROUP / (n * k)
    return (
        Linear(
            role="linear",
            m=1,
            n=n,
            k=k,
            fmt=FORMATS[case.dtype],
            flop_keep=share,
            bytes_per_weight=(groups * GROUP_BYTES + 4 * (n + 1)) / (n * k),
            expand=Expand(elements=share * n * k, nonzeros=share * n * k),
        ),
    )


KERNEL = Kernel(
    name="group_w4",
    family="weights",
    summary="4-bit weights in groups of 16, dropped groups neither stored nor read, one vector",
    citation="Zeng et al. 2024 (GQSA), arXiv:2412.17560",
    cases=(
        case("half", "test", "traffic", n=128, k=512, keep=0.5),
        case("odd rows", "test", "traffic", dtype="fp16", n=77, k=304, keep=0.3),
        case("full", "test", "traffic", n=32, k=256, keep=1.0),
        case("empty", "test", n=9, k=64, keep=0.0),
        case("4096", "compile", "hot", n=64, k=4096, keep=0.5),
        case("llama-2-7b down 50 %", "quick", "full", n=4096, k=11008, keep=0.5),
        case("llama-2-7b up 50 %", "full", n=11008, k=4096, keep=0.5),
    ),
    inputs=inputs,
    buffers=triton.buffers,
    naive=naive.group_w4,
    triton=triton.group_w4,
    operands={
        "x": ACTIVATION,
        "starts": WEIGHT,
        "columns": WEIGHT,
        "codes": WEIGHT,
        "scale": WEIGHT,
        "zero": WEIGHT,
        "y": ACTIVATION,
    },
    ops=ops,
    tolerance=Tolerance(2**-7, 2**-8, "outputs of order one rounded to 16 bits: 2^-8 relative for bf16, doubled"),
    dense="skinny_gemm",
)
