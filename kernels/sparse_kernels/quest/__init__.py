"""Page top-k decode by key minima and maxima."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from simulator.ops.ops import Op
from simulator.ops.traffic import Operand
from sparse_kernels import decode, demand
from sparse_kernels.quest.naive import quest as naive
from sparse_kernels.quest.triton import quest as triton
from sparse_kernels.registry import FULL, INDEX, KV, QUICK, Case, Flow, Kernel, Tolerance, case
from sparse_kernels.tensors import Draw

CASES = (
    case("mha", "test", "traffic", batch=2, tokens=512, budget=64, page=16, hq=2, hk=2, d=64),
    case("mha fp16 odd", "test", "traffic", dtype="fp16", batch=1, tokens=416, budget=96, page=8, hq=3, hk=3, d=80),
    case(
        "gqa4, all pages united", "test", "traffic", batch=1, tokens=256, budget=80, page=16, hq=4, hk=1, d=128, apart=1
    ),
    case("gqa8 open page", "test", batch=1, tokens=203, budget=48, page=16, hq=8, hk=1, d=64),
    case("one page", "test", batch=1, tokens=100, budget=16, page=16, hq=4, hk=2, d=64),
    case("every page", "test", batch=1, tokens=64, budget=64, page=16, hq=2, hk=1, d=64),
    *(
        case(f"{name} 2k of 64k x{batch}", *uses, batch=batch, tokens=65536, budget=2048, page=16, hq=32, hk=hk, d=128)
        for name, hk, batch, uses in (
            ("mha-32", 32, 1, QUICK),
            ("mha-32", 32, 16, QUICK),
            ("gqa-8", 8, 1, FULL),
            ("gqa-8", 8, 16, FULL),
        )
    ),
    case("llama-2-7b 8k", "compile", "hot", batch=1, tokens=8192, budget=2048, page=16, hq=32, hk=32, d=128),
    case("llama-3-8b 8k", "compile", "hot", batch=1, tokens=8192, budget=2048, page=16, hq=32, hk=8, d=128),
)


def inputs(case: Case, seed: int, device: str) -> dict[str, Any]:
    """Random K; with ``apart`` the heads of a group are made to like different pages."""
    draw, dtype = Draw(seed, device), case.dtype
    batch, hq, hk, d, tokens = (case[n] for n in ("batch", "hq", "hk", "d", "tokens"))
    page, group = case["page"], case["hq"] // case["hk"]
    q = draw.quarters(batch, hq, d, dtype=dtype)
    k = draw.quarters(batch, hk, tokens, d, dtype=dtype)
    if case.sizes.get("apart"):
        for head in range(hq):
            q[:, head, head % group] = 64.0
        for number in range(tokens // page):
            k[:, :, number * page : (number + 1) * page, number % group] = 4.0
    pages = -(-tokens // page)
    filler = k[:, :, -1:].expand(-1, -1, pages * page - tokens, -1)
    paged = torch.cat([k, filler], 2).view(batch, hk, pages, page, d)
    bounds = torch.stack([paged.amin(3), paged.amax(3)], 3)
    return {
        **decode.inputs(draw, q, k, dtype),
        "bounds": bounds,
        "tokens": tokens,
        "page": page,
        "budget": case["budget"],
    }


def buffers(*, q: torch.Tensor, bounds: torch.Tensor, page: int, budget: int, **_: Any) -> dict[str, torch.Tensor]:
    batch, hq, _d = q.shape
    shape = (batch, hq, bounds.shape[2])
    return {
        "scores": torch.empty(shape, dtype=torch.float32, device=q.device),
        "pages": torch.empty((batch, hq, budget // page), dtype=torch.int32, device=q.device),
        **decode.buffers(q, hq, budget),
    }


def ops(case: Case, _: Mapping[str, Any]) -> tuple[Op, ...]:
    policy = f"quest(budget={case['budget']},page={case['page']},dense_layers=0)"
    lists = case["batch"] * case["hq"] * case["budget"] // case["page"]
    return demand.selected(policy, case, "kv.pages", lists)


KERNEL = Kernel(
    name="quest",
    family="kv",
    summary="min/max estimate of every page, top-k, decode attention over the picked pages",
    citation="Tang et al. 2024, arXiv:2406.10774",
    cases=CASES,
    inputs=inputs,
    buffers=buffers,
    naive=naive,
    triton=triton,
    operands={**decode.OPERANDS, "bounds": KV, "scores": Flow(Operand.INDEX, Operand.KV), "pages": INDEX},
    ops=ops,
    tolerance=Tolerance(
        2**-7,
        2**-8,
        "as flash_decode; inputs are quarters, whose products float32 sums exactly, so that picked pages are equal",
    ),
    dense="flash_decode",
)
