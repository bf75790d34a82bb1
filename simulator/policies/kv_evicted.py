"""A bounded set of tokens stays in the KV cache; the others are gone."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import replace
from math import inf
from typing import ClassVar, Literal

from pydantic import Field

from simulator.base.arrays import maximum, minimum, where
from simulator.ops.ops import Attention, Elementwise, Op
from simulator.ops.traffic import Operand
from simulator.policies.base import Aspect, Compatibility, Context, KvLayout, Policy, Swept, alias
from simulator.policies.common import band, band_depth, copied, generated, prompt_of, scoring_pass, top_k
from simulator.policies.grammar import POLICIES
from simulator.policies.tokens import OUTSIDE, thinned


@POLICIES.register("streaming_llm")
class StreamingLlm(Policy):
    """The first tokens (sinks) and a sliding window of the newest stay [1]_.

    Decode reads ``min(S, sinks + window)`` tokens. Rotary positions count inside the cache, so the kept
    keys are rotated again each step: one read and one write of K. The prompt is attended densely.

    References
    ----------
    .. [1] Xiao et al., "Efficient Streaming Language Models with Attention Sinks", arXiv:2309.17453.
    """

    name: ClassVar[str] = "streaming_llm"
    family: ClassVar[str] = "kv evicted"
    summary: ClassVar[str] = "attention sinks and a sliding window"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_TOKENS})
    compatibility: ClassVar[Compatibility] = Compatibility(mla=False, prefix_cache=False)
    citation: ClassVar[str] = "Xiao et al. 2023, arXiv:2309.17453"
    not_modelled: ClassVar[str] = "accuracy"
    always_shown: ClassVar[tuple[str, ...]] = ("window",)
    swept: ClassVar[Swept | None] = ("window", "tokens")

    window: int = Field(1020, ge=1, le=10_000_000, description="newest tokens kept")
    sinks: int = Field(4, ge=0, le=1024, description="first tokens kept")

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Bounded decode reads, and the re-rotation of the kept keys."""
        if not isinstance(op, Attention) or op.phase == "prefill":
            return (op,)
        kept = minimum(op.tokens, float(self.sinks + self.window))
        attention = replace(op, attended=kept)
        if ctx.attention.position != "rope":
            return (attention,)
        key_bytes = op.batch * kept * op.n_kv_heads * op.head_dim * op.kv_element_bytes
        rotate = Elementwise(
            role="kv.rotate",
            kind="rope",
            read_bytes=key_bytes,
            write_bytes=key_bytes,
            flop=6.0 * key_bytes / op.kv_element_bytes,
            operand=Operand.KV,
            count=op.count,
            overhead=True,
        )
        return (rotate, attention)

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """A constant number of tokens."""
        most = min(kv.max_tokens, float(self.sinks + self.window))
        return replace(kv, max_tokens=most, passing_bytes=kv.dense_bytes)


