"""Blocks of the prompt's attention chosen from a cheap estimate: antidiagonals, pooled means, learned gates, MoBA."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from simulator.base.arrays import Array, minimum, where
from simulator.base.dtypes import sixteen_bit
from simulator.ops.ops import Attention, Elementwise, Linear, Op
from simulator.ops.part import OpPart
from simulator.ops.traffic import Operand
from simulator.policies.base import Aspect, Compatibility, Context, Policy, Swept, alias
from simulator.policies.common import bounded_pairs, copied, partial_outputs, scoring_pass, top_k
from simulator.policies.grammar import POLICIES

_PER_HEAD = Compatibility(mla=False, chunked_prefill=False, gqa="blocks are per query head")


def _blocks_chosen(op: Attention, keep: Array, query_block: float, key_block: float) -> Elementwise:
    """Block scores of the causal half, per row of blocks, and the `keep` of them that is computed."""
    rows = op.batch * op.q_len / query_block
    units = op.batch * op.pairs / (query_block * key_block)
    return top_k(units, units * keep, heads=op.n_heads, rows=rows, count=op.count)


@POLICIES.register("xattention")
class XAttention(Policy):
    """A block's weight is the sum over its antidiagonals, `stride` apart; blocks carrying a threshold run [1]_.

    Reshaped Q and K meet in ``1 / stride`` of the multiply-adds of Q K^T; their product, ``1 / stride^2`` of the scores
    in 16 bit, is written and read once by the softmax that sums it to blocks. The share of blocks that reaches the
    threshold falls with the prompt: 52 % at 4K, 44 % at 8K, 27 % at 16K, 21 % at 32K, 11 % at 64K, 7 % at 128K (RULER,
    Llama-3.1-8B, stride 8).

    References
    ----------
    .. [1] Xu et al., "XAttention: Block Sparse Attention with Antidiagonal Scoring", arXiv:2503.16428.
    """

    name: ClassVar[str] = "xattention"
    family: ClassVar[str] = "prefill"
    summary: ClassVar[str] = "prompt blocks chosen by sums over antidiagonals"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.PREFILL_MASK})
    compatibility: ClassVar[Compatibility] = _PER_HEAD
    citation: ClassVar[str] = "Xu et al. 2025, arXiv:2503.16428"
    not_modelled: ClassVar[str] = "accuracy; the density that a text and a threshold need (an input here)"
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)
    swept: ClassVar[Swept | None] = ("keep", "share")

    keep: float = Field(0.21, gt=0.0, le=1.0, description="share of blocks computed; 0.21 as published at 32K")
    stride: int = Field(8, ge=1, le=128, description="distance of the antidiagonals; 8 or 16 published")
    block: int = Field(128, ge=16, le=1024, description="queries and keys per block")

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Antidiagonal scores, their sums, the choice, block-sparse attention."""
        if not isinstance(op, Attention) or op.phase == "decode":
            return (op,)
        scored = 2.0 * op.batch * op.pairs * op.n_heads / self.stride**2
        sums = copied("kv.scores", op, scored, scored, operand=Operand.ACTIVATION)
        return (
            scoring_pass(op, 1.0 / self.stride),
            replace(sums, kind="softmax"),
            _blocks_chosen(op, self.keep, self.block, self.block),
            replace(op, pair_keep=self.keep),
        )


