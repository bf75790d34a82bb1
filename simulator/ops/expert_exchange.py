"""Tokens sent to the ranks that hold their experts, or brought back: half of an expert-parallel layer's all-to-all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simulator.base.arrays import Array
from simulator.ops.part import OpPart
from simulator.ops.traffic import Access, Operand, Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertExchange:
    """Dispatch or combine of one MoE layer on one rank.

    Attributes
    ----------
    op : {'dispatch', 'combine'}
        Tokens to their experts, or results back.
    tokens : Array
        Tokens this rank holds [-].
    hidden, top_k : float
        Model width, and experts a token goes to [-].
    n_ranks : int
        Ranks that share the experts.
    element_bytes : float
        Bytes of an element on the link [B].
    sms : Array
        SMs that copy, where the kernel is told how many [-].
    per_expert : bool
        A copy for every expert (low-latency kernels) in place of one for every rank that holds any of them.
    """

    role: str
    op: Literal["dispatch", "combine"]
    tokens: Array
    hidden: Array
    top_k: Array
    n_ranks: int
    element_bytes: float
    per_expert: bool = False
    sms: Array = 24.0
    launches: float = 1.0
    count: Array = 1.0
    part: OpPart = OpPart.COMMUNICATION
    overhead: bool = False
    graph_safe: bool = True
    host_sync: float = 0.0

    @property
    def copies(self) -> Array:
        """Copies of a token that leave the rank under even routing [-].

        ``top_k (n-1)/n``, or the ranks reached among the others, ``(n-1) (1 - (1 - 1/n)^top_k)``.
        """
        n = float(self.n_ranks)
        if self.per_expert:
            return self.top_k * (n - 1.0) / n
        return (n - 1.0) * (1.0 - (1.0 - 1.0 / n) ** self.top_k)

    @property
    def link_bytes(self) -> Array:
        """Bytes this rank sends [B]; as many come in."""
        return self.tokens * self.copies * self.hidden * self.element_bytes

    def traffic(self) -> Traffic:
        """Sent bytes read, received ones written."""
        return Traffic(
            {},
            {Operand.ACTIVATION: Access(self.link_bytes, self.link_bytes)},
            launches=self.launches,
            graph_safe=self.graph_safe,
            host_sync=self.host_sync,
        )
