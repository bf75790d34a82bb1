"""An op of a step with what it follows and who made it."""

from __future__ import annotations

from dataclasses import fields, replace
from enum import Enum, auto
from typing import Any, NamedTuple

from simulator.ops.ops import Op
from simulator.ops.union_law import UnionLaw


class Follows(Enum):
    """What of a step an op depends on; a policy's ops depend on what the op they stand for does."""

    TOKENS = auto()
    """The tokens of all sequences together, `Step.rows`."""
    SEQUENCES = auto()
    """The sequences that sample a token, `Step.sampled_rows`."""
    CONTEXT = auto()
    """Which sequences the tokens belong to, and how long these are."""


class Lowered(NamedTuple):
    """An op of a step, what it follows, and the name of the policy that rewrote or added it ("": as in dense)."""

    op: Op
    follows: Follows
    by: str = ""


def folded(ops: list[Lowered]) -> list[Lowered]:
    """Ops that differ in nothing but their count as one each; arrays are equal if they are the same object."""
    found: dict[tuple[object, ...], Lowered] = {}
    for new in ops:
        op: Any = new.op
        values = [getattr(op, f.name) for f in fields(op) if f.name != "count"]
        key = (type(op), new.by, *(v if isinstance(v, str | int | float | UnionLaw) else id(v) for v in values))
        if key in found:
            first: Any = found[key].op
            new = new._replace(op=replace(first, count=first.count + op.count))
        found[key] = new
    return list(found.values())