@POLICIES.register("sparge_attention")
class SpargeAttention(Policy):
    """Means of query and key blocks meet; blocks that carry a threshold of a row's weight run [1]_.

    Q and K are read once and pooled (one mean per query block, `pools` vectors per key block); their product is
    ``1 / (query_block key_block)`` of Q K^T per pool. With `observe` the last rows are scored in full as well, to tell
    heads of one pattern from another [2]_. With `gate` the pooled vectors pass a learned projection per query head
    first, ``(1 + pools) head_dim gate`` weights each [3]_.

    References
    ----------
    .. [1] Zhang et al., "SpargeAttention", ICML 2025, arXiv:2502.18137.
    .. [2] Lai et al., "FlexPrefill", ICLR 2025, arXiv:2502.20766.
    .. [3] Gao et al., "SeerAttention", arXiv:2410.13276.
    """

    name: ClassVar[str] = "sparge_attention"
    family: ClassVar[str] = "prefill"
    summary: ClassVar[str] = "prompt blocks chosen by the product of block means"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.PREFILL_MASK})
    compatibility: ClassVar[Compatibility] = _PER_HEAD
    citation: ClassVar[str] = "Zhang et al. 2025, arXiv:2502.18137"
    not_modelled: ClassVar[str] = (
        "accuracy; the density that a text needs (an input here); 8-bit products (SageAttention) of its own kernel;"
        " skipped P V inside a block; the similarity test of a block; memory of gates"
    )
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)
    swept: ClassVar[Swept | None] = ("keep", "share")

    keep: float = Field(0.46, gt=0.0, le=1.0, description="share of blocks computed; assumed")
    query_block: int = Field(128, ge=16, le=1024, description="queries per block")
    key_block: int = Field(64, ge=16, le=1024, description="keys per block")
    pools: int = Field(1, ge=1, le=3, description="vectors kept per key block: mean, or maximum and minimum too")
    observe: int = Field(0, ge=0, le=4096, description="last query rows that are scored in full")
    gate: int = Field(0, ge=0, le=1024, description="width of the learned projection of pooled vectors; 0 = none")

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Pooling, gates, block scores, the choice, block-sparse attention."""
        if not isinstance(op, Attention) or op.phase == "decode":
            return (op,)
        keys = op.batch * op.kv_len * op.dense_bytes_per_token / 2.0
        pooled = op.qo_bytes[0] / self.query_block + keys * self.pools / self.key_block
        found: list[Op] = [copied("kv.pool", op, op.qo_bytes[0] + keys, pooled)]
        if self.observe:
            rows = minimum(float(self.observe), op.q_len)
            found.append(scoring_pass(replace(op, q_len=rows), 1.0, role="kv.observe"))
        # A gate maps the pools to one vector, so its scores are those of one.
        vectors = self.pools
        if self.gate:
            found += self._gates(op, ctx)
            op_scored, vectors = replace(op, head_dim=float(self.gate)), 1
        else:
            op_scored = op
        share = vectors / (self.query_block * self.key_block)
        return (
            *found,
            scoring_pass(op_scored, share, keys=vectors / self.key_block),
            _blocks_chosen(op, self.keep, self.query_block, self.key_block),
            replace(op, pair_keep=self.keep),
        )

    def _gates(self, op: Attention, ctx: Context) -> tuple[Op, ...]:
        """The learned projections of the pooled queries and keys, one pair per query head."""
        each = {
            "n": float(self.gate),
            "fmt": sixteen_bit(ctx.fmt),
            "groups": op.n_heads,
            "part": OpPart.PREDICTOR,
            "count": op.count,
            "overhead": True,
        }
        return (
            Linear(role="gate.q", m=op.batch * op.q_len / self.query_block, k=op.head_dim, **each),
            Linear(role="gate.k", m=op.batch * op.kv_len / self.key_block, k=op.head_dim * self.pools, **each),
        )


for _name, _summary, _citation, _defaults in (
    (
        "flexprefill",
        "block means and the last rows' scores choose a pattern and a budget per head",
        "Lai et al. 2025, arXiv:2502.20766",
        {"keep": 0.21, "key_block": 128, "observe": 128},
    ),
    (
        "seer_attention",
        "learned gates over pooled queries and keys choose the prompt's blocks",
        "Gao et al. 2024, arXiv:2410.13276",
        {"keep": 0.1, "query_block": 64, "pools": 2, "gate": 128},
    ),
):
    POLICIES.register(_name)(alias(SpargeAttention, _name, _summary, _citation, **_defaults))


@POLICIES.register("moba")
class Moba(Policy):
    """Each query of the prompt attends to its own block and the best `blocks` in all, by the blocks' mean keys [1]_.

    Trained. Pooling reads K once; every query meets one mean per block, ``1 / block`` of Q K^T, and a top-k per query
    head follows. ``kernel=gathered`` writes one partial output per query and block and adds them up, as the first
    release; ``kernel=fused`` keeps them on chip [2]_. Generation attends to everything, as its long-context models do.

    References
    ----------
    .. [1] Lu et al., "MoBA: Mixture of Block Attention for Long-Context LLMs", arXiv:2502.13189.
    .. [2] Xiao et al., "Optimizing Mixture of Block Attention" (FlashMoBA), arXiv:2511.11571.
    """

    name: ClassVar[str] = "moba"
    family: ClassVar[str] = "prefill"
    summary: ClassVar[str] = "each query's best blocks by mean keys, trained, for the prompt"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.PREFILL_MASK})
    compatibility: ClassVar[Compatibility] = Compatibility(mla=False, gqa="blocks are per query and query head")
    citation: ClassVar[str] = "Lu et al. 2025, arXiv:2502.13189"
    not_modelled: ClassVar[str] = "accuracy; layers kept dense; generation with it, which its authors switch off"
    always_shown: ClassVar[tuple[str, ...]] = ("blocks", "block")

    blocks: int = Field(12, ge=1, le=65536, description="blocks attended per query, its own among them")
    block: int = Field(4096, ge=16, le=1_000_000, description="tokens per block")
    kernel: Literal["gathered", "fused"] = Field("gathered", description="partial outputs through memory, or on chip")

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Pooled keys, scores and top-k per query, the blocks' attention, and the sum of its parts."""
        if not isinstance(op, Attention) or op.phase == "decode":
            return (op,)
        budget = float(self.blocks * self.block)
        active = op.kv_len > budget
        count = where(active, op.count, 0.0)
        keys = op.batch * op.kv_len * op.dense_bytes_per_token / 2.0
        rows = op.batch * op.q_len * where(active, 1.0, 0.0)
        units = op.batch * op.pairs / self.block * where(active, 1.0, 0.0)
        scores = replace(scoring_pass(op, 1.0 / self.block, keys=1.0 / self.block), count=count)
        found: tuple[Op, ...] = (
            copied("kv.pool", op, keys, keys / self.block, count=count),
            scores,
            copied("kv.scores", op, 0.0, 4.0 * units * op.n_heads, operand=Operand.INDEX, count=count),
            top_k(units, rows * self.blocks, heads=op.n_heads, rows=rows, count=count),
            replace(op, pair_keep=bounded_pairs(op, budget)),
        )
        return found if self.kernel == "fused" else (*found, partial_outputs(op, rows, self.blocks, count))


POLICIES.register("flash_moba")(
    alias(
        Moba,
        "flash_moba",
        "MoBA with small blocks in one fused kernel",
        "Xiao et al. 2025, arXiv:2511.11571",
        blocks=8,
        block=128,
        kernel="fused",
    )
)
