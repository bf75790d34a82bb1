"""Ops of what does not lie in the GPU's memory: copies over a link, and products done by the host."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from simulator.base.arrays import Array
from simulator.base.dtypes import DType
from simulator.ops.ops import STREAM
from simulator.ops.part import OpPart
from simulator.ops.traffic import Access, Operand, Traffic

COPY_ENGINE = 1.0
"""Pieces in flight when each is a copy of its own [-]."""
FLASH_THREADS = 32.0
"""Reads in flight of a flash reader, as LLM in a flash does (arXiv:2312.11514) [-]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Bytes moved between the GPU and another memory tier.

    Attributes
    ----------
    tier : str
        Memory tier of the profile whose link is used: ``host``, ``cxl``, ``ssd``.
    read_bytes, write_bytes : Array
        Towards the GPU and away from it [B]; the link is full duplex.
    chunk_bytes : float
        Contiguous bytes per piece [B]; inf for one long copy.
    in_flight : float
        Pieces on their way at once [-]; inf where a kernel reads the tier itself (zero copy).
    operand : Operand
        What is moved.
    beside : tuple of str
        Roles (as prefixes) of the ops it runs beside: only what outlasts them is waited for.
    """

    role: str
    tier: str
    read_bytes: Array
    write_bytes: Array = 0.0
    chunk_bytes: float = STREAM
    in_flight: float = STREAM
    operand: Operand = Operand.KV
    beside: tuple[str, ...] = ()
    count: Array = 1.0
    part: OpPart = OpPart.OTHER
    overhead: bool = True
    graph_safe: bool = True
    host_sync: float = 0.0

    def traffic(self) -> Traffic:
        """Bytes over the link; the GPU's own memory sees them as writes, which are not counted twice."""
        runs = self.read_bytes / self.chunk_bytes if isfinite(self.chunk_bytes) else 0.0
        return Traffic(
            {},
            {self.operand: Access(self.read_bytes, self.write_bytes, runs)},
            launches=1.0,
            graph_safe=self.graph_safe,
            host_sync=self.host_sync,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCompute:
    """A product done by the CPU on weights or KV in its own memory, beside the GPU.

    Attributes
    ----------
    read_bytes : Array
        Bytes the CPU streams from its memory [B].
    flop : Array
        Multiply-adds, counted twice [flop]; the CPU is taken to be bound by its memory.
    beside : tuple of str
        Roles (as prefixes) of the GPU ops it runs beside.
    """

    role: str
    read_bytes: Array
    flop: Array = 0.0
    tier: str = "dram"
    operand: Operand = Operand.WEIGHT
    beside: tuple[str, ...] = ()
    count: Array = 1.0
    part: OpPart = OpPart.OTHER
    overhead: bool = False
    graph_safe: bool = False
    host_sync: float = 1.0

    def traffic(self) -> Traffic:
        """What the CPU reads and computes."""
        return Traffic(
            {DType.FP32: self.flop},
            {self.operand: Access(self.read_bytes)},
            graph_safe=self.graph_safe,
            host_sync=self.host_sync,
        )
