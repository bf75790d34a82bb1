"""A policy in a package of its own: attention over a window and every n-th older block."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
from pydantic import Field

from simulator.ops.ops import Attention, Op
from simulator.policies import POLICIES, Aspect, Compatibility, Context, Policy

BLOCK_TOKENS = 16


@POLICIES.register("strided_kv")
class StridedKv(Policy):
    """Reads ``t = min(S, window) + max(S - window, 0) 16 / stride`` of S tokens; all stay in memory."""

    name: ClassVar[str] = "strided_kv"
    family: ClassVar[str] = "kv selected"
    summary: ClassVar[str] = "the newest tokens and one block of 16 in every stride of older ones"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_READS})
    compatibility: ClassVar[Compatibility] = Compatibility(gqa="same blocks for all heads")
    citation: ClassVar[str] = "example of the documentation"
    not_modelled: ClassVar[str] = "accuracy"

    window: int = Field(512, ge=0, le=1_000_000, description="newest tokens read")
    stride: int = Field(64, ge=BLOCK_TOKENS, le=4096, description="older tokens of which 16 are read")

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Fewer tokens read in decode, older ones in runs of one block; the prompt stays dense."""
        if not isinstance(op, Attention) or op.phase == "prefill":
            return (op,)
        tokens = np.asarray(op.tokens, float)
        older = np.maximum(tokens - self.window, 0.0)
        read = tokens - older * (1.0 - BLOCK_TOKENS / self.stride)
        run_bytes = BLOCK_TOKENS * op.head_dim * op.kv_element_bytes
        return (replace(op, attended=read, run_bytes=run_bytes),)
