"""Where a policy starts to win over dense: along the batch, the context and its own sparsity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from simulator.base.errors import InputError
from simulator.inference.evaluate import Points, evaluate
from simulator.inference.group import Group, group_of, runnable
from simulator.inference.memory import max_batch
from simulator.policies import Policies
from simulator.scenario.scenario import Scenario

EVEN = 0.01
"""Relative difference that counts as neither faster nor slower [-]."""
POINTS = 48
"""Values an axis is looked at before its crossings are searched."""
LONGEST = 1_048_576
"""Prompt the context axis ends at where the model's own limit is ignored [tokens]."""
SHORTEST = 16
"""Prompt and token budget the axes start at [tokens]."""
LARGEST_BATCH = 4096

Speedup = Callable[[np.ndarray], np.ndarray]
"""Values of an axis to (speed-up, low and high end of its 90 % interval), shape (3, n) [-]."""


@dataclass(frozen=True, eq=False)
class BreakEven:
    """Speed-up over dense along one axis, everything else as in the scenario.

    Attributes
    ----------
    axis : str
        'batch', 'prompt_tokens', or the policy's parameter.
    values, speedup : ndarray, shape (n,)
        Rising values of the axis and tokens/s over dense there [-]; NaN where the policy does not apply.
    lo, hi : ndarray, shape (n,)
        90 % interval of the speed-up, the errors of both sides taken as independent [-].
    sentence : str
    """

    axis: str
    values: np.ndarray
    speedup: np.ndarray
    lo: np.ndarray
    hi: np.ndarray
    sentence: str

    @property
    def wins(self) -> list[tuple[float, float]]:
        """Ranges of the axis, ends included, where the policy is faster."""
        return [(float(self.values[a]), float(self.values[b])) for a, b in _runs(self._faster)]

    @property
    def _faster(self) -> np.ndarray:
        return np.nan_to_num(self.speedup, nan=0.0) > 1.0 + EVEN

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "axis": self.axis,
            "values": self.values.tolist(),
            "speedup": self.speedup.tolist(),
            "lo": self.lo.tolist(),
            "hi": self.hi.tolist(),
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
    own = [
        found
        for index, member in enumerate(group.policies.members)
        if member.swept and (found := _own(group, scenario, index, *member.swept))
    ]
    return [_batch(group, scenario), _prompt(group, scenario), *own[:1]]


def _batch(group: Group, s: Scenario) -> BreakEven:
    most = {name: int(np.ravel(_max_batch(g, s))[0]) for name, g in (("policy", group), ("dense", group.dense))}
    last = min(max(most["policy"], s.batch), LARGEST_BATCH)

    def speedup(batch: np.ndarray) -> np.ndarray:
        return _ratio(group, batch, s.prompt_tokens, s.output_tokens)

    values, found = _searched(speedup, _whole(1, last))
    fits = (
        f"; it fits up to batch {most['policy']}, dense up to {most['dense']}"
        if any(most.values())
        else "; neither fits at any batch: use more GPUs or fewer tokens"
    )
    return _told("batch", values, found, _count, "at batch {}", fits)


def _prompt(group: Group, s: Scenario) -> BreakEven:
    limit = LONGEST if s.ignore_context_limit else group.model.max_context - s.output_tokens
    last = max(limit, s.prompt_tokens, SHORTEST + 1)

    def speedup(prompt: np.ndarray) -> np.ndarray:
        return _ratio(group, s.batch, prompt, s.output_tokens)

    values, found = _searched(speedup, _whole(SHORTEST, last))
    return _told("prompt_tokens", values, found, _count, "at {} prompt tokens")


def _own(group: Group, s: Scenario, index: int, name: str, counts: str) -> BreakEven | None:
    """Speed-up along a member's own parameter, one lowering per value; None where it takes fewer than two."""
    member, share = group.policies.members[index], counts == "share"
    if share:
        values = np.round(np.linspace(0.02, 1.0, 50), 2)
    else:
        values = _whole(SHORTEST, max(s.prompt_tokens, 2 * SHORTEST))
    dense = evaluate(group.dense, *_one(s))
    found = np.full((3, len(values)), np.nan)
    for i, value in enumerate(values):
        other = _with(group, index, name, float(value) if share else int(value))
        if other is not None and other.problem is None:
            found[:, i] = _against(evaluate(other, *_one(s)), dense)[:, 0]
    if np.isfinite(found[0]).sum() < 2:
        return None
    if share:
        return _told(name, values, found, _sparsity, f"at {{}} sparsity ({member.name})")
    return _told(name, values, found, _count, f"at {name} {{}} ({member.name})")


def _with(group: Group, index: int, name: str, value: float) -> Group | None:
    """`group` with one parameter changed; None where the policy refuses the value."""
    members = list(group.policies.members)
    member = members[index]
    try:
        members[index] = type(member)(**{**member.model_dump(), name: value})
    except ValidationError:
        return None
    return replace(group, policies=Policies(tuple(members)))


