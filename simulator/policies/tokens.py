"""Tokens that skip layers: pruned once (vision tokens) or chosen in every block (FTP)."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from math import inf
from typing import ClassVar

from pydantic import Field

from simulator.base.arrays import Array, expm1, log1p, minimum
from simulator.ops.ops import Attention, Collective, Elementwise, Linear, Moe, Op
from simulator.policies.base import Aspect, Compatibility, Context, KvLayout, Policy, Swept, alias
from simulator.policies.common import generated, prompt_of, scoring_pass, top_k
from simulator.policies.grammar import POLICIES

OUTSIDE = ("lm_head", "norm.final", "sample", "unembed", "embed")
"""Ops that belong to no block."""


def thinned(op: Op, share: Array) -> Op:
    """`op` over `share` of its rows; the attention's core is the policy's own matter."""
    if isinstance(op, Linear):
        return replace(op, m=op.m * share)
    if isinstance(op, Elementwise):
        return replace(op, read_bytes=op.read_bytes * share, write_bytes=op.write_bytes * share)
    if isinstance(op, Collective):
        return replace(op, message_bytes=op.message_bytes * share)
    if isinstance(op, Moe):
        return replace(op, tokens=op.tokens * share)
    return op


@POLICIES.register("ftp")
class Ftp(Policy):
    """A router keeps `keep` of the tokens in every block; the others pass by on the residual, without K and V [1]_.

    Prompt: every op of a block sees ``keep P`` tokens. Decode: a row is in the block with probability `keep`;
    weights are read unless no row of the step is, ``1 - (1 - keep)^rows``.

    References
    ----------
    .. [1] Li et al., "FTP: A Fine-grained Token-wise Pruner", arXiv:2412.11494.
    """

    name: ClassVar[str] = "ftp"
    family: ClassVar[str] = "token pruning"
    summary: ClassVar[str] = "a router lets tokens skip blocks"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.TOKENS, Aspect.KV_TOKENS})
    compatibility: ClassVar[Compatibility] = Compatibility(prefix_cache=False)
    citation: ClassVar[str] = "Li et al. 2024, arXiv:2412.11494"
    not_modelled: ClassVar[str] = "accuracy; the router on four features; uneven blocks"
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)
    swept: ClassVar[Swept | None] = ("keep", "share")

    keep: float = Field(0.7, gt=0.0, le=1.0, description="share of tokens that enter a block")

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Fewer rows, fewer keys."""
        if op.role.startswith(OUTSIDE):
            return (op,)
        if isinstance(op, Attention):
            if op.phase == "prefill":
                q, kv = op.q_len * self.keep, op.kv_len * self.keep
                return (replace(op, q_len=q, kv_len=kv),)
            return (replace(op, attended=op.tokens * self.keep, batch=op.batch * self.keep),)
        new = thinned(op, self.keep)
        if isinstance(new, Linear) and ctx.decode_only:
            touched = -expm1(ctx.step.rows * log1p(-min(self.keep, 1.0 - 1e-12)))
            new = replace(new, read_keep=new.read_keep * touched)
        return (new,)

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """K and V of the tokens that entered."""
        return replace(kv, keep=self.keep)


POLICIES.register("mixture_of_depths")(
    alias(
        Ftp,
        "mixture_of_depths",
        "trained routers let all but an eighth of the tokens skip every other block",
        "Raposo et al. 2024, arXiv:2404.02258",
        keep=0.5625,
    )
)


@POLICIES.register("vision_tokens")
class VisionTokens(Policy):
    """After layer `from_layer` the weakest vision tokens of the prompt are dropped for good [1]_.

    Later layers compute and cache ``1 - share (1 - keep)`` of the prompt. As in its code, the last token's attention
    in one layer ranks them, the heads' mean: Q K^T of one row and a top-k over the vision tokens.

    References
    ----------
    .. [1] Chen et al., "An Image is Worth 1/2 Tokens After Layer 2" (FastV), arXiv:2403.06764.
    """

    name: ClassVar[str] = "vision_tokens"
    family: ClassVar[str] = "token pruning"
    summary: ClassVar[str] = "vision tokens dropped after an early layer"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.TOKENS, Aspect.KV_TOKENS})
    compatibility: ClassVar[Compatibility] = Compatibility(prefix_cache=False, chunked_prefill=False, needs_scores=True)
    citation: ClassVar[str] = "Chen et al. 2024, arXiv:2403.06764"
    not_modelled: ClassVar[str] = "accuracy; the vision encoder"
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)
    swept: ClassVar[Swept | None] = ("keep", "share")

    keep: float = Field(0.5, gt=0.0, le=1.0, description="share of vision tokens kept")
    share: float = Field(0.9, ge=0.0, le=1.0, description="vision tokens over prompt; assumed")
    from_layer: int = Field(2, ge=0, le=1000, description="layers that see every token")

    def layer_key(self, index: int, n_layers: int) -> Hashable:
        """Before and after the cut."""
        return index >= self.from_layer

    @property
    def _left(self) -> float:
        return 1.0 - self.share * (1.0 - self.keep)

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Fewer prompt tokens in the later layers."""
        if ctx.index < self.from_layer or op.role.startswith(OUTSIDE):
            return (op,)
        if isinstance(op, Attention):
            if op.phase == "prefill":
                left = replace(op, q_len=op.q_len * self._left, kv_len=op.kv_len * self._left)
                return (*self._ranked(op), left) if ctx.index == self.from_layer else (left,)
            kept = prompt_of(op, ctx) * self._left + generated(op, ctx)
            return (replace(op, attended=minimum(kept, op.tokens)),)
        return (op,) if ctx.decode_only else (thinned(op, self._left),)

    def _ranked(self, op: Attention) -> tuple[Op, ...]:
        """The last row's scores and the best vision tokens, in one layer."""
        vote = scoring_pass(replace(op, q_len=1.0, count=1.0), 1.0, role="kv.observe")
        seen = op.batch * op.kv_len * self.share
        return (vote, top_k(seen, seen * self.keep, heads=1.0, rows=op.batch, count=1.0))

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """What is left of the prompt, and all that is generated."""
        if ctx.index < self.from_layer:
            return kv
        return replace(kv, keep=self._left, grows=kv.max_tokens == inf)
