"""The stationary part of a run, and how far its statistics are from those of a run without end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from statistics import NormalDist

import numpy as np

from simulator.serving.fleet import Outcome
from simulator.serving.slo import QUANTILES, Promise

LIFETIME = 0.99
"""Quantile of the times from arrival to last token that both cuts are long: by then the fleet has filled [-]."""
BEYOND = 40
"""Requests wanted beyond a promised percentile: its share of them is then known to 1 / sqrt(40), 16 % [-]."""
LEAST = 100
"""Requests below which no part of a run is cut off: fewer have none beyond their p99 [-]."""
BATCHES = 20
"""Batches of neighbours whose means say how much requests that wait for each other repeat each other [-]."""
LEVEL = 0.9
"""Probability of a statistical interval [-]."""
Z = NormalDist().inv_cdf(0.5 + LEVEL / 2.0)


@dataclass(frozen=True)
class Window:
    """Arrivals that count.

    Attributes
    ----------
    start_s, stop_s : float
        From when to when [s].
    lifetime_s : float
        What is cut at either end [s].
    why : str
        Why nothing was cut off, or "".
    """

    start_s: float
    stop_s: float
    lifetime_s: float
    why: str = ""

    @property
    def seconds(self) -> float:
        """How long it is [s]."""
        return self.stop_s - self.start_s

    def has(self, times: np.ndarray) -> np.ndarray:
        """Which of `times` [s] are in it."""
        return (times >= self.start_s) & (times <= self.stop_s)


def window(outcome: Outcome) -> Window:
    """What is neither warm-up nor drain: arrivals one lifetime after the first until one before the last.

    A lifetime is the `LIFETIME` quantile of the requests', with what its user thinks before it; in a conversation
    since its first turn. Those before find a fleet that still fills, those after decode while it empties. Where fewer
    than `LEAST` are left, nothing is cut off, from the first arrival to the last token.
    """
    arrival, session = outcome.requests.arrival_s, outcome.requests.session
    think = 0.0 if outcome.requests.think_s is None else outcome.requests.think_s
    began = arrival
    if session is not None:
        _, first, of = np.unique(session, return_index=True, return_inverse=True)
        began = arrival[first][of]
    life = float(np.quantile(outcome.finish_s - began + think, LIFETIME))
    found = Window(life, float(arrival[-1]) - life, life)
    count = int(found.has(arrival).sum())
    if count >= LEAST:
        return found
    why = f"{count} of {len(arrival)} requests come later than {life:.3g} s (a lifetime) after the first and before the"
    return Window(0.0, outcome.makespan_s, life, f"{why} last, fewer than {LEAST}")


def needed(slo: Sequence[Promise]) -> int:
    """Requests of the stationary part that settle the strictest of `slo` [-]."""
    tails = [1.0 - QUANTILES.get(p.statistic, 0.5) for p in slo]
    return ceil(BEYOND / min(tails, default=0.01) - 1e-9)


def spread(values: np.ndarray, weights: np.ndarray) -> float:
    """Standard error of the weighted mean of neighbours that repeat each other, by batch means [-].

    With b batches of mean ``m_i`` and weight ``w_i``: ``sqrt(b / (b - 1) sum w_i^2 (m_i - m)^2) / sum w_i``.
    """
    edges = np.linspace(0, len(values), min(BATCHES, len(values)) + 1).astype(int)[:-1]
    if len(edges) < 2:
        return float("inf")
    mass = np.add.reduceat(weights, edges)
    sums = np.add.reduceat(weights * values, edges)
    off = sums - mass * (sums.sum() / mass.sum())
    return float(sqrt(len(edges) / (len(edges) - 1.0) * float(off @ off)) / mass.sum())


def beyond(values: np.ndarray, weights: np.ndarray, limit: float, q: float) -> tuple[float, float]:
    """Share of the values at or above `limit`, and how many independent ones all are worth [-].

    Neighbours that wait together count for less than their number: binomial over batch variance, at most their number.
    Where fewer are beyond `limit` than the quantile `q` allows, too few of them say how much they repeat each other;
    those beyond the quantile itself do.
    """
    share, independent = _beyond(values, weights, limit)
    if share < 1.0 - q:
        independent = min(independent, _beyond(values, weights, _quantile(values, weights, q))[1])
    return share, independent


def _beyond(values: np.ndarray, weights: np.ndarray, limit: float) -> tuple[float, float]:
    late = (values >= limit).astype(float)
    total = float(weights.sum())
    share = float(weights @ late) / total
    plain, seen = share * (1.0 - share), spread(late, weights) ** 2
    return share, total if plain == 0.0 or seen <= plain / total else plain / seen


def _quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(reached, share)), len(values) - 1)])


def stays_below(values: np.ndarray, weights: np.ndarray, statistic: str, limit: float) -> float:
    """Probability that a run without end has its `statistic` below `limit` [-].

    The share beyond the limit of n independent values, k of them beyond, has the density Beta(k + 1/2, n - k + 1/2)
    (Jeffreys); the mean is normal with the standard error of `spread`.
    """
    from scipy.special import betainc, ndtr

    if not len(values):
        return 1.0
    if statistic == "mean":
        mean, error = float(np.average(values, weights=weights)), spread(values, weights)
        return float(mean < limit) if error == 0.0 else float(ndtr((limit - mean) / error))
    q = QUANTILES[statistic]
    share, n = beyond(values, weights, limit, q)
    return float(betainc(share * n + 0.5, (1.0 - share) * n + 0.5, 1.0 - q))


def statistical(values: np.ndarray, weights: np.ndarray, statistic: str, at: float) -> tuple[float, float]:
    """Ends of the interval around `at` that holds the value of a run without end with `LEVEL` [s].

    A quantile's ends are the quantiles one error of the share beyond it below and above; where that share would be
    none, the upper end is not known: infinite.
    """
    if not len(values):
        return float("nan"), float("nan")
    if statistic == "mean":
        error = Z * spread(values, weights)
        return at - error, at + error
    q = QUANTILES[statistic]
    _, n = beyond(values, weights, at, q)
    error = Z * sqrt(q * (1.0 - q) / max(n, 1.0))
    high = max(_quantile(values, weights, q + error), at) if q + error < 1.0 else float("inf")
    return min(_quantile(values, weights, max(q - error, 0.0)), at), high


def with_model(ratios: Sequence[float]) -> float:
    """Probability that the promises hold when all steps are anywhere in their interval [-].

    Parameters
    ----------
    ratios : sequence of float
        Largest statistic over its limit with all steps at their 5, 50 and 95 % quantile; inf where overloaded.

    Notes
    -----
    Limit over statistic is a line between the quantiles' normal deviates, and goes on beyond them; 0 where overloaded.
    """
    slack = [0.0 if r == np.inf else 1.0 / max(r, 1e-9) for r in ratios]
    low, middle, high = slack
    step = middle - low if middle < 1.0 else high - middle
    if step >= 0.0:
        return float(middle > 1.0)
    return NormalDist().cdf((1.0 - middle) / step * Z)
