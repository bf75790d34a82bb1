"""Dense product of a few rows with a weight matrix: the baseline of every weight and MLP method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.ops.ops import Op
from sparse_kernels import demand
from sparse_kernels.registry import ACTIVATION, FULL, HOT, QUICK, WEIGHT, WORKSPACE, Case, Kernel, Tolerance, case
from sparse_kernels.skinny_gemm.naive import skinny_gemm as naive
from sparse_kernels.skinny_gemm.triton import buffers
from sparse_kernels.skinny_gemm.triton import skinny_gemm as triton
from sparse_kernels.tensors import Draw

CASES = (
    case("gemv", "test", "traffic", batch=1, hidden=512, neurons=256),
    case("gemv odd", "test", "traffic", batch=1, hidden=331, neurons=203),
    case("5 rows odd", "test", "traffic", batch=5, hidden=299, neurons=131),
    case("16 rows fp16", "test", "traffic", dtype="fp16", batch=16, hidden=256, neurons=192),
    case("64 rows", "test", "traffic", batch=64, hidden=256, neurons=128),
    case("one by one", "test", batch=1, hidden=1, neurons=1),
    *(
        case(f"{name} x{rows}", *uses, batch=rows, hidden=hidden, neurons=neurons)
        for name, hidden, neurons in (("4096 to 11008", 4096, 11008), ("7168 to 28672", 7168, 28672))
        for rows, uses in ((1, (*HOT, *QUICK)), (4, FULL), (16, (*HOT, *FULL)), (64, (*HOT, *FULL)))
    ),
)


def inputs(case: Case, seed: int, device: str) -> dict[str, Any]:
    draw = Draw(seed, device)
    scale = case["hidden"] ** -0.5
    return {
        "x": draw.normal(case["batch"], case["hidden"], dtype=case.dtype),
        "weight": draw.normal(case["neurons"], case["hidden"], dtype=case.dtype, scale=scale),
    }


def ops(case: Case, _: Mapping[str, Any]) -> tuple[Op, ...]:
    model = demand.layer(case, gated=False)
    return demand.lowered("dense", model, demand.decode(case), ["mlp.up"])


KERNEL = Kernel(
    name="skinny_gemm",
    family="dense",
    summary="1 to 64 rows times a weight matrix, split over its input features",
    citation="the dense model's own linear layers",
    cases=CASES,
    inputs=inputs,
    buffers=buffers,
    naive=naive,
    triton=triton,
    operands={"x": ACTIVATION, "weight": WEIGHT, "out": ACTIVATION, "partial": WORKSPACE},
    ops=ops,
    tolerance=Tolerance(
        2**-8,
        2**-12,
        "products are exact and summed in float32; the output is rounded to 8 bits (bf16), half a step is 2^-9",
    ),
)
