"""Keys of picked chunks rebuilt from their low-rank factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from simulator.base.dtypes import FORMATS
from simulator.ops.ops import Linear, Op
from sparse_kernels import demand
from sparse_kernels.registry import ACTIVATION, INDEX, WEIGHT, Case, Kernel, Tolerance, case
from sparse_kernels.shadowkv_rebuild.naive import shadowkv_rebuild as naive
from sparse_kernels.shadowkv_rebuild.triton import shadowkv_rebuild as triton
from sparse_kernels.tensors import Draw

CASES = (
    case("rank 160", "test", "traffic", batch=1, tokens=256, chunk=8, chunks=8, rank=160, hk=2, d=128),
    case("fp16 odd", "test", "traffic", dtype="fp16", batch=2, tokens=240, chunk=8, chunks=5, rank=48, hk=3, d=80),
    case("one chunk", "test", batch=1, tokens=64, chunk=8, chunks=1, rank=32, hk=2, d=64),
    case("every chunk", "test", batch=1, tokens=64, chunk=8, chunks=8, rank=33, hk=1, d=64),
    case("no chunk", "test", batch=1, tokens=64, chunk=8, chunks=0, rank=32, hk=2, d=64),
    case("llama-3-8b 2k x16", "full", batch=16, tokens=65536, chunk=8, chunks=256, rank=160, hk=8, d=128),
    case("llama-3-8b 2k", "compile", "hot", "full", batch=1, tokens=32768, chunk=8, chunks=256, rank=160, hk=8, d=128),
)


def inputs(case: Case, seed: int, device: str) -> dict[str, Any]:
    """Random factors; the heads of a sequence pick different chunks, so that no row of A serves two."""
    draw, dtype = Draw(seed, device), case.dtype
    batch, hk, d, rank, tokens = (case[n] for n in ("batch", "hk", "d", "rank", "tokens"))
    chunks, all_chunks = case["chunks"], case["tokens"] // case["chunk"]
    shuffled = (torch.randperm(all_chunks, generator=draw.generator, device=device) for _ in range(batch))
    picked = torch.stack([p[: hk * chunks].view(hk, chunks) for p in shuffled])
    return {
        "factor": draw.normal(batch, tokens, rank, dtype=dtype),
        "basis": draw.normal(batch, hk, rank, d, dtype=dtype, scale=rank**-0.5),
        "picked": picked.sort(2).values.to(torch.int32).contiguous(),
        "chunk": case["chunk"],
        "theta": 500000.0,
    }


def buffers(*, basis: torch.Tensor, picked: torch.Tensor, chunk: int, **_: Any) -> dict[str, torch.Tensor]:
    batch, hk, _rank, d = basis.shape
    shape = (batch, hk, picked.shape[2] * chunk, d)
    return {"keys": torch.empty(shape, dtype=basis.dtype, device=basis.device)}


def ops(case: Case, _: Mapping[str, Any]) -> tuple[Op, ...]:
    """One product per sequence and KV head: picked rows of A times the head's basis."""
    groups = case["batch"] * case["hk"]
    rebuild = Linear(
        role="rebuild.k",
        m=float(case["chunks"] * case["chunk"]),
        n=case["d"],
        k=case["rank"],
        groups=groups,
        fmt=FORMATS[case.dtype],
    )
    return (rebuild, demand.index_list("kv.picked", groups * case["chunks"]))


KERNEL = Kernel(
    name="shadowkv_rebuild",
    family="kv",
    summary="picked chunks of K rebuilt as A[I] B and rotated",
    citation="Sun et al. 2024, arXiv:2410.21465",
    cases=CASES,
    inputs=inputs,
    buffers=buffers,
    naive=naive,
    triton=triton,
    operands={"factor": ACTIVATION, "basis": WEIGHT, "picked": INDEX, "keys": ACTIVATION},
    ops=ops,
    tolerance=Tolerance(
        2**-7, 2**-8, "sums of exact products in float32, rounded once to 8 bits (bf16); angles are good to 1e-4 rad"
    ),
)
