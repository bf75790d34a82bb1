"""Whole layers removed."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from simulator.ops.ops import Op
from simulator.policies.base import Aspect, Context, KvLayout, Policy, Swept
from simulator.policies.grammar import POLICIES


@POLICIES.register("shortgpt")
class ShortGpt(Policy):
    """The layers that change the residual stream least are removed: their weights, work and KV are gone [1]_.

    ``round((1 - keep) L)`` layers in front of the last one, where the least influential mostly lie [2]_.

    References
    ----------
    .. [1] Men et al., "ShortGPT", arXiv:2403.03853.
    .. [2] Gromov et al., "The Unreasonable Ineffectiveness of the Deeper Layers", arXiv:2403.17887.
    """

    name: ClassVar[str] = "shortgpt"
    family: ClassVar[str] = "weights"
    summary: ClassVar[str] = "layers removed, with their weights and their KV"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_SHAPE})
    citation: ClassVar[str] = "Men et al. 2024, arXiv:2403.03853"
    not_modelled: ClassVar[str] = (
        "accuracy and its recovery; which layers, where they differ in shape; early exit by token"
    )
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)
    swept: ClassVar[Swept | None] = ("keep", "share")

    keep: float = Field(0.75, gt=0.0, le=1.0, description="share of the layers kept")

    def layer_key(self, index: int, n_layers: int) -> Hashable:
        """Removed or not."""
        return self._gone(index, n_layers)

    def _gone(self, index: int, n_layers: int) -> bool:
        removed = min(round((1.0 - self.keep) * n_layers), n_layers - 1)
        return n_layers - 1 - removed <= index < n_layers - 1

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Nothing in a removed layer."""
        return () if self._gone(ctx.index, ctx.model.n_layers) else (op,)

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """Nothing in a removed layer."""
        if not self._gone(ctx.index, ctx.model.n_layers):
            return kv
        return replace(kv, token_bytes=0.0, dense_bytes=0.0, meta_bytes=0.0)
