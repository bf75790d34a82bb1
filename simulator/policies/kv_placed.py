"""KV cache off the GPU with a selection that keeps the traffic small: ShadowKV, NOSA, ALISA, Lamina."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from simulator.base.arrays import Array, maximum, where
from simulator.base.dtypes import FORMATS, Format, sixteen_bit
from simulator.model.spec import ModelSpec
from simulator.ops.ops import Attention, Elementwise, Linear, Op
from simulator.ops.traffic import Operand
from simulator.ops.transfers import HostCompute, Transfer
from simulator.policies.base import Aspect, Compatibility, Context, KvLayout, Policy, Swept, alias
from simulator.policies.common import copied, scoring_pass, select, store, top_k
from simulator.policies.grammar import POLICIES
from simulator.policies.kv_trained import POOL, pooled


@POLICIES.register("shadowkv")
class ShadowKv(Policy):
    """K as low-rank factors and landmarks on the GPU, V in host memory; picked chunks are rebuilt and fetched [1]_.

    Per step and layer: landmarks (one mean key per chunk) are read and scored by every query head, softmaxed, and
    their maximum per KV head picks the best `chunks`. Those not cached (``1 - hit``) get K from ``A [rank] B``, one
    product per sequence and KV head whose rows are gathered by chunks, then a rotary pass, and V over the link, the
    slower of both. Those cached move to new places. Attention reads ``(chunks + outliers) chunk + local`` tokens.

    References
    ----------
    .. [1] Sun et al., "ShadowKV", arXiv:2410.21465.
    """

    name: ClassVar[str] = "shadowkv"
    family: ClassVar[str] = "placement"
    summary: ClassVar[str] = "low-rank keys on the GPU, values fetched from host memory"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_READS, Aspect.KV_FORMAT, Aspect.KV_PLACE})
    compatibility: ClassVar[Compatibility] = Compatibility(
        mla=False, paged_kv=False, prefix_cache=False, gqa="chunks are chosen per KV head by the group's maximum"
    )
    citation: ClassVar[str] = "Sun et al. 2024, arXiv:2410.21465"
    not_modelled: ClassVar[str] = "accuracy; landmark means and outlier search of the prompt"
    always_shown: ClassVar[tuple[str, ...]] = ("chunks",)

    chunks: int = Field(256, ge=1, le=1_000_000, description="chunks picked per KV head")
    chunk: int = Field(8, ge=1, le=256, description="tokens per chunk")
    rank: int = Field(160, ge=1, le=8192, description="rank of the keys before rotation")
    outliers: int = Field(48, ge=0, le=65536, description="chunks that stay whole on the GPU")
    local: int = Field(32, ge=0, le=65536, description="newest tokens kept whole")
    hit: float = Field(0.6, ge=0.0, le=1.0, description="share of picked chunks cached before")

    @property
    def _picked(self) -> float:
        return float(self.chunks * self.chunk)

    @property
    def _held(self) -> float:
        return self._picked + self.outliers * self.chunk + self.local

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Landmarks, top-k, rebuild beside fetch, attention over what was picked."""
        if not isinstance(op, Attention):
            return (op,)
        if op.phase == "prefill":
            rows, width = op.batch * op.q_len, op.n_kv_heads * op.head_dim
            # Economy SVD of a tall rows x width matrix: 4 rows width^2 flop (Golub and Van Loan), in fp32.
            svd = Linear(
                role="kv.svd",
                keeps_weights=False,
                m=rows,
                n=2.0 * width,
                k=width,
                fmt=FORMATS["fp32"],
                count=op.count,
                overhead=True,
            )
            return (op, svd, store(op, rows * op.dense_bytes_per_token / 2.0))
        run = self.chunk * op.head_dim * op.kv_element_bytes
        ops = select(
            op,
            budget=self._held,
            read=self._held,
            unit=self.chunk,
            unit_bytes=op.dense_bytes_per_token / 2.0,
            unit_flop=2.0 * op.n_heads * op.head_dim,
            run_bytes=run,
            picked=float(self.chunks),
            heads=op.n_kv_heads,
            scored=op.n_heads,
        )
        active = op.tokens > self._held
        missed = (1.0 - self.hit) * self._picked
        count = where(active, op.count, 0.0)
        keys = op.batch * op.dense_bytes_per_token / 2.0
        rebuild = Linear(
            role="kv.rebuild",
            keeps_weights=False,
            m=max(missed, 1e-9),
            n=op.head_dim,
            k=float(self.rank),
            groups=op.batch * op.n_kv_heads,
            fmt=sixteen_bit(ctx.fmt),
            count=count,
            overhead=True,
        )
        factors = op.batch * missed * op.n_kv_heads * self.rank * 2.0
        rotate = Elementwise(
            role="kv.rotate",
            kind="copy",
            # The product fetched its factors from memory, which its own time takes for activations in the cache.
            read_bytes=factors + missed * keys,
            write_bytes=missed * keys,
            operand=Operand.KV,
            run_bytes=self.chunk * self.rank * 2.0,
            count=count,
            overhead=True,
        )
        cached = self.hit * self._picked * 2.0 * keys
        reorder = copied("kv.reorder", op, cached, cached, count=count, run_bytes=run)
        fetch = Transfer(
            role="kv.fetch",
            tier="host",
            read_bytes=op.batch * missed * op.dense_bytes_per_token / 2.0,
            chunk_bytes=run,
            beside=("kv.rebuild", "kv.rotate"),
            count=count,
        )
        units = op.batch * where(active, op.tokens / self.chunk, 0.0)
        return (ops[0], *self._united(op, units, count), ops[1], reorder, rebuild, rotate, fetch, ops[2])

    def _united(self, op: Attention, units: Array, count: Array) -> tuple[Elementwise, ...]:
        """Softmax of every query head's scores, and their maximum per KV head, in fp32."""
        scores, united = units * op.n_heads * 4.0, units * op.n_kv_heads * 4.0
        passes = (("kv.softmax", "softmax", scores), ("kv.group_max", "unary", united))
        return tuple(
            Elementwise(
                role=role,
                kind=kind,
                read_bytes=scores,
                write_bytes=written,
                operand=Operand.INDEX,
                count=count,
                overhead=True,
            )
            for role, kind, written in passes
        )

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """Factors and landmarks for all, whole tokens for those picked, outlying or new; V elsewhere."""
        dense = kv.dense_bytes
        return replace(
            kv,
            token_bytes=0.0,
            dense_tokens=self._held,
            meta_bytes=kv.meta_bytes + self.rank * ctx.kv_element_bytes + dense / 2.0 / self.chunk,
            off_bytes=kv.token_bytes / 2.0,
        )


