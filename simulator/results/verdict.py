"""Whether a policy wins over dense: one threshold, one word, one tally and one sentence for all who ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from simulator.base.checks import require_type
from simulator.base.interval import Interval

WIN = 1.02
"""Speed-up from which a policy wins, and by whose inverse it loses [-]: between them lies what two runs of one
benchmark differ by."""
SURE = 0.9
"""Probability of being faster than dense from which a policy wins; it loses up to the rest to 1 [-]."""
RULE = (
    f"wins: {WIN:g}x or more and P(win) {SURE:g} or more; loses: {1.0 / WIN:.2f}x or less and P(win)"
    f" {1.0 - SURE:.1f} or less; P(win): probability of being faster than dense"
)
MOST_RANGES = 3
"""Ranges of an axis a sentence names; a policy with more has no break-even."""

Speedups = Interval[np.ndarray]


class Verdict(StrEnum):
    """What a policy does against dense."""

    WINS = "wins"
    EVEN = "as fast as dense"
    LOSES = "loses"
    UNDECIDED = "undecided"
    UNKNOWN = "not known"

    @property
    def verb(self) -> str:
        """With a policy before it."""
        return str(self) if self in (Verdict.WINS, Verdict.LOSES) else f"is {self}"


_CODE = {word: code for code, word in enumerate(Verdict)}


def verdicts(speedup: Speedups) -> np.ndarray:
    """Number of the `Verdict` of each point, in their order.

    It wins, or loses, where that is at least `SURE` to be the side of dense it is on and the figure is `WIN` off; it is
    as fast as dense where its 90 % interval lies within `WIN` of it. Where there is no speed-up (NaN) none is known.
    """
    mid, lo, hi = map(np.asarray, speedup)
    p = speedup.above(1.0)
    found = np.full(np.shape(p), _CODE[Verdict.UNDECIDED], np.int32)
    found[(lo > 1.0 / WIN) & (hi < WIN)] = _CODE[Verdict.EVEN]
    found[(mid >= WIN) & (p >= SURE)] = _CODE[Verdict.WINS]
    found[(mid <= 1.0 / WIN) & (p <= 1.0 - SURE)] = _CODE[Verdict.LOSES]
    found[np.isnan(mid)] = _CODE[Verdict.UNKNOWN]
    return found


def are(word: Verdict, speedup: Speedups) -> np.ndarray:
    """Points of which that word is said."""
    return verdicts(speedup) == _CODE[word]


def wins(speedup: Speedups) -> np.ndarray:
    """Points where the policy wins."""
    return are(Verdict.WINS, speedup)


def loses(speedup: Speedups) -> np.ndarray:
    """Points where it loses."""
    return are(Verdict.LOSES, speedup)


def verdict(speedup: Interval[float]) -> Verdict:
    """The word for one speed-up [-], as `Answer.speedup` has it; NaN is of a policy that cannot run or be compared.

    Examples
    --------
    >>> from simulator.api import Scenario, predict, verdict
    >>> scenario = Scenario(model="llama-3.1-8b", device="h100-sxm", policy="w4a16")
    >>> verdict(predict(scenario).answer.speedup).value
    'wins'
    """
    require_type(Interval, speedup=speedup)
    return list(Verdict)[int(verdicts(speedup.each(np.atleast_1d))[0])]


def as_times(speedup: float) -> str:
    """``1.35x``, and a digit more where two would be another word: 1.016 is no win, so it is not written 1.02x.

    Examples
    --------
    >>> as_times(1.35), as_times(1.016), as_times(0.9837)
    ('1.35x', '1.016x', '0.984x')
    """
    short = round(speedup, 2)
    same = (short >= WIN, short <= 1.0 / WIN) == (speedup >= WIN, speedup <= 1.0 / WIN)
    return f"{speedup:.2f}x" if same else f"{speedup:.3f}x"


def told(speedup: Interval[float]) -> str:
    """``wins, 1.35x dense (1.20-1.50, P(win) 0.99)``."""
    of = "" if (word := verdict(speedup)) is Verdict.EVEN else " dense"
    return f"{word}, {as_times(speedup.mid)}{of} ({_ends(speedup)})"


def figure(speedup: Interval[float], dash: str = "-") -> str:
    """``1.35x (1.20-1.50, P(win) 0.99)``; only the dash where there is none."""
    return f"{as_times(speedup.mid)} ({_ends(speedup, dash)})" if np.isfinite(speedup.mid) else dash


def _ends(speedup: Interval[float], dash: str = "-") -> str:
    return f"{speedup.lo:.2f}{dash}{speedup.hi:.2f}, P(win) {as_chance(speedup)}"


def as_chance(speedup: Interval[float]) -> str:
    """P(win) with two digits, never as sure as 0 or 1 where it is not."""
    p = float(speedup.above(1.0))
    return f"{min(max(p, 0.01), 0.99):.2f}" if speedup.lo < speedup.hi else f"{p:g}"


def everywhere(speedup: Speedups) -> str:
    """What holds for all of the points, in words; empty where some win and others do not."""
    found = verdicts(speedup)
    word = list(Verdict)[int(found.flat[0])]
    if (found == found.flat[0]).all():
        return f"{word} everywhere" if found.size > 1 else str(word)
    if (found == _CODE[Verdict.WINS]).any():
        return ""
    return f"never {Verdict.WINS}" if (found != _CODE[Verdict.UNDECIDED]).all() else f"{Verdict.UNDECIDED} at best"


def count(value: float) -> str:
    """A whole number as text."""
    return f"{value:,.0f}"


def along(noun: str, values: np.ndarray, speedup: Speedups, text: Callable[[float], str] = count) -> str:
    """Where on a rising axis a policy wins: ``wins from batch 4``, ``wins at batch 1 and from 8``.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Of the axis; all speed-ups are known there.
    """
    whole = everywhere(speedup)
    if whole:
        return whole
    found = runs(wins(speedup))
    last = len(values) - 1
    if len(found) > MOST_RANGES:
        return f"wins in {np.mean(wins(speedup)):.0%} of the points"
    if len(found) == 1:
        a, b = found[0]
        if b == last:
            return f"wins from {noun} {text(values[a])}"
        if a == b:
            return f"wins only at {noun} {text(values[a])}"
        return f"wins up to {noun} {text(values[b])}" if a == 0 else f"wins at {noun} {_range(values, a, b, text)}"
    return f"wins at {noun} {' and '.join(_range(values, a, b, text) for a, b in found)}"


def _range(values: np.ndarray, a: int, b: int, text: Callable[[float], str]) -> str:
    if b == len(values) - 1:
        return f"from {text(values[a])}"
    if a == b:
        return text(values[a])
    if a == 0:
        return f"up to {text(values[b])}"
    return f"{text(values[a])} to {text(values[b])}"


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of every run of True."""
    edges = np.flatnonzero(np.diff(np.r_[False, mask, False].astype(int)))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def over_loads(speedup: Speedups, axes: Mapping[str, np.ndarray]) -> str:
    """From where on the first of the axes that tells a policy wins, in words; medians over the others.

    Parameters
    ----------
    axes : mapping of str to ndarray, shape (n,)
        The load of each point, by noun: batch, prompt, output.
    """
    whole = everywhere(speedup)
    if whole:
        return whole
    for noun, axis in axes.items():
        values = np.unique(axis)
        middle = speedup.each(lambda end, a=axis, of=values: np.array([np.median(end[a == v]) for v in of]))
        if len(values) > 1 and not everywhere(middle):
            return along(noun, values, middle)
    return f"wins in {np.mean(wins(speedup)):.0%} of the points"


