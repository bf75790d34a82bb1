"""Predictor MLP and top-k."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.ops.ops import Op
from simulator.ops.traffic import Operand
from sparse_kernels import demand
from sparse_kernels.predictor import naive, triton
from sparse_kernels.registry import ACTIVATION, INDEX, WEIGHT, Case, Flow, Kernel, Tolerance, case
from sparse_kernels.tensors import Draw

ROLES = ("predictor.mlp.in", "predictor.mlp.out", "predictor.mlp.top_k")


def inputs(case: Case, seed: int, device: str) -> dict[str, Any]:
    """Products of small whole numbers, so that scores are exact in 16 bits and both twins rank the same numbers."""
    draw = Draw(seed, device)

    def ternary(*shape: int) -> Any:
        return draw.integers(-1, 2, *shape, dtype=draw.normal(1, dtype=case.dtype).dtype)

    hidden, rank, outputs = case["hidden"], case["rank"], case["neurons"]
    x, w_in, w_out = ternary(case["batch"], hidden), ternary(rank, hidden), ternary(outputs, rank)
    # One input in eight, one hidden unit in eight: sums stay below the 256 that bf16 counts exactly.
    x *= (draw.integers(0, 8, case["batch"], hidden, dtype=x.dtype) == 0).to(x.dtype)
    w_out *= (draw.integers(0, 8, outputs, rank, dtype=x.dtype) == 0).to(x.dtype)
    return {"x": x, "w_in": w_in, "w_out": w_out, "keep": round(case.keep * outputs)}


def ops(case: Case, inputs: Mapping[str, Any]) -> tuple[Op, ...]:
    """Deja Vu's MLP predictor of one layer."""
    policy = f"dejavu(keep={case.keep},mlp_rank={case['rank']})"
    return demand.lowered(policy, demand.layer(case), demand.decode(case), set(ROLES))


KERNEL = Kernel(
    name="predictor",
    family="contextual",
    summary="two products and the top-k neurons of each row",
    citation="Liu et al. 2023, arXiv:2310.17157; Akhauri et al. 2024, arXiv:2406.16635",
    cases=(
        case("tenth", "test", "traffic", dtype="fp16", batch=1, hidden=256, rank=64, neurons=320, keep=0.1),
        case("odd batch 3", "test", "traffic", dtype="fp16", batch=3, hidden=131, rank=37, neurons=301, keep=100 / 301),
        case("bf16", "test", batch=1, hidden=128, rank=48, neurons=300, keep=0.5),
        case("full", "test", "traffic", dtype="fp16", batch=1, hidden=64, rank=32, neurons=256, keep=1.0),
        case("empty", "test", dtype="fp16", batch=2, hidden=64, rank=32, neurons=64, keep=0.0),
        case("opt-30b", "compile", "hot", dtype="fp16", batch=1, hidden=7168, rank=1024, neurons=28672, keep=0.1),
        case("opt-30b 90 %", "quick", "full", dtype="fp16", batch=1, hidden=7168, rank=1024, neurons=28672, keep=0.1),
        case("opt-30b b16", "full", dtype="fp16", batch=16, hidden=7168, rank=1024, neurons=28672, keep=0.1),
    ),
    inputs=inputs,
    buffers=triton.buffers,
    naive=naive.predictor,
    triton=triton.predictor,
    operands={
        "x": ACTIVATION,
        "w_in": WEIGHT,
        "w_out": WEIGHT,
        "hidden": ACTIVATION,
        "scores": Flow(Operand.INDEX, Operand.ACTIVATION),
        "index": INDEX,
    },
    ops=ops,
    tolerance=Tolerance(0.0, 0.0, "the inputs' sums are whole numbers that 16 bits hold: everything is exact"),
)
