"""What arrives: times, lengths and, where known, which beginnings prompts share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from simulator.base.errors import InputError
from simulator.scenario.fields import MAX_TOKENS

MAX_REQUESTS = 10_000_000
MAX_SECONDS = 1e11
"""Latest arrival; clocks in seconds since 1970 are at 2e9, in milliseconds at 2e12 [s]."""


class Stream(Protocol):
    """Requests without end, of which any number can be had."""

    def first(self, count: int) -> Requests:
        """The first `count`: those of a smaller number, and more."""
        ...

    def scaled(self, factor: float) -> Stream:
        """`factor` times the rate, lengths kept."""
        ...

    def with_users(self, users: int) -> Stream:
        """The same with `users` in a closed loop."""
        ...

    @property
    def least(self) -> int:
        """Fewest requests that are asked for."""
        ...


@dataclass(frozen=True, eq=False)
class Requests:
    """Requests in the order they arrive; arrays of shape (requests,).

    Attributes
    ----------
    arrival_s : ndarray
        Ascending, the first at 0 [s].
    prompt, output : ndarray of int
        Tokens, at least 1 [-].
    reused : ndarray of int
        Prompt tokens that need not be computed although they are attended to [-].
    ids : tuple of tuple of int
        Per request the ids of its full prefix blocks; empty where unknown.
    id_tokens : int
        Tokens per id [-].
    name : str
        Where they come from.
    lines : ndarray of int, optional
        Line of each in its file, for messages.
    delay_s : float
        What each waited before it came here, part of its latency [s].
    stream : Stream, optional
        That they are the beginning of, where there are more to be had.
    think_s : ndarray, optional
        A closed loop: how long a user thinks before each, after the answer to the last [s]. Its `arrival_s` are 0
        until it was served.
    users : int
        Of the closed loop; 0 where requests come whenever they come [-].
    rejected : int
        Sent among them and refused as longer than the context [-].
    session : ndarray of int, optional
        Conversation of each: its turns follow each other, a turn comes `think_s` after the answer to the last, and
        `arrival_s` is as if answers took no time until it was served.
    """

    arrival_s: np.ndarray
    prompt: np.ndarray
    output: np.ndarray
    reused: np.ndarray
    ids: tuple[tuple[int, ...], ...] = ()
    id_tokens: int = 512
    name: str = ""
    lines: np.ndarray | None = None
    delay_s: float = 0.0
    stream: Stream | None = None
    think_s: np.ndarray | None = None
    users: int = 0
    rejected: int = 0
    session: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        arrival_s: Sequence[float] | np.ndarray,
        prompt: Sequence[int] | np.ndarray,
        output: Sequence[int] | np.ndarray,
        *,
        ids: tuple[tuple[int, ...], ...] = (),
        id_tokens: int = 512,
        name: str = "requests",
        lines: np.ndarray | None = None,
    ) -> Requests:
        """Check the columns, shift the first arrival to 0.

        Raises
        ------
        InputError
            ``name:line`` and what is wrong with the first bad row.
        """
        times = np.asarray(arrival_s, float)
        if len(times) == 0:
            raise InputError("holds no request", where=name)
        if len(times) > MAX_REQUESTS:
            raise InputError(f"holds {len(times):,} requests; at most {MAX_REQUESTS:,}", where=name)
        found = cls(times, _whole(prompt), _whole(output), np.zeros(len(times), np.int64), ids, id_tokens, name, lines)
        found._refuse(~np.isfinite(times), "the timestamp is not a number")
        found._refuse(times < 0.0, "the timestamp is negative")
        found._refuse(times > MAX_SECONDS, f"the timestamp is beyond {MAX_SECONDS:.0e} s; give seconds")
        found._refuse(
            np.concatenate([[False], np.diff(times) < 0.0]),
            "the timestamp is before the row above; sort the file by time",
        )
        for word, tokens in (("prompt", found.prompt), ("output", found.output)):
            found._refuse(tokens < 1, f"{word} tokens must be 1 or more")
            found._refuse(tokens > MAX_TOKENS, f"{word} tokens must be {MAX_TOKENS:,} or fewer")
        return replace(found, arrival_s=times - times[0])

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def rate(self) -> float:
        """Mean arrivals per second over the time from the first to the last [1/s]; inf where all come at once."""
        span = float(self.arrival_s[-1])
        return (len(self) - 1) / span if span > 0.0 else float("inf")

    def where(self, index: int) -> str:
        """``file:line`` of a request, for messages."""
        return self.name if self.lines is None else f"{self.name}:{int(self.lines[index])}"

    def scaled(self, factor: float) -> Requests:
        """`factor` times the rate, timestamps are divided and lengths kept; in a closed loop times the users."""
        if self.users and factor != 1.0:
            return self.with_users(max(round(self.users * factor), 1))
        if not np.isfinite(factor) or factor <= 0.0:
            raise InputError(f"{factor:g} must be above 0", where="--rate-scale")
        stream = None if self.stream is None else self.stream.scaled(factor)
        if self.session is not None and stream is not None:
            return stream.first(len(self))  # conversations come sooner, their users think no faster
        return replace(self, arrival_s=self.arrival_s / factor, stream=stream)

    def at_once(self) -> Requests:
        """All at time 0, none waiting for an answer."""
        return replace(self, arrival_s=np.zeros(len(self)), stream=None, think_s=None, session=None, users=0)

    def first(self, count: int | None) -> Requests:
        """The first `count` requests."""
        return self if count is None or count >= len(self) else self.take(np.arange(count))

    def take(self, index: np.ndarray) -> Requests:
        """Requests at `index`, which ascends; times are kept."""
        return replace(
            self,
            arrival_s=self.arrival_s[index],
            prompt=self.prompt[index],
            output=self.output[index],
            reused=self.reused[index],
            ids=tuple(self.ids[i] for i in index) if self.ids else (),
            lines=None if self.lines is None else self.lines[index],
            stream=None,
            think_s=None if self.think_s is None else self.think_s[index],
            session=None if self.session is None else self.session[index],
        )

    def closed(self, users: int, think_s: np.ndarray) -> Requests:
        """Sent by `users` who each wait for an answer and think for `think_s` [s] before they ask again."""
        if not 1 <= users <= len(self):
            raise InputError(f"{users:,} users need as many requests, {self.name} holds {len(self):,}", where="--users")
        return replace(self, arrival_s=np.zeros(len(self)), stream=None, users=users, think_s=think_s)

    @property
    def answered(self) -> bool:
        """Whether some come only after the answer to another: users of a closed loop, or conversations."""
        return bool(self.users) or self.session is not None

    def followers(self) -> np.ndarray:
        """The next turn of each request's conversation, -1 after the last; shape (requests,)."""
        then = np.full(len(self), -1)
        if self.session is not None:
            order = np.argsort(self.session, kind="stable")
            same = self.session[order][1:] == self.session[order][:-1]
            then[order[:-1][same]] = order[1:][same]
        return then

    def with_users(self, users: int) -> Requests:
        """The same closed loop with `users`, and requests enough for them where there are more to be had."""
        if self.stream is not None:
            stream = self.stream.with_users(users)
            return stream.first(max(len(self), stream.least))
        if users > len(self):
            raise InputError(f"{users:,} users need as many requests, {self.name} holds {len(self):,}", where="--users")
        return replace(self, users=users)

    def longer(self, count: int) -> Requests:
        """The first `count` of the stream; without one, of these."""
        return self.first(count) if self.stream is None else self.stream.first(count)

    def prefix_bound(self) -> float:
        """Share of prompt tokens that a cache which never evicts would find [-]."""
        seen: set[int] = set()
        hits = 0
        kept = (self.prompt + self.output) // self.id_tokens
        each = zip(self.ids, self.prompt.tolist(), self.followers().tolist(), kept.tolist(), strict=True)
        for ids, prompt, follower, answered in each:
            found = 0
            for block in ids:
                if block not in seen:
                    break
                found += 1
            hits += min(found * self.id_tokens, prompt - 1)
            seen.update(ids if follower < 0 else self.ids[follower][:answered])
        return hits / float(self.prompt.sum())

    def _refuse(self, bad: np.ndarray, why: str) -> None:
        if bad.any():
            index = int(np.argmax(bad))
            more = int(bad.sum()) - 1
            others = f" (and {more} more)" if more else ""
            raise InputError(f"{why}{others}", where=self.where(index))


def _whole(values: Sequence[int] | np.ndarray) -> np.ndarray:
    found = np.asarray(values, float)
    # A fraction of a token, like what is no number, is refused as 0 tokens.
    with np.errstate(invalid="ignore"):
        return np.where(found == np.floor(found), found, 0.0).astype(np.int64)
