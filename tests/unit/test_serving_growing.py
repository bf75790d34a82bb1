"""A run that goes on from a shorter one is the run that begins anew, to the last bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simulator.api import Scenario, traffic
from simulator.serving import growing
from simulator.serving.deployment import Deployment
from simulator.serving.fleet import simulate
from simulator.serving.growing import Growing
from simulator.serving.requests import Requests
from simulator.serving.scheduler import Scheduler

FLEET = Deployment(Scenario(model="llama-3.1-8b", device="l40s"), replicas=3, router="least-loaded")
LOAD: dict[str, Any] = {"prompt_tokens": "lognormal(mean=900,cv=1)", "output_tokens": "lognormal(mean=150,cv=1)"}
FIELDS = ("replica", "admitted_s", "first_s", "finish_s", "preemptions", "hits", "gaps")


def assert_same(found, wanted):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
    for a, b in zip(found.events, wanted.events, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(found.queues, wanted.queues, strict=True):
        np.testing.assert_array_equal(a, b)


def shared(count: int) -> Requests:
    """Prompts of which every third begins alike."""
    asked = traffic(rate=20.0, prompt_tokens=1024, output_tokens=40, count=900)
    ids = tuple((-1 - i % 3, i) for i in range(900))
    return replace(asked, ids=ids, id_tokens=512, stream=None).first(count)


@pytest.mark.parametrize(
    ("fleet", "load"),
    [
        (FLEET, traffic(rate=14.0, **LOAD).longer),
        (
            replace(FLEET, scheduler=Scheduler("prefill-first", preemption="recompute")),
            traffic(rate=14.0, **LOAD).longer,
        ),
        (
            replace(FLEET, scenario=Scenario(model="llama-3.1-8b", device="l40s", gpu_memory_utilization=0.4)),
            traffic(rate=30.0, **LOAD).longer,
        ),
        (replace(FLEET, router="prefix-aware", prefix_cache=True), shared),
        (replace(FLEET, router="round-robin"), traffic(rate=14.0, **LOAD).longer),
        (FLEET, traffic(users=30, **LOAD).longer),
    ],
    ids=["least-loaded", "prefill-first", "full-cache", "prefixes", "round-robin", "users"],
)
def test_longer_runs_are_those_that_begin_anew(fleet, load):
    more = Growing(fleet)
    for count in (200, 450, 900):
        assert_same(more.serve(load(count)), simulate(fleet, load(count)))


def test_what_was_served_is_not_served_again(monkeypatch):
    sent = []

    class Counted(growing.Course):
        def send(self, requests):
            sent.append(len(requests))
            super().send(requests)

    monkeypatch.setattr(growing, "Course", Counted)
    more = Growing(FLEET)
    for count in (200, 450, 900):
        more.serve(traffic(rate=14.0, prompt_tokens=900, output_tokens=150).longer(count))
    assert sent == [200, 250, 450]


def test_other_requests_begin_anew():
    more = Growing(FLEET)
    more.serve(traffic(rate=14.0, count=300, **LOAD))
    other = traffic(rate=14.0, count=300, seed=1, **LOAD)
    assert_same(more.serve(other), simulate(FLEET, other))
