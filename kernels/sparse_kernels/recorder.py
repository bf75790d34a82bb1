"""Every address a kernel touches, by tensor: what it must move, what it asks for, in which sectors and lines.

Works on Triton's interpreter, where each load and store is a numpy call with all addresses of one program.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from sparse_kernels import interpreter
from sparse_kernels.launch import Launch, captured

SECTOR_BYTES = 32
"""Smallest transfer between L2 and device memory."""
LINE_BYTES = 128
"""Cache line of L1 and L2: four sectors."""

FORBIDDEN = (
    "create_load",
    "create_store",
    "create_atomic_cas",
    "create_atomic_rmw",
    "create_tensor_pointer_load",
    "create_tensor_pointer_store",
    "create_make_tensor_descriptor",
    "create_descriptor_load",
    "create_descriptor_store",
    "create_descriptor_gather",
    "create_descriptor_scatter",
    "create_descriptor_reduce",
    "create_extern_elementwise",
    "create_inline_asm",
)
"""Ways to memory (or to code that may reach it) that the record would miss or book twice."""


class UnseenMemoryError(RuntimeError):
    """A kernel went to memory past the recorder, or outside every tensor it was given."""


@dataclass
class Touched:
    """Bytes of one tensor read, or written.

    Attributes
    ----------
    map : ndarray of bool
        One flag per byte of the tensor; sectors and lines count from its first byte, as GPU allocations
        start on 256 B at least.
    requested_bytes : int
        With repeats [B].
    """

    map: np.ndarray
    requested_bytes: int = 0

    def add(self, offsets: np.ndarray, item_bytes: int) -> None:
        """Mark `item_bytes` from each of `offsets`."""
        self.requested_bytes += offsets.size * item_bytes
        for byte in range(item_bytes):
            self.map[offsets + byte] = True

    @property
    def compulsory_bytes(self) -> int:
        """Each address once [B]."""
        return int(self.map.sum())

    def units(self, unit_bytes: int) -> int:
        """Blocks of `unit_bytes` with at least one byte touched [-]."""
        if not self.compulsory_bytes:
            return 0
        starts = np.arange(0, self.map.size, unit_bytes)
        return int(np.logical_or.reduceat(self.map, starts).sum())


@dataclass
class Record:
    """What a block of launches did.

    Attributes
    ----------
    reads, writes : dict of Touched
        By tensor name.
    dot_flop : int
        Of ``tl.dot``, padded rows included [flop].
    launches : list of Launch
    """

    reads: dict[str, Touched] = field(default_factory=dict)
    writes: dict[str, Touched] = field(default_factory=dict)
    dot_flop: int = 0
    launches: list[Launch] = field(default_factory=list)


@contextmanager
def recorded(tensors: Mapping[str, torch.Tensor]) -> Iterator[Record]:
    """Record the launches of the block against `tensors`, which must cover every address.

    Raises
    ------
    UnseenMemoryError
        At an address outside `tensors`, and at any operation of `FORBIDDEN`.
    """
    if not interpreter.is_on():
        raise RuntimeError(f"set {interpreter.SWITCH}=1 before triton is imported")
    interpreter.mend()
    from triton.runtime.interpreter import InterpreterBuilder as Builder

    record, places = Record(), _Places(tensors)
    load, store, dot = Builder.create_masked_load, Builder.create_masked_store, Builder.create_dot

    def note(into: dict[str, Touched], ptrs: Any, mask: Any) -> None:
        on = mask.data.astype(bool)
        live = np.broadcast_to(ptrs.data, on.shape)[on]
        item_bytes = max(1, ptrs.get_element_ty().primitive_bitwidth // 8)
        for name, offsets in places.split(live.astype(np.int64), item_bytes):
            places.touched(into, name).add(offsets, item_bytes)

    def masked_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        note(record.reads, ptrs, mask)
        return load(self, ptrs, mask, *rest)

    def masked_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note(record.writes, ptrs, mask)
        return store(self, ptrs, value, mask, *rest)

    def counted_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        record.dot_flop += 2 * a.data.size * b.data.shape[-1]
        return dot(self, a, b, *rest)

    def forbidden(name: str) -> Any:
        def stop(*_: Any, **__: Any) -> Any:
            raise UnseenMemoryError(f"{name.removeprefix('create_')}: use masked loads and stores only")

        return stop

    with ExitStack() as stack:
        stack.enter_context(patch.object(Builder, "create_masked_load", masked_load))
        stack.enter_context(patch.object(Builder, "create_masked_store", masked_store))
        stack.enter_context(patch.object(Builder, "create_dot", counted_dot))
        for name in FORBIDDEN:
            if hasattr(Builder, name):
                stack.enter_context(patch.object(Builder, name, forbidden(name)))
        record.launches = stack.enter_context(captured(run=True))
        yield record


class _Places:
    """Which tensor an address belongs to."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        spans = sorted((t.data_ptr(), _span_bytes(t), n) for n, t in tensors.items() if t.numel())
        self.bases = np.array([s[0] for s in spans], np.int64)
        self.sizes = np.array([s[1] for s in spans], np.int64)
        self.names = [s[2] for s in spans]
        ends = self.bases + self.sizes
        for i in np.flatnonzero(ends[:-1] > self.bases[1:]):
            raise ValueError(f"{self.names[i]} and {self.names[i + 1]} overlap in memory")

    def split(self, addresses: np.ndarray, item_bytes: int) -> Iterator[tuple[str, np.ndarray]]:
        if not addresses.size:
            return
        owner = np.searchsorted(self.bases, addresses, side="right") - 1
        offset = addresses - self.bases[owner]
        stray = (owner < 0) | (offset + item_bytes > self.sizes[owner])
        if stray.any():
            near = self.names[max(int(owner[stray][0]), 0)]
            raise UnseenMemoryError(f"{int(stray.sum())} addresses lie outside every tensor, the first after {near}")
        for i in np.unique(owner):
            yield self.names[i], offset[owner == i]

    def touched(self, into: dict[str, Touched], name: str) -> Touched:
        if name not in into:
            into[name] = Touched(np.zeros(self.sizes[self.names.index(name)], bool))
        return into[name]


def _span_bytes(t: torch.Tensor) -> int:
    last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return (last + 1) * t.element_size()
