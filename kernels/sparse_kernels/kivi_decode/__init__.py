"""Decode attention over a KV cache of 2, 4 or 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.ops.ops import Op
from sparse_kernels import demand
from sparse_kernels.kivi_decode.naive import kivi_decode as naive
from sparse_kernels.kivi_decode.naive import quantised
from sparse_kernels.kivi_decode.triton import buffers
from sparse_kernels.kivi_decode.triton import kivi_decode as triton
from sparse_kernels.registry import ACTIVATION, FULL, KV, QUICK, WORKSPACE, Case, Kernel, Tolerance, case
from sparse_kernels.tensors import Draw

CASES = (
    case("2 bit mha", "test", "traffic", bits=2, group=32, batch=2, tokens=32 * 6 + 40, window=40, hq=2, hk=2, d=64),
    case(
        "4 bit gqa4", "test", "traffic", bits=4, group=64, batch=1, tokens=64 * 3 + 128, window=128, hq=8, hk=2, d=128
    ),
    case(
        "8 bit gqa8 fp16",
        "test",
        "traffic",
        dtype="fp16",
        bits=8,
        group=64,
        batch=1,
        tokens=64 * 2 + 33,
        window=33,
        hq=8,
        hk=1,
        d=64,
    ),
    case("window only", "test", bits=2, group=32, batch=1, tokens=17, window=32, hq=2, hk=1, d=64),
    case("one token", "test", bits=4, group=32, batch=1, tokens=1, window=32, hq=2, hk=1, d=32),
    case("no window", "test", "traffic", bits=4, group=32, batch=1, tokens=65, window=1, hq=2, hk=1, d=64),
    *(
        case(
            f"{bits} bit mha-32 32k x{batch}",
            *uses,
            bits=bits,
            group=64,
            batch=batch,
            tokens=32768,
            window=128,
            hq=32,
            hk=32,
            d=128,
        )
        for bits, batch, uses in ((2, 1, FULL), (2, 16, FULL), (4, 1, QUICK), (4, 16, FULL), (8, 16, FULL))
    ),
    *(
        case(
            f"{bits} bit llama-2-7b 4k",
            "compile",
            "hot",
            bits=bits,
            group=64,
            batch=1,
            tokens=4096,
            window=128,
            hq=32,
            hk=32,
            d=128,
        )
        for bits in (2, 4, 8)
    ),
)


def inputs(case: Case, seed: int, device: str) -> dict[str, Any]:
    draw, dtype = Draw(seed, device), case.dtype
    batch, hq, hk, d, tokens = (case[n] for n in ("batch", "hq", "hk", "d", "tokens"))
    bits, group, window = case["bits"], case["group"], case["window"]
    old = max(tokens - window, 0) // group * group
    dense = (batch, hk, max(window, tokens - old), d)
    k = quantised(draw.normal(batch, hk, old, d, dtype=dtype), bits, group, along="tokens")
    v = quantised(draw.normal(batch, hk, old, d, dtype=dtype), bits, group, along="channels")
    return {
        "q": draw.normal(batch, hq, d, dtype=dtype),
        "k_codes": k[0],
        "k_scale": k[1],
        "k_zero": k[2],
        "v_codes": v[0],
        "v_scale": v[1],
        "v_zero": v[2],
        "k_window": draw.normal(*dense, dtype=dtype),
        "v_window": draw.normal(*dense, dtype=dtype),
        "k_new": draw.normal(batch, hk, d, dtype=dtype),
        "v_new": draw.normal(batch, hk, d, dtype=dtype),
        "recent": tokens - old,
        "bits": bits,
        "group": group,
    }


def ops(case: Case, _: Mapping[str, Any]) -> tuple[Op, ...]:
    policy = f"kv_quant(bits={case['bits']},group={case['group']},window={case['window']})"
    return demand.lowered(policy, demand.layer(case), demand.decode(case), ["attn.core"])


KERNEL = Kernel(
    name="kivi_decode",
    family="kv",
    summary="decode attention that dequantises K per channel and V per token as it reads",
    citation="Liu et al. 2024, arXiv:2402.02750",
    cases=CASES,
    inputs=inputs,
    buffers=buffers,
    naive=naive,
    triton=triton,
    operands={
        "q": ACTIVATION,
        "out": ACTIVATION,
        **dict.fromkeys(
            ("k_codes", "k_scale", "k_zero", "v_codes", "v_scale", "v_zero", "k_window", "v_window", "k_new", "v_new"),
            KV,
        ),
        "parts": WORKSPACE,
        "sums": WORKSPACE,
    },
    ops=ops,
    tolerance=Tolerance(
        2**-7,
        2**-7,
        "q times the scale of K is rounded to 8 bits (bf16) before the product, 2^-9 of scores up to about 4 sigma of"
        " sqrt d terms, and so are dequantised V, the weights and the output",
    ),
    dense="flash_decode",
)
