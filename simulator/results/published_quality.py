"""What papers say a policy costs in quality, and the fastest one that costs little enough."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from simulator.base import console
from simulator.base.errors import InputError, ShadowlineError, UnsupportedError
from simulator.base.files import parse_toml
from simulator.inference.evaluate import evaluate
from simulator.inference.group import group_of, runnable
from simulator.policies import Policy, parse
from simulator.results.answer import Row
from simulator.results.quality import front
from simulator.results.rows import load_of, rows
from simulator.results.verdict import Verdict, figure, told, verdict
from simulator.scenario.catalogue import CATALOGUE
from simulator.scenario.scenario import Scenario

FILE = "published_quality.toml"


class Series(BaseModel):
    """Published quality of one model under one policy, along one of its parameters or at one setting.

    `points` counts percentage points of a score, of which more is better; of `perplexity` less is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str
    policy: str
    parameter: str = ""
    measure: str
    unit: Literal["points", "perplexity"]
    dense: float = Field(gt=0.0)
    values: tuple[tuple[float, ...], ...] = Field(min_length=1)
    source: str = Field(min_length=1)

    @model_validator(mode="after")
    def _rising(self) -> Series:
        width = 2 if self.parameter else 1
        if any(len(v) != width for v in self.values):
            raise ValueError(f"values need {width} numbers each")
        if self.parameter and any(np.diff([v[0] for v in self.values]) <= 0):
            raise ValueError("parameters must rise")
        return self

    @property
    def member(self) -> Policy:
        """The policy with its other parameters."""
        return parse(self.policy).members[0]

    def quality(self, policy: Policy) -> float | None:
        """Quality of `policy`, linear between published settings; None outside of them [points or 1]."""
        mine = self.member
        if type(policy) is not type(mine):
            return None
        others = [k for k in type(mine).model_fields if k != self.parameter]
        if any(getattr(policy, k) != getattr(mine, k) for k in others):
            return None
        if not self.parameter:
            return self.values[0][0]
        x, y = np.array(self.values).T
        at = getattr(policy, self.parameter)
        if at is None or not x[0] <= at <= x[-1]:
            return None
        return float(np.interp(at, x, y))

    def loss(self, quality: float) -> float:
        """Points lost against dense, or perplexity over dense's minus 1 [points or 1]."""
        return self.dense - quality if self.unit == "points" else quality / self.dense - 1.0

    def settings(self, most: float) -> Iterator[Policy]:
        """The published settings, and the one that loses exactly `most` points where it lies between two."""
        if not self.parameter:
            yield self.member
            return
        x, y = np.array(self.values).T
        at = list(x)
        losses = np.array([self.loss(v) for v in y])
        for i in range(len(x) - 1):
            ends = sorted((losses[i], losses[i + 1]))
            if self.unit == "points" and ends[0] < most < ends[1]:
                share = (most - losses[i]) / (losses[i + 1] - losses[i])
                at.append(float(x[i] + share * (x[i + 1] - x[i])))
        for value in sorted(at):
            fields = {**self.member.model_dump(), self.parameter: round(float(value), 4)}
            yield type(self.member)(**fields)


@dataclass(frozen=True)
class Choice:
    """A policy with its published loss and its predicted speed.

    Attributes
    ----------
    loss : float
        The largest of the published losses in `unit` [points, or perplexity ratio minus 1].
    front : bool
        It wins, and no other policy of the same unit is faster and loses less.
    """

    answer: Row
    unit: str
    loss: float
    measures: tuple[str, ...]
    sources: tuple[str, ...]
    front: bool = False

    @property
    def policy(self) -> str:
        """Its spelling."""
        return self.answer.policy

    @property
    def wins(self) -> bool:
        """It fits and wins over dense."""
        return self.answer.ok and verdict(self.answer.speedup) is Verdict.WINS

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        speed, speedup = self.answer.tokens_per_s, self.answer.speedup
        return {
            "policy": self.policy,
            "unit": self.unit,
            "loss": self.loss,
            "measures": self.measures,
            "tokens_per_s": speed.mid,
            "speedup": speedup.mid,
            "sources": self.sources,
            "front": self.front,
            "tokens_per_s_lo": speed.lo,
            "tokens_per_s_hi": speed.hi,
            "fits": self.answer.ok,
            "speedup_lo": speedup.lo,
            "speedup_hi": speedup.hi,
            "p_win": self.answer.p_win,
            "verdict": self.answer.verdict,
        }


@lru_cache(maxsize=1)
def load_series() -> tuple[Series, ...]:
    """All series of ``simulator/results/published_quality.toml``."""
    text = resources.files("simulator.results").joinpath(FILE).read_text("utf-8")
    return tuple(Series(**s) for s in parse_toml(text, f"simulator/results/{FILE}")["series"])


def published(model: str, policy: str) -> list[tuple[Series, float]]:
    """Series that cover `policy` on `model`, with the quality there; empty where nobody published it."""
    members = parse(policy).members
    if len(members) != 1:
        return []
    name = CATALOGUE.model(model).name
    found = [(s, s.quality(members[0])) for s in load_series() if s.model == name]
    return [(s, q) for s, q in found if q is not None]


