"""RMSNorm with the residual addition in front of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from simulator.ops.ops import Op
from simulator.ops.traffic import Operand
from sparse_kernels import demand
from sparse_kernels.registry import ACTIVATION, WEIGHT, Case, Explained, Kernel, Tolerance, case
from sparse_kernels.rmsnorm_residual.naive import rmsnorm_residual as naive
from sparse_kernels.rmsnorm_residual.triton import rmsnorm_residual as triton
from sparse_kernels.tensors import Draw

CASES = (
    case("4 rows", "test", "traffic", batch=4, hidden=512),
    case("odd", "test", "traffic", batch=7, hidden=331),
    case("one row fp16", "test", "traffic", dtype="fp16", batch=1, hidden=1024),
    case("llama-2-7b", "compile", "hot", "full", batch=16, hidden=4096),
    case("opt-30b", "compile", "hot", "full", batch=16, hidden=7168),
    case("llama-2-7b prompt", "full", batch=2048, hidden=4096),
)


def inputs(case: Case, seed: int, device: str) -> dict[str, Any]:
    draw, shape = Draw(seed, device), (case["batch"], case["hidden"])
    return {
        "x": draw.normal(*shape, dtype=case.dtype),
        "residual": draw.normal(*shape, dtype=case.dtype),
        "weight": draw.normal(case["hidden"], dtype=case.dtype),
        "epsilon": 1e-5,
    }


def buffers(*, x: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
    return {"out": torch.empty_like(x), "summed": torch.empty_like(x)}


def ops(case: Case, _: Mapping[str, Any]) -> tuple[Op, ...]:
    return demand.lowered("dense", demand.layer(case), demand.decode(case), ["norm"])


KERNEL = Kernel(
    name="rmsnorm_residual",
    family="dense",
    summary="add the residual, keep the sum, normalise it",
    citation="Zhang and Sennrich 2019, arXiv:1910.07467",
    cases=CASES,
    inputs=inputs,
    buffers=buffers,
    naive=naive,
    triton=triton,
    operands={"x": ACTIVATION, "residual": ACTIVATION, "out": ACTIVATION, "summed": ACTIVATION, "weight": WEIGHT},
    ops=ops,
    tolerance=Tolerance(
        2**-7,
        2**-10,
        "the sum is rounded to 8 bits (bf16) once and normalised in float32; the output is rounded once more",
    ),
    explained=(
        Explained(
            Operand.WEIGHT,
            "read",
            lambda case, _: 2.0 * case["hidden"],
            "the norm's own weight, 2 hidden B per call, is not in the simulator's norm (2 rows of activations)",
        ),
    ),
)
