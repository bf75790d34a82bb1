"""Synthetic traffic: when requests come and how long they are."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from simulator.base.errors import InputError
from simulator.scenario.fields import MAX_TOKENS
from simulator.serving.calls import parse_call
from simulator.serving.conversations import SHARED_TOKENS, Dialogue, refuse_turns
from simulator.serving.requests import MAX_REQUESTS, Requests

ARRIVALS = {"poisson": {}, "gamma": {"cv": None}, "fixed": {}}
"""Times between arrivals: exponential; gamma of a coefficient of variation (bursts above 1); constant."""
LENGTHS = {
    "fixed": {"tokens": None},
    "uniform": {"low": None, "high": None},
    "exponential": {"mean": None},
    "lognormal": {"mean": None, "cv": 1.0},
}
"""Lengths, rounded up to whole tokens; cv is the standard deviation over the mean."""

THINKING = {"fixed": {"seconds": None}, "exponential": {"mean": None}}
"""How long users think, in seconds."""
ROUNDS = 10
"""Requests per user of a closed loop at least, as InferenceX and vLLM's benchmark send [-]."""
MOST_THINKING = 1e6
"""Longest time to think [s]."""
MOST_USERS = MAX_REQUESTS // ROUNDS
MOST_RATE, MOST_CV = 1e9, 100.0
"""Bounds of rate [1/s] and coefficient of variation [-]; their inverses bound them below."""


def arrival_times(count: int, rate: float, how: str, rng: np.random.Generator) -> np.ndarray:
    """`count` arrival times of mean `rate` per second, the first at 0 [s]."""
    name, values = parse_call(how, ARRIVALS, "--arrivals")
    if not 1.0 / MOST_RATE <= rate <= MOST_RATE:
        raise InputError(f"{rate:g} requests/s must be above 0 and at most {MOST_RATE:g}", where="--rate")
    mean = 1.0 / rate
    if name == "poisson":
        gaps = rng.exponential(mean, count)
    elif name == "gamma":
        if not 1.0 / MOST_CV <= values["cv"] <= MOST_CV:
            raise InputError(f"cv must be {1.0 / MOST_CV:g} to {MOST_CV:g}", where="--arrivals")
        shape = 1.0 / values["cv"] ** 2
        gaps = rng.gamma(shape, mean / shape, count)
    else:
        gaps = np.full(count, mean)
    gaps[0] = 0.0
    return np.cumsum(gaps)


def lengths(count: int, how: str, where: str, rng: np.random.Generator) -> np.ndarray:
    """`count` token counts of the distribution `how`, e.g. ``lognormal(mean=1000,cv=1)`` or ``512``."""
    text = how.strip()
    if text.isdigit():
        text = f"fixed(tokens={text})"
    name, v = parse_call(text, LENGTHS, where)
    least = min(v.get("low", 1.0), v.get("tokens", 1.0), v.get("mean", 1.0))
    most = max(v.get("high", 1.0), v.get("low", 1.0), v.get("tokens", 1.0), v.get("mean", 1.0))
    backwards = v.get("high", math.inf) < v.get("low", 1.0)
    if least < 1.0 or most > MAX_TOKENS or backwards or not 1.0 / MOST_CV <= v.get("cv", 1.0) <= MOST_CV:
        raise InputError(
            f"{how!r}: tokens must be 1 to {MAX_TOKENS:,}, low below high, cv above 0 and at most {MOST_CV:g}",
            where=where,
        )
    if name == "fixed":
        out = np.full(count, v["tokens"])
    elif name == "uniform":
        out = rng.integers(int(v["low"]), int(v["high"]) + 1, count).astype(float)
    elif name == "exponential":
        out = rng.exponential(v["mean"], count)
    else:
        sigma2 = math.log1p(v["cv"] ** 2)
        out = rng.lognormal(math.log(v["mean"]) - sigma2 / 2.0, math.sqrt(sigma2), count)
    return np.maximum(np.ceil(out), 1.0).astype(np.int64)


@dataclass(frozen=True)
class SyntheticStream:
    """Synthetic requests without end: of the same seed a longer run begins as a shorter one."""

    rate: float
    arrivals: str
    prompt: str
    output: str
    seed: int
    factor: float = 1.0
    users: int = 0
    think: str = "0"
    turns: str = "1"

    @property
    def least(self) -> int:
        """Fewest requests asked for: `ROUNDS` per user, and two conversations [-]."""
        return max(ROUNDS * self.users, int(_turns(self, 2 * self.users).sum()) if self.users else 0)

    def first(self, count: int) -> Requests:
        """The first `count` requests, or `least`."""
        return _first(self, max(count, self.least) if count >= 1 else count)

    def with_users(self, users: int) -> SyntheticStream:
        """The same with `users` in a closed loop."""
        if not 1 <= users <= MOST_USERS:
            raise InputError(f"must be 1 to {MOST_USERS:,}", where="--users")
        return replace(self, users=users)

    def scaled(self, factor: float) -> SyntheticStream:
        """`factor` times the rate."""
        return replace(self, factor=self.factor * factor)


