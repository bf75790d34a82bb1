"""A figure with its 90 % interval, and the ratio of two of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

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


def _both(a: Any, b: Any) -> Any:
    """Root of the sum of the squares; `hypot` guards against overflow that logs cannot cause, at ten times the cost."""
    return np.sqrt(a * a + b * b)