@POLICIES.register("h2o")
class H2o(Policy):
    """The tokens with the most accumulated attention and the newest ones stay [1]_.

    Decode reads ``min(keep * S, budget)`` tokens. With ``track`` every step writes its probabilities, adds them to fp32
    accumulators and replaces the weakest token: 4 heads k bytes written, 8 read and 4 written for the sums, 4 read for
    the minimum. The prompt needs the column sums of its attention, so the probabilities are written and read once: no
    flash kernel. With ``merge`` dropped tokens are averaged into the nearest kept one after the prompt.

    References
    ----------
    .. [1] Zhang et al., "H2O: Heavy-Hitter Oracle", arXiv:2306.14048.
    """

    name: ClassVar[str] = "h2o"
    family: ClassVar[str] = "kv evicted"
    summary: ClassVar[str] = "heavy hitters by accumulated attention, and recent tokens"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_TOKENS})
    compatibility: ClassVar[Compatibility] = Compatibility(
        mla=False,
        paged_kv=False,
        prefix_cache=False,
        chunked_prefill=False,
        speculative=False,
        needs_scores=True,
        gqa="scores of a group are added up; one set per KV head",
    )
    citation: ClassVar[str] = "Zhang et al. 2023, arXiv:2306.14048"
    not_modelled: ClassVar[str] = "accuracy"
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)
    swept: ClassVar[Swept | None] = ("keep", "share")

    keep: float = Field(0.2, gt=0.0, le=1.0, description="share of the context kept")
    budget: int = Field(10_000_000, ge=2, le=10_000_000, description="tokens kept at most, whatever the context")
    track: bool = Field(True, description="scores are accumulated in decode too")
    merge: bool = Field(False, description="dropped tokens are averaged into kept ones")

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Fewer tokens in decode with their bookkeeping, visible probabilities in the prompt."""
        if not isinstance(op, Attention):
            return (op,)
        if op.phase == "prefill":
            return (op, *self._prompt(op))
        kept = minimum(op.tokens * self.keep, float(self.budget))
        attention = replace(op, attended=maximum(kept, 1.0))
        if not self.track:
            return (attention,)
        scores = op.batch * kept * op.n_heads
        update = Elementwise(
            role="kv.scores",
            kind="add",
            read_bytes=8.0 * scores,
            write_bytes=8.0 * scores,
            operand=Operand.INDEX,
            count=op.count,
            overhead=True,
        )
        # The least of each head: one pass over its scores, no search.
        weakest = replace(
            top_k(op.batch * kept, op.batch, heads=op.n_kv_heads, rows=op.batch, count=op.count), select_elements=0.0
        )
        return (attention, update, weakest)

    def _prompt(self, op: Attention) -> tuple[Op, ...]:
        probabilities = 2.0 * op.batch * op.q_len * op.kv_len * op.n_heads
        sums = Elementwise(
            role="kv.scores",
            kind="softmax",
            read_bytes=probabilities,
            write_bytes=probabilities,
            count=op.count,
            overhead=True,
        )
        pick = top_k(
            op.batch * op.q_len,
            op.batch * minimum(op.q_len * self.keep, float(self.budget)),
            heads=op.n_kv_heads,
            rows=op.batch,
            count=op.count,
        )
        if not self.merge:
            return (sums, pick)
        new = op.batch * op.q_len * op.dense_bytes_per_token
        return (sums, pick, copied("kv.merge", op, new, new * self.keep))

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """The share that stays, and an fp32 accumulator per token and KV head."""
        heads = kv.dense_bytes / (2.0 * ctx.attention.head_dim * ctx.kv_element_bytes)
        return replace(
            kv,
            keep=self.keep,
            max_tokens=min(kv.max_tokens, float(self.budget)),
            passing_bytes=kv.dense_bytes,
            meta_bytes=kv.meta_bytes + (4.0 * heads if self.track else 0.0),
        )


POLICIES.register("elastic_cache")(
    alias(
        H2o,
        "elastic_cache",
        "importance-driven cache merging: anchors stay, the rest is averaged into them",
        "Liu et al. 2024, arXiv:2407.18121",
        keep=0.2,
        track=False,
        merge=True,
    )
)


@POLICIES.register("snapkv")
class SnapKv(Policy):
    """The prompt tokens its last queries attend to stay, per head; generated tokens are appended [1]_.

    After the prompt: `observe` query rows against all keys, pooling, a top-k over P per KV head, and a gather of
    the kept KV. Decode reads ``min(P, budget) + generated`` tokens. With ``taper`` t the budget of a layer falls
    linearly over depth from ``(2 - 1/t) budget`` to ``budget / t`` [2]_; with ``head_groups`` heads of unlike
    budgets (mean `budget`) run as so many kernels [3]_. ``gqa=repeated`` is the
    released code [4]_: K and V are repeated for every query head before the choice, and kept so.

    References
    ----------
    .. [1] Li et al., "SnapKV", arXiv:2404.14469.
    .. [2] Cai et al., "PyramidKV", arXiv:2406.02069.
    .. [3] "UNComp", arXiv:2410.03090.
    .. [4] github.com/FasterDecoding/SnapKV, snapkv/monkeypatch; also Zefan-Cai/KVCache-Factory.
    """

    name: ClassVar[str] = "snapkv"
    family: ClassVar[str] = "kv evicted"
    summary: ClassVar[str] = "prompt tokens picked once by an observation window"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_TOKENS})
    compatibility: ClassVar[Compatibility] = Compatibility(
        mla=False,
        prefix_cache=False,
        chunked_prefill=False,
        needs_scores=True,
        gqa="scores are averaged over a group, one set per KV head; or a cache per query head (repeated)",
    )
    citation: ClassVar[str] = "Li et al. 2024, arXiv:2404.14469"
    not_modelled: ClassVar[str] = "accuracy"
    always_shown: ClassVar[tuple[str, ...]] = ("budget",)
    swept: ClassVar[Swept | None] = ("budget", "tokens")

    budget: int = Field(1024, ge=16, le=10_000_000, description="prompt tokens kept, mean over layers")
    observe: int = Field(32, ge=1, le=4096, description="last query rows that vote")
    taper: float = Field(1.0, ge=1.0, le=1000.0, description="mean over last layer's budget")
    head_groups: int = Field(1, ge=1, le=64, description="groups of heads with unlike budgets")
    gqa: Literal["shared", "repeated"] = Field(
        "shared", description="a cache per KV head, or per query head as the released code keeps it"
    )

    def layer_key(self, index: int, n_layers: int) -> Hashable:
        """Budgets by depth, in bands."""
        return band(index, n_layers) if self.taper > 1.0 else None

    def _budget(self, ctx: Context) -> float:
        last = self.budget / self.taper
        first = 2.0 * self.budget - last
        return first + (last - first) * band_depth(ctx) if self.taper > 1.0 else float(self.budget)

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Bounded decode reads; votes, top-k and a gather after the prompt."""
        if not isinstance(op, Attention):
            return (op,)
        budget = self._budget(ctx)
        if self.gqa == "repeated":
            op = replace(op, n_kv_heads=op.n_heads)
        if op.phase == "decode":
            kept = minimum(prompt_of(op, ctx), budget) + generated(op, ctx)
            kept = minimum(maximum(kept, 1.0), op.tokens)
            groups = float(self.head_groups)
            return (
                replace(
                    op,
                    attended=kept,
                    n_heads=op.n_heads / groups,
                    n_kv_heads=op.n_kv_heads / groups,
                    count=op.count * groups,
                ),
            )
        active = op.kv_len > budget
        count = where(active, op.count, 0.0)
        rows = minimum(float(self.observe), op.q_len)
        vote = scoring_pass(replace(op, q_len=rows), 1.0, role="kv.observe")
        pick = top_k(op.batch * op.kv_len, op.batch * budget, heads=op.n_kv_heads, rows=op.batch, count=count)
        kept_bytes = op.batch * minimum(op.q_len, budget) * op.dense_bytes_per_token
        run = op.head_dim * op.kv_element_bytes
        gather = copied("kv.compact", op, kept_bytes, kept_bytes, count=count, run_bytes=run)
        return (op, replace(vote, count=count), pick, gather)

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """The picked part of the prompt and every generated token."""
        # A sliding window bounds generated tokens too.
        most = min(kv.max_tokens, self._budget(ctx))
        each = ctx.attention.group_size if self.gqa == "repeated" else 1.0
        return replace(
            kv,
            token_bytes=kv.token_bytes * each,
            dense_bytes=kv.dense_bytes * each,
            max_tokens=most,
            grows=kv.max_tokens == inf,
            passing_bytes=kv.dense_bytes * each,
        )


