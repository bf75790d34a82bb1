"""A figure with its 90 % interval, and the ratio of two of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

Z90 = 1.645
"""Standard deviations from the middle of a normal distribution to either end of its 90 % interval [-]."""

SAME = 1e-12
"""Relative difference that sums in another order leave between equal figures [-]."""

N = TypeVar("N")
M = TypeVar("M")


@dataclass(frozen=True, eq=False)
class Interval(Generic[N]):
    """A figure and both ends of its 90 % interval: three arrays of one shape, or three numbers.

    Attributes
    ----------
    mid, lo, hi : N
        The figure, its 5 % and its 95 % quantile, in the figure's unit.
    """

    mid: N
    lo: N
    hi: N

    def __iter__(self) -> Iterator[N]:
        """The figure, its lower and its upper end."""
        return iter((self.mid, self.lo, self.hi))

    def each(self, f: Callable[[N], M]) -> Interval[M]:
        """`f`, which rises, of all three."""
        return Interval(f(self.mid), f(self.lo), f(self.hi))

    def above(self, value: float) -> np.ndarray:
        """Probability that the figure, log-normal between its ends, is above `value` [-]; of an equal one a half."""
        mid, lo, hi = (np.asarray(end, float) for end in self)
        same = np.abs(mid - value) <= SAME * value
        sure = np.where(same, 0.5, np.heaviside(mid - value, 0.5))
        spread = hi > lo * (1.0 + SAME)
        if not spread.any():
            return sure
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.log(mid / value) * (2.0 * Z90) / np.log(hi / lo)
        return np.where(spread, normal_cdf(z), sure)

    @classmethod
    def exact(cls, value: N) -> Interval[N]:
        """A figure whose spread is not known."""
        return cls(value, value, value)


def ratio(over: Interval[Any], under: Interval[Any]) -> Interval[Any]:
    """``over / under`` of positive figures whose errors are independent: log half widths add in squares.

    Parameters
    ----------
    over, under : Interval
        Of arrays that broadcast, or of numbers, in one unit.
    """
    mid = over.mid / under.mid
    down = _both(np.log(over.lo / over.mid), np.log(under.hi / under.mid))
    up = _both(np.log(over.hi / over.mid), np.log(under.lo / under.mid))
    return Interval(mid, mid / np.exp(down), mid * np.exp(up))


def normal_cdf(z: np.ndarray) -> np.ndarray:
    """Standard normal distribution function [-], within 1e-7 (Abramowitz and Stegun 26.2.17): numpy has none."""
    x = np.abs(z)
    t = 1.0 / (1.0 + 0.2316419 * x)
    tail = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail = tail * np.exp(-0.5 * x * x) * 0.3989422804014327
    return np.where(z > 0.0, 1.0 - tail, tail)


def _both(a: Any, b: Any) -> Any:
    """Root of the sum of the squares; `hypot` guards against overflow that logs cannot cause, at ten times the cost."""
    return np.sqrt(a * a + b * b)
