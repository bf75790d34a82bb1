"""Pruning and packing of K and V into bitmap tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.ops.ops import Op
from simulator.ops.traffic import Operand
from sparse_kernels import demand
from sparse_kernels.bitmap import AXES, spread
from sparse_kernels.bitmap_pack.naive import bitmap_pack as naive
from sparse_kernels.bitmap_pack.triton import bitmap_pack as triton
from sparse_kernels.bitmap_pack.triton import buffers
from sparse_kernels.registry import KV, WORKSPACE, Case, Flow, Kernel, Tolerance, case
from sparse_kernels.tensors import Draw

EVEN = 16
"""Fewest values of a tile where a case asks for ``even`` tiles: 39 of 128 per row, 70 % pruned."""

CASES = (
    case("mha", "test", "traffic", keep=39 / 128, batch=1, tokens=128, hq=2, hk=2, d=128, even=1),
    case("gqa8 fp16", "test", "traffic", dtype="fp16", keep=39 / 128, batch=2, tokens=64, hq=8, hk=1, d=128, even=1),
    case("half, d 64", "test", keep=0.5, batch=1, tokens=192, hq=2, hk=2, d=64),
    case("one of a row", "test", keep=1 / 64, batch=1, tokens=64, hq=2, hk=1, d=64),
    case("all", "test", keep=1.0, batch=1, tokens=64, hq=2, hk=1, d=64),
    case("llama-2-7b 4k x4", "full", keep=0.3, batch=4, tokens=4096, hq=32, hk=32, d=128),
    case("llama-2-7b", "compile", "hot", keep=0.3, batch=1, tokens=256, hq=32, hk=32, d=128),
)


def inputs(case: Case, seed: int, device: str) -> dict[str, Any]:
    """Random K and V; with ``even`` the magnitudes are such that tiles hold 16 to 23 values, equally often."""
    draw = Draw(seed, device)
    shape = tuple(case[n] for n in ("batch", "hk", "tokens", "d"))
    k, v = (draw.normal(*shape, dtype=case.dtype) for _ in range(2))
    if case.sizes.get("even"):
        for name, x in (("k", k), ("v", v)):
            mask = spread(case["tokens"], case["d"], EVEN, AXES[name], device)
            x.clamp_(-1.0, 1.0).add_(4.0 * mask * x.sign())
    return {"k": k, "v": v, "kept": round(case.keep * case["d"])}


def ops(case: Case, _: Mapping[str, Any]) -> tuple[Op, ...]:
    policy = f"mustafar(keep={case.keep!r},kernel=fused)"
    return demand.lowered(policy, demand.layer(case), demand.prefill(case), ["kv.pack"])


OUT = Flow(None, Operand.KV)
"""Packed output; the second pass finds the bits of the first in L2."""

KERNEL = Kernel(
    name="bitmap_pack",
    family="kv",
    summary="keep the largest of each row, write bitmaps, offsets and padded values",
    citation="Mustafar 2025, arXiv:2505.22913",
    cases=CASES,
    inputs=inputs,
    buffers=buffers,
    naive=naive,
    triton=triton,
    operands={
        "k": KV,
        "v": KV,
        **dict.fromkeys(("k_bits", "k_offset", "k_values", "v_bits", "v_offset", "v_values"), OUT),
        "totals": WORKSPACE,
    },
    ops=ops,
    tolerance=Tolerance(0.0, 0.0, "elements are moved, not computed"),
)