def siblings(model: str) -> list[Series]:
    """Series of other models of the same shape (Llama-3-8B for Llama-3.1-8B): another training, so only a hint."""
    mine = CATALOGUE.model(model)
    return [s for s in load_series() if s.model != mine.name and CATALOGUE.model(s.model).layers == mine.layers]


def points_lost(model: str, policy: str) -> float | None:
    """The largest published loss of `policy` on `model` [points]; None where nobody published one in points."""
    return max((s.loss(q) for s, q in published(model, policy) if s.unit == "points"), default=None)


def losses(model: str, policy: str) -> str:
    """Published loss of one policy in words, on `model` or else on one of its shape; empty where there is none."""
    member = parse(policy).members[0]
    known = published(model, policy)
    if not known:
        known = [(s, q) for s in siblings(model) if (q := s.quality(member)) is not None]
    if not known:
        return ""
    worst, quality = max(known, key=lambda sq: (sq[0].unit == "points", sq[0].loss(sq[1])))
    lost = worst.loss(quality)
    text = f"{lost:.2f} points" if worst.unit == "points" else f"{lost:.1%} perplexity"
    where = "" if worst.model == CATALOGUE.model(model).name else f" on {worst.model}"
    return f"{text} of {worst.measure}{where}"


def choices(scenario: Scenario, most: float) -> tuple[list[Choice], dict[str, str]]:
    """Every policy with published quality for the scenario's model, fastest first; those that cannot run, and why.

    Raises
    ------
    UnsupportedError
        Nobody published the quality of this model under a policy.
    NothingFeasibleError
        The dense model cannot run, or the lengths exceed its context.
    """
    name = CATALOGUE.model(scenario.model).name
    mine = [s for s in load_series() if s.model == name]
    if not mine:
        known = ", ".join(sorted({s.model for s in load_series()}))
        raise UnsupportedError(
            f"no published quality of {name}; known for {known}; --policy free ranks every policy without it"
        )
    dense = runnable(scenario.dense)
    at = load_of(scenario)
    base = evaluate(dense, *at)
    found: list[Choice] = []
    skipped: dict[str, str] = {}
    spellings = dict.fromkeys((p.spelling, s.unit) for s in mine for p in s.settings(most))
    for spelling, unit in spellings:
        group = group_of(scenario.model_copy(update={"policy": spelling}))
        covering = [(s, q) for s, q in published(name, spelling) if s.unit == unit]
        try:
            answer = rows(group, *at, base)[0].at(0)
        except ShadowlineError as error:
            skipped[spelling] = error.message
            continue
        if not answer.timed:
            skipped[spelling] = answer.reason
            continue
        sources = tuple(dict.fromkeys(s.source for s, _ in covering))
        measures = tuple(s.measure for s, _ in covering)
        found.append(Choice(answer, unit, max(s.loss(q) for s, q in covering), measures, sources))
    return sorted(_fronts(found), key=lambda c: c.answer.e2e_s.mid), skipped


def _fronts(found: list[Choice]) -> list[Choice]:
    out = list(found)
    for unit in {c.unit for c in found}:
        those = [i for i, c in enumerate(found) if c.unit == unit and c.wins]
        speeds, lost = ([f(found[i]) for i in those] for f in (lambda c: c.answer.speedup.mid, lambda c: c.loss))
        for i, first in zip(those, front(speeds, lost), strict=True):
            out[i] = replace(found[i], front=bool(first))
    return out


def best(found: list[Choice], most: float) -> Choice | None:
    """The fastest that wins and loses at most `most` points."""
    good = [c for c in found if c.wins and c.unit == "points" and c.loss <= most + 1e-9]
    return min(good, key=lambda c: c.answer.e2e_s.mid, default=None)


def show(scenario: Scenario, most: float, *, as_json: bool) -> None:
    """Print every choice, the front, and the fastest that loses at most `most` points."""
    if not math.isfinite(most):
        raise InputError(f"{most} is no number of points; write e.g. 1", where="--max-loss")
    found, skipped = choices(scenario, most)
    chosen = best(found, most)
    if as_json:
        rows = [c.to_dict() for c in found]
        console.out_json({"rows": rows, "best": chosen and chosen.policy, "skipped": skipped})
        return
    console.table(
        "published quality beside predicted speed",
        ["policy", "measure", "front", "loss", "tokens/s", "low", "high", "speed-up"],
        [
            [
                c.policy,
                "; ".join(c.measures),
                "yes" if c.front else "" if c.answer.ok else "no fit",
                f"{c.loss:+.2f} points" if c.unit == "points" else f"{c.loss:+.1%} perplexity",
                *map(console.number, c.answer.tokens_per_s),
                figure(c.answer.speedup),
            ]
            for c in found
        ],
        left=3,
        note="front: it wins, and none of the same unit is faster and loses less; worst published measure; unknown"
        " elsewhere",
    )
    for policy, reason in skipped.items():
        console.out(f"not considered: {policy}: {reason}")
    if chosen is None:
        unit = "point" if most == 1 else "points"
        console.out(f"no policy with published quality fits, loses at most {most:g} {unit} and wins over dense")
    else:
        console.out(
            f"fastest that loses at most {most:g} points: {chosen.policy}, {told(chosen.answer.speedup)},"
            f" {chosen.loss:+.2f} points ({'; '.join(chosen.sources)})"
        )
