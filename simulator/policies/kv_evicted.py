"""A bounded set of tokens stays in the KV cache; the others are gone."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from pydantic import Field

from simulator.dtypes import Format
from simulator.model import ModelSpec
from simulator.ops import Attention, Elementwise, Op
from simulator.policies.base import Aspect, Compatibility, Context, KvLayout, Policy
from simulator.policies.grammar import POLICIES
from simulator.traffic import Operand


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
    compatibility: ClassVar[Compatibility] = Compatibility(prefix_cache=False)
    citation: ClassVar[str] = "Xiao et al. 2023, arXiv:2309.17453"
    not_modelled: ClassVar[str] = (
        "accuracy; peak KV of the prompt before eviction is held one layer at a time"
    )
    always_shown: ClassVar[tuple[str, ...]] = ("window",)

    window: int = Field(1020, ge=1, le=10_000_000, description="newest tokens kept")
    sinks: int = Field(4, ge=0, le=1024, description="first tokens kept")

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """The latent of MLA is rotated in part only; nobody published that kernel."""
        if any(layer.attention.mla for layer in model.layers):
            return "no published kernel evicts from the MLA latent"
        return None

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Bounded decode reads, and the re-rotation of the kept keys."""
        if not isinstance(op, Attention) or op.phase == "prefill":
            return (op,)
        kept = np.minimum(op.tokens, float(self.sinks + self.window))
        attention = replace(op, attended=kept)
        if ctx.layer.attention.position != "rope":
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
        return replace(kv, max_tokens=min(kv.max_tokens, float(self.sinks + self.window)))
