"""Users who wait for an answer and think before they ask again, and everything at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.api import Grid, plan, traffic
from simulator.base.errors import InputError, UnsupportedError
from simulator.scenario.scenario import Scenario
from simulator.serving.capacity import capacity_users
from simulator.serving.deployment import Deployment
from simulator.serving.fleet import simulate
from simulator.serving.metrics import meets, summary
from simulator.serving.slo import parse_slo

FLEET = Deployment(Scenario(model="llama-3.1-8b", device="h100-sxm"))
ASKED = {"prompt_tokens": 512, "output_tokens": 64}


def test_one_user_waits_for_an_answer_and_thinks():
    outcome = simulate(FLEET, traffic(users=1, think_time=3.0, count=12, **ASKED))
    gaps = np.diff(outcome.requests.arrival_s)
    np.testing.assert_allclose(gaps, outcome.e2e_s[:-1] + 3.0)
    np.testing.assert_allclose(outcome.ttft_s, outcome.ttft_s[0])


@pytest.mark.parametrize("think", [0.0, 5.0, "exponential(mean=5)"])
@pytest.mark.parametrize("replicas", [1, 3])
def test_users_are_the_rate_times_answer_and_thought(think, replicas):
    """Interactive response-time law: ``users = rate (response + think)`` in the stationary part."""
    asked = {"prompt_tokens": "lognormal(mean=400,cv=1)", "output_tokens": "lognormal(mean=100,cv=1)"}
    outcome = simulate(replace(FLEET, replicas=replicas), traffic(users=60, think_time=think, count=6000, **asked))
    row = summary(outcome)
    mean = 0.0 if think == 0.0 else 5.0
    assert row["requests_per_s"] * (row["e2e_mean_s"] + mean) == pytest.approx(60.0, rel=0.03)
    assert row["users"] == 60
    assert row["status"] != "OVERLOADED"
    assert np.all(np.diff(outcome.requests.arrival_s) >= 0.0)
    inside = (outcome.requests.arrival_s[:, None] <= outcome.requests.arrival_s) & (
        outcome.finish_s[:, None] > outcome.requests.arrival_s
    )
    assert inside.sum(axis=0).max() <= 60


def test_a_longer_run_of_users_begins_as_a_shorter_one():
    few = traffic(users=20, think_time="exponential(mean=2)", count=300, **ASKED)
    more = few.longer(900)
    assert len(more) == 900
    np.testing.assert_array_equal(more.think_s[:300], few.think_s)
    assert len(traffic(users=500, count=100, **ASKED)) == 5000


def test_capacity_in_users_is_where_the_promise_breaks():
    slo = parse_slo("ttft:p99<200ms;tpot:p99<20ms")
    requests = traffic(users=10, think_time="exponential(mean=10)", count=2000, **ASKED)
    factor, outcome = capacity_users(FLEET, requests, slo)
    users = round(factor * 10)
    assert outcome.requests.users == users > 10
    assert meets(outcome, slo)
    assert not meets(simulate(FLEET, requests.with_users(int(users * 1.3))), slo)
    none, alone = capacity_users(FLEET, requests, parse_slo("ttft:p99<1ms"))
    assert none is None
    assert alone.requests.users == 1


def test_users_are_planned_for_and_a_rate_of_none_is_too_few():
    asked = {"users": 300, "think_time": 5, **ASKED}
    slo = "ttft:p99<1s;tpot:p99<60ms"
    grid = Grid(model=("llama-3.1-8b",), device=("l40s",), tp=(1,))
    rows = [plan(grid, traffic(count=count, **asked), slo).rows[0] for count in (100, 5000)]
    assert rows[0]["gpus"] == rows[1]["gpus"] > 1
    assert rows[0]["users"] == 300


def test_offline_work_is_answered_at_a_throughput_not_overloaded():
    row = summary(simulate(FLEET, traffic(rate=float("inf"), count=400, **ASKED)))
    assert row["status"] in ("STABLE", "BACKLOGGED")
    assert row["rate_per_s"] is None
    assert row["requests_per_s"] == pytest.approx(400 / row["makespan_s"])


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"users": 4, "rate": 1.0}, "at no rate"),
        ({"think_time": 4, "rate": 1.0}, "is for --users"),
        ({"users": 0}, "must be 1 to"),
        ({"users": 4, "think_time": "-1"}, "seconds must be 0"),
        ({"users": 4, "think_time": "poisson"}, "poisson"),
    ],
)
def test_contradictions_are_one_line(asked, words):
    with pytest.raises(InputError, match=words):
        traffic(**ASKED, **asked)


def test_users_wait_for_the_last_stage_which_is_not_simulated():
    two = Deployment(Scenario(model="llama-3.1-8b", device="h100-sxm", pp=2))
    with pytest.raises(UnsupportedError, match="--users"):
        simulate(two, traffic(users=4, count=40, **ASKED))


def test_a_file_has_as_many_users_as_requests_at_most(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "0,100,10\n" * 5)
    served = simulate(FLEET, traffic(path, users=2))
    assert served.requests.arrival_s[1] == 0.0 < served.requests.arrival_s[2]
    with pytest.raises(InputError, match="5"):
        traffic(path, users=6)
