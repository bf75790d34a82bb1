"""Decode attention over attention sinks and a sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.ops.ops import Op
from sparse_kernels import decode, demand
from sparse_kernels.registry import KV, Case, Kernel, Tolerance, case
from sparse_kernels.streaming_llm.naive import streaming_llm as naive
from sparse_kernels.streaming_llm.triton import buffers
from sparse_kernels.streaming_llm.triton import streaming_llm as triton
from sparse_kernels.tensors import Draw

CASES = (
    case("mha", "test", "traffic", batch=2, tokens=500, sinks=4, window=124, hq=2, hk=2, d=64),
    case("gqa4 odd", "test", "traffic", batch=1, tokens=300, sinks=4, window=97, hq=8, hk=2, d=80),
    case(
        "gqa8 fp16, not full",
        "test",
        "traffic",
        dtype="fp16",
        batch=1,
        tokens=70,
        sinks=4,
        window=124,
        hq=8,
        hk=1,
        d=128,
    ),
    case("no sinks", "test", batch=1, tokens=200, sinks=0, window=50, hq=2, hk=1, d=64),
    case("one token", "test", batch=1, tokens=1, sinks=4, window=28, hq=2, hk=1, d=32),
    case("mha-32 1k of 32k x16", "full", batch=16, tokens=32768, sinks=4, window=1020, hq=32, hk=32, d=128),
    case("mha-32 4k of 32k x1", "full", batch=1, tokens=32768, sinks=4, window=4092, hq=32, hk=32, d=128),
    case("llama-2-7b", "compile", "hot", batch=1, tokens=4096, sinks=4, window=1020, hq=32, hk=32, d=128),
)


def inputs(case: Case, seed: int, device: str) -> dict[str, Any]:
    """Cache of ``sinks + window`` slots; once full, the new token takes a slot in the middle of the ring."""
    draw, dtype = Draw(seed, device), case.dtype
    batch, hq, hk, d, sinks = (case[n] for n in ("batch", "hq", "hk", "d", "sinks"))
    slots = sinks + case["window"]
    kept = min(case["tokens"], slots)
    return {
        "q": draw.normal(batch, hq, d, dtype=dtype),
        "k_cache": draw.normal(batch, hk, slots, d, dtype=dtype),
        "v_cache": draw.normal(batch, hk, slots, d, dtype=dtype),
        "k_new": draw.normal(batch, hk, d, dtype=dtype),
        "v_new": draw.normal(batch, hk, d, dtype=dtype),
        "kept": kept,
        "slot": kept - 1 if kept < slots else sinks + case["window"] // 3,
        "sinks": sinks,
        "theta": 10000.0,
    }


def ops(case: Case, _: Mapping[str, Any]) -> tuple[Op, ...]:
    policy = f"streaming_llm(window={case['window']},sinks={case['sinks']})"
    return demand.lowered(policy, demand.layer(case), demand.decode(case), ["kv.rotate", "attn.core"])


KERNEL = Kernel(
    name="streaming_llm",
    family="kv",
    summary="re-rotate the kept keys to their place in the cache, then attend to sinks and window",
    citation="Xiao et al. 2023, arXiv:2309.17453",
    cases=CASES,
    inputs=inputs,
    buffers=buffers,
    naive=naive,
    triton=triton,
    operands={**decode.OPERANDS, "k_rotated": KV},
    ops=ops,
    tolerance=Tolerance(
        2**-7,
        2**-7,
        "as flash_decode; where sines differ in the last place the other neighbour of a rotated key is stored, 2^-8 of"
        " it",
    ),
    dense="flash_decode",
)
