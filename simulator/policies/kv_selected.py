"""All tokens stay in the KV cache; each step reads the ones it picks."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from simulator.base.arrays import Array
from simulator.ops.ops import Attention, Op
from simulator.ops.transfers import Transfer
from simulator.policies.base import Aspect, Compatibility, Context, KvLayout, Policy, Swept, alias
from simulator.policies.common import copied, select, store
from simulator.policies.grammar import POLICIES


@POLICIES.register("quest")
class Quest(Policy):
    """Pages of the KV cache are scored by their key minima and maxima; the best `budget` tokens are read [1]_.

    Per step and KV head: the statistics, 1/page of the K and V bytes; a top-k over S/page scores per query head;
    then ``budget`` tokens in runs of one page. A new token reads and writes the statistics of its page, a prompt reads
    its keys and writes one set per page. Query heads that share a KV head each pick their own pages, so up
    to ``min(g * budget, S)`` tokens are read. Contexts inside the budget run dense, as does the prompt. With
    ``score=mean`` one mean key stands for a page: half the statistics and half their products.

    References
    ----------
    .. [1] Tang et al., "Quest", arXiv:2406.10774.
    """

    name: ClassVar[str] = "quest"
    family: ClassVar[str] = "kv selected"
    summary: ClassVar[str] = "per-step top-k pages by key minima and maxima"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_READS})
    compatibility: ClassVar[Compatibility] = Compatibility(
        mla=False, gqa="pages of the heads in a group are united, up to g times the budget"
    )
    citation: ClassVar[str] = "Tang et al. 2024, arXiv:2406.10774"
    not_modelled: ClassVar[str] = "accuracy"
    always_shown: ClassVar[tuple[str, ...]] = ("budget",)
    swept: ClassVar[Swept | None] = ("budget", "tokens")

    budget: int = Field(2048, ge=16, le=10_000_000, description="tokens read per query head")
    page: int = Field(16, ge=1, le=256, description="tokens per page")
    dense_layers: int = Field(2, ge=0, le=1000, description="first layers that stay dense")
    gqa: Literal["union", "shared"] = Field(
        "union", description="heads of a group pick apart (union) or together (shared)"
    )
    score: Literal["minmax", "mean"] = Field(
        "minmax", description="kept per page: key minima and maxima, or the mean key"
    )

    def layer_key(self, index: int, n_layers: int) -> Hashable:
        """The first layers are dense."""
        return index >= self.dense_layers

    @property
    def _vectors(self) -> float:
        return 2.0 if self.score == "minmax" else 1.0

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Estimate, top-k and a paged gather where the context exceeds the budget."""
        if not isinstance(op, Attention) or ctx.index < self.dense_layers:
            return (op,)
        keys = op.batch * op.q_len * op.dense_bytes_per_token / 2.0
        kept = keys * self._vectors
        if op.phase == "prefill":
            return (op, copied("kv.statistics", op, keys, kept / self.page))
        upkeep = copied("kv.statistics", op, kept, kept)
        group = max(op.n_heads / op.n_kv_heads, 1.0) if self.gqa == "union" else 1.0
        return (
            upkeep,
            *select(
                op,
                budget=self.budget,
                read=group * self.budget,
                unit=self.page,
                unit_bytes=op.dense_bytes_per_token * self._vectors / 2.0,
                unit_flop=2.0 * self._vectors * op.n_heads * op.head_dim,
                run_bytes=self.page * op.head_dim * op.kv_element_bytes,
            ),
        )

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """Two statistics vectors (one mean) per page of 2 * page vectors: 1/page more (half of it)."""
        if ctx.index < self.dense_layers:
            return kv
        extra = kv.dense_bytes / self.page * self._vectors / 2.0
        return replace(kv, meta_bytes=kv.meta_bytes + extra)


POLICIES.register("kinetics")(
    alias(
        Quest,
        "kinetics",
        "per-step top-k pages by their mean key, as Kinetics' block top-k",
        "Sadhukhan et al. 2025, arXiv:2506.05333",
        budget=1024,
        dense_layers=0,
        gqa="shared",
        score="mean",
    )
)


POLICIES.register("seer_attention_r")(
    alias(
        Quest,
        "seer_attention_r",
        "per-step blocks by learned gates over one pooled key each, shared by a group",
        "Gao et al. 2025, arXiv:2506.08889",
        budget=4096,
        page=64,
        dense_layers=0,
        gqa="shared",
        score="mean",
    )
)


