"""K and V of old tokens kept as low-rank factors."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from simulator.base.arrays import maximum
from simulator.base.dtypes import sixteen_bit
from simulator.ops.ops import Attention, Linear, Op
from simulator.policies.base import Aspect, Compatibility, Context, KvLayout, Policy, Swept
from simulator.policies.grammar import POLICIES
from simulator.policies.kv_compressed import mean_token_bytes


@POLICIES.register("cskv")
class Cskv(Policy):
    """The cache holds X A_K and X A_V of rank ``keep * width``; K and V are rebuilt by B_K and B_V [1]_.

    Bytes per old token ``keep * bits / 16`` of dense behind a dense window. Each decode step rebuilds K and V of
    every old token, ``4 S keep width^2`` flop per layer (K cannot skip it because of the rotary position): a method
    for memory, which publishes no speed.

    References
    ----------
    .. [1] Wang et al., "CSKV", arXiv:2409.10593.
    """

    name: ClassVar[str] = "cskv"
    family: ClassVar[str] = "kv compressed"
    summary: ClassVar[str] = "low-rank K and V, optionally quantised, rebuilt each step"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_FORMAT})
    compatibility: ClassVar[Compatibility] = Compatibility(
        mla=False, prefix_cache=True, gqa="rank is a share of the KV width"
    )
    citation: ClassVar[str] = "Wang et al. 2024, arXiv:2409.10593"
    not_modelled: ClassVar[str] = (
        "accuracy; scales of the 4-bit form; the rebuilt tokens' trip through memory is the product's output"
    )
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)
    swept: ClassVar[Swept | None] = ("keep", "share")

    keep: float = Field(0.2, gt=0.0, le=1.0, description="rank over the KV width")
    window: int = Field(32, ge=0, le=8192, description="newest tokens kept dense")
    bits: Literal["4", "16"] = Field("16", description="bits per stored element of the factors")

    def _share(self, element_bytes: float) -> float:
        return self.keep * int(self.bits) / 8.0 / element_bytes

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Compressed reads and the rebuilding products in decode; down-projections of what is new."""
        if not isinstance(op, Attention):
            return (op,)
        width = op.n_kv_heads * op.head_dim
        rank = max(self.keep * width, 1.0)
        down = Linear(
            role="compress.kv",
            m=op.batch * op.q_len,
            n=2.0 * rank,
            k=width,
            fmt=sixteen_bit(ctx.fmt),
            count=op.count,
            overhead=True,
        )
        if op.phase == "prefill":
            return (op, down)
        old = op.batch * maximum(op.tokens - self.window, 1e-9)
        rebuild = Linear(
            role="rebuild.kv", m=old, n=2.0 * width, k=rank, fmt=sixteen_bit(ctx.fmt), count=op.count, overhead=True
        )
        dense = op.dense_bytes_per_token
        per_token = mean_token_bytes(op.tokens, dense, dense * self._share(op.kv_element_bytes), self.window)
        return (down, rebuild, replace(op, bytes_per_token=per_token))

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """Factors behind a dense window."""
        return replace(
            kv, token_bytes=kv.token_bytes * self._share(ctx.kv_element_bytes), dense_tokens=float(self.window)
        )
