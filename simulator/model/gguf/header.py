"""The header of a GGUF file: its facts and its table of tensors [1]_.

Nothing of the weights is read, so a file that was fetched in part is enough. What the file says of its own sizes is
never believed: every count is read element by element, up to `MOST_BYTES`.

References
----------
.. [1] https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.base.dtypes import GGUF_TYPES, Format
from simulator.base.errors import InputError, reason

MOST_BYTES = 128 * 2**20
"""Bytes of one header; the tokenizers of 256k tokens take 15 MB [B]."""
_MOST_PARTS = 1000
_LONGEST_TEXT = 2**16
_LONGEST_LIST = 2**16
"""Longer texts and lists are of the tokenizer; they are passed over."""
_MOST_ELEMENTS = 2**50
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf\Z")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One line of the table.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Innermost first, as the file has it: a matrix of ``n`` outputs and ``k`` inputs is ``(k, n)``.
    stored : Format
        How its elements are stored.
    """

    name: str
    shape: tuple[int, ...]
    stored: Format

    @property
    def elements(self) -> int:
        """Elements [-]."""
        out = 1
        for n in self.shape:
            out *= n
        return out

    @property
    def bytes(self) -> float:
        """What the file keeps of it [B]."""
        return self.elements * self.stored.weight_bytes


@dataclass(frozen=True, slots=True)
class Header:
    """Facts by key, without the tokenizer's long lists, and tensors by name."""

    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def parts_of(file: Path) -> tuple[Path, ...]:
    """The files that `file` is one of (``NAME-00001-of-00003.gguf``), itself alone where it is whole.

    Raises
    ------
    InputError
        A part is missing.
    """
    found = _PART.match(file.name)
    if found is None:
        return (file,)
    name, _, count = found.groups()
    if not 0 < int(count) <= _MOST_PARTS:
        raise InputError(f"is one of {int(count)} parts; at most {_MOST_PARTS} are read", where=str(file))
    parts = tuple(file.with_name(f"{name}-{i + 1:05d}-of-{count}.gguf") for i in range(int(count)))
    for part in parts:
        if not part.is_file():
            raise InputError(f"is one of {int(count)} parts, and {part.name} does not lie beside it", where=str(file))
    return parts


def read_header(file: Path) -> Header:
    """Header of a file, and of all parts of one that is split.

    Raises
    ------
    InputError
        No GGUF file, one that ends too early, a tensor type that is not known, or parts that do not belong together.
    """
    parts = parts_of(file)
    first = _read(parts[0])
    tensors = dict(first.tensors)
    for part in parts[1:]:
        for name, tensor in _read(part).tensors.items():
            if tensors.setdefault(name, tensor) is not tensor:
                raise InputError(f"holds {name!r} of another part a second time", where=str(part))
    stated = first.facts.get("split.count", len(parts))
    if stated not in (0, len(parts)):
        raise InputError(f"says it is one of {stated} parts; give its first by its own name", where=str(parts[0]))
    total = first.facts.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise InputError(f"its parts hold {len(tensors)} tensors, but {total} are stated", where=str(parts[0]))
    return Header(first.facts, tensors)


def _read(file: Path) -> Header:
    try:
        with file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError("is no file", where=str(file))
            if stream.read(4) != b"GGUF":
                raise InputError("is no GGUF file: it does not begin with GGUF", where=str(file))
            with mmap.mmap(stream.fileno(), min(status.st_size, MOST_BYTES), access=mmap.ACCESS_READ) as raw:
                return _Cursor(raw, str(file)).header()
    except OSError as error:
        raise InputError(f"cannot be read: {reason(error)}", where=str(file)) from None


class _Cursor:
    """Reads on from where it stands, never beyond the end."""

    def __init__(self, raw: mmap.mmap, where: str):
        self.raw, self.where, self.at = raw, where, 4

    def fail(self, problem: str) -> InputError:
        return InputError(problem, where=self.where)

    def passed(self, count: int) -> int:
        """Where it stood before it passed over `count` bytes."""
        start, self.at = self.at, self.at + count
        if self.at > len(self.raw):
            short = "is longer than 128 MiB" if len(self.raw) == MOST_BYTES else "ends in the middle; fetch more of it"
            raise self.fail(f"its header {short}")
        return start

    def one(self, code: str) -> Any:
        size = struct.calcsize("<" + code)
        return struct.unpack_from("<" + code, self.raw, self.passed(size))[0]

    def text(self) -> str:
        length = self.one("Q")
        start = self.passed(length)
        if length > _LONGEST_TEXT:
            return ""
        try:
            return self.raw[start : start + length].decode("utf-8")
        except UnicodeDecodeError:
            return ""

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.one(_SCALARS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _LIST:
            raise self.fail(f"has a fact of type {kind}, which GGUF does not know")
        of, count = self.one("I"), self.one("Q")
        if of in _SCALARS:
            size = struct.calcsize("<" + _SCALARS[of])
            start = self.passed(count * size)
            return (
                list(struct.unpack_from(f"<{count}{_SCALARS[of]}", self.raw, start)) if count <= _LONGEST_LIST else None
            )
        if of != _TEXT:
            raise self.fail("has a list of lists, which no model's facts are")
        for _ in range(count):
            self.passed(self.one("Q"))
        return None

    def header(self) -> Header:
        version = self.one("I")
        if version not in (2, 3):
            other = "is big-endian" if version & 0xFFFF == 0 else f"has version {version}"
            raise self.fail(f"{other}; little-endian versions 2 and 3 are read")
        n_tensors, n_facts = self.one("Q"), self.one("Q")
        facts: dict[str, Any] = {}
        for _ in range(n_facts):
            key = self.text()
            facts[key] = self.value(self.one("I"))
        tensors: dict[str, Tensor] = {}
        for tensor in self._tensors(n_tensors):
            if tensors.setdefault(tensor.name, tensor) is not tensor:
                raise self.fail(f"lists {tensor.name[:80]!r} twice")
        return Header(facts, tensors)

    def _tensors(self, count: int) -> Iterator[Tensor]:
        for _ in range(count):
            name, n_dims = self.text(), self.one("I")
            if not name or not 0 < n_dims <= 4:
                raise self.fail(f"its tensor {name[:80]!r} has {n_dims} dimensions; they must be 1 to 4")
            shape = tuple(self.one("Q") for _ in range(n_dims))
            kind = self.one("I")
            self.one("Q")
            if kind not in GGUF_TYPES:
                raise self.fail(f"{name[:80]} has type {kind}, which is not known; newer than this reader?")
            block, stored = GGUF_TYPES[kind]
            out = Tensor(name, shape, stored)
            if not 0 < out.elements <= _MOST_ELEMENTS or shape[0] % block:
                raise self.fail(f"{name[:80]} has the shape {shape}, which {stored.spelling} cannot store")
            yield out
