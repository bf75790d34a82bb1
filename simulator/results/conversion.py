"""One measure of loss: what a rise of the perplexity costs in percentage points of a mean zero-shot score."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby

import numpy as np

from simulator.base.interval import Interval
from simulator.results.published_quality import Pair, load_pairs, load_series
from simulator.scenario.catalogue import CATALOGUE

Z = 1.6449
"""95 % quantile of the normal distribution [-]."""
MOST_POINTS = 37.6
"""Points a score loses on its way to chance: Mistral-7B's mean of 8 tasks falls from 69.9 to 32.3 when its activation
is replaced without training (CATS, arXiv 2404.08763)."""
SMALL_POINTS = 1.0
"""Losses below which a score's own noise is learned [points]."""
LEAST_MOVED = 1e-3
"""Sum of squares of ln(perplexity ratio) from which a model says something about the rate."""


def student(freedom: float) -> float:
    """95 % quantile of Student's t, by its expansion about the normal one: within 1.5 % from two degrees on [-].

    References
    ----------
    .. [1] Abramowitz, Stegun, "Handbook of mathematical functions", 26.7.5.
    """
    z, n = Z, freedom
    terms = (
        (z**3 + z) / 4.0,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96.0,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384.0,
    )
    return z + sum(term / n ** (i + 1) for i, term in enumerate(terms))


def spread(points: np.ndarray | float) -> np.ndarray:
    """``asinh``: points as they are while few, their logarithm when many; errors are alike on this scale [-]."""
    return np.arcsinh(points)


@dataclass(frozen=True)
class Conversion:
    """``points = C (1 - exp(-r x / C))``, x = ln(perplexity ratio), ``r = rate (parameters / 10^10)^slope``.

    Attributes
    ----------
    rate : float
        Points lost per nat by a model of 10 billion parameters [points/nat].
    slope : float
        Larger models lose less for the same rise [-].
    log_error : float
        Standard deviation of ln r between models [-].
    noise : float
        Standard deviation of a score about small losses [points].
    models : int
        Models learned from.
    smallest, largest : float
        Parameters of the smallest and the largest of them; beyond, theirs are the rates [-].
    """

    rate: float
    slope: float
    log_error: float
    noise: float
    models: int
    smallest: float
    largest: float

    def rate_of(self, parameters: float) -> float:
        """Points per nat of a model [points/nat]."""
        return self.rate * (min(max(parameters, self.smallest), self.largest) / 1e10) ** self.slope

    def points(self, log_ratio: float, parameters: float) -> float:
        """Points that a rise of ln(perplexity) costs; linear where it falls [points]."""
        steep = self.rate_of(parameters) * log_ratio
        return MOST_POINTS * -np.expm1(-steep / MOST_POINTS) if steep > 0.0 else steep

    def share(self, points: float) -> float:
        """How much of an error of ln r reaches ``spread(points)``: all of a large loss, none of none [-]."""
        left = max(1.0 - points / MOST_POINTS, 1e-9)
        steep = -MOST_POINTS * np.log(left) if points > 0.0 else points
        return float(abs(steep) * (left if points > 0.0 else 1.0) / np.hypot(1.0, points))

    def interval(self, log_ratio: float, parameters: float, log_error: float = 0.0) -> Interval[float]:
        """90 % interval of `points`; `log_error` is the standard error of `log_ratio` [points]."""
        mid = float(self.points(log_ratio, parameters))
        rise = self.rate_of(parameters) * max(1.0 - mid / MOST_POINTS, 0.0) * log_error / float(np.hypot(1.0, mid))
        parts = self.log_error * self.share(mid), self.noise, rise
        return around(mid, student(self.models - 2) * float(np.linalg.norm(parts)))


@lru_cache(maxsize=1)
def largest_gain() -> float:
    """Most points that any paper gained [points]."""
    series = (s for s in load_series() if s.unit == "points")
    return max(-s.loss(v[-1]) for s in series for v in s.values)


def around(mid: float, half: float) -> Interval[float]:
    """Interval of `half` the width on the scale of `spread`, within what was ever lost or gained [points]."""
    lo, hi = (float(np.sinh(spread(mid) + sign * half)) for sign in (-1.0, 1.0))
    return Interval(mid, min(max(lo, -largest_gain()), mid), max(min(hi, MOST_POINTS), mid))


def learned(pairs: tuple[Pair, ...]) -> Conversion:
    """Rate and slope by least squares of ln r over models, r of each through the origin of its pairs.

    Raises
    ------
    ValueError
        Fewer than four models.
    """
    sizes, rates = [], []
    for model, group in groupby(sorted(pairs, key=lambda p: p.model), key=lambda p: p.model):
        own = [(p.log_ratio, p.points) for p in group]
        moved = sum(x * x for x, _ in own)
        rate = sum(x * y for x, y in own) / moved if moved > LEAST_MOVED else 0.0
        if rate > 0.0:
            sizes.append(CATALOGUE.model(model).n_params)
            rates.append(rate)
    if len(rates) < 4:
        raise ValueError(f"{len(rates)} models with both measures; four are the least")
    a = np.stack([np.ones(len(rates)), np.log(np.array(sizes, float) / 1e10)], 1)
    y = np.log(rates)
    (level, slope), *_ = np.linalg.lstsq(a, y, rcond=None)
    rest = y - a @ np.array([level, slope])
    error = float(np.sqrt(rest @ rest / (len(y) - 2)))
    found = Conversion(float(np.exp(level)), float(slope), error, 0.0, len(y), min(sizes), max(sizes))
    told = [(p.points, found.points(p.log_ratio, CATALOGUE.model(p.model).n_params)) for p in pairs]
    small = [spread(true) - spread(mid) for true, mid in told if abs(mid) < SMALL_POINTS]
    noise = float(np.sqrt(np.mean(np.square(small)))) if small else 0.0
    return replace(found, noise=noise)


@lru_cache(maxsize=1)
def conversion() -> Conversion:
    """Learned of all published pairs."""
    return learned(load_pairs())
