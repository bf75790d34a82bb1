"""What papers say a policy costs in quality: series of one model and method, and pairs of perplexity and score."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from simulator.base.files import parse_toml
from simulator.policies import Policy, parse

FILE = "published_quality.toml"
DENSE = "dense"
COST_ONLY = frozenset(
    {"attn_hot", "bundle", "cache", "fallback", "format", "hit", "hits", "host", "hot", "kernel", "new", "offload"}
    | {"order", "recompute", "resident", "track"}
)
"""Parameters of policies that change when and where something is read, never what is computed."""


class Series(BaseModel):
    """Published quality of one model under one policy, along one of its parameters or at one setting.

    `points` counts percentage points of a score, of which more is better; of `perplexity` less is. Along `keep` the
    dense model stands at 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str
    policy: str
    parameter: str = ""
    scale: Literal["linear", "log"] = "linear"
    measure: str
    unit: Literal["points", "perplexity"]
    dense: float = Field(gt=0.0)
    against: str = DENSE
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

    @property
    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Settings and qualities, dense included where it is one of them; two arrays of shape (n,)."""
        x, y = np.array(self.values).T
        if self.parameter == "keep" and self.against == DENSE and x[-1] < 1.0:
            x, y = np.append(x, 1.0), np.append(y, self.dense)
        return x, y

    def quality(self, policy: Policy) -> float | None:
        """Quality of `policy`, linear between published settings; None outside of them [points or 1]."""
        mine = self.member
        if type(policy) is not type(mine):
            return None
        others = (k for k in type(mine).model_fields if k != self.parameter and k not in COST_ONLY)
        if any(getattr(policy, k) != getattr(mine, k) for k in others):
            return None
        if not self.parameter:
            return self.values[0][0]
        x, y = self.curve
        at = getattr(policy, self.parameter)
        if at is None or not x[0] <= at <= x[-1]:
            return None
        return float(np.interp(np.log(at), np.log(x), y) if self.scale == "log" else np.interp(at, x, y))

    def loss(self, quality: float) -> float:
        """Points lost against dense, or perplexity over dense's minus 1 [points or 1]."""
        return self.dense - quality if self.unit == "points" else quality / self.dense - 1.0

    def at(self, value: float) -> Policy:
        """The policy with its parameter at `value`, to four digits."""
        return type(self.member)(**{**self.member.model_dump(), self.parameter: round(float(value), 4)})

    @property
    def published(self) -> tuple[Policy, ...]:
        """The settings in the paper's table, dense left out."""
        return tuple(self.at(v[0]) for v in self.values) if self.parameter else (self.member,)

    def settings(self, most: float) -> Iterator[Policy]:
        """The published settings, and those that lose exactly `most` points where shares lie between two."""
        yield from self.published
        if not self.parameter or self.unit != "points" or self.scale == "log":
            return
        x, y = self.curve
        losses = np.array([self.loss(v) for v in y])
        for i in range(len(x) - 1):
            ends = sorted((losses[i], losses[i + 1]))
            if ends[0] < most < ends[1]:
                share = (most - losses[i]) / (losses[i + 1] - losses[i])
                yield self.at(x[i] + share * (x[i + 1] - x[i]))

    def told(self, quality: float) -> str:
        """The paper's own measure in words."""
        lost = self.loss(quality)
        by = f"{-lost:+.2f} points" if self.unit == "points" else f"{lost:+.1%}"
        over = "" if self.against == DENSE else f", against {self.against}"
        return f"{by} {self.measure}{over}"


class Pair(BaseModel):
    """Perplexity and score of one model, dense first and then under a method."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str
    perplexity: tuple[float, float]
    score: tuple[float, float]
    source: str = Field(min_length=1)

    @property
    def log_ratio(self) -> float:
        """Logarithm of the perplexity over dense's [nat]."""
        return float(np.log(self.perplexity[1] / self.perplexity[0]))

    @property
    def points(self) -> float:
        """Points of the score lost [points]."""
        return self.score[0] - self.score[1]


@lru_cache(maxsize=1)
def _file() -> dict[str, Any]:
    text = resources.files("simulator.results").joinpath(FILE).read_text("utf-8")
    return parse_toml(text, f"simulator/results/{FILE}")


@lru_cache(maxsize=1)
def load_series() -> tuple[Series, ...]:
    """All series of ``simulator/results/published_quality.toml``."""
    return tuple(Series(**s) for s in _file()["series"])


def masks() -> dict[str, str]:
    """Policies that store weights which another method pruned, and that method."""
    return _file()["masks"]


@lru_cache(maxsize=1)
def load_pairs() -> tuple[Pair, ...]:
    """The file's pairs, and those that series of one paper make: dense in both, and a mean over several tasks."""
    found = [Pair(**p) for p in _file()["pair"]]
    series = [s for s in load_series() if s.against == DENSE]
    for p in (s for s in series if s.unit == "perplexity"):
        for q in series:
            if q.unit == "perplexity" or (q.model, q.member.name) != (p.model, p.member.name):
                continue
            if not q.measure.startswith("mean") or q.source.partition(" (")[0] != p.source.partition(" (")[0]:
                continue
            scores = {at.spelling: q.quality(at) for at in q.published}
            for at in p.published:
                perplexity, score = p.quality(at), scores.get(at.spelling)
                if perplexity is not None and score is not None:
                    both = {"perplexity": (p.dense, perplexity), "score": (q.dense, score)}
                    found.append(Pair(model=p.model, source=p.source, **both))
    return tuple(found)
