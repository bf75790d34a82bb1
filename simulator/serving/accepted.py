"""Requests that fit a model's context: a server answers longer ones with an error and goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np

from simulator.base import console
from simulator.base.errors import InputError
from simulator.model.spec import ModelSpec
from simulator.scenario.grid import Grid
from simulator.scenario.scenario import Scenario
from simulator.serving.requests import MAX_REQUESTS, Requests, Stream


@dataclass(frozen=True, eq=False)
class Accepted:
    """What of `base` has at most `longest` tokens of prompt and output: a `Stream`, finite where `base` is."""

    base: Requests
    longest: int
    context_of: str

    @property
    def least(self) -> int:
        """Fewest requests asked for [-]."""
        return 1 if self.base.stream is None else self.base.stream.least

    def first(self, count: int) -> Requests:
        """The first `count` that fit, or all; `Requests.rejected` were sent before the last of them."""
        count = max(count, self.least)
        asked = count
        while True:
            sent = self.base.longer(asked)
            fits = np.flatnonzero(sent.prompt + sent.output <= self.longest)
            if not len(fits):
                words = (
                    f"none of {len(sent):,} requests fits the {self.longest:,} tokens of {self.context_of}'s context"
                )
                raise InputError(f"{words}; give --ignore-context-limit, or shorter ones", where=sent.name)
            if len(fits) >= count or len(sent) < asked or asked == MAX_REQUESTS:
                break
            asked = min(ceil(1.1 * asked * count / len(fits)), MAX_REQUESTS)
        kept = fits[:count]
        seen = int(kept[-1]) + 1 if len(fits) > count else len(sent)
        if len(kept) == len(sent):
            return replace(sent, stream=self)
        return replace(sent.take(kept), stream=self, rejected=seen - len(kept))

    def scaled(self, factor: float) -> Stream:
        """`factor` times the rate."""
        return replace(self, base=self.base.scaled(factor))

    def with_users(self, users: int) -> Stream:
        """The same with `users` in a closed loop."""
        return replace(self, base=self.base.with_users(users))


def accepted(requests: Requests, model: ModelSpec, asked: Scenario | Grid) -> Requests:
    """`requests` without those longer than the context or ``--max-model-len``, as many where there are more to be had.

    Raises
    ------
    InputError
        Not one fits.
    """
    longest = asked.max_model_len or (None if asked.ignore_context_limit else model.max_context)
    if longest is None or isinstance(requests.stream, Accepted):
        return requests
    return Accepted(requests, longest, model.name).first(len(requests))


def say_rejected(row: Mapping[str, Any]) -> None:
    """One line of warning where requests were refused."""
    if row["rejected"]:
        sent = row["requests"] + row["rejected"]
        console.say(
            f"warning: {row['rejected']:,} of {sent:,} requests are longer than {row['model']}'s context: rejected, as"
            " a server does"
        )
