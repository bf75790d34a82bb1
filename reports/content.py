"""What a report says, apart from how it looks: text, tables and figures in sections."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Tone = Literal["", "win", "lose", "quiet"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: what is read, what it is sorted by and exported as, and where it leads."""

    text: str
    value: float | int | str | None = None
    tone: Tone = ""
    href: str = ""

    @property
    def raw(self) -> float | int | str:
        """Value for CSV and sorting; absent numbers are empty."""
        if self.value is None:
            return self.text
        if isinstance(self.value, float) and not math.isfinite(self.value):
            return ""
        return self.value


@dataclass(frozen=True, slots=True)
class Column:
    """Heading of a column; `term` is explained in the glossary, `wide` is its share of the room that is left."""

    name: str
    numeric: bool = False
    term: str = ""
    wide: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose first `shown` rows are printed; a CSV has them all."""

    id: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    shown: int = 60

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.id}: {len(row)} cells for {len(self.columns)} columns")

    @property
    def left_out(self) -> int:
        """Rows that are not printed [-]."""
        return max(len(self.rows) - self.shown, 0)


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing; its title is the conclusion, `alt` says the same to who cannot see it."""

    id: str
    title: str
    svg: str
    alt: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Plain text; `lead` is set larger, `note` smaller."""

    text: str
    kind: Literal["", "lead", "note"] = ""


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of plain texts."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """A command or hash, to be copied."""

    text: str


@dataclass(frozen=True, slots=True)
class Terms:
    """Glossary entries (term, meaning)."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Subheading:
    """A heading inside a section."""

    text: str


Block: TypeAlias = Paragraph | Bullets | Code | Table | Figure | Terms | Subheading


@dataclass(frozen=True, slots=True)
class Section:
    """A chapter; `id` is its anchor."""

    id: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Logo:
    """A picture for the first page."""

    name: str
    data: bytes
    mime: str


@dataclass(frozen=True, slots=True)
class Report:
    """A whole report. The first section is page one: question, answer, recommendation, assumptions, command."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]
    logo: Logo | None = None
    notes: tuple[str, ...] = field(default=())

    def blocks(self) -> Iterator[Block]:
        """All blocks in order."""
        for section in self.sections:
            yield from section.blocks

    def tables(self) -> Iterator[Table]:
        """All tables in order."""
        return (b for b in self.blocks() if isinstance(b, Table))

    def figures(self) -> Iterator[Figure]:
        """All figures in order."""
        return (b for b in self.blocks() if isinstance(b, Figure))

    def texts(self) -> Iterator[str]:
        """Every text a reader sees, for the glossary of the terms used."""
        for section in self.sections:
            yield section.title
        for block in self.blocks():
            match block:
                case Paragraph() | Subheading():
                    yield block.text
                case Bullets():
                    yield from block.items
                case Figure():
                    yield from (block.title, block.caption, block.alt)
                case Table():
                    yield from (block.title, block.note)
                    yield from (c.term or c.name for c in block.columns)
                    yield from (cell.text for row in block.rows[:3] for cell in row)
                case _:
                    pass


def section(id_: str, title: str, blocks: Sequence[Block | None]) -> Section:
    """A section without the blocks that there is nothing to say in."""
    return Section(id_, title, tuple(b for b in blocks if b is not None))
