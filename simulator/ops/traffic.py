"""What one op asks of any machine: flop, bytes by operand and run length, launches. Device-free and additive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from simulator.base.arrays import Array
from simulator.base.dtypes import DType


class Operand(StrEnum):
    """Operand classes; a `Placement` says on which tier each lives."""

    WEIGHT = "weight"
    KV = "kv"
    ACTIVATION = "activation"
    INDEX = "index"


@dataclass(frozen=True, slots=True)
class Access:
    """Bytes of one operand class; every field broadcasts.

    Attributes
    ----------
    read_bytes, write_bytes : Array
        Useful bytes, each address counted once [B].
    runs : Array
        Contiguous pieces the reads fall into [-]; 0 means one endless stream.
    """

    read_bytes: Array = 0.0
    write_bytes: Array = 0.0
    runs: Array = 0.0

    def __add__(self, other: Access) -> Access:
        return Access(self.read_bytes + other.read_bytes, self.write_bytes + other.write_bytes, self.runs + other.runs)

    def scaled(self, count: Array) -> Access:
        """The same access `count` times."""
        return Access(self.read_bytes * count, self.write_bytes * count, self.runs * count)

    @property
    def total_bytes(self) -> Array:
        """Bytes read and written [B]."""
        return self.read_bytes + self.write_bytes

    @property
    def run_bytes(self) -> Array:
        """Mean length of a contiguous read [B]; inf for a stream."""
        runs = np.asarray(self.runs, float)
        return np.where(runs > 0, self.read_bytes / np.where(runs > 0, runs, 1.0), np.inf)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Demand of one op or a sum of ops.

    Addition is commutative and associative with ``Traffic()`` as its zero, so ``sum(ops)`` is legal.

    Attributes
    ----------
    flop : mapping of DType to Array
        Multiplies and adds counted separately [flop].
    access : mapping of Operand to Access
        Useful bytes per operand class [B].
    launches : Array
        Kernel launches [-].
    graph_safe : bool
        False where the kernel's shape depends on data, which splits a CUDA graph.
    host_sync : Array
        Times per step the host waits for a value from the device [-].
    """

    flop: Mapping[DType, Array] = field(default_factory=dict)
    access: Mapping[Operand, Access] = field(default_factory=dict)
    launches: Array = 0.0
    graph_safe: bool = True
    host_sync: Array = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        flop = dict(self.flop)
        for dtype, value in other.flop.items():
            flop[dtype] = flop.get(dtype, 0.0) + value
        access = dict(self.access)
        for operand, value in other.access.items():
            access[operand] = access[operand] + value if operand in access else value
        return Traffic(
            flop,
            access,
            self.launches + other.launches,
            self.graph_safe and other.graph_safe,
            self.host_sync + other.host_sync,
        )

    def __radd__(self, other: object) -> Traffic:
        if other == 0:
            return self
        return NotImplemented

    def scaled(self, count: Array) -> Traffic:
        """The same demand `count` times."""
        return Traffic(
            {d: f * count for d, f in self.flop.items()},
            {o: a.scaled(count) for o, a in self.access.items()},
            self.launches * count,
            self.graph_safe,
            self.host_sync * count,
        )

    @property
    def total_flop(self) -> Array:
        """Sum over dtypes [flop]."""
        return sum(self.flop.values(), 0.0)

    @property
    def total_bytes(self) -> Array:
        """Sum over operands, reads and writes [B]."""
        return sum((a.total_bytes for a in self.access.values()), 0.0)

    def read_bytes(self, operand: Operand) -> Array:
        """Useful bytes read of one operand class [B]."""
        return self.access[operand].read_bytes if operand in self.access else 0.0
