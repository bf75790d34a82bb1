"""Which replica a request goes to: routers that look at nothing, or at the replicas as they are when it arrives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush

from simulator.serving.book import Book
from simulator.serving.deployment import Deployment
from simulator.serving.replica import FOREVER, Replica

CACHE_THRESHOLD, IMBALANCE = 0.5, 32
"""Prefix-aware routing: least share of a prompt that must match, and the difference in requests above which the
least loaded replica is taken; defaults of SGLang's router (``--cache-threshold``, ``--balance-abs-threshold``)."""


def looks(deployment: Deployment, count: int) -> bool:
    """Whether the router looks at its `count` replicas; otherwise every one of them runs alone."""
    return deployment.router != "round-robin" and count > 1


class Course:
    """Requests on their way to replicas that are looked at.

    Attributes
    ----------
    chosen : list of int
        The replica each request went to.
    """

    def __init__(self, deployment: Deployment, replicas: Sequence[Replica], book: Book):
        self.pick = _prefix_aware if deployment.router == "prefix-aware" else _least_loaded
        self.replicas, self.book = replicas, book
        self.chosen: list[int] = []
        # Only a replica that a sequence can have left since is run on; the others' loads are what they were.
        self._loads = [0] * len(replicas)
        self._quiet = [FOREVER] * len(replicas)
        self._due: list[tuple[float, int]] = []

    def send(self, requests: Iterable[int]) -> None:
        """Route `requests`, which come in order of arrival after those before."""
        replicas, book, pick = self.replicas, self.book, self.pick
        loads, quiet, due, chosen = self._loads, self._quiet, self._due, self.chosen
        for i in requests:
            arrival = book.arrival[i]
            while due and due[0][0] < arrival:
                until, k = heappop(due)
                if quiet[k] == until:
                    replicas[k].run(arrival)
                    loads[k], quiet[k] = replicas[k].load, replicas[k].quiet_s()
                    heappush(due, (quiet[k], k))
            k = pick(replicas, loads, book, i)
            replicas[k].run(arrival)
            replicas[k].add(i)
            loads[k], quiet[k] = loads[k] + 1, replicas[k].clock
            heappush(due, (quiet[k], k))
            chosen.append(k)


def route(
    deployment: Deployment, replicas: Sequence[Replica], book: Book, which: Sequence[int] | None = None
) -> list[int]:
    """Run every request of `book` in order of arrival, or `which` and what follows them; the replica each went to."""
    count = len(replicas)
    asked = range(len(book.arrival)) if which is None else which
    if looks(deployment, count):
        course = Course(deployment, replicas, book)
        course.send(asked)
        chosen = course.chosen
    else:
        chosen = [r % count for r in range(len(asked))]
        for i, k in zip(asked, chosen, strict=True):
            replicas[k].add(i)
    for replica in replicas:
        replica.run()
    return chosen


def _least_loaded(replicas: Sequence[Replica], loads: list[int], book: Book, i: int) -> int:
    """Fewest requests; equal ones take turns."""
    least, turn = min(loads), i % len(loads)
    return loads.index(least, turn) if least in loads[turn:] else loads.index(least)


def _prefix_aware(replicas: Sequence[Replica], loads: list[int], book: Book, i: int) -> int:
    """The longest match if it is long and that replica not far behind, else the least loaded."""
    if not book.ids or max(loads) - min(loads) > IMBALANCE:
        return _least_loaded(replicas, loads, book, i)
    matches = [r.prefix.match(book.ids[i])[0] if r.prefix else 0 for r in replicas]
    best = max(range(len(replicas)), key=lambda k: (matches[k], -loads[k]))
    if not book.ids[i] or matches[best] / len(book.ids[i]) < CACHE_THRESHOLD:
        return _least_loaded(replicas, loads, book, i)
    return best
