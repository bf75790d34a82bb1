"""Multi-head latent attention as the ops one GPU runs: its projections around the cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

from simulator.base.arrays import maximum, minimum
from simulator.base.dtypes import Format, sixteen_bit
from simulator.model.indexer import IndexerSpec
from simulator.model.layer import AttentionSpec, MlaSpec
from simulator.ops.module import AttentionModule
from simulator.ops.ops import ACT_BYTES, Attention, Elementwise, Linear, Op
from simulator.ops.part import OpPart
from simulator.ops.step import Step
from simulator.policies import Context, KvLayout
from simulator.policies.kv_trained import Dsa


def block(
    a: AttentionSpec,
    mla: MlaSpec,
    hidden: int,
    tp: int,
    fmt: Mapping[str, Format],
    step: Step,
    count: float,
    inner: Sequence[Op],
) -> Iterator[Op]:
    """Latents down, heads up; decode absorbs the up-projections (DeepSeek-V2, section 2.1).

    Parameters
    ----------
    fmt : Mapping
        Format of each of the layer's matrices.
    inner : Sequence
        Attention and what it multiplies beside it.
    """
    projection = partial(Linear, m=step.rows, count=count, part=OpPart.PROJECTIONS)
    heads, q_in = a.n_heads / tp, hidden
    if mla.q_lora_rank is not None:
        q_in = mla.q_lora_rank
        yield projection(role="attn.q_down", n=q_in, k=hidden, fmt=fmt["attn.q_down"])
    latent = mla.kv_lora_rank + mla.qk_rope_head_dim
    yield projection(role="attn.kv_down", n=latent, k=hidden, fmt=fmt["attn.kv_down"])
    yield projection(role="attn.q_up", n=heads * a.head_dim, k=q_in, fmt=fmt["attn.q_up"])
    if a.indexer is not None and not a.indexer.shared:
        yield from _indexer(a.indexer, hidden, q_in, fmt, projection)
    moved = step.rows * ((heads + 1) * mla.qk_rope_head_dim) * ACT_BYTES
    if mla.qk_rope_head_dim:
        yield Elementwise(role="attn.rope", kind="rope", read_bytes=moved, write_bytes=moved, count=count)
    yield from inner
    yield projection(role="attn.o", n=hidden, k=heads * a.v_head_dim, fmt=fmt["attn.o"])


def _indexer(
    indexer: IndexerSpec, hidden: int, q_rank: int, fmt: Mapping[str, Format], projection: Callable[..., Linear]
) -> Iterator[Op]:
    """Its queries, its key and the weight of each of its heads; every rank has them all."""
    yield projection(role="indexer.q", n=indexer.n_heads * indexer.head_dim, k=q_rank, fmt=fmt["indexer.q"])
    yield projection(role="indexer.k", n=indexer.head_dim, k=hidden, fmt=fmt["indexer.k"])
    if indexer.pool > 1:
        yield projection(role="indexer.gate", n=indexer.head_dim, k=hidden, fmt=sixteen_bit(fmt["indexer.k"]))
    half = sixteen_bit(fmt["indexer.k"])
    yield projection(role="indexer.weights", n=indexer.n_heads, k=hidden, fmt=half)


def policy_of(indexer: IndexerSpec) -> Dsa:
    """The policy that does to dense MLA what `indexer` does."""
    sizes = {"budget": indexer.top_k, "index_heads": indexer.n_heads, "index_dim": indexer.head_dim}
    return Dsa.model_validate(sizes)


def _pooled(op: Op, pool: float) -> Op:
    """An op of the indexer where so many tokens share a key: as many fewer are written, scored and searched."""
    if isinstance(op, Attention) and op.role == "kv.index":
        fewer: dict[str, Any] = {"q_len": maximum(op.q_len / pool, 1.0), "kv_len": maximum(op.kv_len / pool, 1.0)}
        return replace(op, batch=op.batch * minimum(op.q_len, pool), **fewer)
    if isinstance(op, Elementwise) and op.role == "kv.index_key":
        return replace(op, write_bytes=op.write_bytes / pool)
    if isinstance(op, Elementwise) and op.role == "kv.top_k":
        searched = {"read_bytes": op.read_bytes / pool, "write_bytes": op.write_bytes / pool}
        return replace(op, select_elements=op.select_elements / pool, **searched)
    return op


def layout(kv: KvLayout, indexer: IndexerSpec) -> KvLayout:
    """`kv` with the indexer's keys, one for each pool of tokens."""
    return replace(kv, meta_bytes=kv.meta_bytes + indexer.key_bytes / indexer.pool)


def picked(core: Op, indexer: IndexerSpec, ctx: Context) -> Iterator[Op]:
    """A core of MLA with the choice of its tokens, which is the model's own work here."""
    for op in policy_of(indexer).rewrite(core, ctx):
        if indexer.pool > 1:
            op = _pooled(op, float(indexer.pool))
        if isinstance(op, AttentionModule):
            yield replace(op, indexes=not indexer.shared)
        elif not (op.overhead and indexer.shared):
            # Every op of the policy is a frozen record.
            yield replace(cast(Any, op), overhead=False) if op.overhead else op
