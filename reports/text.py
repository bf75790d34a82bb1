"""Numbers as people read them, and cells made of them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from reports.content import Cell, Tone
from simulator.base.console import milliseconds, number, share, spread
from simulator.base.interval import Interval
from simulator.results.verdict import Verdict, as_times, figure, verdict

DASH = "–"
TONES: Mapping[Verdict, Tone] = {Verdict.WINS: "win", Verdict.LOSES: "lose"}


def known(value: float | None) -> bool:
    """Whether there is a number."""
    return value is not None and math.isfinite(value)


def num(value: float | None, digits: int = 3) -> Cell:
    """A plain number."""
    return Cell(number(value, digits), value) if known(value) else Cell(DASH, math.nan)


def count(value: float | None) -> Cell:
    """A whole number."""
    return Cell(f"{value:,.0f}", int(value)) if value is not None and known(value) else Cell(DASH, math.nan)


def ms(value: float | None) -> Cell:
    """Seconds, shown in ms and kept in s."""
    return Cell(milliseconds(value), value) if known(value) else Cell(DASH, math.nan)


def ranged(figure: Interval[float], show: Callable[[float], str] = number) -> Cell:
    """A number with its interval."""
    return Cell(spread(figure, show, DASH), figure.mid) if known(figure.mid) else Cell(DASH, math.nan)


def percent(value: float | None, digits: int = 0) -> Cell:
    """A cell with a share."""
    return Cell(share(value, f".{digits}"), value) if value is not None and known(value) else Cell(DASH, math.nan)


def times(value: float | None) -> str:
    """A speed-up in text."""
    return as_times(value) if value is not None and known(value) else DASH


def tone(speedup: Interval[float]) -> Tone:
    """Whether a speed-up wins or loses."""
    return TONES.get(verdict(speedup), "")


def speedup(found: Interval[float]) -> Cell:
    """A speed-up with its interval and P(win)."""
    return Cell(figure(found, DASH), found.mid, tone(found))


def ratio(value: float | None) -> Cell:
    """How many times one figure is another."""
    return Cell(times(value), math.nan if value is None else value)


def gb(value: float | None) -> Cell:
    """Bytes in GB."""
    return Cell(number(value / 1e9), value) if value is not None and known(value) else Cell(DASH, math.nan)


def listed(items: Iterable[str], most: int = 6) -> str:
    """Names in a sentence; beyond `most` only how many more there are."""
    names = list(items)
    if len(names) > most:
        return ", ".join(names[: most - 1]) + f" and {len(names) - most + 1} more"
    if len(names) < 2:
        return "".join(names)
    return ", ".join(names[:-1]) + " and " + names[-1]


def span(values: np.ndarray) -> str:
    """Smallest to largest."""
    low, high = float(values.min()), float(values.max())
    return f"{low:,.0f}" if low == high else f"{low:,.0f}{DASH}{high:,.0f}"


def plural(n: int, word: str) -> str:
    """``3 policies``."""
    if n == 1:
        return f"1 {word}"
    return f"{n:,} {word[:-1]}ies" if word.endswith("y") else f"{n:,} {word}s"


def upper(text: str) -> str:
    """`text` with its first letter upper case."""
    return text[:1].upper() + text[1:]


def wrapped(command: str, width: int = 88) -> str:
    """A command over several lines that a shell reads as one."""
    try:
        words = [shlex.quote(w) for w in shlex.split(command)]
    except ValueError:
        return command
    lines, line = [], ""
    for word in words:
        if line and len(line) + len(word) + 1 > width:
            lines.append(line)
            line = "    " + word
        else:
            line = f"{line} {word}" if line else word
    return " \\\n".join([*lines, line])


def of_memory(fraction: float | None) -> str:
    """Share of a GPU's memory that an engine was given; None: its own default."""
    return "the engine's own share of the memory" if fraction is None else f"{share(fraction)} of the memory"
