"""The stationary part of a run, how sure its statistics are, and an answer that does not change with the length."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import beta, norm

from simulator.api import Grid, plan, traffic
from simulator.scenario.scenario import Scenario
from simulator.serving.deployment import Deployment
from simulator.serving.fleet import simulate
from simulator.serving.metrics import summary
from simulator.serving.requests import Requests
from simulator.serving.search import Sized, rank
from simulator.serving.settle import settle
from simulator.serving.slo import parse_slo
from simulator.serving.steady import needed, spread, statistical, stays_below, window, with_model
from simulator.serving.synthetic import synthetic

FLEET = Deployment(Scenario(model="llama-3.1-8b", device="h100-sxm"))
ASKED = {"prompt_tokens": 512, "output_tokens": 64}


@pytest.mark.parametrize("arrivals", ["poisson", "gamma(cv=2)", "fixed"])
@pytest.mark.parametrize(
    "tokens", ["512", "lognormal(mean=900,cv=1)", "uniform(low=10,high=900)", "exponential(mean=80)"]
)
def test_more_requests_of_a_seed_come_after_the_fewer(arrivals, tokens):
    few = synthetic(300, 4.0, arrivals=arrivals, prompt=tokens, output=tokens, seed=5)
    more = few.longer(700)
    assert len(more) == 700
    for name in ("arrival_s", "prompt", "output"):
        np.testing.assert_array_equal(getattr(more, name)[:300], getattr(few, name))
    np.testing.assert_allclose(few.scaled(2.0).longer(700).arrival_s, more.arrival_s / 2.0)
    assert len(few.at_once().longer(700)) == 300


def test_warm_up_and_drain_are_a_lifetime_long():
    outcome = simulate(FLEET, traffic(rate=10.0, count=600, **ASKED))
    part = window(outcome)
    life = np.quantile(outcome.e2e_s, 0.99)
    assert (part.start_s, part.stop_s) == pytest.approx((life, outcome.requests.arrival_s[-1] - life))
    row = summary(outcome)
    counted = part.has(outcome.requests.arrival_s)
    assert row["steady_requests"] == counted.sum() < 600
    assert row["tpot_p99_s"] == pytest.approx(np.quantile(outcome.tpot_s[counted], 0.99))
    tokens = 64 * counted.sum()
    assert row["usd_per_mtoken"] == pytest.approx(FLEET.usd_per_s * part.seconds / tokens * 1e6)


def test_rent_per_token_does_not_depend_on_how_long_the_drain_is():
    """A fifth of the shorter run is drain; the whole makespan would charge for it."""
    rents = []
    for count in (6000, 24_000):
        arriving = traffic(rate=100.0, count=count, prompt_tokens=64, output_tokens=1000, arrivals="fixed")
        rents.append(summary(simulate(replace(FLEET, replicas=8, router="least-loaded"), arriving))["usd_per_mtoken"])
    assert rents[0] == pytest.approx(rents[1], rel=0.02)


def test_a_run_too_short_to_cut_says_so():
    row = summary(simulate(FLEET, traffic(rate=10.0, count=60, **ASKED)))
    assert row["steady_requests"] == 60
    assert "fewer than 100" in row["steady_why"]


def test_the_probability_is_that_of_the_share_beyond_the_limit():
    values = np.arange(1000.0)
    values = values.reshape(50, 20).T.ravel()  # spread evenly over the batches: as good as independent
    ones = np.ones(1000)
    assert stays_below(values, ones, "p99", 995.0) == pytest.approx(beta.cdf(0.01, 5.5, 995.5))
    assert stays_below(values, ones, "p99", 1e9) == pytest.approx(beta.cdf(0.01, 0.5, 1000.5))
    low, high = statistical(values, ones, "p99", float(np.quantile(values, 0.99)))
    error = 1.6449 * math.sqrt(0.99 * 0.01 / 1000)
    assert (low, high) == pytest.approx((1000 * (0.99 - error), 1000 * (0.99 + error)), abs=2.0)
    assert statistical(values[:100], ones[:100], "p99", 900.0)[1] == math.inf


def test_an_interval_holds_the_truth_as_often_as_it_says():
    """Neighbours that repeat each other 20 times: the plain binomial interval would hold it in about 30 %."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        values = np.repeat(rng.exponential(1.0, 500), 20)
        low, high = statistical(values, np.ones(len(values)), "p90", float(np.quantile(values, 0.9)))
        held += low <= math.log(10.0) <= high
    assert 0.82 <= held / 200 <= 0.97


