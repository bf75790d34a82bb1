"""The prompt's attention computes a part of its pairs; decode is as before."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from simulator.base.arrays import minimum, where
from simulator.base.dtypes import sixteen_bit
from simulator.ops.ops import Attention, Linear, Op
from simulator.policies.base import Aspect, Compatibility, Context, Policy, Swept, alias
from simulator.policies.common import bounded_pairs, copied, scoring_pass, top_k
from simulator.policies.grammar import POLICIES

QUERY_BLOCK = 64.0
"""Queries that a block of MInference's kernels computes [-]."""
COLUMN_KERNELS, INDEX_KERNELS = 10.0, 30.0
"""Small kernels per head. Behind the scores: mask (2), softmax, column sums, a fill, a top-k with its sort (5). Around
the sparse kernel: zeros, their place beside the scores and the sums along diagonals (3), a fill, a top-k with its sort
(5), padding of Q, K and V (3), two sorts and conversions (10), sizes and the index (7), the copy of the output
(minference_forward.py, pit_sparse_flash_attention_v2.py)."""
HEAD_WAITS = 2.0
"""Copies of pageable host memory per head, for which the host waits: the zeros beside the scores
(``torch.zeros(...).to(device)``) and the length of the prompt (``torch.tensor([n], device=...)``)."""
_PROMPT_ONLY = Compatibility(mla=False, chunked_prefill=False, gqa="patterns are per query head")


@POLICIES.register("minference")
class MInference(Policy):
    """Every head has an offline pattern; its lines or blocks are found for the prompt at hand [1]_.

    Vertical-slash, the commonest: the last 64 queries against all keys give column and diagonal sums, then a query
    attends to ``vertical + slash`` tokens. As released [2]_ a Python loop takes the heads one by one, K and V repeated
    for each: `COLUMN_KERNELS` and `INDEX_KERNELS` small kernels and one sparse kernel per head and layer, whatever the
    length of the prompt, and no dense path for a short one. The host waits for two copies per head, so that what it
    submits between them and the sparse kernel meets an empty stream; no graph holds the step.

    References
    ----------
    .. [1] Jiang et al., "MInference 1.0", arXiv:2407.02490.
    .. [2] github.com/microsoft/MInference, minference/modules/minference_forward.py.
    """

    name: ClassVar[str] = "minference"
    family: ClassVar[str] = "prefill"
    summary: ClassVar[str] = "vertical-slash, A-shape and block patterns for the prompt"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.PREFILL_MASK})
    compatibility: ClassVar[Compatibility] = _PROMPT_ONLY
    citation: ClassVar[str] = "Jiang et al. 2024, arXiv:2407.02490"
    not_modelled: ClassVar[str] = "accuracy; compilation of the Triton kernels in the first call"

    vertical: int = Field(1000, ge=0, le=10_000_000, description="columns per head")
    slash: int = Field(6096, ge=0, le=10_000_000, description="diagonals per head")
    observe: int = Field(64, ge=1, le=4096, description="last query rows that are scored in full")

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Scores of the last rows, line selection, block-sparse attention."""
        if not isinstance(op, Attention) or op.phase == "decode":
            return (op,)
        budget = minimum(float(self.vertical + self.slash), 2.0 * op.kv_len)
        heads = op.n_heads
        one = replace(op, n_heads=1.0, n_kv_heads=op.n_kv_heads / heads, count=op.count * heads, graph_safe=False)
        rows = minimum(float(self.observe), op.q_len)
        vote = Linear(
            role="kv.observe",
            keeps_weights=False,
            m=op.batch * rows,
            n=op.kv_len,
            k=op.head_dim,
            fmt=sixteen_bit(ctx.fmt),
            count=one.count,
            overhead=True,
            graph_safe=False,
        )
        pick = top_k(2.0 * op.batch * op.kv_len, op.batch * budget, heads=1.0, rows=2.0 * op.batch, count=one.count)
        # Scores masked, softmaxed to fp32 and summed; copied and summed again; Q, K and V copied to padded ones.
        scores, padded = op.batch * rows * op.kv_len, 3.0 * op.batch * op.q_len * op.head_dim * 2.0
        columns = copied("kv.columns", op, 12.0 * scores, 6.0 * scores, count=one.count)
        index = copied("kv.index", op, 8.0 * scores + padded, 4.0 * scores + padded, count=one.count)
        repeated = op.batch * op.q_len * op.dense_bytes_per_token
        repeat = copied("kv.repeat", op, repeated, repeated * heads / op.n_kv_heads)
        # A block of 64 queries loads lines of its own.
        share = bounded_pairs(op, budget)
        loaded = op.batch * op.pairs * share * (op.dense_bytes_per_token / op.n_kv_heads) / QUERY_BLOCK
        return (
            repeat,
            vote,
            replace(columns, launches=COLUMN_KERNELS),
            replace(index, launches=INDEX_KERNELS, host_sync=HEAD_WAITS),
            pick,
            replace(one, pair_keep=share, tile_bytes=loaded),
        )


@POLICIES.register("sample_attention")
class SampleAttention(Policy):
    """A sample of query rows scores all keys; columns that carry alpha of the mass, and a window, are attended [1]_.

    The sample costs ``sample`` of a causal attention's multiply-adds; the density that reaches alpha differs by
    head and text.

    References
    ----------
    .. [1] Zhu et al., "SampleAttention", arXiv:2406.15486.
    """

    name: ClassVar[str] = "sample_attention"
    family: ClassVar[str] = "prefill"
    summary: ClassVar[str] = "columns by sampled query rows, and a local window"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.PREFILL_MASK})
    compatibility: ClassVar[Compatibility] = _PROMPT_ONLY
    citation: ClassVar[str] = "Zhu et al. 2024, arXiv:2406.15486"
    not_modelled: ClassVar[str] = "accuracy; the density that a text needs (an input here)"
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)
    swept: ClassVar[Swept | None] = ("keep", "share")

    keep: float = Field(0.2, gt=0.0, le=1.0, description="share of pairs computed; assumed (published 0.2-73 %)")
    sample: float = Field(0.03, ge=0.0, le=1.0, description="share of query rows sampled")
    block: int = Field(128, ge=16, le=1024, description="keys per sorted block")

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Sampled scores, a sort of blocks, sparse attention."""
        if not isinstance(op, Attention) or op.phase == "decode":
            return (op,)
        units = op.batch * op.kv_len / self.block
        return (
            # A sampled row scores all keys, twice as many as a causal row does in the mean.
            scoring_pass(op, 2.0 * self.sample),
            top_k(units, units * self.keep, heads=op.n_heads, rows=op.batch, count=op.count),
            replace(op, pair_keep=self.keep if self.keep < 1.0 else None),
        )


