"""What is known of every request while it is simulated."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, fields


@dataclass(slots=True)
class Book:
    """What is known of every request, by its number; shared by the replicas of a fleet.

    Attributes
    ----------
    arrival : list of float
        When it reaches this replica [s].
    prompt, output : list of int
        Tokens [-].
    length : list of int
        Tokens to be computed before the next token comes: the prompt, after a preemption what was dropped [-].
    left : list of int
        Tokens still to be generated [-].
    reused : list of int
        Prompt tokens whose KV is at hand without a prefix cache [-].
    reserve : list of int
        Blocks reserved where KV does not grow with the sequence; empty elsewhere.
    ready : set of int
        Requests whose KV is computed already: swapped out, or handed over by a prefill replica.
    think : list of float
        How long its user thinks before it [s]; empty where nobody waits for an answer.
    then : list of int
        The next turn of its conversation, -1 after the last; empty where there are none.
    ids : list of tuple of int
        Prefix blocks of the prompt; empty without prefix caching.
    admitted, first, finish : list of float
        When it was first scheduled, had its first and its last token [s]; nan before.
    preemptions, hits : list of int
        Times it was preempted, prompt tokens found in the prefix cache when first admitted.
    """

    arrival: list[float]
    prompt: list[int]
    output: list[int]
    length: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    reused: list[int] = field(default_factory=list)
    reserve: Sequence[int] = ()
    ready: set[int] = field(default_factory=set)
    think: Sequence[float] = ()
    then: Sequence[int] = ()
    ids: Sequence[Sequence[int]] = ()
    admitted: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    finish: list[float] = field(default_factory=list)
    preemptions: list[int] = field(default_factory=list)
    hits: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        n, nan = len(self.arrival), float("nan")
        self.length = self.length or list(self.prompt)
        self.left = self.left or list(self.output)
        self.reused = self.reused or [0] * n
        self.admitted, self.first, self.finish = [nan] * n, [nan] * n, [nan] * n
        self.preemptions, self.hits = [0] * n, [0] * n

    def copy(self) -> Book:
        """One that changes by itself."""
        again = copy(self)
        for name in CHANGES:
            setattr(again, name, copy(getattr(self, name)))
        return again

    def extend(self, longer: Book) -> None:
        """Add the requests of `longer` beyond these, which it begins with."""
        n = len(self.arrival)
        for f in fields(self):
            if f.name != "ready":
                setattr(self, f.name, [*getattr(self, f.name), *getattr(longer, f.name)[n:]])


CHANGES = ("arrival", "length", "left", "reused", "ready", "admitted", "first", "finish", "preemptions", "hits")
"""Attributes of a book that a simulation changes."""
