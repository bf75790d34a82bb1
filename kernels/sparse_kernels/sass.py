"""What the disassembly of a kernel says: registers, spills, and how it loads and multiplies."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

_USE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_SPILLED = re.compile(r"(\d+) bytes spill (?:stores|loads)")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)

TENSOR = ("HMMA", "IMMA", "QMMA", "OMMA", "DMMA", "HGMMA", "IGMMA", "QGMMA", "UTC")
"""Tensor-core instructions: Ampere and Ada, consumer Blackwell, Hopper (GMMA), data-centre Blackwell (UTC*MMA)."""
NOT_TENSOR = ("UTCBAR", "UTCATOMSWS", "UTCCP", "UTCSHIFT")
"""Fifth-generation instructions beside the products: barriers, allocation, copies."""


@dataclass(frozen=True)
class Use:
    """Static facts of one compiled kernel.

    Attributes
    ----------
    registers : int
        Per thread [-].
    local_bytes : int
        Stack and local memory per thread: spilled registers, or the tables of a library function (sine) [B].
    loads, wide_loads, async_loads : int
        Instructions that read global memory; those of 16 B or more per thread or by a copy engine; those
        that go past the registers (LDGSTS, UBLKCP) [-].
    load_bytes : int
        What all loads into registers bring one thread, if each ran once [B].
    tensor_instructions : int
        Of tensor cores [-].
    tensor_kinds : str
        Their names, e.g. "HGMMA".
    instructions : int
        All [-].
    """

    registers: int
    local_bytes: int
    loads: int
    wide_loads: int
    async_loads: int
    load_bytes: int
    tensor_instructions: int
    tensor_kinds: str
    instructions: int


def read(listing: str) -> Use:
    """Facts from what ``cuobjdump -res-usage -sass`` says of one kernel."""
    found = _USE.search(listing)
    if found is None:
        raise ValueError(f"no resource usage in cuobjdump's answer: {listing[:200]!r}")
    registers, stack, _, local = map(int, found.groups())
    opcodes = Counter(_INSTRUCTION.findall(listing))
    if not opcodes:
        raise ValueError("no instructions in cuobjdump's listing")

    def count(*names: str, having: str = "") -> int:
        return sum(n for op, n in opcodes.items() if op.split(".")[0] in names and having in op)

    bulk = count("UBLKCP", "UTMALDG")
    tensor = {op: n for op, n in opcodes.items() if op.startswith(TENSOR) and not op.startswith(NOT_TENSOR)}
    return Use(
        registers=registers,
        local_bytes=stack + local,
        loads=count("LDG", "LDGSTS") + bulk,
        wide_loads=sum(count("LDG", "LDGSTS", having=w) for w in (".128", ".256")) + bulk,
        async_loads=count("LDGSTS") + bulk,
        load_bytes=sum(n * _width(op) for op, n in opcodes.items() if op.split(".")[0] == "LDG"),
        tensor_instructions=sum(tensor.values()),
        tensor_kinds="+".join(sorted({op.split(".")[0] for op in tensor})),
        instructions=sum(opcodes.values()),
    )


def _width(opcode: str) -> int:
    """Bytes per thread of one load [B]: a word unless its name says otherwise."""
    widths = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((widths[part] for part in opcode.split(".") if part in widths), 4)


def disassemble(cubin: bytes) -> Use:
    """Facts of a cubin, with the cuobjdump that Triton's wheel brings."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", str(path)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return read(said)


def spilled_bytes(log: str) -> int:
    """Bytes per thread that ptxas reports as spilled to local memory, stores and loads [B]."""
    return sum(int(n) for n in _SPILLED.findall(log))