@lru_cache(maxsize=4)
def _first(stream: SyntheticStream, count: int) -> Requests:
    if not 1 <= count <= MAX_REQUESTS:
        raise InputError(f"must be 1 to {MAX_REQUESTS}", where="--count")
    if stream.turns != "1":
        return _conversations(stream, count)
    # One generator each, so that more arrivals leave the lengths what they are.
    arriving, prompting, answering, thinking, _ = np.random.default_rng(stream.seed).spawn(5)
    timed = not stream.users and stream.rate < math.inf
    found = Requests.of(
        arrival_times(count, stream.rate, stream.arrivals, arriving) if timed else np.zeros(count),
        lengths(count, stream.prompt, "--prompt-tokens", prompting),
        lengths(count, stream.output, "--output-tokens", answering),
        name=f"{_when(stream)}, prompts {stream.prompt}, outputs {stream.output}",
    )
    if stream.users:
        return replace(found.closed(stream.users, think_times(count, stream.think, thinking)), stream=stream)
    return replace(found, arrival_s=found.arrival_s / stream.factor, stream=stream)


def _turns(stream: SyntheticStream, conversations: int) -> np.ndarray:
    """Turns of each conversation [-]."""
    turns = lengths(conversations, stream.turns, "--turns", np.random.default_rng(stream.seed).spawn(5)[4])
    refuse_turns(turns)
    return turns


def _conversations(stream: SyntheticStream, count: int) -> Requests:
    """The first `count` turns: of users one conversation after the other, else in order of arrival.

    No turn among the first `count` to arrive is of a later conversation than the `count`th, each of which has one.
    """
    turns = _turns(stream, count)
    if stream.users:
        turns = turns[: int(np.searchsorted(np.cumsum(turns), count)) + 1]
    arriving, prompting, answering, thinking, _ = np.random.default_rng(stream.seed).spawn(5)
    total = int(turns.sum())
    output = lengths(total, stream.output, "--output-tokens", answering)
    think_s = think_times(total, stream.think, thinking)
    said = Dialogue.of(turns, lengths(total, stream.prompt, "--prompt-tokens", prompting), output, think_s)
    arrival_s, order = np.zeros(total), np.arange(count)
    if not stream.users:
        starts = arrival_times(len(turns), stream.rate, stream.arrivals, arriving) / stream.factor
        arrival_s = starts[said.session] + said.waited_s
        order = np.argsort(arrival_s, kind="stable")[:count]
        think_s = np.where(said.turn, think_s, 0.0)
    said = Dialogue(said.session[order], said.turn[order], said.prompt[order], said.waited_s[order])
    found = Requests.of(
        arrival_s[order],
        said.prompt,
        output[order],
        ids=said.ids(),
        id_tokens=SHARED_TOKENS,
        name=f"{_when(stream)}, each turn adds {stream.prompt}, outputs {stream.output}",
    )
    if stream.users:
        found = found.closed(stream.users, think_s[order])
    return replace(found, session=said.session, think_s=think_s[order], stream=stream)


def _when(stream: SyntheticStream) -> str:
    if stream.turns != "1":
        who = users_named(stream.users, stream.think) if stream.users else f"{stream.arrivals} {stream.rate:g}/s"
        waits = "" if stream.users or stream.think.strip() == "0" else f", users think {stream.think} s"
        return f"conversations of {stream.turns} turns, {who}{waits}"
    if stream.users:
        return users_named(stream.users, stream.think)
    return "all at once" if stream.rate == math.inf else f"{stream.arrivals} {stream.rate:g}/s"


def users_named(users: int, think: str) -> str:
    """The closed loop in words."""
    waits = "ask again at once" if think.strip() == "0" else f"think {think} s"
    return (
        f"{users:,} users who {waits}"
        if users > 1
        else f"1 user who {waits.replace('ask', 'asks').replace('think', 'thinks')}"
    )


def think_times(count: int, how: str, rng: np.random.Generator) -> np.ndarray:
    """`count` times between an answer and the next question, e.g. ``30`` or ``exponential(mean=30)`` [s]."""
    text = how.strip()
    with contextlib.suppress(ValueError):
        text = f"fixed(seconds={float(text)})"
    name, values = parse_call(text, THINKING, "--think-time")
    seconds = next(iter(values.values()))
    if not 0.0 <= seconds <= MOST_THINKING:
        raise InputError(f"{how!r}: seconds must be 0 to {MOST_THINKING:g}", where="--think-time")
    return rng.exponential(seconds, count) if name == "exponential" else np.full(count, seconds)


def synthetic(
    count: int,
    rate: float,
    *,
    arrivals: str,
    prompt: str,
    output: str,
    seed: int = 0,
    turns: str = "1",
    think: str = "0",
) -> Requests:
    """`count` requests; the same seed gives the same ones, and more of them after those. All at once where `rate` is
    infinite; with `turns` the rate is of conversations, whose users think for `think` seconds.
    """
    if turns != "1" and rate == math.inf:
        raise InputError("conversations wait for answers, they cannot all come at once; give a rate", where="--turns")
    return SyntheticStream(rate, arrivals, prompt, output, seed, think=think, turns=turns).first(count)


def closed_loop(
    count: int, users: int, think: str, *, prompt: str, output: str, seed: int = 0, turns: str = "1"
) -> Requests:
    """`count` requests, or `ROUNDS` per user, of `users` who think for `think` seconds after each answer."""
    stream = SyntheticStream(math.inf, "fixed", prompt, output, seed, think=think, turns=turns)
    return stream.with_users(users).first(count)
