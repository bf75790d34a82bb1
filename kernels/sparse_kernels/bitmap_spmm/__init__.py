"""Unstructured sparse weights under a bitmap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.base.dtypes import FORMATS
from simulator.ops.ops import Expand, Linear, Op
from sparse_kernels.bitmap_spmm import naive, triton
from sparse_kernels.registry import ACTIVATION, WEIGHT, WORKSPACE, Case, Kernel, Tolerance, case
from sparse_kernels.tensors import Draw


def inputs(case: Case, seed: int, device: str) -> dict[str, Any]:
    """Normal weights of which the ``keep`` share of largest magnitude stays."""
    draw = Draw(seed, device)
    k, n = case["k"], case["n"]
    weight = naive.prune(draw.normal(n, k, dtype=case.dtype, scale=k**-0.5), case.keep)
    return {"x": draw.normal(case["m"], k, dtype=case.dtype), **naive.compress(weight), "n": n}


def ops(case: Case, inputs: Mapping[str, Any]) -> tuple[Op, ...]:
    """Every dense flop is done; stored are a value per non-zero, 64 bits per tile row and 32 bits per tile."""
    n, k, tile = case["n"], case["k"], naive.TILE
    nnz = len(inputs["values"])
    stored = 2 * nnz + 8 * n * -(-k // tile) + 4 * -(-n // tile) * -(-k // tile)
    return (
        Linear(
            role="linear",
            m=case["m"],
            n=n,
            k=k,
            fmt=FORMATS[case.dtype],
            bytes_per_weight=stored / (n * k),
            expand=Expand(elements=float(n * k), nonzeros=float(nnz)),
        ),
    )


KERNEL = Kernel(
    name="bitmap_spmm",
    family="weights",
    summary="unstructured sparse weights, loaded as bitmap and non-zeros, multiplied as dense tiles",
    citation="Xia et al. 2023 (Flash-LLM), arXiv:2309.10285; Fan et al. 2025 (SpInfer), EuroSys",
    cases=(
        case("vector", "test", "traffic", m=1, n=192, k=256, keep=0.3),
        case("batch 16", "test", "traffic", dtype="fp16", m=16, n=128, k=192, keep=0.5),
        case("batch 5 odd", "test", "traffic", m=5, n=150, k=331, keep=0.2),
        case("full", "test", m=3, n=64, k=64, keep=1.0),
        case("empty", "test", m=1, n=70, k=64, keep=0.0),
        case("1", "compile", "hot", m=1, n=1024, k=1024, keep=0.1),
        case("16", "compile", "hot", m=16, n=1024, k=1024, keep=0.1),
        case("64", "compile", m=64, n=1024, k=1024, keep=0.1),
        case("opt-66b 80 %", "quick", "full", m=8, n=36864, k=9216, keep=0.2),
        case("opt-66b 70 %", "full", m=16, n=36864, k=9216, keep=0.3),
        case("llama-2-7b 80 %", "full", m=1, n=11008, k=4096, keep=0.2),
    ),
    inputs=inputs,
    buffers=triton.buffers,
    naive=naive.bitmap_spmm,
    triton=triton.bitmap_spmm,
    operands={
        "x": ACTIVATION,
        "bitmap": WEIGHT,
        "values": WEIGHT,
        "offsets": WEIGHT,
        "y": ACTIVATION,
        "partial": WORKSPACE,
    },
    ops=ops,
    tolerance=Tolerance(2**-7, 2**-8, "outputs of order one rounded to 16 bits: 2^-8 relative for bf16, doubled"),
    dense="skinny_gemm",
)
