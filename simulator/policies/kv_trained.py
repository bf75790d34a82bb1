"""Selection the model was trained with: NSA, InfLLM-V2, DeepSeek's sparse attention, in prompt and decode."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from simulator.base.arrays import Array, minimum, where
from simulator.base.dtypes import DType, Format
from simulator.model.spec import ModelSpec
from simulator.ops.dense import is_dense
from simulator.ops.module import AttentionModule
from simulator.ops.ops import Attention, Elementwise, Linear, Op
from simulator.ops.traffic import Operand
from simulator.policies.base import Aspect, Compatibility, Context, KvLayout, Policy, Swept, alias
from simulator.policies.common import bounded_pairs, copied, mla_module, partial_outputs, scoring_pass, select, top_k
from simulator.policies.grammar import POLICIES

TILE_ROWS = 16.0
"""Query rows of a tensor-core tile; a kernel that loads a KV block for one group pads to them [-]."""
POOL = 1.25
"""Q K^T of InfLLM-V2's selection with its coarse normalisation, over that of the pooled keys [-]."""


POOLED_TWICE = 2.0
"""Pooled blocks of 2 `stride` tokens that start every `stride`: each token is read for two of them [-]."""


def pooled(op: Attention, stride: float, *, values: bool) -> Elementwise:
    """New pooled keys (with `values` those too) of the tokens of a step; a decode step makes one in `stride`."""
    new = op.batch * op.q_len * op.dense_bytes_per_token * (1.0 if values else 0.5)
    steps = stride if op.phase == "decode" else 1.0
    return copied("kv.pool", op, POOLED_TWICE * new * steps, new / stride * steps, count=op.count / steps)


def _dense_if_short(op: Attention, sparse: Attention, count: Array) -> tuple[Attention, Attention]:
    """`sparse` where `count` says that a choice is made, `op` elsewhere."""
    return replace(op, count=op.count - count), replace(sparse, count=count)


def _loaded_per_query(op: Attention, share: Array) -> Array:
    """K and V loaded where every query of a KV head picks blocks of its own [B]."""
    return op.batch * op.pairs * share * op.dense_bytes_per_token


@POLICIES.register("nsa")
class Nsa(Policy):
    """Three gated branches: compressed tokens, the best `blocks` of them in full, a sliding window [1]_.

    One compressed K and V per `stride` tokens (1/stride of the cache beside it). Decode reads ``(S - 2 stride) / stride
    + blocks * block + window`` tokens; the heads of a group share their blocks. The prompt computes the same per query.
    As in the open port [3]_ the compressed branch runs causally, then Q K^T once more over the whole rectangle for the
    top-k: fp32 scores per KV head are zeroed, written, and summed up to blocks. A kernel that walks queries pads a
    group to 16 rows (``order=query``); one that walks blocks [2]_ writes `blocks` partial outputs per query instead
    (``order=block``).

    References
    ----------
    .. [1] Yuan et al., "Native Sparse Attention", arXiv:2502.11089.
    .. [2] "Flash Sparse Attention", arXiv:2508.18224.
    .. [3] github.com/XunhaoLai/native-sparse-attention-triton, ops/triton/compressed_attention.py.
    """

    name: ClassVar[str] = "nsa"
    family: ClassVar[str] = "kv selected"
    summary: ClassVar[str] = "compressed, selected and window branches, trained"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_READS, Aspect.PREFILL_MASK})
    compatibility: ClassVar[Compatibility] = Compatibility(mla=False, gqa="the heads of a group share blocks")
    citation: ClassVar[str] = "Yuan et al. 2025, arXiv:2502.11089"
    not_modelled: ClassVar[str] = "accuracy; the compressor's own MLP and the gates; training"

    blocks: int = Field(16, ge=1, le=4096, description="blocks selected per query")
    block: int = Field(64, ge=8, le=1024, description="tokens per selected block")
    stride: int = Field(16, ge=1, le=256, description="tokens per compressed token")
    window: int = Field(512, ge=0, le=1_000_000, description="sliding window")
    order: Literal["query", "block"] = Field(
        "query", description="outer loop of the prompt kernel: queries (NSA) or blocks (FSA)"
    )

    @property
    def _budget(self) -> float:
        return float(self.blocks * self.block + self.window)

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Compressed branch, top-k, then the selected blocks and the window."""
        if not isinstance(op, Attention):
            return (op,)
        pool = pooled(op, self.stride, values=True)
        if op.phase == "prefill":
            return (pool, *self._prompt(op))
        return (
            pool,
            *select(
                op,
                budget=self._budget,
                read=self._budget,
                unit=self.stride,
                unit_bytes=op.dense_bytes_per_token,
                unit_flop=4.0 * op.n_heads * op.head_dim,
                run_bytes=self.block * op.head_dim * op.kv_element_bytes,
                heads=op.n_kv_heads,
                picked=float(self.blocks),
                searched=self.block,
            ),
        )

    def _prompt(self, op: Attention) -> tuple[Op, ...]:
        share = bounded_pairs(op, self._budget)
        group = op.n_heads / op.n_kv_heads
        active = op.kv_len > self._budget
        rows = op.batch * op.q_len * where(active, 1.0, 0.0)
        count = where(active, op.count, 0.0)
        if self.order == "query" and is_dense(op):
            return self._measured(op, count)
        units = rows * op.kv_len / self.stride
        blocks = units * (self.stride / self.block)
        compressed = replace(
            op,
            role="kv.estimate.prefill",
            pair_keep=1.0 / self.stride,
            bytes_per_token=op.dense_bytes_per_token / self.stride,
            stores=False,
            count=count,
            overhead=True,
        )
        # Its blocks do not stop at the diagonal.
        whole = op.q_len * op.kv_len / op.pairs / self.stride
        again = replace(scoring_pass(op, whole, keys=1.0 / self.stride, role="kv.estimate.scores"), count=count)
        scored, summed = units * op.n_kv_heads * 4.0, blocks * op.n_kv_heads * 4.0
        written = 2.0 * (scored + summed)  # zeroed first
        kept = replace(copied("kv.scores", op, scored, written, operand=Operand.INDEX, count=count), launches=4.0)
        pick = top_k(blocks, rows * self.blocks, heads=op.n_kv_heads, rows=rows, count=count)
        if self.order == "query":
            waste = where(active, max(TILE_ROWS / group, 1.0), 1.0)
            loaded = where(active, _loaded_per_query(op, share), 0.0)
            return (compressed, again, kept, pick, replace(op, pair_keep=share * waste, tile_bytes=loaded))
        reduce = partial_outputs(op, rows, self.blocks, count)
        return (compressed, again, kept, pick, replace(op, pair_keep=share), reduce)

    def _measured(self, op: Attention, count: Array) -> tuple[Op, ...]:
        """The open port's kernels: the compressed branch with its scores and top-k, the blocks, the window."""
        apart = {"count": count, "stores": False, "overhead": True}
        compressed = replace(
            op,
            role="kv.estimate.prefill",
            pair_keep=1.0 / self.stride,
            bytes_per_token=op.dense_bytes_per_token / self.stride,
            kernel="NSA/Triton compressed",
            **apart,
        )
        window = replace(op, role="attn.window", window=self.window, **apart)
        share = bounded_pairs(op, float(self.blocks * self.block))
        waste = max(TILE_ROWS * op.n_kv_heads / op.n_heads, 1.0)
        blocks = replace(op, pair_keep=share * waste, kernel="NSA/Triton top-k")
        return (compressed, *_dense_if_short(op, blocks, count), *((window,) if self.window else ()))

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """A compressed K and V per stride."""
        return replace(kv, meta_bytes=kv.meta_bytes + kv.dense_bytes / self.stride)


