"""Attention over blocks that an indexer picks, as MiniMax-M3 has it: what stands beside grouped-query attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

from simulator.base.arrays import maximum, minimum, where
from simulator.base.dtypes import Format
from simulator.model.indexer import BlockIndexerSpec
from simulator.model.spec import ModelSpec
from simulator.ops.ops import Attention, Linear, Op
from simulator.ops.part import OpPart
from simulator.ops.step import Step
from simulator.policies import Aspect, Policy
from simulator.policies.common import bounded_pairs, top_k


def products(
    spec: BlockIndexerSpec, hidden: int, tp: int, fmt: Mapping[str, Format], step: Step, count: float
) -> Iterator[Op]:
    """The indexer's queries, split as the KV heads are, and its one key."""
    product = partial(Linear, m=step.rows, k=hidden, count=count, part=OpPart.PROJECTIONS)
    yield product(role="indexer.q", n=max(spec.n_heads / tp, 1.0) * spec.head_dim, fmt=fmt["indexer.q"])
    yield product(role="indexer.k", n=float(spec.head_dim), fmt=fmt["indexer.k"])


def picked(core: Op, spec: BlockIndexerSpec) -> Iterator[Op]:
    """Scores of all tokens, the best blocks of each KV head where there are more than are attended, then `core`."""
    if not isinstance(core, Attention):
        # The whole block as one module picks for itself.
        yield core
        return
    tokens, rows = float(spec.tokens), core.batch * core.q_len
    active = where(core.kv_len > tokens, core.count, 0.0)
    heads = maximum(core.n_kv_heads, 1.0)
    yield replace(
        core,
        role="kv.index",
        n_heads=heads,
        n_kv_heads=1.0,
        head_dim=float(spec.head_dim),
        v_head_dim=0.0,
        kv_element_bytes=spec.key_bytes / spec.head_dim,
        count=active,
    )
    pick = top_k(core.batch * core.pairs / spec.block, rows * spec.top_k, heads=heads, rows=rows, count=active)
    yield replace(pick, overhead=False)
    if core.phase == "prefill":
        yield replace(core, pair_keep=bounded_pairs(core, tokens))
    else:
        run = core.head_dim * core.kv_element_bytes * spec.block
        yield replace(core, attended=minimum(core.tokens, tokens), run_bytes=run)


def own_choice(policy: Policy, model: ModelSpec) -> str | None:
    """Why a policy on attention does not apply to a model that folds its tokens or picks its blocks itself."""
    for attention, _ in model.attentions:
        if attention.compressed is not None:
            return f"{policy.name} works on one cache entry per token; {model.name} folds several into one"
        if attention.blocks is not None and Aspect.KV_FORMAT not in policy.aspects:
            return f"{policy.name} works on all cached tokens; {model.name} attends to blocks that it picks itself"
    return None
