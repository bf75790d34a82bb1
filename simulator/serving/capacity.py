"""The highest rate a deployment sustains, by simulation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from simulator.base.errors import InputError
from simulator.serving.deployment import Deployment
from simulator.serving.fleet import Outcome, simulate
from simulator.serving.metrics import meets
from simulator.serving.requests import Requests
from simulator.serving.slo import Promise
from simulator.serving.synthetic import MOST_USERS

PRECISION = 1.01
"""Ratio of the bracket's ends at which the search stops [-]."""
LEAST = 1e-3
"""Share of the saturation rate below which no rate is tried [-]."""


def saturation(deployment: Deployment, requests: Requests) -> float:
    """Requests per second when all arrive at once: no rate above it is sustained [1/s]."""
    burst = simulate(deployment, requests.at_once())
    return len(requests) / burst.makespan_s


def capacity(deployment: Deployment, requests: Requests, slo: Sequence[Promise] = ()) -> tuple[float | None, Outcome]:
    """Largest factor on the trace's rate at which it is not overloaded and keeps its promises, and its outcome.

    None, and the outcome at `LEAST`, where not even that share of the saturation rate keeps them.

    The factor is bisected between one that holds and one that does not, which takes latency to rise with the
    rate; on a trace with bursts it does up to the noise of the percentile.

    Raises
    ------
    InputError
        All requests arrive at once.
    """
    rate = requests.rate
    if not math.isfinite(rate):
        raise InputError("all requests arrive at once, there is no rate to search", where="--capacity")
    high = 1.05 * saturation(deployment, requests) / rate
    least = high * LEAST
    low, best = high, None
    while best is None:
        low = max(low / 2.0, least)
        outcome = simulate(deployment, requests.scaled(low))
        if meets(outcome, slo):
            best = outcome
        elif low <= least:
            return None, outcome
        else:
            high = low
    while high / low > PRECISION:
        middle = math.sqrt(low * high)
        outcome = simulate(deployment, requests.scaled(middle))
        if meets(outcome, slo):
            low, best = middle, outcome
        else:
            high = middle
    return low, best


def capacity_users(
    deployment: Deployment, requests: Requests, slo: Sequence[Promise] = ()
) -> tuple[float | None, Outcome]:
    """Factor on the users of a closed loop at which as many as can be are kept their promises, and its outcome.

    None, and the outcome of one user, where not even that one is. The number is bisected between one that is kept
    them and one that is not, to a hundredth.
    """

    def serve(users: int) -> Outcome:
        return simulate(deployment, requests.with_users(users))

    best = serve(1)
    if not meets(best, slo):
        return None, best
    most = len(requests) if requests.stream is None else MOST_USERS
    low, high = 1, 2
    while high <= most and meets(outcome := serve(high), slo):
        low, best, high = high, outcome, 2 * high
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        if middle <= most and meets(outcome := serve(middle), slo):
            low, best = middle, outcome
        else:
            high = middle
    return low / requests.users, best
