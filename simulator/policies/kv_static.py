"""Every head sees its own fixed part of the context: no selection at run time, in prompt and decode."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from simulator.base.arrays import Array, maximum, minimum
from simulator.ops.ops import Attention, Op
from simulator.policies.base import Aspect, Compatibility, Context, KvLayout, Policy, Swept
from simulator.policies.common import bounded_pairs
from simulator.policies.grammar import POLICIES


@POLICIES.register("moa")
class Moa(Policy):
    """A window per head, linear in the context, found offline; the heads' mean is `keep` of the context [1]_.

    Decode reads ``max(keep * S, sinks)`` tokens per head on average, from a ring buffer, and keeps no others. The
    prompt is windowed: about ``keep (2 - keep)`` of the causal pairs when every head takes the mean span.

    References
    ----------
    .. [1] Fu et al., "MoA: Mixture of Sparse Attention", arXiv:2406.14909.
    """

    name: ClassVar[str] = "moa"
    family: ClassVar[str] = "kv evicted"
    summary: ClassVar[str] = "per-head windows that grow with the context"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_TOKENS, Aspect.PREFILL_MASK})
    compatibility: ClassVar[Compatibility] = Compatibility(
        mla=False, paged_kv=False, prefix_cache=False, gqa="one window per KV head"
    )
    citation: ClassVar[str] = "Fu et al. 2024, arXiv:2406.14909"
    not_modelled: ClassVar[str] = "accuracy; unequal spans of the heads beyond their mean"
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)
    swept: ClassVar[Swept | None] = ("keep", "share")

    keep: float = Field(0.5, gt=0.0, le=1.0, description="mean share of the context a head sees")
    sinks: int = Field(64, ge=0, le=65536, description="first tokens every head sees")

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Windowed reads and pairs."""
        if not isinstance(op, Attention):
            return (op,)
        if op.phase == "prefill":
            span = maximum(self.keep * op.kv_len, float(self.sinks))
            return (replace(op, pair_keep=bounded_pairs(op, span)),)
        tokens = op.tokens
        kept = maximum(self.keep * tokens, minimum(tokens, float(self.sinks)))
        return (replace(op, attended=kept),)

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """The mean span of the heads."""
        return replace(kv, keep=self.keep)


@POLICIES.register("s2_attention")
class S2Attention(Policy):
    """Head h sees its local blocks and every `stride`-th block with offset h; trained [1]_.

    Density ``1/stride + local/S`` in the sharded layers, in prompt and decode; a token's KV is kept only by the
    heads whose shard has it. Every `dense_every`-th layer stays dense.

    References
    ----------
    .. [1] Lin et al., "S2-Attention", arXiv:2407.17678.
    """

    name: ClassVar[str] = "s2_attention"
    family: ClassVar[str] = "kv evicted"
    summary: ClassVar[str] = "context blocks shared out between the heads"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_TOKENS, Aspect.PREFILL_MASK})
    compatibility: ClassVar[Compatibility] = Compatibility(mla=False, gqa="one shard per KV head")
    citation: ClassVar[str] = "Lin et al. 2024, arXiv:2407.17678"
    not_modelled: ClassVar[str] = "accuracy; unequal shards of the heads"

    stride: int = Field(16, ge=1, le=4096, description="heads between which the blocks are shared")
    block: int = Field(64, ge=16, le=1024, description="tokens per block")
    local: int = Field(1024, ge=0, le=1_000_000, description="newest tokens every head sees")
    dense_every: int = Field(0, ge=0, le=1000, description="one dense layer in so many; 0 = none")

    def layer_key(self, index: int, n_layers: int) -> Hashable:
        """Dense layers are apart."""
        return self._dense(index)

    def _dense(self, index: int) -> bool:
        return self.dense_every > 0 and index % self.dense_every == 0

    def _kept(self, tokens: Array) -> Array:
        far = maximum(tokens - self.local, 0.0)
        return minimum(tokens, float(self.local)) + far / self.stride

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """The head's own blocks."""
        if not isinstance(op, Attention) or self._dense(ctx.index):
            return (op,)
        run = self.block * op.head_dim * op.kv_element_bytes
        if op.phase == "decode":
            return (replace(op, attended=self._kept(op.tokens), run_bytes=run),)
        near = bounded_pairs(op, float(self.local))
        return (replace(op, pair_keep=near + (1.0 - near) / self.stride),)

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """Local tokens whole, one in `stride` of the rest."""
        if self._dense(ctx.index):
            return kv
        return replace(kv, keep=1.0 / self.stride, whole_tokens=float(self.local))
