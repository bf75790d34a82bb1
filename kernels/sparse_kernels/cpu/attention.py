"""Decode attention over chosen tokens of a float32 KV cache, in numpy: by token list and by pages.

K and V are (batch hk, tokens, d); the hq / hk query heads of a KV head share its selection (GQA).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.ops.ops import Op
from simulator.ops.traffic import Operand
from sparse_kernels.cpu import demand
from sparse_kernels.cpu.kernel import CpuKernel
from sparse_kernels.registry import Case, case

Array = NDArray[Any]


def attend(q: Array, k: Array, v: Array) -> Array:
    """softmax(q k^T / sqrt(d)) v: q (lanes, group, d), k and v (lanes, tokens, d), lanes = batch hk."""
    score = np.matmul(q, k.transpose(0, 2, 1))
    score *= np.float32(q.shape[-1] ** -0.5)
    score -= score.max(axis=-1, keepdims=True)
    np.exp(score, out=score)
    score /= score.sum(axis=-1, keepdims=True)
    return np.matmul(score, v)


def draw(c: Case, seed: int) -> dict[str, Any]:
    """q, k, v of a case with batch, tokens, hq, hk, d."""
    rng = np.random.default_rng(seed)
    lanes, group = c["batch"] * c["hk"], c["hq"] // c["hk"]
    kv = (lanes, c["tokens"], c["d"])
    return {
        "q": rng.standard_normal((lanes, group, c["d"]), dtype=np.float32),
        "k": rng.standard_normal(kv, dtype=np.float32),
        "v": rng.standard_normal(kv, dtype=np.float32),
    }


def inputs(c: Case, seed: int) -> dict[str, Any]:
    """`draw`, the chosen pages of every lane (lanes, chosen) in ascending order, and scratch."""
    made = draw(c, seed)
    page = c["page"]
    pages, lanes = c["tokens"] // page, len(made["k"])
    chosen = round(c.keep * pages)
    rng = np.random.default_rng(seed + 1)
    index = np.sort(np.argsort(rng.random((lanes, pages)), axis=1)[:, :chosen], axis=1)
    scratch = np.empty((2, lanes, chosen, page * c["d"]), np.float32)
    return made | {"index": index, "page": page, "scratch": scratch}


def gathered(q: Array, k: Array, v: Array, index: Array, page: int, scratch: Array) -> Array:
    """Copy the chosen pages of every lane, then `attend`."""
    lanes, _, d = k.shape
    shape = lanes, index.shape[1] * page, d
    for out, cache in zip(scratch, (k, v), strict=True):
        paged = cache.reshape(lanes, -1, page * d)
        for lane in range(lanes):
            np.take(paged[lane], index[lane], axis=0, out=out[lane], mode="clip")
    return attend(q, scratch[0].reshape(shape), scratch[1].reshape(shape))


def naive(q: Array, k: Array, v: Array, index: Array, page: int, scratch: Array) -> Array:
    """Dense attention with the scores of unchosen tokens at minus infinity, float64."""
    score = q.astype(np.float64) @ k.transpose(0, 2, 1) / q.shape[-1] ** 0.5
    tokens = (index[:, :, None] * page + np.arange(page)).reshape(len(k), -1)
    mask = np.ones((len(k), k.shape[1]), bool)
    np.put_along_axis(mask, tokens, False, axis=1)
    score[np.broadcast_to(mask[:, None, :], score.shape)] = -np.inf
    weight = np.exp(score - score.max(axis=-1, keepdims=True))
    return (weight / weight.sum(axis=-1, keepdims=True)) @ v


def dense(q: Array, k: Array, v: Array, index: Array, page: int, scratch: Array) -> Array:
    """All tokens."""
    return attend(q, k, v)


def ops(c: Case, made: Mapping[str, Any]) -> tuple[Op, ...]:
    """2 copies per lane in runs of one page of one head, then attention over the kept tokens."""
    page = c["page"]
    chosen = round(c.keep * (c["tokens"] // page))
    run = demand.ELEMENT_BYTES * page * c["d"]
    copies = 2.0 * c["batch"] * c["hk"]
    return (
        demand.gather("kv.gather", chosen, run, Operand.KV, count=copies),
        demand.decode_attention(c["batch"], chosen * page, c["hq"], c["hk"], c["d"]),
    )


def dense_ops(c: Case, made: Mapping[str, Any]) -> tuple[Op, ...]:
    """The whole cache."""
    return (demand.decode_attention(c["batch"], c["tokens"], c["hq"], c["hk"], c["d"]),)


def _case(name: str, page: int, keep: float, *uses: Any, **sizes: int) -> Case:
    return case(name, *uses, dtype="fp32", keep=keep, page=page, **sizes)


def _timed(page: int) -> tuple[Case, ...]:
    return tuple(
        _case(
            f"{tokens} tokens hq 8 hk {hk} d {d} keep {keep:g}",
            page,
            keep,
            "quick",
            "full",
            batch=1,
            tokens=tokens,
            hq=8,
            hk=hk,
            d=d,
        )
        for tokens, hk, d in ((4096, 8, 64), (4096, 2, 128), (16384, 2, 128))
        for keep in (0.1, 0.25)
    )


def _odd(page: int) -> tuple[Case, ...]:
    return (
        _case("odd", page, 0.3, "test", batch=3, tokens=7 * page, hq=6, hk=3, d=20),
        _case("one page", page, 0.2, "test", batch=1, tokens=5 * page, hq=8, hk=1, d=16),
        _case("all kept", page, 1.0, "test", batch=2, tokens=3 * page, hq=4, hk=4, d=8),
    )


KERNELS = tuple(
    CpuKernel(
        name=name,
        family="kv",
        phase="decode",
        summary=text,
        citation=citation,
        cases=(*_timed(page), *_odd(page)),
        inputs=inputs,
        naive=naive,
        run=gathered,
        dense=dense,
        ops=ops,
        dense_ops=dense_ops,
    )
    for name, page, text, citation in (
        ("kv_tokens", 1, "decode over a token list per KV head", "Double Sparsity, arXiv:2408.07092"),
        ("kv_pages", 16, "decode over chosen pages of 16 tokens", "Quest, arXiv:2406.10774"),
    )
)