def _one(s: Scenario) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (np.array([s.batch], float), np.array([s.prompt_tokens], float), np.array([s.output_tokens], float))


def _ratio(group: Group, batch: Any, prompt: Any, output: Any) -> np.ndarray:
    grid = np.broadcast_arrays(*(np.atleast_1d(np.asarray(x, float)) for x in (batch, prompt, output)))
    return _against(evaluate(group, *grid), evaluate(group.dense, *grid))


def _against(sparse: Points, dense: Points) -> np.ndarray:
    """Speed-up, low and high end, shape (3, n) [-]; log half widths of both sides add in squares."""
    mid, low, high = zip(_ends(sparse), _ends(dense), strict=True)
    ratio = mid[1] / mid[0]
    down = np.hypot(np.log(high[0] / mid[0]), np.log(mid[1] / low[1]))
    up = np.hypot(np.log(mid[0] / low[0]), np.log(high[1] / mid[1]))
    return np.stack([ratio, ratio * np.exp(-down), ratio * np.exp(up)])


def _ends(points: Points) -> list[np.ndarray]:
    """End-to-end time with both ends of its interval [s]."""
    steps = np.maximum(np.asarray(points.output, float) - 1.0, 0.0)
    ends = ((points.ttft_s, points.tpot_s), (points.ttft_lo_s, points.tpot_lo_s), (points.ttft_hi_s, points.tpot_hi_s))
    return [np.maximum(first + steps * np.nan_to_num(each), 1e-30) for first, each in ends]


def _max_batch(group: Group, s: Scenario) -> np.ndarray:
    return max_batch(
        group.lowering,
        group.device,
        float(s.prompt_tokens),
        float(s.output_tokens),
        pp=group.pp,
        utilisation=group.utilisation,
        block_tokens=group.block_tokens,
    )


def _whole(first: int, last: int) -> np.ndarray:
    """About `POINTS` whole numbers from `first` to `last`, evenly spaced in log."""
    if last <= first:
        return np.array([float(first)])
    return np.unique(np.rint(np.geomspace(first, last, POINTS)))


def _searched(speedup: Speedup, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`values` and their speed-ups, with both sides of every crossing down to neighbouring whole numbers."""
    found = speedup(values)
    more: list[float] = []
    for i in np.flatnonzero(np.diff(found[0] > 1.0 + EVEN)):
        low, high = values[i], values[i + 1]
        rising = bool(found[0, i + 1] > 1.0 + EVEN)
        while high - low > 1.0:
            middle = np.floor(0.5 * (low + high))
            wins = bool(speedup(np.array([middle]))[0, 0] > 1.0 + EVEN)
            low, high = (low, middle) if wins == rising else (middle, high)
        more += [low, high]
    if not more:
        return values, found
    extra = np.setdiff1d(np.array(more), values)
    if len(extra):
        values, found = np.r_[values, extra], np.c_[found, speedup(extra)]
    order = np.argsort(values)
    return values[order], found[:, order]


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of every run of True."""
    edges = np.flatnonzero(np.diff(np.r_[False, mask, False].astype(int)))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _sparsity(keep: float) -> str:
    return f"{1.0 - keep:.0%}"


def _told(
    axis: str, values: np.ndarray, found: np.ndarray, text: Callable[[float], str], place: str, more: str = ""
) -> BreakEven:
    """One axis with its sentence."""
    known = np.isfinite(found[0])
    if not known.any():
        return BreakEven(axis, values, found[0], found[1], found[2], f"{axis}: the policy applies nowhere on this axis")
    values_known, (known_speedup, lo, hi) = values[known], found[:, known]
    ends = f"from {text(values_known[0])} to {text(values_known[-1])}"
    best, worst = int(np.argmax(known_speedup)), int(np.argmin(known_speedup))

    def at(i: int) -> str:
        where = place.format(text(values_known[i]))
        return f"{known_speedup[i]:.2f}x ({lo[i]:.2f}-{hi[i]:.2f}) {where}"

    runs = _runs(known_speedup > 1.0 + EVEN)
    if not runs:
        told = f"never faster than dense {ends}; at best {at(best)}"
    elif runs == [(0, len(values_known) - 1)]:
        told = f"faster than dense everywhere {ends}: {at(best)}, {at(worst)}"
    else:
        ranges = " and ".join(
            text(values_known[a]) if a == b else f"{text(values_known[a])} to {text(values_known[b])}" for a, b in runs
        )
        told = f"faster than dense at {ranges} ({ends}): at best {at(best)}, at worst {at(worst)}"
    return BreakEven(axis, values, found[0], found[1], found[2], f"{axis}: {told}{more}")
