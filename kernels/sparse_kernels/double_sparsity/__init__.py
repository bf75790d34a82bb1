"""Token top-k decode by label channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from simulator.ops.ops import Op
from simulator.ops.traffic import Operand
from sparse_kernels import decode, demand
from sparse_kernels.double_sparsity.naive import double_sparsity as naive
from sparse_kernels.double_sparsity.triton import double_sparsity as triton
from sparse_kernels.registry import FULL, INDEX, KV, QUICK, Case, Flow, Kernel, Tolerance, case
from sparse_kernels.tensors import Draw

CASES = (
    case("mha", "test", "traffic", batch=2, tokens=256, budget=32, channels=16, hq=2, hk=2, d=64),
    case(
        "mha fp16 odd", "test", "traffic", dtype="fp16", batch=1, tokens=301, budget=33, channels=16, hq=3, hk=3, d=80
    ),
    case(
        "gqa8, all tokens united",
        "test",
        "traffic",
        batch=1,
        tokens=64,
        budget=24,
        channels=16,
        hq=8,
        hk=1,
        d=128,
        apart=1,
    ),
    case("heads of 40", "test", "traffic", batch=1, tokens=401, budget=40, channels=16, hq=2, hk=2, d=40),
    case("gqa4 odd", "test", batch=1, tokens=203, budget=41, channels=8, hq=8, hk=2, d=64),
    case("the new token only", "test", batch=1, tokens=70, budget=1, channels=16, hq=2, hk=1, d=64),
    case("every token", "test", batch=1, tokens=70, budget=70, channels=16, hq=2, hk=1, d=64),
    *(
        case(
            f"{name} 1k of 32k x{batch}",
            *uses,
            batch=batch,
            tokens=32768,
            budget=1024,
            channels=16,
            hq=32,
            hk=hk,
            d=128,
        )
        for name, hk, batch, uses in (("mha-32", 32, 1, QUICK), ("mha-32", 32, 16, FULL), ("gqa-8", 8, 16, FULL))
    ),
    case("llama-2-7b 4k", "compile", "hot", batch=1, tokens=4096, budget=1024, channels=16, hq=32, hk=32, d=128),
)


def inputs(case: Case, seed: int, device: str) -> dict[str, Any]:
    """Random K, its labels and a random list of channels per KV head; ``apart`` as in quest."""
    draw, dtype = Draw(seed, device), case.dtype
    batch, hq, hk, d, tokens = (case[n] for n in ("batch", "hq", "hk", "d", "tokens"))
    r, group = case["channels"], case["hq"] // case["hk"]
    channels = torch.stack([draw.subset(d, r) for _ in range(hk)])
    q = draw.quarters(batch, hq, d, dtype=dtype)
    k = draw.quarters(batch, hk, tokens, d, dtype=dtype)
    if case.sizes.get("apart"):
        for head in range(hq):
            q[:, head, channels[head // group, head % group]] = 64.0
        for token in range(tokens):
            for kv in range(hk):
                k[:, kv, token, channels[kv, token % group]] = 4.0
    where = channels.long()[None, :, None, :].expand(batch, hk, tokens, r)
    labels = k.gather(3, where).contiguous()
    return {
        **decode.inputs(draw, q, k, dtype),
        "labels": labels,
        "channels": channels,
        "tokens": tokens,
        "budget": case["budget"],
    }


def buffers(*, q: torch.Tensor, tokens: int, budget: int, **_: Any) -> dict[str, torch.Tensor]:
    batch, hq, _d = q.shape
    return {
        "scores": torch.empty((batch, hq, tokens), dtype=torch.float32, device=q.device),
        "picked": torch.empty((batch, hq, budget), dtype=torch.int32, device=q.device),
        **decode.buffers(q, hq, budget),
    }


def ops(case: Case, _: Mapping[str, Any]) -> tuple[Op, ...]:
    policy = f"double_sparsity(budget={case['budget']},channels={case['channels']},gqa=union)"
    picked = case["batch"] * case["hq"] * case["budget"]
    return (
        *demand.selected(policy, case, "kv.picked", picked),
        demand.index_list("kv.channels", case["hk"] * case["channels"]),
    )


KERNEL = Kernel(
    name="double_sparsity",
    family="kv",
    summary="scores from a few label channels, top-k tokens, decode attention over them",
    citation="Yang et al. 2024, arXiv:2408.07092",
    cases=CASES,
    inputs=inputs,
    buffers=buffers,
    naive=naive,
    triton=triton,
    operands={
        **decode.OPERANDS,
        "labels": KV,
        "channels": INDEX,
        "scores": Flow(Operand.INDEX, Operand.KV),
        "picked": INDEX,
    },
    ops=ops,
    tolerance=Tolerance(
        2**-7,
        2**-8,
        "as flash_decode; inputs are quarters, whose products float32 sums exactly, so that picked tokens are equal",
    ),
    dense="flash_decode",
)
