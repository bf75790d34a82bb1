"""MLP over the neurons an index list names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from simulator.ops.ops import Linear, Op
from sparse_kernels import demand
from sparse_kernels.gathered_mlp import naive, triton
from sparse_kernels.registry import ACTIVATION, INDEX, WEIGHT, WORKSPACE, Case, Kernel, Tolerance, case
from sparse_kernels.tensors import Draw


def inputs(case: Case, seed: int, device: str) -> dict[str, Any]:
    """Weights of unit gain, so that h and y are of order one; a random list of ``keep * neurons``."""
    draw = Draw(seed, device)
    hidden, neurons = case["hidden"], case["neurons"]

    def matrix(fan_in: float) -> torch.Tensor:
        return draw.normal(neurons, hidden, dtype=case.dtype, scale=fan_in**-0.5)

    listed = round(case.keep * neurons)
    return {
        "x": draw.normal(case["batch"], hidden, dtype=case.dtype),
        "gate": matrix(hidden) if case["gated"] else None,
        "up": matrix(hidden),
        "down": matrix(max(listed, 1)),
        "index": draw.subset(neurons, listed),
        "activation": "silu" if case["gated"] else "relu",
    }


def ops(case: Case, inputs: Mapping[str, Any]) -> tuple[Op, ...]:
    """ShadowLLM's two products. The fused kernel makes one output of a neuron's gate and up rows.

    Rows of a batch share one list: the union, measured from the inputs, takes the place of the expected one.
    """
    gated, keep = bool(case["gated"]), len(inputs["index"]) / case["neurons"]
    model = demand.layer(case, activation="silu" if gated else "relu", gated=gated)
    first = "mlp.gate_up" if gated else "mlp.up"
    found = demand.lowered(f"shadowllm(keep={case.keep})", model, demand.decode(case), {first, "mlp.down"})
    products = [replace(op, read_keep=keep, flop_keep=keep) for op in found if isinstance(op, Linear)]
    up, down = sorted(products, key=lambda op: op.role == "mlp.down")
    if gated:
        up = replace(up, n=up.n / 2, bytes_per_weight=2 * up.fmt.weight_bytes, flop_keep=2 * keep)
    return (up, down, demand.index_list("mlp.index", len(inputs["index"])))


KERNEL = Kernel(
    name="gathered_mlp",
    family="contextual",
    summary="gate, up and down over the listed neurons only",
    citation="Liu et al. 2023, arXiv:2310.17157; Akhauri et al. 2024, arXiv:2406.16635",
    cases=(
        case("gated", "test", "traffic", batch=1, hidden=256, neurons=320, gated=1, keep=0.1),
        case("relu", "test", "traffic", batch=1, hidden=192, neurons=256, gated=0, keep=0.25),
        case("odd", "test", "traffic", batch=1, hidden=203, neurons=131, gated=1, keep=40 / 131),
        case("batch 5", "test", "traffic", dtype="fp16", batch=5, hidden=160, neurons=192, gated=1, keep=0.5),
        case("batch 17 odd", "test", batch=17, hidden=101, neurons=77, gated=0, keep=30 / 77),
        case("full", "test", "traffic", batch=1, hidden=96, neurons=64, gated=1, keep=1.0),
        case("two steps of k", "test", dtype="fp16", batch=1, hidden=1100, neurons=40, gated=1, keep=0.5),
        case("empty", "test", batch=1, hidden=96, neurons=64, gated=1, keep=0.0),
        case("empty batch", "test", batch=3, hidden=96, neurons=64, gated=0, keep=0.0),
        case("llama-2-7b", "compile", "hot", batch=1, hidden=4096, neurons=2048, gated=1, keep=0.5),
        case("opt-30b", "compile", "hot", batch=1, hidden=7168, neurons=2048, gated=0, keep=0.5),
        case("llama-2-7b b16", "compile", "hot", batch=16, hidden=4096, neurons=2048, gated=1, keep=0.5),
        case("llama-2-7b 90 %", "quick", "full", batch=1, hidden=4096, neurons=11008, gated=1, keep=0.1),
        case("llama-2-7b 50 %", "full", batch=1, hidden=4096, neurons=11008, gated=1, keep=0.5),
        case("opt-30b 90 %", "quick", "full", batch=1, hidden=7168, neurons=28672, gated=0, keep=0.1),
        case("llama-2-7b 60 % b16", "full", batch=16, hidden=4096, neurons=11008, gated=1, keep=0.4),
    ),
    inputs=inputs,
    buffers=triton.buffers,
    naive=naive.gathered_mlp,
    triton=triton.gathered_mlp,
    operands={
        "x": ACTIVATION,
        "gate": WEIGHT,
        "up": WEIGHT,
        "down": WEIGHT,
        "index": INDEX,
        "h": ACTIVATION,
        "y": ACTIVATION,
        "partial": WORKSPACE,
    },
    ops=ops,
    tolerance=Tolerance(
        2**-6,
        2**-6,
        "h and y are rounded to 16 bits (2^-8 relative for bf16); a sum in another order rounds some h the other way",
    ),
    dense="skinny_gemm",
)