@POLICIES.register("dhsa")
class Dhsa(Policy):
    """Chunks of queries meet chunks of keys by their means; each keeps the best `budget` tokens [1]_.

    Pooled Q and K are read once, their product is ``1 / chunk^2`` of the scores' multiply-adds.

    References
    ----------
    .. [1] "Dynamic Hierarchical Sparse Attention", arXiv:2510.24606.
    """

    name: ClassVar[str] = "dhsa"
    family: ClassVar[str] = "prefill"
    summary: ClassVar[str] = "chunk means choose key blocks for the prompt"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.PREFILL_MASK})
    compatibility: ClassVar[Compatibility] = _PROMPT_ONLY
    citation: ClassVar[str] = "arXiv:2510.24606"
    not_modelled: ClassVar[str] = "accuracy; the boundary predictor"
    always_shown: ClassVar[tuple[str, ...]] = ("budget",)
    swept: ClassVar[Swept | None] = ("budget", "tokens")

    budget: int = Field(2048, ge=16, le=10_000_000, description="tokens attended per query")
    chunk: int = Field(256, ge=8, le=4096, description="tokens per chunk")

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Pooling, chunk scores, top-k, sparse attention."""
        if not isinstance(op, Attention) or op.phase == "decode":
            return (op,)
        count = where(op.kv_len > self.budget, op.count, 0.0)
        keys = op.batch * op.kv_len * op.dense_bytes_per_token / 2.0
        both = op.qo_bytes[0] + keys
        pool = copied("kv.pool", op, both, both / self.chunk, count=count)
        queries, chunks = op.q_len / self.chunk, op.kv_len / self.chunk
        units = op.batch * queries * chunks
        pick = top_k(
            units, op.batch * queries * self.budget / self.chunk, heads=op.n_heads, rows=op.batch * queries, count=count
        )
        scores = scoring_pass(op, 1.0 / self.chunk**2, keys=1.0 / self.chunk)
        return (pool, replace(scores, count=count), pick, replace(op, pair_keep=bounded_pairs(op, float(self.budget))))


@POLICIES.register("trianglemix")
class TriangleMix(Policy):
    """Layers from `from_layer` on see the first tokens and a window; their last query rows see everything [1]_.

    No choice at run time: ``sinks + window`` keys per query and ``last`` rows over the whole prompt, about
    ``last / P`` of the causal pairs twice over. Layers before stay dense, or run another mask of the prompt.

    References
    ----------
    .. [1] He et al., "TriangleMix", arXiv:2507.21526; defaults of its repository for Llama-3.1-8B.
    """

    name: ClassVar[str] = "trianglemix"
    family: ClassVar[str] = "prefill"
    summary: ClassVar[str] = "deep layers skip the middle of the prompt but for its last rows"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.PREFILL_MASK})
    compatibility: ClassVar[Compatibility] = Compatibility(mla=False, chunked_prefill=False)
    citation: ClassVar[str] = "He et al. 2025, arXiv:2507.21526"
    not_modelled: ClassVar[str] = "accuracy; a mask of the shallow layers (its combination with MInference)"
    always_shown: ClassVar[tuple[str, ...]] = ("from_layer",)

    from_layer: int = Field(16, ge=0, le=1000, description="first layer with the triangle")
    sinks: int = Field(8, ge=0, le=65536, description="first tokens every query sees")
    window: int = Field(512, ge=1, le=10_000_000, description="newest tokens every query sees")
    last: int = Field(128, ge=0, le=65536, description="last query rows that see everything")

    def layer_key(self, index: int, n_layers: int) -> Hashable:
        """Shallow layers are dense."""
        return index >= self.from_layer

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Pairs of the sinks, the window and the last rows."""
        if not isinstance(op, Attention) or op.phase == "decode" or ctx.index < self.from_layer:
            return (op,)
        seen = float(self.sinks + self.window)
        rows = minimum(float(self.last), op.q_len)
        tail = replace(op, q_len=rows)
        more = tail.pairs * (1.0 - bounded_pairs(tail, seen)) if self.last else 0.0
        return (replace(op, pair_keep=bounded_pairs(op, seen) + more / op.pairs),)


POLICIES.register("tri_shape")(
    alias(
        TriangleMix,
        "tri_shape",
        "the triangle in every layer: sinks, a window and the last rows",
        "Li et al. 2024, SCBench, arXiv:2412.10319",
        from_layer=0,
        sinks=128,
        window=1920,
        last=100,
    )
)