POLICIES.register("pyramidkv")(
    alias(
        SnapKv,
        "pyramidkv",
        "SnapKV's selection with a budget that falls over the layers",
        "Cai et al. 2024, arXiv:2406.02069",
        budget=512,
        observe=8,
        taper=20.0,
    )
)
POLICIES.register("uncomp")(
    alias(
        SnapKv,
        "uncomp",
        "budgets by matrix entropy, heads in groups of their own budget",
        "Xiong et al. 2024, arXiv:2410.03090",
        budget=512,
        head_groups=2,
    )
)
POLICIES.register("ada_kv")(
    alias(
        SnapKv,
        "ada_kv",
        "SnapKV's selection with budgets that differ by head, flattened into one varlen kernel",
        "Feng et al. 2024, arXiv:2407.11550",
    )
)


@POLICIES.register("kvzip")
class KvZip(Policy):
    """The context is passed through the model once more to see which KV rebuilds it; a share `keep` stays [1]_.

    After the prompt every chunk of it is read again behind the whole cache, so every product runs a second time and
    attention over ``P^2 + P chunk / 2`` pairs, twice the causal ones and more; the chunk's rows score the chunk's keys
    (``P chunk`` pairs, materialised in 16 bit), the best of all heads stay and are gathered. Decode reads ``keep P``
    and what is generated. What is kept serves any later question on the same context.

    References
    ----------
    .. [1] Kim et al., "KVzip", NeurIPS 2025, arXiv:2505.23416.
    """

    name: ClassVar[str] = "kvzip"
    family: ClassVar[str] = "kv evicted"
    summary: ClassVar[str] = "prompt tokens that rebuild the context stay, found by a second pass"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_TOKENS})
    compatibility: ClassVar[Compatibility] = Compatibility(
        mla=False, paged_kv=False, chunked_prefill=False, needs_scores=True, gqa="one set per KV head, of unlike sizes"
    )
    citation: ClassVar[str] = "Kim et al. 2025, arXiv:2505.23416"
    not_modelled: ClassVar[str] = (
        "accuracy; the pass shared by several questions; its variant by heads (duo_attention); the few repeated tokens"
        " that open a chunk"
    )
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)
    swept: ClassVar[Swept | None] = ("keep", "share")

    keep: float = Field(0.3, gt=0.0, le=1.0, description="share of the prompt's KV kept, over all heads")
    chunk: int = Field(2048, ge=16, le=1_000_000, description="tokens rebuilt at a time")

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Bounded decode reads; the prompt's ops once more, scores and a gather."""
        if isinstance(op, Attention):
            if op.phase == "decode":
                kept = prompt_of(op, ctx) * self.keep + generated(op, ctx)
                return (replace(op, attended=minimum(maximum(kept, 1.0), op.tokens)),)
            return (op, *self._scored(op))
        if not ctx.step.prefills or op.role.startswith(OUTSIDE):
            return (op,)
        prompt = ctx.step.prefill_rows * ctx.step.prefill_tokens / ctx.step.rows
        return (op, replace(thinned(op, prompt), role=f"rebuild.{op.role}", overhead=True))  # type: ignore[type-var]

    def _scored(self, op: Attention) -> tuple[Op, ...]:
        chunk = minimum(float(self.chunk), op.q_len)
        pairs = op.q_len * (op.kv_len + 0.5 * chunk)
        again = replace(op, role="rebuild.attn.core.prefill", pair_keep=pairs / op.pairs, stores=False, overhead=True)
        score = scoring_pass(op, op.q_len * chunk / op.pairs)
        written = 2.0 * op.batch * op.q_len * chunk * op.n_heads
        kept = op.batch * op.q_len * self.keep
        kept_bytes = kept * op.dense_bytes_per_token
        run = op.head_dim * op.kv_element_bytes
        return (
            again,
            score,
            replace(copied("kv.scores", op, written, written, operand=Operand.ACTIVATION), kind="softmax"),
            top_k(op.batch * op.q_len, kept, heads=op.n_kv_heads, rows=op.batch, count=op.count),
            copied("kv.compact", op, kept_bytes, kept_bytes, run_bytes=run),
        )

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """The share of the prompt that stays, and every generated token."""
        return replace(kv, keep=self.keep, grows=math.isinf(kv.max_tokens))