@dataclass(frozen=True)
class Tally:
    """Speed-ups of one policy for one model on one device, over the loads that fit.

    Attributes
    ----------
    rows, of : int
        Loads that fit, and all.
    middle : Interval
        Median of the throughput over dense, and of either end of it [-].
    worst, best : float
        Throughput over dense [-].
    wins, loses, undecided : float
        Share of the rows [-].
    words : str
        Where it wins.
    reason : str
        Why no load runs, where none can.
    """

    model: str
    device: str
    policy: str
    rows: int = 0
    of: int = 0
    middle: Interval[float] = field(default_factory=lambda: Interval.exact(np.nan))
    worst: float = np.nan
    best: float = np.nan
    wins: float = np.nan
    loses: float = np.nan
    undecided: float = np.nan
    words: str = ""
    reason: str = ""

    @property
    def verdict(self) -> Verdict:
        """Of the median."""
        return verdict(self.middle)

    @property
    def median(self) -> float:
        """Throughput over dense [-]."""
        return self.middle.mid

    def told(self, dash: str = "-") -> str:
        """``1.35x (1.20-1.50, 0.99), wins from batch 4``, or why there is nothing to tell; 0.99 is P(win)."""
        if not self.rows:
            return "not applicable" if self.reason else "no row fits"
        if not np.isfinite(self.median):
            return dash
        at = self.middle
        return f"{as_times(at.mid)} ({at.lo:.2f}{dash}{at.hi:.2f}, {as_chance(at)}), {self.words}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        of = {"model": self.model, "device": self.device, "policy": self.policy, "rows": self.rows}
        if not self.rows:
            return {**of, "reason": self.reason}
        shares = {k: getattr(self, k) for k in ("wins", "loses", "undecided", "median", "best", "worst")}
        ends = {"lo": self.middle.lo, "hi": self.middle.hi, "p_win": float(self.middle.above(1.0))}
        return {**of, **shares, **ends, "verdict": self.verdict, "break_even": self.words}


def tally(of: tuple[str, str, str], speedup: Speedups, axes: Mapping[str, np.ndarray], rows: int) -> Tally:
    """Tally of `of` (model, device, policy) from the speed-ups of the loads that fit, `rows` of all kinds."""
    mid = np.asarray(speedup.mid)
    return Tally(
        *of,
        rows=len(mid),
        of=rows,
        middle=speedup.each(lambda end: float(np.median(end))),
        worst=float(mid.min()),
        best=float(mid.max()),
        wins=float(np.mean(wins(speedup))),
        loses=float(np.mean(loses(speedup))),
        undecided=float(np.mean(are(Verdict.UNDECIDED, speedup))),
        words=over_loads(speedup, axes),
    )