@POLICIES.register("nosa")
class Nosa(Policy):
    """InfLLM-V2's block selection, trained so that most of it stays from step to step; all KV in host memory [1]_.

    A cache of `budget` tokens lies on the GPU; ``(1 - hit) budget`` tokens are fetched per step in blocks, by a
    kernel that reads host memory. Pooled keys (1/32 of the cache) stay on the GPU.

    References
    ----------
    .. [1] "NOSA: Native and Offloadable Sparse Attention", arXiv:2510.13602.
    """

    name: ClassVar[str] = "nosa"
    family: ClassVar[str] = "placement"
    summary: ClassVar[str] = "block selection with locality, KV in host memory"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_READS, Aspect.KV_FORMAT, Aspect.KV_PLACE})
    compatibility: ClassVar[Compatibility] = Compatibility(mla=False, gqa="the heads of a group share blocks")
    citation: ClassVar[str] = "arXiv:2510.13602"
    not_modelled: ClassVar[str] = "accuracy; overlap of the fetch with other layers"
    always_shown: ClassVar[tuple[str, ...]] = ("budget",)
    swept: ClassVar[Swept | None] = ("budget", "tokens")

    budget: int = Field(4096, ge=64, le=10_000_000, description="tokens attended and cached")
    block: int = Field(64, ge=8, le=1024, description="tokens per block")
    stride: int = Field(16, ge=1, le=256, description="tokens per pooled key")
    hit: float = Field(0.75, ge=0.0, le=1.0, description="share of blocks kept from the last step")

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Pooled scores, top-k, fetch of the missing blocks, attention."""
        if not isinstance(op, Attention):
            return (op,)
        pool = pooled(op, self.stride, values=False)
        if op.phase == "prefill":
            return (op, pool, store(op, op.batch * op.q_len * op.dense_bytes_per_token))
        run = self.block * op.head_dim * op.kv_element_bytes
        ops = select(
            op,
            budget=self.budget,
            read=float(self.budget),
            unit=self.stride,
            unit_bytes=op.dense_bytes_per_token / 2.0,
            unit_flop=2.0 * POOL * op.n_heads * op.head_dim,
            run_bytes=run,
            heads=op.n_kv_heads,
            picked=self.budget / self.block,
            searched=self.block,
        )
        active = op.tokens > self.budget
        fetch = Transfer(
            role="kv.fetch",
            tier="host",
            read_bytes=op.batch * (1.0 - self.hit) * self.budget * op.dense_bytes_per_token,
            chunk_bytes=run,
            count=where(active, op.count, 0.0),
        )
        return (pool, *ops[:2], fetch, ops[2])

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """The cache and the pooled keys; everything else elsewhere."""
        return replace(
            kv,
            token_bytes=0.0,
            dense_tokens=float(self.budget),
            meta_bytes=kv.meta_bytes + kv.dense_bytes / 2.0 / self.stride,
            off_bytes=kv.token_bytes,
        )


POLICIES.register("infllm_v2_offload")(
    alias(
        Nosa,
        "infllm_v2_offload",
        "InfLLM-V2 with its KV in host memory, at the overlap it shows untrained",
        "arXiv:2510.13602",
        budget=4096,
        hit=0.8,
    )
)


@POLICIES.register("alisa")
class Alisa(Policy):
    """Sparse window attention over ``keep`` of the tokens; old tokens partly in host memory, partly dropped [1]_.

    Half of the attended tokens are the newest, half are picked by the attention of as many last rows (summed over
    heads) and gathered. A step writes its probabilities, adds their sum over heads to the tokens' fp32 sums and takes
    the row that leaves away: ``4 heads k + 4 k + 4 S`` bytes written, ``4 heads k + 8 S`` read for `k` attended tokens.
    A prompt scores its last ``k / 2`` rows once more. Of the old tokens a share `host` is fetched and a share
    `recompute` has K and V computed again from its layer input. With both 0 this is the paper's first phase, with
    `host` its second, with both its third.

    References
    ----------
    .. [1] Zhao et al., "ALISA", arXiv:2403.17312.
    """

    name: ClassVar[str] = "alisa"
    family: ClassVar[str] = "placement"
    summary: ClassVar[str] = "sparse window attention with fetched and recomputed tokens"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_READS, Aspect.KV_PLACE})
    compatibility: ClassVar[Compatibility] = Compatibility(
        mla=False,
        paged_kv=False,
        prefix_cache=False,
        speculative=False,
        needs_scores=True,
        gqa="one choice for all heads",
    )
    citation: ClassVar[str] = "Zhao et al. 2024, arXiv:2403.17312"
    not_modelled: ClassVar[str] = "accuracy; memory of the layer inputs kept for recomputation"
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)
    swept: ClassVar[Swept | None] = ("keep", "share")

    keep: float = Field(0.2, gt=0.0, le=1.0, description="share of the context attended")
    host: float = Field(0.0, ge=0.0, le=1.0, description="share of the KV in host memory")
    recompute: float = Field(0.0, ge=0.0, le=1.0, description="share of the KV dropped")

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """Tokens of ordinary heads."""
        if self.host + self.recompute > 1.0:
            return "host and recompute are shares of one cache; their sum exceeds 1"
        return None

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Local sums, top-k, fetch, recomputation, a dense attention over the gathered block."""
        if not isinstance(op, Attention):
            return (op,)
        if op.phase == "prefill":
            rows = maximum(0.5 * self.keep * op.q_len, 1.0)
            vote = scoring_pass(replace(op, q_len=rows), 1.0, role="kv.observe")
            written = self.host * op.batch * op.q_len * op.dense_bytes_per_token
            return (op, vote, store(op, written)) if self.host else (op, vote)
        tokens = op.tokens
        kept = maximum(self.keep * tokens, 1.0)
        far = 0.5 * kept * op.batch
        pick = top_k(op.batch * tokens, far, heads=1.0, rows=op.batch, count=op.count)
        run = op.head_dim * op.kv_element_bytes
        scores = 4.0 * op.batch * kept * op.n_heads
        sums = Elementwise(
            role="kv.scores",
            kind="add",
            read_bytes=scores + 8.0 * op.batch * tokens,
            write_bytes=scores + 4.0 * op.batch * (kept + tokens),
            operand=Operand.INDEX,
            count=op.count,
            overhead=True,
        )
        ops: list[Op] = [sums, pick]
        if self.host:
            ops.append(
                Transfer(
                    role="kv.fetch",
                    tier="host",
                    read_bytes=far * self.host * op.dense_bytes_per_token,
                    write_bytes=self.host * op.batch * op.dense_bytes_per_token,
                    chunk_bytes=float(op.dense_bytes_per_token),
                    count=op.count,
                )
            )
        if self.recompute:
            ops.append(
                Linear(
                    role="kv.recompute",
                    keeps_weights=False,
                    m=far * self.recompute,
                    n=op.n_kv_heads * (op.head_dim + op.v_head_dim),
                    k=float(ctx.model.hidden),
                    fmt=ctx.fmt,
                    count=op.count,
                    overhead=True,
                )
            )
        return (*ops, replace(op, attended=kept, run_bytes=run))

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """Shares of the cache here and in host memory."""
        here = 1.0 - self.host - self.recompute
        return replace(
            kv,
            token_bytes=kv.token_bytes * here,
            dense_bytes=kv.dense_bytes * here,
            off_bytes=kv.token_bytes * self.host,
        )


