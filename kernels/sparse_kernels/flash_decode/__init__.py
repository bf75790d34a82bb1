"""Dense decode attention, the baseline of every KV method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from simulator.ops.ops import Op
from sparse_kernels import decode, demand
from sparse_kernels.flash_decode.naive import flash_decode as naive
from sparse_kernels.flash_decode.triton import flash_decode as triton
from sparse_kernels.registry import FULL, QUICK, Case, Kernel, Tolerance, case
from sparse_kernels.tensors import Draw

CASES = (
    case("mha", "test", "traffic", batch=2, tokens=257, hq=4, hk=4, d=64),
    case("gqa4 odd", "test", "traffic", batch=1, tokens=203, hq=8, hk=2, d=80),
    case("gqa8 fp16", "test", "traffic", dtype="fp16", batch=1, tokens=320, hq=8, hk=1, d=128),
    case("one token", "test", batch=3, tokens=1, hq=2, hk=1, d=32),
    case("llama-2-7b 4k", "compile", "hot", batch=1, tokens=4096, hq=32, hk=32, d=128),
    case("llama-3-8b 4k", "compile", "hot", batch=1, tokens=4096, hq=32, hk=8, d=128),
    *(
        case(f"{name} {tokens // 1024}k x{batch}", *uses, batch=batch, tokens=tokens, hq=32, hk=hk, d=128)
        for name, hk in (("mha-32", 32), ("gqa-8", 8))
        for tokens, batch, uses in (
            (4096, 1, FULL),
            (4096, 16, FULL),
            (32768, 1, QUICK),
            (32768, 16, QUICK),
            (65536, 1, FULL),
            (65536, 16, FULL),
        )
    ),
)


def inputs(case: Case, seed: int, device: str) -> dict[str, Any]:
    draw, dtype = Draw(seed, device), case.dtype
    batch, hq, hk, d, tokens = (case[n] for n in ("batch", "hq", "hk", "d", "tokens"))
    q = draw.normal(batch, hq, d, dtype=dtype)
    k = draw.normal(batch, hk, tokens, d, dtype=dtype)
    return {**decode.inputs(draw, q, k, dtype), "tokens": tokens}


def buffers(*, q: torch.Tensor, k_cache: torch.Tensor, tokens: int, **_: Any) -> dict[str, torch.Tensor]:
    return decode.buffers(q, k_cache.shape[1], tokens - 1)


def ops(case: Case, _: Mapping[str, Any]) -> tuple[Op, ...]:
    return demand.lowered("dense", demand.layer(case), demand.decode(case), ["attn.core"])


KERNEL = Kernel(
    name="flash_decode",
    family="dense",
    summary="decode attention over the whole cache, split over tokens",
    citation="Dao et al., FlashAttention and Flash-Decoding, arXiv:2205.14135",
    cases=CASES,
    inputs=inputs,
    buffers=buffers,
    naive=naive,
    triton=triton,
    operands=decode.OPERANDS,
    ops=ops,
    tolerance=Tolerance(
        2**-7,
        2**-8,
        "weights and the output are rounded to 8 bits (bf16): 2^-9 each on sums of order 1, with a factor to spare",
    ),
)
