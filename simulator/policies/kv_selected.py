"""All tokens stay in the KV cache; each step reads the ones it picks."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from simulator.dtypes import Format
from simulator.model import ModelSpec
from simulator.ops import Attention, Elementwise, Op
from simulator.policies.base import Aspect, Compatibility, Context, KvLayout, Policy
from simulator.policies.grammar import POLICIES
from simulator.traffic import Operand


@POLICIES.register("quest")
class Quest(Policy):
    """Pages of the KV cache are scored by their key minima and maxima; the best `budget` tokens are read [1]_.

    Per step and KV head: the statistics, 1/page of the K and V bytes; a top-k over S/page scores per query head;
    then ``budget`` tokens in runs of one page. Query heads that share a KV head each pick their own pages, so up
    to ``min(g * budget, S)`` tokens are read. Contexts inside the budget run dense, as does the prompt.

    References
    ----------
    .. [1] Tang et al., "Quest", arXiv:2406.10774.
    """

    name: ClassVar[str] = "quest"
    family: ClassVar[str] = "kv selected"
    summary: ClassVar[str] = "per-step top-k pages by key minima and maxima"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_READS})
    compatibility: ClassVar[Compatibility] = Compatibility(
        gqa="pages of the heads in a group are united, up to g times the budget"
    )
    citation: ClassVar[str] = "Tang et al. 2024, arXiv:2406.10774"
    not_modelled: ClassVar[str] = "accuracy"
    always_shown: ClassVar[tuple[str, ...]] = ("budget",)

    budget: int = Field(2048, ge=16, le=10_000_000, description="tokens read per query head")
    page: int = Field(16, ge=1, le=256, description="tokens per page")
    dense_layers: int = Field(2, ge=0, le=1000, description="first layers that stay dense")
    gqa: Literal["union", "shared"] = Field(
        "union", description="heads of a group pick apart (union) or together (shared)"
    )

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """MLA has one latent per token: no per-head pages."""
        if any(layer.attention.mla for layer in model.layers):
            return "pages are scored per key head; MLA caches one latent"
        return None

    def layer_key(self, index: int, n_layers: int) -> Hashable:
        """The first layers are dense."""
        return index >= self.dense_layers

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Estimate, top-k and a paged gather where the context exceeds the budget."""
        if not isinstance(op, Attention) or op.phase == "prefill" or ctx.index < self.dense_layers:
            return (op,)
        group = max(op.n_heads / op.n_kv_heads, 1.0) if self.gqa == "union" else 1.0
        tokens = np.asarray(op.tokens, float)
        active = tokens > self.budget
        read = np.where(active, np.minimum(group * self.budget, tokens), tokens)
        pages = tokens / self.page
        scored = op.batch * np.where(active, pages, 0.0)
        launched = np.where(active, op.count, 0.0)
        estimate = Elementwise(
            role="kv.estimate",
            kind="estimate",
            read_bytes=scored * op.dense_bytes_per_token,
            write_bytes=scored * op.n_heads * 4.0,
            flop=4.0 * scored * op.n_heads * op.head_dim,
            operand=Operand.KV,
            count=launched,
            overhead=True,
        )
        top_k = Elementwise(
            role="kv.top_k",
            kind="topk",
            read_bytes=scored * op.n_heads * 4.0,
            write_bytes=op.batch
            * np.where(active, self.budget / self.page, 0.0)
            * op.n_heads
            * 4.0,
            operand=Operand.INDEX,
            count=launched,
            overhead=True,
        )
        run = self.page * op.head_dim * op.kv_element_bytes
        return (estimate, top_k, replace(op, attended=read, run_bytes=run))

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """Two statistics vectors per page of 2 * page vectors: 1/page more."""
        if ctx.index < self.dense_layers:
            return kv
        return replace(kv, meta_bytes=kv.meta_bytes + kv.dense_bytes / self.page)
