"""Runs long enough to decide whether a fleet keeps its promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from simulator.base.errors import InputError
from simulator.serving.deployment import Deployment
from simulator.serving.fleet import Outcome
from simulator.serving.growing import Growing
from simulator.serving.metrics import meets, probability, probability_seen
from simulator.serving.requests import Requests
from simulator.serving.slo import Promise
from simulator.serving.steady import needed, window

SURE = 0.9
"""Least probability with which a fleet must keep its promises, at these step times, to be planned [-]."""
DECIDED = 0.99
"""Probability, of yes or of no, at which a run is not extended any further [-]."""
FIRST_LOOK = 0.25
"""Share of the requests that settle the strictest promise that are served before any more are [-]."""
MARGIN = 1.1
"""More than the first look's lifetimes ask for, which are not all yet known [-]."""
LONGEST = 8
"""Longest run, in requests that settle the strictest promise: what is undecided then is close to its limit [-]."""


@dataclass(frozen=True, eq=False)
class Settled:
    """A run, whether it keeps the promises, how probable a run without end does [-], and why it is no longer."""

    outcome: Outcome
    ok: bool
    probability: float
    why: str = ""


def settle(deployment: Deployment, requests: Requests, slo: Sequence[Promise], end: str = "mid") -> Settled:
    """Serve requests of the stream of `requests`, twice as many each time, until it is decided whether `slo` holds.

    The first look is short, and only says no; the next has enough requests of the stationary part; from there on runs
    double. Lengths do not depend on how many are given, unless those are more. A run is decided when the promises hold
    with `DECIDED`, or are missed with it or by a queue that only grows. Requests that end, those of a file, count as
    they are. `end` is that of `simulate`.
    """
    want, fleet = needed(slo), Growing(deployment, end)
    count, last = ceil(want * FIRST_LOOK), None
    while True:
        try:
            outcome = fleet.serve(requests.longer(count))
        except InputError as error:
            # Further on the stream may hold a request that is too long; what is given has been accepted.
            if count <= len(requests):
                raise
            outcome = last.outcome if last is not None else fleet.serve(requests)
            return Settled(outcome, meets(outcome, slo), probability(outcome, slo), error.message)
        sure, part = probability(outcome, slo), window(outcome)
        last = Settled(outcome, sure >= SURE, sure)
        if len(outcome.requests) < count:
            why = f"the {len(requests):,} requests of {requests.name} end"
            return Settled(outcome, meets(outcome, slo), sure, why)
        if count < want:
            if probability_seen(outcome, slo) <= 1.0 - DECIDED:
                return last
            fills = 2.0 * part.lifetime_s * outcome.requests.rate
            count = max(min(ceil(MARGIN * (want + fills)), LONGEST * want), len(requests))
            continue
        if sure <= 1.0 - DECIDED:
            return last
        enough = not part.why and part.has(outcome.requests.arrival_s).sum() >= want
        if count >= len(requests) and ((enough and sure >= DECIDED) or count >= LONGEST * want):
            return last
        count = min(2 * count, max(LONGEST * want, len(requests)))