@POLICIES.register("double_sparsity")
class DoubleSparsity(Policy):
    """Tokens are scored on `channels` of the head's channels, fixed offline; the best `budget` are read [1]_.

    A label cache holds those channels of K: ``heads_kv * channels * label_bits / 8`` bytes per token, read whole
    each step, with ``2 heads channels`` multiply-adds per token and a top-k over all S tokens. The picked tokens
    are gathered one by one. With ``offload`` the full KV lies in host memory and the picked tokens of the next
    layer are fetched by zero-copy row reads while this layer computes; the GPU holds labels and a double buffer.

    References
    ----------
    .. [1] Yang et al., "Post-Training Sparse Attention with Double Sparsity", arXiv:2408.07092.
    """

    name: ClassVar[str] = "double_sparsity"
    family: ClassVar[str] = "kv selected"
    summary: ClassVar[str] = "per-step top-k tokens by a few label channels"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_READS, Aspect.KV_PLACE})
    compatibility: ClassVar[Compatibility] = Compatibility(
        mla=False, gqa="tokens of the heads in a group are united, up to g times the budget"
    )
    citation: ClassVar[str] = "Yang et al. 2024, arXiv:2408.07092"
    not_modelled: ClassVar[str] = "accuracy; tokens that the look-ahead missed; smaller fetches of a quantised cache"
    always_shown: ClassVar[tuple[str, ...]] = ("budget",)
    swept: ClassVar[Swept | None] = ("budget", "tokens")

    budget: int = Field(1024, ge=16, le=10_000_000, description="tokens read per query head")
    channels: int = Field(16, ge=1, le=1024, description="label channels per head")
    label_bits: Literal["4", "16"] = Field("16", description="bits per label element")
    gqa: Literal["union", "shared"] = Field(
        "shared", description="heads of a group pick apart (union) or together (shared)"
    )
    offload: bool = Field(False, description="full KV in host memory, picked tokens fetched")

    def _label_bytes(self, kv_heads: Array) -> Array:
        return kv_heads * self.channels * int(self.label_bits) / 8.0

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Labels, top-k over all tokens, a gather of single tokens, and the fetch if offloaded."""
        if not isinstance(op, Attention):
            return (op,)
        whole = op.batch * op.q_len * op.dense_bytes_per_token
        stored = (store(op, whole),) if self.offload else ()
        new = op.batch * op.q_len * self._label_bytes(op.n_kv_heads)
        label = copied("kv.label", op, new, new)
        if op.phase == "prefill":
            return (op, label, *stored)
        group = max(op.n_heads / op.n_kv_heads, 1.0) if self.gqa == "union" else 1.0
        run = op.head_dim * op.kv_element_bytes
        ops = select(
            op,
            budget=self.budget,
            read=group * self.budget,
            unit=1.0,
            unit_bytes=self._label_bytes(op.n_kv_heads),
            unit_flop=2.0 * op.n_heads * self.channels,
            run_bytes=run,
        )
        if not self.offload:
            return (label, *ops)
        fetch = Transfer(
            role="kv.fetch",
            tier="host",
            read_bytes=ops[-1].kv_read_bytes,  # type: ignore[attr-defined]
            chunk_bytes=2.0 * run,
            beside=("attn.", "mlp.", "norm", "kv."),
            count=ops[0].count,
        )
        return (label, *ops, fetch, *stored)

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """Labels beside the cache, or labels and a double buffer in place of it."""
        heads = kv.dense_bytes / (2.0 * ctx.attention.head_dim * ctx.kv_element_bytes)
        meta = kv.meta_bytes + self._label_bytes(heads)
        if not self.offload:
            return replace(kv, meta_bytes=meta)
        return replace(kv, meta_bytes=meta, token_bytes=0.0, dense_tokens=2.0 * self.budget, off_bytes=kv.token_bytes)


POLICIES.register("double_sparsity_offload")(
    alias(
        DoubleSparsity,
        "double_sparsity_offload",
        "Double Sparsity with the full KV cache in host memory",
        "Yang et al. 2024, arXiv:2408.07092",
        offload=True,
    )
)


@POLICIES.register("sparq")
class Sparq(Policy):
    """The query's largest `channels` score all tokens from K alone; the best `budget` are read [1]_.

    Per step and KV head ``channels S`` elements of K, a top-k over all S tokens, ``budget`` tokens of K and V one by
    one, and the running mean of V that stands for the rest. Channels differ from step to step, so K is kept a second
    time with channels outermost: half a cache more. The heads of a group share channels and tokens.

    References
    ----------
    .. [1] Ribar et al., "SparQ Attention", ICML 2024, arXiv:2312.04985.
    """

    name: ClassVar[str] = "sparq"
    family: ClassVar[str] = "kv selected"
    summary: ClassVar[str] = "per-step top-k tokens by the query's largest channels"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_READS})
    compatibility: ClassVar[Compatibility] = Compatibility(
        mla=False, paged_kv=False, gqa="the heads of a group share channels and tokens"
    )
    citation: ClassVar[str] = "Ribar et al. 2023, arXiv:2312.04985"
    not_modelled: ClassVar[str] = "accuracy; the choice of the channels, a top-k over one head's width"
    always_shown: ClassVar[tuple[str, ...]] = ("budget",)
    swept: ClassVar[Swept | None] = ("budget", "tokens")

    budget: int = Field(128, ge=1, le=10_000_000, description="tokens read per KV head")
    channels: int = Field(32, ge=1, le=1024, description="channels of K read for every token")

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Scores from a few channels, top-k, single tokens; the second copy of new keys."""
        if not isinstance(op, Attention):
            return (op,)
        new = op.batch * op.q_len * op.n_kv_heads * op.head_dim * op.kv_element_bytes
        again = copied("kv.transpose", op, new, new)
        if op.phase == "prefill":
            return (op, again)
        return (
            *select(
                op,
                budget=float(self.budget),
                read=float(self.budget),
                unit=1.0,
                unit_bytes=op.n_kv_heads * self.channels * op.kv_element_bytes,
                unit_flop=2.0 * op.n_heads * self.channels,
                run_bytes=op.head_dim * op.kv_element_bytes,
                heads=op.n_kv_heads,
            ),
            again,
        )

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """K once more."""
        return replace(kv, meta_bytes=kv.meta_bytes + kv.dense_bytes / 2.0)
