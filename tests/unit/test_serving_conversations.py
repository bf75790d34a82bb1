"""Conversations: turns that bring the dialogue so far and wait for an answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.api import Grid, InputError, Scenario, plan, serve, traffic
from simulator.serving.deployment import Deployment
from simulator.serving.fleet import simulate
from simulator.serving.metrics import summary

FLEET = Deployment(Scenario(model="llama-3.1-8b", device="h100-sxm"))
TALK = {"turns": "uniform(low=2,high=8)", "think_time": "exponential(mean=5)"}
ASKED = {"prompt_tokens": "lognormal(mean=300,cv=1)", "output_tokens": "lognormal(mean=100,cv=1)"}


def by_session(outcome):
    """Numbers of each conversation's requests, in order of their turns."""
    session = outcome.requests.session
    return [np.flatnonzero(session == s) for s in np.unique(session)]


def test_a_turn_brings_all_before_it_and_comes_after_the_answer_and_a_thought():
    sent = traffic(rate=0.5, turns=3, think_time=4, prompt_tokens=100, output_tokens=30, count=60)
    outcome = simulate(replace(FLEET, replicas=2, router="least-loaded"), sent)
    for turns in by_session(outcome):
        asked = outcome.requests
        np.testing.assert_array_equal(asked.prompt[turns], [100, 230, 360][: len(turns)])
        np.testing.assert_allclose(asked.arrival_s[turns[1:]], outcome.finish_s[turns[:-1]] + 4.0)
        assert len(set(outcome.replica[turns])) == 1
    assert np.all(np.diff(outcome.requests.arrival_s) >= 0.0)
    assert set(outcome.replica) == {0, 1}


def test_the_next_turn_finds_prompt_and_answer_in_the_prefix_cache():
    sent = traffic(users=1, turns=3, think_time=1, prompt_tokens=100, output_tokens=30, count=30)
    outcome = simulate(replace(FLEET, prefix_cache=True), sent)
    for turns in by_session(outcome):
        # 130 and 260 tokens are there, blocks of 128 are shared: 1 of the first, 2 of both.
        np.testing.assert_array_equal(outcome.hits[turns], [0, 128, 256][: len(turns)])
    row = summary(outcome)
    assert row["prefix_hit_rate"] == pytest.approx(row["prefix_bound"])


@pytest.mark.parametrize("load", [{"rate": 2.0}, {"users": 30}])
def test_a_longer_run_begins_as_a_shorter_one(load):
    few = traffic(count=400, **load, **TALK, **ASKED)
    more = few.longer(1200)
    assert (len(few), len(more)) == (400, 1200)
    for name in ("arrival_s", "prompt", "output", "think_s", "session"):
        np.testing.assert_array_equal(getattr(more, name)[:400], getattr(few, name))
    assert more.ids[:400] == few.ids


def test_conversations_come_at_their_rate_and_a_factor_leaves_thoughts_alone():
    sent = traffic(rate=2.0, count=8000, **TALK, **ASKED)
    assert sent.rate == pytest.approx(2.0 * 5.0, rel=0.05)
    twice = sent.scaled(2.0)
    assert twice.rate == pytest.approx(2.0 * sent.rate, rel=0.05)
    assert np.mean(twice.think_s[twice.think_s > 0]) == pytest.approx(5.0, rel=0.05)
    row = summary(simulate(FLEET, sent))
    assert row["requests_per_s"] == pytest.approx(10.0, rel=0.05)


@pytest.mark.parametrize("replicas", [1, 3])
def test_users_are_the_rate_times_answer_and_thought(replicas):
    """Interactive response-time law, as without conversations."""
    sent = traffic(users=60, count=6000, **TALK, **ASKED)
    row = summary(simulate(replace(FLEET, replicas=replicas), sent))
    assert row["requests_per_s"] * (row["e2e_mean_s"] + 5.0) == pytest.approx(60.0, rel=0.04)


def test_the_same_fleet_at_any_length():
    grid = Grid(model=("llama-3.1-8b",), device=("l40s",), tp=(1,))
    slo = "ttft:p90<500ms;tpot:p90<50ms"
    found = [
        plan(grid, traffic(rate=4.0, count=n, **TALK, **ASKED), slo, prefix_cache=True).rows[0] for n in (50, 4000)
    ]
    assert found[0]["gpus"] == found[1]["gpus"]
    assert found[0]["prefix_hit_rate"] > 0.5


def test_turns_beyond_the_context_are_rejected_and_end_the_conversation():
    sent = traffic(rate=1.0, turns=5, prompt_tokens=500, output_tokens=100, count=200)
    outcome = serve(Scenario(model="opt-125m", device="l40s"), sent).outcome
    # 600 k - 100 + 100 tokens in turn k: three fit 2,048.
    assert outcome.requests.rejected > 0
    assert set(outcome.requests.prompt) == {500, 1100, 1700}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"rate": 1.0, "turns": 2000}, "--turns: a conversation of 2,000 turns; at most 1,000"),
        ({"rate": float("inf"), "turns": 3}, "--turns: conversations wait for answers"),
        ({"rate": 1.0, "think_time": 3}, "--think-time: is for --users or --turns"),
        ({"rate": 1.0, "turns": "zipf(a=2)"}, "--turns"),
    ],
)
def test_what_is_no_conversation_is_one_line(asked, told):
    with pytest.raises(InputError, match="(?s)" + told.replace("(", r"\(")):
        traffic(count=100, prompt_tokens=10, output_tokens=10, **asked)


def test_prefill_replicas_do_not_wait_for_answers():
    with pytest.raises(Exception, match="--prefill-replicas: not with --users or --turns"):
        serve(FLEET.scenario, traffic(rate=1.0, count=50, **TALK, **ASKED), prefill_replicas=1)
