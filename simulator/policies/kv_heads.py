"""Some KV heads keep the whole context, the others first and newest tokens only: DuoAttention, LServe."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from simulator.base.arrays import minimum
from simulator.ops.ops import Attention, Op
from simulator.policies.base import Aspect, Compatibility, Context, KvLayout, Policy, Swept
from simulator.policies.common import bounded_pairs, select
from simulator.policies.grammar import POLICIES


def share_of_heads(op: Attention, share: float) -> Attention:
    """`op` over a `share` of its KV heads, whole groups of query heads with them."""
    return replace(op, n_heads=op.n_heads * share, n_kv_heads=op.n_kv_heads * share)


def streaming(op: Attention, tokens: float) -> Attention:
    """`op` with at most `tokens` keys per query: sinks and the newest."""
    if op.phase == "prefill":
        return replace(op, pair_keep=bounded_pairs(op, tokens))
    return replace(op, attended=minimum(op.tokens, tokens))


def few_of_the_rest(kv: KvLayout, keep: float, tokens: float) -> KvLayout:
    """`tokens` tokens in every head, what is behind them in a share `keep` of the heads."""
    return replace(kv, keep=keep, whole_tokens=tokens)


@POLICIES.register("duo_attention")
class DuoAttention(Policy):
    """A share `keep` of the KV heads (retrieval heads, found offline) keeps all; the others stream [1]_.

    Decode reads ``keep S + (1 - keep) min(S, sinks + window)`` tokens in two kernels per layer; the cache holds as
    many. In the prompt a streaming head's query sees ``sinks + window`` keys. Published at 0.25 for models without and
    0.5 for models with grouped queries.

    References
    ----------
    .. [1] Xiao et al., "DuoAttention", arXiv:2410.10819.
    """

    name: ClassVar[str] = "duo_attention"
    family: ClassVar[str] = "kv evicted"
    summary: ClassVar[str] = "retrieval heads keep the context, streaming heads sinks and a window"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_TOKENS, Aspect.PREFILL_MASK})
    compatibility: ClassVar[Compatibility] = Compatibility(
        mla=False, paged_kv=False, prefix_cache=False, gqa="whole groups are retrieval or streaming"
    )
    citation: ClassVar[str] = "Xiao et al. 2024, arXiv:2410.10819"
    not_modelled: ClassVar[str] = "accuracy; layers whose share of retrieval heads differs from the mean"
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)
    swept: ClassVar[Swept | None] = ("keep", "share")

    keep: float = Field(0.5, gt=0.0, le=1.0, description="share of KV heads that keep the whole context")
    sinks: int = Field(64, ge=0, le=65536, description="first tokens a streaming head keeps")
    window: int = Field(256, ge=1, le=1_000_000, description="newest tokens a streaming head keeps")

    @property
    def _stream_tokens(self) -> float:
        return float(self.sinks + self.window)

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """One kernel per kind of head, in prompt and decode."""
        if not isinstance(op, Attention) or self.keep == 1.0:
            return (op,)
        return (share_of_heads(op, self.keep), streaming(share_of_heads(op, 1.0 - self.keep), self._stream_tokens))

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """Every head's stream, and the retrieval heads' context behind it."""
        return few_of_the_rest(kv, self.keep, self._stream_tokens)


@POLICIES.register("lserve")
class LServe(Policy):
    """DuoAttention's two kinds of heads; in decode the others read the best pages, chosen every few steps [1]_.

    Pages of `page` tokens are scored by key minima and maxima, which all heads of a group share; estimate and top-k run
    once in `reuse` steps. Above `budget` tokens a dense head reads `budget`, at any context. Its engine stores 8- or
    4-bit weights and KV: add ``kv_quant(bits=8)`` or ``kv_quant(bits=4)``.

    References
    ----------
    .. [1] Yang et al., "LServe", MLSys 2025, arXiv:2502.14866; defaults of its benchmark scripts.
    """

    name: ClassVar[str] = "lserve"
    family: ClassVar[str] = "kv selected"
    summary: ClassVar[str] = "half the heads stream, the others read pages chosen every few steps"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_TOKENS, Aspect.KV_READS, Aspect.PREFILL_MASK})
    compatibility: ClassVar[Compatibility] = Compatibility(
        mla=False, prefix_cache=False, gqa="the heads of a group share pages"
    )
    citation: ClassVar[str] = "Yang et al. 2025, arXiv:2502.14866"
    not_modelled: ClassVar[str] = "accuracy; the sparse prompt it takes from MInference for very long inputs"
    always_shown: ClassVar[tuple[str, ...]] = ("keep", "budget")
    swept: ClassVar[Swept | None] = ("budget", "tokens")

    keep: float = Field(0.5, gt=0.0, le=1.0, description="share of KV heads that do not stream")
    budget: int = Field(4096, ge=16, le=10_000_000, description="tokens such a head reads per step")
    page: int = Field(16, ge=1, le=256, description="tokens per scored page")
    reuse: int = Field(4, ge=1, le=1024, description="steps that share one choice of pages")
    sinks: int = Field(64, ge=0, le=65536, description="first tokens a streaming head keeps")
    window: int = Field(256, ge=1, le=1_000_000, description="newest tokens a streaming head keeps")

    @property
    def _stream_tokens(self) -> float:
        return float(self.sinks + self.window)

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Streaming heads apart; the others' pages scored now and then."""
        if not isinstance(op, Attention):
            return (op,)
        whole = share_of_heads(op, self.keep)
        rest = () if self.keep == 1.0 else (streaming(share_of_heads(op, 1.0 - self.keep), self._stream_tokens),)
        if op.phase == "prefill":
            return (whole, *rest)
        *search, core = select(
            whole,
            budget=float(self.budget),
            read=float(self.budget),
            unit=self.page,
            unit_bytes=whole.dense_bytes_per_token,
            unit_flop=4.0 * whole.n_heads * whole.head_dim,
            run_bytes=self.page * whole.head_dim * whole.kv_element_bytes,
            heads=whole.n_kv_heads,
        )
        return (*(replace(o, count=o.count / self.reuse) for o in search), core, *rest)  # type: ignore[type-var]

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """As DuoAttention, and two statistics vectors per page."""
        kv = few_of_the_rest(kv, self.keep, self._stream_tokens)
        return replace(kv, meta_bytes=kv.meta_bytes + kv.dense_bytes / self.page)
