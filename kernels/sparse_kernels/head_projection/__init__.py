"""QKV and output projections of the kept heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from simulator.ops.ops import Linear, Op
from sparse_kernels import demand
from sparse_kernels.head_projection import naive, triton
from sparse_kernels.registry import ACTIVATION, INDEX, WEIGHT, WORKSPACE, Case, Kernel, Tolerance, case
from sparse_kernels.tensors import Draw


def inputs(case: Case, seed: int, device: str) -> dict[str, Any]:
    """``keep * hq`` random heads; a KV head is listed where a head of its group is kept."""
    draw = Draw(seed, device)
    hq, hk, d, hidden, m = case["hq"], case["hk"], case["d"], case["hidden"], case["batch"]
    heads = draw.subset(hq, round(case.keep * hq))
    return {
        "x": draw.normal(m, hidden, dtype=case.dtype),
        "w_qkv": draw.normal((hq + 2 * hk) * d, hidden, dtype=case.dtype, scale=hidden**-0.5),
        "groups": naive.qkv_groups(heads, hq, hk),
        "context": draw.normal(m, len(heads), d, dtype=case.dtype),
        "w_o": draw.normal(hq * d, hidden, dtype=case.dtype, scale=max(len(heads) * d, 1) ** -0.5),
        "heads": heads,
        "head_dim": d,
    }


def ops(case: Case, inputs: Mapping[str, Any]) -> tuple[Op, ...]:
    """Deja Vu's two projections. Heads are whole and shared by the batch, so the share is the inputs' own."""
    shares = {
        "attn.qkv": len(inputs["groups"]) / (case["hq"] + 2 * case["hk"]),
        "attn.o": len(inputs["heads"]) / case["hq"],
    }
    found = demand.lowered(f"dejavu(attn_keep={case.keep})", demand.layer(case), demand.decode(case), set(shares))
    return (
        *(replace(op, read_keep=shares[op.role], flop_keep=shares[op.role]) for op in found if isinstance(op, Linear)),
        demand.index_list("attn.heads", len(inputs["groups"]) + len(inputs["heads"])),
    )


KERNEL = Kernel(
    name="head_projection",
    family="contextual",
    summary="rows of QKV and columns of the output matrix of the kept heads",
    citation="Liu et al. 2023, arXiv:2310.17157",
    cases=(
        case("mha", "test", "traffic", batch=1, hidden=256, hq=16, hk=16, d=16, keep=0.5),
        case("gqa4", "test", "traffic", batch=1, hidden=128, hq=16, hk=4, d=16, keep=0.5),
        case("gqa8 odd", "test", "traffic", batch=1, hidden=99, hq=16, hk=2, d=20, keep=0.25),
        case("gqa4 batch 6", "test", "traffic", dtype="fp16", batch=6, hidden=96, hq=8, hk=2, d=32, keep=0.5),
        case("full", "test", "traffic", batch=1, hidden=64, hq=4, hk=1, d=16, keep=1.0),
        case("empty", "test", batch=2, hidden=64, hq=4, hk=4, d=16, keep=0.0),
        case("opt-30b", "compile", "hot", batch=1, hidden=7168, hq=16, hk=16, d=128, keep=0.5),
        case("opt-30b 50 %", "full", batch=1, hidden=7168, hq=56, hk=56, d=128, keep=0.5),
        case("llama-2-7b 50 %", "quick", "full", batch=1, hidden=4096, hq=32, hk=32, d=128, keep=0.5),
    ),
    inputs=inputs,
    buffers=triton.buffers,
    naive=naive.head_projection,
    triton=triton.head_projection,
    operands={
        "x": ACTIVATION,
        "w_qkv": WEIGHT,
        "groups": INDEX,
        "context": ACTIVATION,
        "w_o": WEIGHT,
        "heads": INDEX,
        "qkv": ACTIVATION,
        "y": ACTIVATION,
        "partial": WORKSPACE,
    },
    ops=ops,
    tolerance=Tolerance(2**-7, 2**-8, "outputs of order one rounded to 16 bits: 2^-8 relative for bf16, doubled"),
    dense="skinny_gemm",
)
