"""One case of one kernel: the simulator's Traffic beside the recorder's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from simulator.ops.granularity import moved_bytes
from simulator.ops.ops import Op
from simulator.ops.traffic import Operand
from sparse_kernels.recorder import LINE_BYTES, SECTOR_BYTES, Record, Touched, recorded
from sparse_kernels.registry import Case, Kernel, Way, kernels
from sparse_kernels.tensors import clone, poison, tensors_of

MOST_EXPLAINED = 3
"""Kernels that may carry an explanation."""
SECTOR_TOLERANCE = 0.05
"""Where rows do not start on a sector, neighbours share one: counted within this share."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Reads or writes of one operand class.

    Attributes
    ----------
    predicted_bytes, recorded_bytes, requested_bytes : float
        The simulator's useful bytes; each address once; with repeats [B].
    explained_bytes : float
        What the kernel's explanation adds to `predicted_bytes` [B].
    sectors, predicted_sectors, lines : int
        Recorded 32 B sectors, the simulator's (`granularity.moved_bytes`), and recorded 128 B lines [-].
    aligned : bool
        Every tensor is touched in whole sectors: all of it, or rows of it that are multiples of a sector.
    explained : str
        Why the simulator leaves `explained_bytes` out; empty for nearly all.
    """

    op: str
    case: str
    operand: str
    direction: Way
    predicted_bytes: float
    explained_bytes: float
    recorded_bytes: int
    requested_bytes: int
    sectors: int
    predicted_sectors: int
    lines: int
    aligned: bool
    explained: str

    @property
    def agrees(self) -> bool:
        """Useful bytes equal; sectors equal where aligned, within 5 % elsewhere."""
        # The simulator's floats of whole bytes are exact to a few units in the last place.
        expected = self.predicted_bytes + self.explained_bytes
        same = math.isclose(expected, self.recorded_bytes, rel_tol=1e-12)
        slack = 0.0 if self.aligned else SECTOR_TOLERANCE * self.sectors
        return same and abs(self.predicted_sectors - self.sectors) <= slack

    @property
    def sentence(self) -> str:
        """The row in words."""
        return (
            f"{self.op}, {self.case}: {self.operand} {self.direction} predicted"
            f" {self.predicted_bytes + self.explained_bytes:,.2f} B in {self.predicted_sectors:,} sectors,"
            f" recorded {self.recorded_bytes:,} B in {self.sectors:,}"
        )

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "agrees": self.agrees}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One case: its rows and what belongs to no operand class."""

    op: str
    case: str
    rows: tuple[Row, ...]
    launches: int
    predicted_flop: float
    dot_flop: int
    workspace_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``, without the rows."""
        return {k: v for k, v in asdict(self).items() if k != "rows"}


def record(kernel: Kernel, inputs: Mapping[str, Any]) -> Record:
    """Run the Triton kernel on copies of `inputs` in the interpreter, recorded."""
    work = clone(inputs)
    buffers = kernel.buffers(**work)
    poison(buffers)
    with recorded(tensors_of({**work, **buffers})) as got:
        kernel.triton(**work, **buffers)
    return got


def check(kernel: Kernel, case: Case) -> Check:
    """Record one case and set the simulator's Traffic beside it."""
    inputs = kernel.inputs(case, 0, "cpu")
    got, ops = record(kernel, inputs), kernel.ops(case, inputs)
    return Check(
        op=kernel.name,
        case=case.name,
        rows=tuple(_rows(kernel, case, inputs, ops, got)),
        launches=len(got.launches),
        predicted_flop=float(sum(np.sum(o.traffic().total_flop) for o in ops)),
        dot_flop=got.dot_flop,
        workspace_bytes=sum(
            t.compulsory_bytes
            for side, way in ((got.reads, "read"), (got.writes, "write"))
            for name, t in side.items()
            if getattr(kernel.operands[name], way) is None
        ),
    )


def explained_kernels() -> list[Kernel]:
    """Kernels that carry an explanation."""
    return [k for k in kernels().values() if k.explained]


def _rows(kernel: Kernel, case: Case, inputs: Mapping[str, Any], ops: Sequence[Op], got: Record) -> list[Row]:
    shapes = tensors_of({**inputs, **kernel.buffers(**inputs)})
    rows = []
    sides: dict[Way, Mapping[str, Touched]] = {"read": got.reads, "write": got.writes}
    for way, side in sides.items():
        for operand in Operand:
            names = [n for n in side if getattr(kernel.operands[n], way) == operand]
            mine = [side[n] for n in names]
            useful, sectors = predicted(ops, operand, way)
            extra = [e for e in kernel.explained if e.operand == operand and e.direction == way]
            added = [float(e.extra_bytes(case, inputs)) for e in extra]
            if not mine and not useful:
                continue
            rows.append(
                Row(
                    op=kernel.name,
                    case=case.name,
                    operand=str(operand),
                    direction=way,
                    predicted_bytes=useful,
                    explained_bytes=sum(added),
                    recorded_bytes=sum(t.compulsory_bytes for t in mine),
                    requested_bytes=sum(t.requested_bytes for t in mine),
                    sectors=sum(t.units(SECTOR_BYTES) for t in mine),
                    # Bytes left out among others move with their sectors all the same.
                    predicted_sectors=sectors + sum(math.ceil(b / SECTOR_BYTES) for b in added if b > 0),
                    lines=sum(t.units(LINE_BYTES) for t in mine),
                    aligned=all(_whole_sectors(shapes[n], side[n]) for n in names),
                    explained="; ".join(e.reason for e in extra),
                )
            )
    return rows


def _whole_sectors(tensor: torch.Tensor, touched: Touched) -> bool:
    everything = touched.compulsory_bytes == touched.map.size
    piece = touched.map.size if everything else tensor.shape[-1] * tensor.element_size()
    return piece % SECTOR_BYTES == 0


def predicted(ops: Sequence[Op], operand: Operand, way: str) -> tuple[float, int]:
    """Useful bytes [B] and 32-byte sectors [-] the simulator expects of one operand class."""
    useful, moved = 0.0, 0.0
    for op in ops:
        access = op.traffic().access.get(operand)
        if access is None:
            continue
        part = float(np.sum(access.read_bytes if way == "read" else access.write_bytes))
        run = float(np.max(access.run_bytes)) if way == "read" else math.inf
        useful += part
        moved += float(moved_bytes(part, run, SECTOR_BYTES))
    return useful, math.ceil(moved / SECTOR_BYTES - 1e-9)
