"""Causal prefill attention over any block mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from simulator.base.dtypes import DType
from simulator.ops.ops import Attention, Op
from simulator.ops.pairs import causal_pairs
from sparse_kernels import demand
from sparse_kernels.block_sparse_attention import naive, triton
from sparse_kernels.registry import ACTIVATION, INDEX, KV, Case, Kernel, Tolerance, case
from sparse_kernels.tensors import Draw


def random_mask(case: Case, seed: int, device: str) -> torch.Tensor:
    """Causal mask (batch, hq, rows, columns): the diagonal and random blocks up to ``keep`` of the causal ones.

    keep 0 lists nothing at all.
    """
    rows = -(-case["tokens"] // case["block"])
    # Drawn on the CPU, so that a case has the same blocks and demand everywhere.
    generator = torch.Generator("cpu").manual_seed(seed)
    draw = torch.rand(case["batch"], case["hq"], rows, rows, generator=generator, device="cpu")
    causal = torch.ones(rows, rows, dtype=torch.bool, device="cpu").tril()
    eye = torch.eye(rows, dtype=torch.bool, device="cpu")
    off_diagonal = rows * (rows - 1) / 2
    share = (case.keep * rows * (rows + 1) / 2 - rows) / off_diagonal if rows > 1 else 1.0
    mask = causal & (eye | (draw < share))
    return (mask if case.keep else mask & False).to(device)


def inputs(case: Case, seed: int, device: str) -> dict[str, Any]:
    """Normal q, k, v and a random block mask."""
    draw = Draw(seed, device)
    b, t, d = case["batch"], case["tokens"], case["d"]
    starts, blocks = naive.block_lists(random_mask(case, seed, device))
    return {
        "q": draw.normal(b, t, case["hq"], d, dtype=case.dtype),
        "k": draw.normal(b, t, case["hk"], d, dtype=case.dtype),
        "v": draw.normal(b, t, case["hk"], d, dtype=case.dtype),
        "starts": starts,
        "blocks": blocks,
        "block": case["block"],
    }


def listed_pairs(case: Case, inputs: Mapping[str, Any]) -> float:
    """(query, key) pairs of the listed blocks inside the causal triangle, summed over sequences and heads [-]."""
    block, tokens = case["block"], case["tokens"]
    counts = (inputs["starts"][1:] - inputs["starts"][:-1]).long().cpu()
    row = torch.arange(len(counts)) % -(-tokens // block)
    rows = (tokens - row * block).clamp(max=block).double()
    at = torch.repeat_interleave(row, counts)
    square = rows[at] * (tokens - inputs["blocks"].cpu().double() * block).clamp(max=block)
    triangle = rows[at] * (rows[at] + 1) / 2
    return float(torch.where(inputs["blocks"].cpu() == at, triangle, square).sum())


def ops(case: Case, inputs: Mapping[str, Any]) -> tuple[Op, ...]:
    """A prefill whose flop are those of the listed pairs; all K and V are read and cached whatever the mask."""
    b, t, d = case["batch"], case["tokens"], case["d"]
    pairs = listed_pairs(case, inputs) / (float(causal_pairs(t, t)) * b * case["hq"])
    return (
        Attention(
            role="attn.prefill",
            phase="prefill",
            batch=b,
            q_len=t,
            kv_len=t,
            n_heads=case["hq"],
            n_kv_heads=case["hk"],
            head_dim=d,
            v_head_dim=d,
            math=DType(case.dtype),
            kv_element_bytes=2.0,
            pair_keep=pairs,
        ),
        demand.index_list("attn.blocks", len(inputs["blocks"]) + len(inputs["starts"])),
    )


KERNEL = Kernel(
    name="block_sparse_attention",
    family="prefill",
    summary="causal prefill attention over a list of key blocks per query block and head",
    citation="Jiang et al. 2024 (MInference), arXiv:2407.02490",
    cases=(
        case("mha", "test", "traffic", batch=1, tokens=128, hq=2, hk=2, d=32, block=16, keep=0.5),
        case("gqa4 odd", "test", "traffic", dtype="fp16", batch=2, tokens=83, hq=4, hk=1, d=24, block=16, keep=0.6),
        case("gqa8", "test", "traffic", batch=1, tokens=128, hq=8, hk=1, d=16, block=16, keep=0.6),
        case("dense", "test", "traffic", batch=1, tokens=70, hq=2, hk=1, d=16, block=32, keep=1.0),
        case("one block", "test", batch=1, tokens=9, hq=1, hk=1, d=16, block=16, keep=1.0),
        case("empty", "test", batch=1, tokens=40, hq=2, hk=1, d=16, block=16, keep=0.0),
        case("64", "compile", "hot", batch=1, tokens=128, hq=32, hk=8, d=128, block=64, keep=1.0),
        case("128", "compile", "hot", batch=1, tokens=256, hq=32, hk=8, d=128, block=128, keep=1.0),
        case("64k 90 %", "quick", "full", batch=1, tokens=65536, hq=32, hk=8, d=128, block=128, keep=0.1),
        case("64k 90 % block 64", "full", batch=1, tokens=65536, hq=32, hk=8, d=128, block=64, keep=0.1),
        case("16k 80 %", "full", batch=1, tokens=16384, hq=32, hk=8, d=128, block=128, keep=0.2),
    ),
    inputs=inputs,
    buffers=triton.buffers,
    naive=naive.block_sparse_attention,
    triton=triton.block_sparse_attention,
    operands={
        "q": ACTIVATION,
        "k": KV,
        "v": KV,
        "starts": INDEX,
        "blocks": INDEX,
        "o": ACTIVATION,
        "k_cache": KV,
        "v_cache": KV,
    },
    ops=ops,
    tolerance=Tolerance(
        2**-6, 2**-7, "p is rounded to 16 bits before the second product, unnormalised (2^-9 of each term), and o again"
    ),
)
