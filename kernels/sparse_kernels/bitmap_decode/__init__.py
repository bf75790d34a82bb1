"""Decode attention over K and V pruned to bitmap tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from simulator.ops.ops import Op
from simulator.ops.traffic import Operand
from simulator.policies.kv_compressed import PAD_ELEMENTS, TILE
from sparse_kernels import demand
from sparse_kernels.bitmap import AXES, pack, spread
from sparse_kernels.bitmap_decode.naive import bitmap_decode as naive
from sparse_kernels.bitmap_decode.triton import bitmap_decode as triton
from sparse_kernels.bitmap_decode.triton import buffers
from sparse_kernels.bitmap_pack import EVEN
from sparse_kernels.registry import ACTIVATION, FULL, KV, QUICK, WORKSPACE, Case, Explained, Kernel, Tolerance, case
from sparse_kernels.tensors import Draw

CASES = (
    case("mha", "test", "traffic", keep=39 / 128, batch=2, tokens=128 + 32, window=32, hq=2, hk=2, d=128, even=1),
    case(
        "gqa4 fp16",
        "test",
        "traffic",
        dtype="fp16",
        keep=39 / 128,
        batch=1,
        tokens=192 + 32,
        window=32,
        hq=4,
        hk=1,
        d=128,
        even=1,
    ),
    case("gqa8 d 64", "test", keep=0.5, batch=1, tokens=300, window=32, hq=16, hk=2, d=64),
    case("nothing packed", "test", keep=0.3, batch=1, tokens=40, window=64, hq=2, hk=1, d=64),
    case("one token", "test", keep=0.3, batch=1, tokens=1, window=32, hq=2, hk=1, d=64),
    case("nothing pruned", "test", keep=1.0, batch=1, tokens=96, window=32, hq=2, hk=1, d=64),
    case("one of a row", "test", keep=1 / 64, batch=1, tokens=129, window=1, hq=2, hk=1, d=64),
    *(
        case(
            f"{name} {tokens // 1024}k x{batch}",
            *uses,
            keep=0.3,
            batch=batch,
            tokens=tokens,
            window=32,
            hq=32,
            hk=hk,
            d=128,
        )
        for name, hk, tokens, batch, uses in (
            ("mha-32", 32, 32768, 1, FULL),
            ("mha-32", 32, 32768, 16, QUICK),
            ("gqa-8", 8, 32768, 16, FULL),
        )
    ),
    case("llama-2-7b", "compile", "hot", keep=0.3, batch=1, tokens=2048 + 32, window=32, hq=32, hk=32, d=128),
    case("llama-3-8b", "compile", "hot", keep=0.3, batch=1, tokens=2048 + 32, window=32, hq=32, hk=8, d=128),
)


def inputs(case: Case, seed: int, device: str) -> dict[str, Any]:
    """Packed random K and V behind `window` dense tokens (or as many as make the rest whole groups of 64)."""
    draw, dtype = Draw(seed, device), case.dtype
    batch, hq, hk, d, tokens = (case[n] for n in ("batch", "hq", "hk", "d", "tokens"))
    old = max(tokens - case["window"], 0) // TILE * TILE
    out: dict[str, Any] = {"q": draw.normal(batch, hq, d, dtype=dtype)}
    for name, axis in AXES.items():
        parts = []
        for _ in range(batch):
            x = draw.normal(1, hk, old, d, dtype=dtype)
            if case.sizes.get("even"):
                mask = spread(old, d, EVEN, axis, device)
                x.clamp_(-1.0, 1.0).add_(4.0 * mask * x.sign())
            parts.append(pack(x, round(case.keep * d), axis))
        for part in ("bits", "offset", "values"):
            out[f"{name}_{part}"] = torch.cat([p[part] for p in parts])
        out[f"{name}_window"] = draw.normal(batch, hk, tokens - old, d, dtype=dtype)
        out[f"{name}_new"] = draw.normal(batch, hk, d, dtype=dtype)
    return out


def ops(case: Case, _: Mapping[str, Any]) -> tuple[Op, ...]:
    policy = f"mustafar(keep={case.keep!r},window={case['window']},kernel=fused)"
    return demand.lowered(policy, demand.layer(case), demand.decode(case), ["attn.core", "kv.scores"])


def padding_bytes(case: Case, _: Mapping[str, Any]) -> float:
    """Minus the padding of all tiles of K and V [B]."""
    tiles = 2.0 * case["batch"] * case["hk"] * (case["tokens"] - case["window"]) * case["d"] / TILE
    return -2.0 * PAD_ELEMENTS * tiles


KERNEL = Kernel(
    name="bitmap_decode",
    family="kv",
    summary="decode attention that expands bitmap tiles of K and V in registers",
    citation="Mustafar 2025, arXiv:2505.22913",
    cases=CASES,
    inputs=inputs,
    buffers=buffers,
    naive=naive,
    triton=triton,
    operands={
        "q": ACTIVATION,
        "out": ACTIVATION,
        "scores": ACTIVATION,
        **dict.fromkeys(
            (
                "k_bits",
                "k_offset",
                "k_values",
                "v_bits",
                "v_offset",
                "v_values",
                "k_window",
                "v_window",
                "k_new",
                "v_new",
            ),
            KV,
        ),
        "parts": WORKSPACE,
        "sums": WORKSPACE,
    },
    ops=ops,
    tolerance=Tolerance(
        2**-7,
        2**-7,
        "as flash_decode; values of the even cases reach 5, so that the weights' 2^-9 is of sums of that size",
    ),
    dense="flash_decode",
    explained=(
        Explained(
            Operand.KV,
            "read",
            padding_bytes,
            "values are fetched one by one where the bitmap says so, so the 3.5 elements of padding per tile are moved"
            " with their sectors but never asked for",
        ),
    ),
)
