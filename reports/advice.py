"""What a sweep answers: which policy pays where, by how much, and at what speed and price."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from reports.rows import Sweep
from reports.text import DASH
from simulator.base.interval import Interval
from simulator.results.answer import Row
from simulator.results.loss import LOSS_UNKNOWN
from simulator.results.summary import Summary
from simulator.results.verdict import Tally, Verdict, verdict, wins

Pair = tuple[str, str]
_NUMBER = re.compile(r"(?<![\w.:-])\d[\d,]*(?:\.\d+)?(?![\w:])")


@dataclass(frozen=True)
class Choice:
    """The policy to run a model with on a device, and the row where it puts out most tokens per GPU."""

    tally: Tally
    row: Row


@dataclass(frozen=True)
class Ranked:
    """A policy over all pairs of model and device.

    Attributes
    ----------
    middle : Interval
        Median of its medians, and of either end of them [-].
    wins, loses : float
        Share of the pairs [-].
    """

    policy: str
    middle: Interval[float]
    wins: float
    loses: float

    @classmethod
    def of(cls, policy: str, tallies: Sequence[Tally]) -> Ranked:
        """Over `tallies` of the policy."""
        ends = zip(*(t.middle for t in tallies), strict=True)
        won, lost = (float(np.mean([t.verdict is word for t in tallies])) for word in (Verdict.WINS, Verdict.LOSES))
        return cls(policy, Interval(*(float(np.median(end)) for end in ends)), won, lost)

    @property
    def verdict(self) -> Verdict:
        """Of the median."""
        return verdict(self.middle)


@dataclass(frozen=True)
class Advice:
    """Tallies of every policy, by model, device and policy, and the choice for every pair that can run."""

    sweep: Sweep
    tallies: dict[tuple[str, str, str], Tally]
    """At the same batch."""
    largest: dict[tuple[str, str, str], Tally]
    """Each at its own largest batch."""
    choices: dict[Pair, Choice]

    @cached_property
    def policies(self) -> list[str]:
        """Policies beside dense, in the order of the file."""
        return [p for p in self.sweep.names("policy") if p != "dense"]

    def of_policy(self, policy: str) -> list[Tally]:
        """Tallies of one policy that have speed-ups."""
        return [t for t in self.tallies.values() if t.policy == policy and t.rows and np.isfinite(t.median)]

    @cached_property
    def ranking(self) -> list[Ranked]:
        """Policies by what they do on all pairs: those that win first, those that lose last, each by its median."""
        found = ((policy, self.of_policy(policy)) for policy in self.policies)
        order = {Verdict.WINS: 0, Verdict.LOSES: 2}
        ranked = [Ranked.of(policy, tallies) for policy, tallies in found if tallies]
        return sorted(ranked, key=lambda r: (order.get(r.verdict, 1), -r.middle.mid))

    def loss_of(self, policy: str) -> str:
        """Loss of quality of one policy in words, the worst over the models."""
        of = {
            m: self.sweep.rows.at(int(r[0]))
            for (m, p), r in self.sweep.groups("model", "policy").items()
            if p == policy
        }
        unknown = [m for m, row in of.items() if not np.isfinite(row.points_lost.mid)]
        if unknown:
            return LOSS_UNKNOWN if len(unknown) == len(of) else f"{LOSS_UNKNOWN} on {' and '.join(unknown)}"
        worst = max(of.values(), key=lambda row: row.points_lost.mid)
        return worst.loss_in_words + (f" on {worst.model}, the worst" if len(of) > 1 else "")

    @cached_property
    def fastest(self) -> Choice | None:
        """Choice with most tokens per second and GPU."""
        return max(self.choices.values(), key=lambda c: c.row.tokens_per_s_per_gpu.mid, default=None)

    @cached_property
    def cheapest(self) -> Row | None:
        """Row with the lowest price per token among those to run."""
        price = np.where(worth(self.sweep), self.sweep.rows.usd_per_mtoken, np.nan)
        return self.sweep.rows.at(int(np.nanargmin(price))) if np.isfinite(price).any() else None

    @cached_property
    def reasons(self) -> Counter[str]:
        """Reasons of the rows that are not ok; those that differ in amounts only count as one, with their ranges."""
        bad = ~self.sweep.ok
        codes, counts = np.unique(self.sweep.rows.reason.codes[bad], return_counts=True)
        words = self.sweep.rows.reason.words
        alike: dict[str, list[tuple[list[str], int]]] = {}
        for c, n in zip(codes, counts, strict=True):
            if c >= 0:
                found = _NUMBER.findall(words[int(c)])
                alike.setdefault(_NUMBER.sub("\0", words[int(c)]), []).append((found, int(n)))
        out: Counter[str] = Counter()
        for text, rows in alike.items():
            told = text
            for slot in zip(*(numbers for numbers, _ in rows), strict=True):
                ends = sorted(set(slot), key=lambda v: float(v.replace(",", "")))
                told = told.replace("\0", ends[0] if len(ends) == 1 else f"{ends[0]}{DASH}{ends[-1]}", 1)
            out[told] += sum(n for _, n in rows)
        return out


def worth(sweep: Sweep) -> np.ndarray:
    """Mask of the rows to run: dense ones and those that win; all of a model and device where dense runs at no load."""
    good = sweep.ok & (sweep.dense | wins(sweep.rows.speedup))
    for rows in sweep.groups("model", "device").values():
        if not (sweep.ok & sweep.dense)[rows].any():
            good[rows] = sweep.ok[rows]
    return good


def advise(sweep: Sweep) -> Advice:
    """Tally every policy and choose one per model and device."""
    summary = Summary()
    for index in sweep.groups("model", "device", "policy").values():
        summary.add(sweep.rows.take(index))
    tallies = {key: found.tally(key) for key, found in summary.found.items()}
    largest = {key: found.tally(key, largest=True) for key, found in summary.found.items()}
    choices: dict[Pair, Choice] = {}
    for (model, device, policy), found in summary.found.items():
        t, old = tallies[model, device, policy], choices.get((model, device))
        row = found.winner or found.best
        if row is not None and (old is None or _value(t) > _value(old.tally)):
            choices[model, device] = Choice(t, row)
    return Advice(sweep, tallies, largest, choices)


def _value(t: Tally) -> float:
    """Median speed-up; a policy that does not win ranks below dense."""
    if t.policy == "dense":
        return 1.0
    return t.median if t.verdict is Verdict.WINS else min(t.median, 0.999)
