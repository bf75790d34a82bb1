"""Conversations: turns that each bring the whole dialogue so far as their prompt, asked when the last is answered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.base.errors import InputError
from simulator.serving.requests import MAX_REQUESTS

MOST_TURNS = 1000
SHARED_TOKENS = 128
"""Tokens of an id of what two turns share: eight vLLM blocks, of which the last is lost to the next turn half [-]."""


@dataclass(frozen=True, eq=False)
class Dialogue:
    """Turns of many conversations, one conversation after the other; arrays of shape (turns,).

    Attributes
    ----------
    session, turn : ndarray of int
        Conversation, and number within it [-].
    prompt : ndarray of int
        All prompts and answers before, and what the turn adds [tokens].
    waited_s : ndarray
        Time to think before this turn and those before it, the first's not counted [s].
    """

    session: np.ndarray
    turn: np.ndarray
    prompt: np.ndarray
    waited_s: np.ndarray

    @classmethod
    def of(cls, turns: np.ndarray, added: np.ndarray, output: np.ndarray, think_s: np.ndarray) -> Dialogue:
        """Of conversations of so many `turns`, shape (conversations,), the rest of shape (sum of turns,)."""
        begin = np.cumsum(turns) - turns
        before = np.cumsum(added + output) - (added + output)
        waits = np.cumsum(think_s)
        return cls(
            np.repeat(np.arange(len(turns)), turns),
            np.arange(len(added)) - np.repeat(begin, turns),
            before - np.repeat(before[begin], turns) + added,
            waits - np.repeat(waits[begin], turns),
        )

    def ids(self) -> tuple[tuple[int, ...], ...]:
        """Per turn the ids of its full shared blocks: those of the turn before, and more."""
        pairs = zip((self.session << 32).tolist(), (self.prompt // SHARED_TOKENS).tolist(), strict=True)
        return tuple(tuple(range(first, first + blocks)) for first, blocks in pairs)


def refuse_turns(turns: np.ndarray) -> None:
    """Refuse conversations that are longer than anybody's, or too many turns in all."""
    if int(turns.max()) > MOST_TURNS:
        raise InputError(f"a conversation of {int(turns.max()):,} turns; at most {MOST_TURNS:,}", where="--turns")
    if int(turns.sum()) > MAX_REQUESTS:
        raise InputError(f"{int(turns.sum()):,} turns in all; at most {MAX_REQUESTS:,}", where="--turns")
