"""A fleet that is served ever more requests of one stream, without serving again what it has served."""

from __future__ import annotations

from dataclasses import replace
from time import process_time

from simulator.serving.book import Book
from simulator.serving.deployment import Deployment
from simulator.serving.fleet import Outcome, book_of, collect, ready, replicas_of, simulate
from simulator.serving.replica import Replica
from simulator.serving.requests import Requests
from simulator.serving.routing import Course, looks
from simulator.serving.steptime import StepTable


class Growing:
    """Runs of one deployment, each longer than the last; what they say is what `simulate` says.

    Where the router looks at its replicas, a run is the last one up to its last arrival and goes on from there: the
    replicas are copied before they work off what is left. Others begin again.

    Parameters
    ----------
    deployment : Deployment
    end : str
        That of `simulate`.
    """

    def __init__(self, deployment: Deployment, end: str = "mid"):
        self.deployment, self.end = deployment, end
        self._table: StepTable | None = None
        self._book = Book([], [], [])
        self._replicas: list[Replica] = []
        self._course: Course | None = None

    def serve(self, requests: Requests) -> Outcome:
        """As ``simulate(deployment, requests, end)``."""
        deployment = self.deployment
        split = deployment.prefill_replicas or deployment.group.pp > 1
        if requests.answered or split or not looks(deployment, deployment.replicas):
            return simulate(deployment, requests, self.end)
        table = ready(deployment, requests, self.end)
        began = process_time()
        book = book_of(deployment, requests)
        if self._course is None or table is not self._table or not self._begins(book):
            self._table, self._book = table, book
            self._replicas = replicas_of(deployment, table, book, deployment.replicas, requests.id_tokens)
            self._course = Course(deployment, self._replicas, book)
        else:
            self._book.extend(book)
        course = self._course
        course.send(range(len(course.chosen), len(requests)))
        left = self._book.copy()
        replicas = [r.copy(left) for r in self._replicas]
        for replica in replicas:
            replica.run()
        found = collect(deployment, requests, left, replicas, course.chosen)
        return replace(found, seconds=process_time() - began)

    def _begins(self, book: Book) -> bool:
        """Whether `book` begins with the requests that were served."""
        n = len(self._book.arrival)
        same = (self._book.arrival == book.arrival[:n], self._book.prompt == book.prompt[:n])
        return all(same) and self._book.output == book.output[:n] and tuple(self._book.ids) == tuple(book.ids[:n])
