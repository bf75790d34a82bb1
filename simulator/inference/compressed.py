"""DeepSeek-V4's attention as the ops one GPU runs: low ranks at both ends, folded entries, a window."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from simulator.base.arrays import Array, maximum, minimum, where
from simulator.base.dtypes import DType, Format, sixteen_bit
from simulator.model.compressed import CompressedSpec
from simulator.model.indexer import IndexerSpec
from simulator.model.layer import AttentionSpec
from simulator.ops.ops import ACT_BYTES, Attention, Elementwise, Linear, Op
from simulator.ops.pairs import causal_pairs
from simulator.ops.part import OpPart
from simulator.ops.step import Step
from simulator.policies import KvLayout
from simulator.policies.common import top_k


def block(
    a: AttentionSpec,
    spec: CompressedSpec,
    hidden: int,
    tp: int,
    fmt: Mapping[str, Format],
    step: Step,
    count: float,
    inner: Sequence[Op],
) -> Iterator[Op]:
    """Ops of `count` blocks with `inner`, their `cores`, between the projections.

    Parameters
    ----------
    fmt : Mapping
        Format of each of the block's matrices.
    """
    product = partial(Linear, m=step.rows, count=count, part=OpPart.PROJECTIONS)
    *before, narrow, wide = (
        product(role=p.matrix, n=p.n, k=p.k, groups=p.groups, fmt=fmt[p.matrix])
        for p in spec.products(hidden, a.n_heads, a.head_dim, tp)
    )
    yield from before
    if spec.indexer is not None:
        half = sixteen_bit(fmt["indexer.k"])
        yield product(role="indexer.weights", n=spec.indexer.n_heads, k=hidden, fmt=half)
    # Norm and rotation of the heads' queries, of the entry, and back of the output.
    moved = step.rows * (2.0 * a.n_heads / tp + 1.0) * a.head_dim * ACT_BYTES
    yield Elementwise(role="attn.rope", kind="rope", read_bytes=moved, write_bytes=moved, count=count)
    if spec.ratio:
        read = 2.0 * spec.overlap * step.rows * a.head_dim * ACT_BYTES
        written = step.rows * a.head_dim * ACT_BYTES / spec.ratio
        yield Elementwise(role="attn.folded", kind="unary", read_bytes=read, write_bytes=written, count=count)
    yield from inner
    yield narrow
    yield wide


def cores(
    a: AttentionSpec, spec: CompressedSpec, tp: int, math: DType, kv_element_bytes: float, step: Step, count: float
) -> Iterator[Op]:
    """Attention over window and folded entries in each phase; before it what picks these."""
    entry = a.head_dim * kv_element_bytes
    common: dict[str, Any] = {
        "n_heads": a.n_heads / tp,
        "n_kv_heads": 1.0,
        "head_dim": a.head_dim,
        "v_head_dim": a.head_dim,
    }
    common |= {"math": math, "kv_element_bytes": kv_element_bytes, "count": count}
    if step.prefills:
        new, context = step.prefill_tokens, step.prefill_context
        sizes: dict[str, Any] = {"phase": "prefill", "batch": step.prefill_rows, "q_len": new, "kv_len": context}
        core = Attention(role="attn.core.prefill", **sizes, **common, bytes_per_token=entry)
        kept = minimum(_pairs(a, spec, new, context) / core.pairs, 1.0)
        yield from _picked(spec, replace(core, pair_keep=kept))
    if step.decodes:
        context = step.decode_context
        seen = minimum(context, float(a.window or 0))
        if spec.ratio:
            folded = context / spec.ratio
            seen = seen + (minimum(folded, float(spec.indexer.top_k)) if spec.indexer is not None else folded)
        sizes = {"phase": "decode", "batch": step.decode_rows, "q_len": step.decode_tokens, "kv_len": context}
        core = Attention(role="attn.core", **sizes, **common, latent=True, attended=seen)
        if spec.indexer is not None:
            core = replace(core, run_bytes=entry)
        yield from _picked(spec, core)


def _pairs(a: AttentionSpec, spec: CompressedSpec, new: Array, context: Array) -> Array:
    """Pairs of a prompt's queries and what they attend to, per head [-]."""
    pairs = causal_pairs(new, context, float(a.window or 0))
    if not spec.ratio:
        return pairs
    reach = None if spec.indexer is None else float(spec.ratio * spec.indexer.top_k)
    return pairs + causal_pairs(new, context, reach) / spec.ratio


def _picked(spec: CompressedSpec, core: Attention) -> Iterator[Op]:
    """Scores of the folded entries and the best of them where there are more than are attended, then `core`."""
    indexer = spec.indexer
    if indexer is not None:
        yield from _scored(indexer, spec.ratio, core)
    yield core


def _scored(indexer: IndexerSpec, ratio: int, core: Attention) -> Iterator[Op]:
    folded, rows = core.kv_len / ratio, core.batch * core.q_len
    active = where(folded > indexer.top_k, core.count, 0.0)
    yield replace(
        core,
        role="kv.index",
        q_len=maximum(core.q_len / ratio, 1.0),
        batch=core.batch * minimum(core.q_len, float(ratio)),
        kv_len=maximum(folded, 1.0),
        n_heads=float(indexer.n_heads),
        head_dim=float(indexer.head_dim),
        v_head_dim=0.0,
        math=DType.FP8,
        kv_element_bytes=indexer.key_bytes / indexer.head_dim,
        latent=False,
        attended=None,
        pair_keep=None,
        bytes_per_token=None,
        stores=False,
        count=active,
    )
    scores = core.batch * causal_pairs(core.q_len, core.kv_len) / ratio
    pick = top_k(scores, rows * float(indexer.top_k), heads=1.0, rows=rows, count=active)
    yield replace(pick, overhead=False)


def layout(a: AttentionSpec, spec: CompressedSpec, kv_element_bytes: float) -> KvLayout:
    """Entries of the window, and of all tokens those that several are folded into, with the indexer's keys."""
    entry, folded = a.head_dim * kv_element_bytes, 0.0
    if spec.ratio:
        keys = spec.indexer.key_bytes if spec.indexer is not None else 0.0
        folded = (entry + keys) / spec.ratio
    return KvLayout(token_bytes=0.0, dense_bytes=entry, dense_tokens=float(a.window or 0), meta_bytes=folded)