@POLICIES.register("lamina")
class Lamina(Policy):
    """Attention runs on a pool of memory-rich devices over the network; the model's GPUs hold no KV [1]_.

    Per layer q, k, v leave and o returns, ``(2 + 2/g) b`` bytes per element of the width; the pool streams K and V.
    Batches rotate, so that pool and model work at once: ``max(model, pool, network)``. Needs two tiers in the
    profile: ``pool`` (memory of the attention devices per model GPU) and ``network`` (their link).

    References
    ----------
    .. [1] Chen et al., "Lamina", arXiv:2405.01814.
    """

    name: ClassVar[str] = "lamina"
    family: ClassVar[str] = "placement"
    summary: ClassVar[str] = "attention on other devices over a network"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_PLACE})
    compatibility: ClassVar[Compatibility] = Compatibility(prefix_cache=False)
    citation: ClassVar[str] = "Chen et al. 2024, arXiv:2405.01814"
    not_modelled: ClassVar[str] = "the pool's kernels beyond their stream; idle time of few batches"

    @property
    def home(self) -> str:
        """The attention devices."""
        return "pool"

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Decode attention elsewhere; a prompt's K and V move there once."""
        if not isinstance(op, Attention):
            return (op,)
        beside = ("attn.", "mlp.", "norm", "moe.")
        new = op.batch * op.q_len * op.dense_bytes_per_token
        q, o = op.qo_bytes
        decode = op.phase == "decode"
        wire = Transfer(
            role="kv.wire",
            tier="network",
            read_bytes=o if decode else 0.0,
            write_bytes=q + new if decode else new,
            operand=Operand.ACTIVATION,
            beside=beside,
            count=op.count,
        )
        if not decode:
            return (op, wire)
        pool = HostCompute(
            role="pool.attention",
            tier="pool",
            read_bytes=op.kv_read_bytes,
            flop=op.flop,
            operand=Operand.KV,
            beside=beside,
            count=op.count,
        )
        return (pool, wire)

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """No KV here."""
        return replace(kv, token_bytes=0.0, dense_bytes=0.0, meta_bytes=0.0, off_bytes=kv.token_bytes)
