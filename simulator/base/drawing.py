"""What a chart of curves shows, apart from who draws it: a file, a report or a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class Line:
    """One curve of a chart.

    Attributes
    ----------
    x, y : ndarray, shape (n,)
        In the units of the chart's axes.
    low, high : ndarray or None, shape (n,)
        A band about the curve.
    beside : ndarray or None, shape (n,)
        What the curve is compared with, dotted in its colour; `Lines.beside` says what that is.
    aside : bool
        A yardstick beside what is measured: drawn grey and dotted.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    beside: np.ndarray | None = None
    aside: bool = False


@dataclass(frozen=True, eq=False)
class Lines:
    """Curves over one pair of axes; `share` tells y (and `x_share` x) as percent, nothing above `most` is drawn."""

    lines: tuple[Line, ...]
    x_label: str
    y_label: str
    x_log: bool = False
    y_log: bool = False
    share: bool = True
    x_share: bool = False
    most: float | None = None
    beside: str = ""


@dataclass(frozen=True, eq=False)
class Picture:
    """Curves with what is drawn, what they say, and the same for who cannot see them."""

    id: str
    title: str
    said: str
    drawn: Lines
    alt: str
    caption: str = ""
