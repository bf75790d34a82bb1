"""What a policy loses in quality on one measure, where that comes from, and the words every face tells it with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from simulator.base.interval import Interval

LOSS_UNKNOWN = "loss unknown"
"""What stands beside a policy whose quality nobody measured or published: it is not none."""
UNIT = "points: percentage points of a mean score; a perplexity is converted, with the interval of that"


class LossBasis(StrEnum):
    """Where a loss comes from, surest first."""

    NONE = "computes what dense computes"
    MEASURED = "measured"
    PUBLISHED = "published"
    EXTRAPOLATED = "EXTRAPOLATED"
    SMALL_MODEL = "small-model evidence"
    UNKNOWN = "unknown"


@dataclass(frozen=True, eq=False)
class Loss:
    """Loss of quality of one policy on one model against dense.

    Attributes
    ----------
    points : Interval
        Percentage points of a mean score, negative where it gains; NaN where unknown [points].
    source : str
        The paper's or the measurement's own figure, or the models it was carried over from or measured on.
    citation : str
        Where that was published.
    """

    points: Interval[float]
    basis: LossBasis
    source: str = ""
    citation: str = ""

    @property
    def known(self) -> bool:
        """Whether there is a figure."""
        return self.basis is not LossBasis.UNKNOWN

    @property
    def short(self) -> str:
        """For a cell of a table."""
        return short(self.points, self.basis)

    @property
    def words(self) -> str:
        """For a sentence."""
        return told(self.points, self.basis, self.source)

    def at_most(self, most: float) -> bool:
        """Whether even the upper end of the interval loses no more than `most` points."""
        return bool(self.points.hi <= most + 1e-9)


_MARKED = (LossBasis.EXTRAPOLATED, LossBasis.SMALL_MODEL)
UNKNOWN = Loss(Interval.exact(float("nan")), LossBasis.UNKNOWN)
NO_LOSS = Loss(Interval.exact(0.0), LossBasis.NONE)


def short(points: Interval[float], basis: str) -> str:
    """``1.56 points``, ``7.2 points (2.0-26)``, ``loss unknown``.

    Examples
    --------
    >>> from simulator.base.interval import Interval
    >>> short(Interval(7.2, 2.0, 26.1), LossBasis.EXTRAPOLATED)
    '7.2 points (2.0 to 26), EXTRAPOLATED'
    >>> short(Interval.exact(float("nan")), "")
    'loss unknown'
    """
    if not np.isfinite(points.mid):
        return LOSS_UNKNOWN
    if basis == LossBasis.NONE:
        return "no loss"
    if points.lo == points.hi:
        return f"{_plain(points.mid + 0.0, 2)} points"
    mark = f", {basis}" if basis in _MARKED else ""
    return f"{_figure(points.mid)} points ({_figure(points.lo)} to {_figure(points.hi)}){mark}"


def told(points: Interval[float], basis: str, source: str) -> str:
    """``loses 1.56 points (published: -1.56 points LongBench average)``, with the words for unknown alone."""
    text = short(points, basis)
    if text == LOSS_UNKNOWN:
        return text
    if basis == LossBasis.NONE:
        return f"{text}: it {basis}"
    if basis == LossBasis.EXTRAPOLATED:
        return f"loses {text} from {source}"
    if basis == LossBasis.SMALL_MODEL:
        return f"loses {text}: measured on {source}"
    verb = "gains" if points.hi < 0.0 else "loses"
    return f"{verb} {text.removeprefix('-') if verb == 'gains' else text} ({basis}: {source})"


def _figure(points: float) -> str:
    return _plain(points, 0 if abs(points) >= 9.95 else 1)


def _plain(points: float, digits: int) -> str:
    text = f"{points:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0.0 else text


def front(speed: Sequence[float], loss: Sequence[float]) -> np.ndarray:
    """Which of n are on the front of speed and quality: none is as fast and as good and better in one; shape (n,)."""
    v, q = np.asarray(speed, float), np.asarray(loss, float)
    as_good = (v[None, :] >= v[:, None]) & (q[None, :] <= q[:, None])
    better = (v[None, :] > v[:, None]) | (q[None, :] < q[:, None])
    return np.count_nonzero(as_good & better, axis=1) == 0