def test_neighbours_that_repeat_each_other_are_less_sure():
    rng = np.random.default_rng(1)
    alone = rng.normal(size=4000)
    assert spread(alone, np.ones(4000)) == pytest.approx(1.0 / math.sqrt(4000), rel=0.4)
    assert spread(np.repeat(alone[:40], 100), np.ones(4000)) > 5.0 * spread(alone, np.ones(4000))


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ((0.5, 0.8, 1.0), 0.95),
        ((0.5, 1.0, 2.0), 0.5),
        ((1.0, 1.5, math.inf), 0.05),
        ((0.4, 0.5, math.inf), norm.cdf(1.6449 / 2.0)),
    ],
)
def test_the_model_s_interval_makes_a_probability(ratios, expected):
    assert with_model(ratios) == pytest.approx(expected, abs=1e-3)


def test_what_a_percentile_needs():
    assert [needed(parse_slo(s)) for s in ("ttft:p99<1s", "ttft:p50<1s;tpot:p95<1s", "ttft:mean<1s")] == [4000, 800, 80]


def test_a_run_is_extended_until_it_is_decided_or_says_why_not():
    slo = parse_slo("ttft:p99<1s")
    short = traffic(rate=10.0, count=50, **ASKED)
    found = settle(FLEET, short, slo)
    assert found.ok
    assert found.probability > 0.99
    assert len(found.outcome.requests) >= 4000
    trace = Requests.of(short.arrival_s, short.prompt, short.output, name="trace.csv")
    ended = settle(FLEET, trace, slo)
    assert (ended.ok, ended.why) == (True, "the 50 requests of trace.csv end")
    assert ended.probability < 0.9


def test_the_same_question_has_the_same_fleet_at_any_length():
    grid = Grid(model=("llama-3.1-8b",), device=("l40s",))
    slo = "ttft:p99<1s;tpot:p99<60ms"
    asked = {"rate": 12.0, "prompt_tokens": "lognormal(mean=500,cv=1)", "output_tokens": 200}
    rows = [plan(grid, traffic(count=count, **asked), slo).rows[0] for count in (100, 1500)]
    assert rows[0] == rows[1]
    assert 0.0 < rows[0]["p_slo"] < 1.0
    fleet = replace(
        FLEET,
        scenario=Scenario(model="llama-3.1-8b", device="l40s", tp=rows[0]["tp"]),
        router="least-loaded",
        replicas=rows[0]["replicas"],
    )
    fleet = replace(fleet, scheduler=replace(fleet.scheduler, max_num_batched_tokens=rows[0]["max_num_batched_tokens"]))
    longer = simulate(fleet, traffic(count=40_000, **asked))
    assert summary(longer, parse_slo(slo))["meets_slo"]


def test_a_limit_nobody_passed_is_no_more_certain_than_the_run_is_long():
    # Twenty spells of 200 requests that are all alike: twenty independent ones, not 4,000, say nothing of a p99.
    spells = np.repeat(np.arange(20.0), 200)
    ones = np.ones(len(spells))
    assert stays_below(spells, ones, "p99", 20.0) < 0.6
    apart = np.random.default_rng(0).permutation(spells)
    assert stays_below(apart, ones, "p99", 20.0) > 0.999


def test_margins_that_no_run_knows_decide_nothing():
    def sized(tokens: int, miss: float) -> Sized:
        row = {"usd_per_h": 3.6, "policy": "dense", "device": "l40s", "tp": 1, "max_num_batched_tokens": tokens}
        return Sized(row, True, miss, 1, FLEET)

    for noise in (-0.01, 0.01):
        two = (sized(8192, 0.33), sized(2048, 0.33 + noise))
        assert min(two, key=lambda s: rank(s, "cheapest")) is two[1]
    clear = (sized(8192, 0.3), sized(2048, 0.8))
    assert min(clear, key=lambda s: rank(s, "cheapest")) is clear[0]
