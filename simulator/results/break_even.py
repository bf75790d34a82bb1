"""Where a policy starts to win over dense: along the batch, the context and its own sparsity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from simulator.base.errors import InputError, NothingFeasibleError
from simulator.base.interval import Interval
from simulator.inference.evaluate import Points, evaluate
from simulator.inference.group import Group, group_of, runnable
from simulator.inference.paired import throughput
from simulator.results.rows import load_of
from simulator.results.verdict import Speedups, Verdict, along, count, figure, runs, told, verdicts, wins
from simulator.scenario.scenario import Scenario

POINTS = 48
"""Values an axis is looked at before its crossings are searched."""
LONGEST = 1_048_576
"""Prompt the context axis ends at where the model's own limit is ignored [tokens]."""
SHORTEST = 16
"""Prompt and token budget the axes start at [tokens]."""
LARGEST_BATCH = 4096

Speedup = Callable[[np.ndarray], Speedups]
"""Values of an axis, shape (n,), to the speed-ups there [-]."""


@dataclass(frozen=True, eq=False)
class BreakEven:
    """Speed-up over dense along one axis, everything else as in the scenario.

    Attributes
    ----------
    axis : str
        'batch', 'prompt_tokens', or the policy's parameter.
    values : ndarray, shape (n,)
        Rising values of the axis.
    speedup : Interval of ndarray, shape (n,)
        tokens/s over dense there [-]; NaN where the policy does not apply.
    fits : ndarray of bool, shape (n,)
        Where the policy fits in memory.
    sentence : str
    """

    axis: str
    values: np.ndarray
    speedup: Speedups
    fits: np.ndarray
    sentence: str = ""

    @property
    def wins(self) -> list[tuple[float, float]]:
        """Ranges of the axis, ends included, where the policy wins."""
        return [(float(self.values[a]), float(self.values[b])) for a, b in runs(wins(self.speedup))]

    def at(self, value: float) -> Interval[float]:
        """Speed-up at one of the values [-]."""
        i = int(np.flatnonzero(self.values == value)[0])
        return self.speedup.each(lambda end: float(end[i]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        ends = ("speedup", "lo", "hi")
        return {
            "axis": self.axis,
            "values": self.values.tolist(),
            **{name: end.tolist() for name, end in zip(ends, self.speedup, strict=True)},
            "p_win": self.speedup.above(1.0).tolist(),
            "verdict": [str(list(Verdict)[code]) for code in verdicts(self.speedup)],
            "wins": [list(w) for w in self.wins],
            "sentence": self.sentence,
        }


def break_even(scenario: Scenario) -> list[BreakEven]:
    """Break-even of the scenario's policy along batch, prompt and sparsity.

    Raises
    ------
    InputError
        The scenario is dense.
    NothingFeasibleError
        The policy does not apply, or the lengths exceed the model's context.
    """
    if not group_of(scenario).policies.members:
        raise InputError("dense breaks even with itself; add --policy 'name(key=value)'", where="--break-even")
    group = runnable(scenario)
    if _largest_batch(group, scenario) < 1:
        raise NothingFeasibleError(
            f"{scenario.policy} fits at no batch of this length: nothing breaks even; use more GPUs or fewer tokens"
        )
    own = (
        _own(group, scenario, index, *member.swept)
        for index, member in enumerate(group.policies.members)
        if member.swept
    )
    return [*over_load(scenario), *[found for found in own if found is not None][:1]]


def over_load(scenario: Scenario) -> list[BreakEven]:
    """Speed-up of the scenario's policy along batch and prompt.

    Raises
    ------
    NothingFeasibleError
        The policy does not apply, or the lengths exceed the model's context.
    """
    group = runnable(scenario)
    return [_batch(group, scenario), _prompt(group, scenario)]


def _largest_batch(group: Group, s: Scenario) -> int:
    return int(np.ravel(evaluate(group, *_load(s)).max_batch)[0])


def _batch(group: Group, s: Scenario) -> BreakEven:
    policy, dense = (_largest_batch(g, s) for g in (group, group.dense))
    last = min(max(policy, s.batch), LARGEST_BATCH)
    fits = (
        f"; it fits up to batch {policy}, dense up to {dense}"
        if policy or dense
        else "; neither fits at any batch: use more GPUs or fewer tokens"
    )
    return _along(group, s, "batch", _whole(1, last), "batch", fits)


def _prompt(group: Group, s: Scenario) -> BreakEven:
    limit = LONGEST if s.ignore_context_limit else group.model.max_context - group.image_tokens - s.output_tokens
    last = max(limit, s.prompt_tokens, SHORTEST + 1)
    return _along(group, s, "prompt_tokens", _whole(SHORTEST, last), "prompt")


def _along(group: Group, s: Scenario, axis: str, values: np.ndarray, noun: str, more: str = "") -> BreakEven:
    """Speed-up along a size of the load, the scenario's own among the values."""

    def both(at: np.ndarray) -> tuple[Points, Points]:
        load = _load(s, **{axis: at})
        return evaluate(group, *load), evaluate(group.dense, *load)

    values = _crossed(lambda at: throughput(*both(at)), np.union1d(values, [float(getattr(s, axis))]))
    policy, dense = both(values)
    found = BreakEven(axis, values, throughput(policy, dense), policy.fits)
    words = _sentence(axis, values, found.speedup, noun, f"{noun} {{}}", count)
    size = getattr(s, axis)
    return replace(found, sentence=f"{words}; here, {noun} {count(size)}: {told(found.at(size))}{more}")


def _own(group: Group, s: Scenario, index: int, name: str, counts: str) -> BreakEven | None:
    """Speed-up along a member's own parameter, one lowering per value; None where it takes fewer than two."""
    member, share = group.policies.members[index], counts == "share"
    if share:
        values = np.round(np.linspace(0.02, 1.0, 50), 2)
    else:
        values = _whole(SHORTEST, max(s.prompt_tokens, 2 * SHORTEST))
    dense = evaluate(group.dense, *_load(s))
    found = np.full((3, len(values)), np.nan)
    fits = np.zeros(len(values), bool)
    for i, value in enumerate(values):
        other = _with(group, index, name, float(value) if share else int(value))
        if other is not None and other.problem is None:
            points = evaluate(other, *_load(s))
            found[:, i], fits[i] = [end[0] for end in throughput(points, dense)], points.fits[0]
    known = np.isfinite(found[0])
    if known.sum() < 2:
        return None
    at = Interval(*found[:, known])
    if share:
        # Sparsity rises where the kept share falls.
        turned = at.each(lambda end: end[::-1])
        words = _sentence(
            name, 1.0 - values[known][::-1], turned, "sparsity", f"{{}} sparsity ({member.name})", "{:.0%}".format
        )
    else:
        words = _sentence(name, values[known], at, name, f"{name} {{}} ({member.name})", count)
    return BreakEven(name, values, Interval(*found), fits, words)


def _with(group: Group, index: int, name: str, value: float) -> Group | None:
    """`group` with one parameter changed; None where the policy refuses the value."""
    members = list(group.policies.members)
    member = members[index]
    try:
        members[index] = type(member)(**{**member.model_dump(), name: value})
    except ValidationError:
        return None
    return replace(group, policies=replace(group.policies, members=tuple(members), asked=""))


def _load(s: Scenario, **axis: np.ndarray) -> list[np.ndarray]:
    """Batch, prompt and output, one of them along an axis."""
    fixed = dict(zip(("batch", "prompt_tokens", "output_tokens"), load_of(s), strict=True))
    return list(np.broadcast_arrays(*(fixed | axis).values()))


def _whole(first: int, last: int) -> np.ndarray:
    """About `POINTS` whole numbers from `first` to `last`, evenly spaced in log."""
    if last <= first:
        return np.array([float(first)])
    return np.unique(np.rint(np.geomspace(first, last, POINTS)))


def _crossed(speedup: Speedup, values: np.ndarray) -> np.ndarray:
    """`values` with both sides of every crossing, down to neighbouring whole numbers."""
    found = wins(speedup(values))
    more: list[float] = []
    for i in np.flatnonzero(np.diff(found)):
        low, high = values[i], values[i + 1]
        while high - low > 1.0:
            between = np.unique(np.rint(np.linspace(low, high, POINTS)))
            first = int(np.flatnonzero(wins(speedup(between)) == found[i + 1])[0])
            low, high = between[first - 1], between[first]
        more += [low, high]
    return np.union1d(values, more)


def _sentence(
    axis: str, values: np.ndarray, speedup: Speedups, noun: str, place: str, text: Callable[[float], str]
) -> str:
    """Where the policy wins along an axis, and its best and worst there."""
    best, worst = int(np.argmax(speedup.mid)), int(np.argmin(speedup.mid))
    ends = [
        f"{figure(speedup.each(lambda end, i=i: float(end[i])))} at {place.format(text(values[i]))}"
        for i in (best, worst)
    ]
    words = along(noun, values, speedup, text)
    return f"{axis}: {words} ({text(values[0])} to {text(values[-1])}); best {ends[0]}, worst {ends[1]}"