POLICIES.register("fsa")(
    alias(Nsa, "fsa", "NSA's attention with a kernel that walks blocks, not queries", "arXiv:2508.18224", order="block")
)


@POLICIES.register("infllm_v2")
class InfLlmV2(Policy):
    """Blocks are picked by pooled keys, without new parameters; short contexts stay dense [1]_.

    One mean key per 16 tokens (no value): 1/32 of the cache. The scores of a group's heads are summed and pooled to
    blocks of 64; a coarser pool gives the normalisation, so selection costs 1.25 times its QK products. Then
    ``blocks * 64`` tokens (1 first, 32 local, the rest by score) are attended, in decode and per query of the prompt.

    References
    ----------
    .. [1] "InfLLM-V2", arXiv:2509.24663.
    """

    name: ClassVar[str] = "infllm_v2"
    family: ClassVar[str] = "kv selected"
    summary: ClassVar[str] = "trained block selection by pooled keys, dense when short"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_READS, Aspect.PREFILL_MASK})
    compatibility: ClassVar[Compatibility] = Compatibility(mla=False, gqa="the heads of a group share blocks")
    citation: ClassVar[str] = "Zhao et al. 2025, arXiv:2509.24663"
    not_modelled: ClassVar[str] = "accuracy; max-pooling of the scores"

    blocks: int = Field(96, ge=1, le=65536, description="blocks attended: first, local and best")
    block: int = Field(64, ge=8, le=1024, description="tokens per block")
    stride: int = Field(16, ge=1, le=256, description="tokens per pooled key")

    @property
    def _budget(self) -> float:
        return float(self.blocks * self.block)

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Pooled scores, top-k, attention over the blocks."""
        if not isinstance(op, Attention):
            return (op,)
        pool = pooled(op, self.stride, values=False)
        if op.phase == "decode":
            return (
                pool,
                *select(
                    op,
                    budget=self._budget,
                    read=self._budget,
                    unit=self.stride,
                    unit_bytes=op.dense_bytes_per_token / 2.0,
                    unit_flop=2.0 * POOL * op.n_heads * op.head_dim,
                    run_bytes=self.block * op.head_dim * op.kv_element_bytes,
                    heads=op.n_kv_heads,
                    picked=float(self.blocks),
                    searched=self.block,
                ),
            )
        active = op.kv_len > self._budget
        rows = op.batch * op.q_len * where(active, 1.0, 0.0)
        count = where(active, op.count, 0.0)
        share = POOL / self.stride
        scores = replace(scoring_pass(op, share, keys=1.0 / self.stride), count=count)
        units = rows * op.kv_len / self.block / 2.0
        pick = top_k(units, rows * self.blocks, heads=op.n_kv_heads, rows=rows, count=count)
        share = bounded_pairs(op, self._budget)
        if is_dense(op):
            blocks = replace(op, pair_keep=share, kernel="NSA/InfLLMv2")
            return (pool, scores, pick, *_dense_if_short(op, blocks, count))
        loaded = where(active, _loaded_per_query(op, share), 0.0)
        return (pool, scores, pick, replace(op, pair_keep=share, tile_bytes=loaded))

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """A pooled key per stride."""
        return replace(kv, meta_bytes=kv.meta_bytes + kv.dense_bytes / 2.0 / self.stride)


@POLICIES.register("dsa")
class Dsa(Policy):
    """DeepSeek's sparse attention: a small fp8 indexer scores every token, MLA reads the best `budget` [1]_.

    Indexer per token: one key of `index_dim` fp8 elements and its scale, written once, ``index_dim + 4`` bytes read per
    token and step, ``2 index_heads index_dim`` multiply-adds; its own projections in every layer. The latents are
    gathered one by one.

    References
    ----------
    .. [1] DeepSeek-V3.2, arXiv:2512.02556.
    """

    name: ClassVar[str] = "dsa"
    family: ClassVar[str] = "kv selected"
    summary: ClassVar[str] = "lightning indexer picks the latents that MLA reads"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_READS, Aspect.PREFILL_MASK})
    compatibility: ClassVar[Compatibility] = Compatibility(gqa="one latent for all heads")
    citation: ClassVar[str] = "DeepSeek-AI 2025, arXiv:2512.02556"
    not_modelled: ClassVar[str] = "accuracy; the prompt runs unabsorbed, as the dense model does"
    swept: ClassVar[Swept | None] = ("budget", "tokens")
    modules: ClassVar[bool] = True

    budget: int = Field(2048, ge=16, le=10_000_000, description="tokens attended per query")
    index_heads: int = Field(64, ge=1, le=1024, description="heads of the indexer")
    index_dim: int = Field(128, ge=8, le=4096, description="width of an index head")

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """It is built on MLA."""
        if any(attention.compressed for attention, _ in model.attentions):
            return f"DSA picks tokens; {model.name} folds several into one cache entry"
        if not all(attention.mla for attention, _ in model.attentions):
            return f"DSA picks MLA latents; {model.name} has ordinary KV heads; nsa or quest apply"
        if any(attention.indexer for attention, _ in model.attentions):
            return f"{model.name} has it already"
        return None

    @property
    def _key_bytes(self) -> float:
        return self.index_dim + 4.0

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Indexer projections after the queries, its scores and top-k before the attention; or the module of both."""
        if isinstance(op, AttentionModule) and op.kind == "mla-dense":
            index = {"index_heads": self.index_heads, "index_dim": self.index_dim, "top_k": self.budget}
            return (replace(op, kind="dsa", widths=mla_module(ctx.attention, ctx.model.hidden, **index)),)
        if op.role == "attn.q_up" and isinstance(op, Linear):
            width = float(self.index_heads * self.index_dim)
            fmt, m, count = op.fmt, op.m, op.count
            hidden = float(ctx.model.hidden)
            key = {"m": m, "fmt": fmt, "count": count, "overhead": True}
            return (
                op,
                Linear(role="indexer.q", n=width, k=op.k, **key),
                Linear(role="indexer.k", n=float(self.index_dim + self.index_heads), k=hidden, **key),
            )
        if not isinstance(op, Attention):
            return (op,)
        active = op.kv_len > self.budget
        count = where(active, op.count, 0.0)
        # QK of all index heads against one fp8 key per token; its scores never leave the kernel but summed up.
        index = replace(
            op,
            role="kv.index",
            n_heads=float(self.index_heads),
            n_kv_heads=1.0,
            head_dim=float(self.index_dim),
            v_head_dim=0.0,
            math=DType.FP8,
            kv_element_bytes=self._key_bytes / self.index_dim,
            latent=False,
            count=count,
            overhead=True,
        )
        rows = op.batch * op.q_len
        key = copied("kv.index_key", op, rows * self.index_dim * 2.0, rows * self._key_bytes, operand=Operand.INDEX)
        pick = top_k(op.batch * op.pairs, rows * self.budget, heads=1.0, rows=rows, count=count)
        if op.phase == "prefill":
            sparse = replace(op, pair_keep=bounded_pairs(op, float(self.budget)))
        else:
            read = minimum(op.tokens, float(self.budget))
            sparse = replace(op, attended=read, run_bytes=op.dense_bytes_per_token)
        return (key, index, pick, sparse)

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """An index key per token."""
        return replace(kv, meta_bytes=kv.meta_bytes + self._key_bytes)
