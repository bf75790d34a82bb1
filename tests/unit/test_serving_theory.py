"""Queueing theory and bookkeeping: what must hold of any service, whatever its step times."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.inference.kvpool import KvPool
from simulator.scenario.scenario import Scenario
from simulator.serving import metrics, steady
from simulator.serving.book import Book
from simulator.serving.deployment import Deployment
from simulator.serving.fleet import Outcome, simulate
from simulator.serving.replica import Replica
from simulator.serving.requests import Requests
from simulator.serving.scheduler import Scheduler
from simulator.serving.steptime import linear_table
from simulator.serving.synthetic import synthetic

ONE_AT_A_TIME = Scheduler("prefill-first", max_num_seqs=1, max_num_batched_tokens=8192)


def one_server(arrival: np.ndarray, service_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Waiting and leaving times of a single server whose prompts take `service_s`; outputs of one token."""
    tokens = np.maximum(np.round(service_s / 1e-3), 1.0)
    table = linear_table(1, int(tokens.max()) + 1, row_s=1e-3)
    book = Book(arrival.tolist(), tokens.astype(int).tolist(), [1] * len(arrival))
    replica = Replica(table, ONE_AT_A_TIME, KvPool(10**6, 16, 1.0), book)
    for i in range(len(arrival)):
        replica.add(i)
    replica.run()
    return np.array(book.admitted) - arrival, np.array(book.finish)


def lindley(arrival: np.ndarray, service_s: np.ndarray) -> np.ndarray:
    """``W' = max(0, W + S - A)``, Lindley 1952."""
    waits, wait = [0.0], 0.0
    for gap, served in zip(np.diff(arrival), service_s[:-1], strict=True):
        wait = max(0.0, wait + served - gap)
        waits.append(wait)
    return np.array(waits)


@pytest.mark.parametrize(("name", "square"), [("M/D/1", 1.0), ("M/M/1", 2.0)])
@pytest.mark.parametrize("load", [0.5, 0.8])
def test_one_server_waits_as_theory_says(name, square, load):
    count, mean = 40_000, 0.5
    rng = np.random.default_rng(3)
    arrival = np.cumsum(rng.exponential(mean / load, count))
    service = np.full(count, mean) if name == "M/D/1" else rng.exponential(mean, count)
    service = np.maximum(np.round(service / 1e-3), 1.0) * 1e-3
    waits, _ = one_server(arrival, service)
    # The same arithmetic but for the order of the sums.
    np.testing.assert_allclose(waits, lindley(arrival, service), atol=1e-6)
    # Pollaczek-Khinchine: W = rho E[S^2] / (2 E[S] (1 - rho)); the mean of 40,000 correlated waits at a load of 0.8
    # has a standard error of about 4 %.
    theory = load * square * mean / (2.0 * (1.0 - load))
    assert waits.mean() == pytest.approx(theory, rel=0.10)


def served(rate: float, count: int = 1500, **options: object) -> Outcome:
    requests = synthetic(
        count, rate, arrivals="poisson", prompt="lognormal(mean=700,cv=1)", output="exponential(mean=60)"
    )
    scheduler = Scheduler(max_num_seqs=64, max_num_batched_tokens=2048)
    deployment = Deployment(Scenario(model="llama-3.1-8b", device="h100-sxm"), scheduler, **options)
    return simulate(deployment, requests)


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return served(20.0)


def test_littles_law_holds(outcome):
    load = metrics.over_time(outcome)
    width = load["time_s"][1] - load["time_s"][0]
    # Waiting, in its prompt, or decoding: every request-second is somewhere.
    first = np.minimum(outcome.first_s, outcome.finish_s)
    in_prompt = float(np.sum(first - outcome.admitted_s))
    present = float(np.sum(load["waiting"] + load["running"])) * width + in_prompt
    assert present == pytest.approx(float(np.sum(outcome.e2e_s)), rel=1e-9)


def test_tokens_are_conserved(outcome):
    load = metrics.over_time(outcome)
    width = load["time_s"][1] - load["time_s"][0]
    requests = outcome.requests
    made = float(np.sum(load["output_tokens_per_s"])) * width
    # A request's first token comes with its prompt; prompts cut into chunks make one event more per cut.
    cuts = sum(float(e["chunks"].sum()) for e in outcome.events) - len(requests)
    assert made == pytest.approx(float(requests.output.sum()) + cuts, rel=1e-9)
    read = float(np.sum(load["prompt_tokens_per_s"])) * width
    assert read == pytest.approx(float(requests.prompt.sum()), rel=1e-9)
    assert np.all((load["kv_share"] >= 0.0) & (load["kv_share"] <= 1.0))


def test_times_between_tokens_add_up_to_decoding(outcome):
    values, weights = metrics.inter_token_s(outcome)
    decoding = float(np.sum(outcome.finish_s - outcome.first_s))
    assert float(np.sum(values * weights)) == pytest.approx(decoding, rel=1e-9)
    assert float(weights.sum()) == float(np.sum(outcome.requests.output - 1))


def test_no_request_is_faster_than_alone(outcome):
    alone = simulate(outcome.deployment, outcome.requests.first(30).scaled(1e-4))
    assert np.all(alone.e2e_s <= outcome.e2e_s[:30] * (1.0 + 1e-9))


def test_a_queue_that_only_grows_is_called_so():
    saturated = served(1000.0, count=3000)
    rate = len(saturated.requests) / saturated.makespan_s
    states = {share: metrics.status(served(rate * share, count=4000)) for share in (0.3, 0.7, 1.6)}
    assert states[1.6] == "OVERLOADED"
    assert states[0.3] == states[0.7] == "STABLE"
    row = metrics.summary(served(rate * 1.6, count=4000))
    assert row["ttft_p99_s"] is None
    assert row["tpot_p50_s"] is None


def test_weighted_quantiles_count_every_token():
    values, weights = np.array([3.0, 1.0, 2.0, np.nan]), np.array([1.0, 98.0, 1.0, 5.0])
    assert metrics.statistic(values, weights, "p50") == 1.0
    assert metrics.statistic(values, weights, "p99") == 2.0
    assert metrics.statistic(values, weights, "mean") == pytest.approx(1.03)
    assert np.isnan(metrics.statistic(np.array([np.nan]), None, "p50"))


def test_goodput_counts_requests_that_keep_every_limit():
    from simulator.serving.slo import parse_slo

    found = served(5.0, count=200)
    everything = metrics.goodput(found, parse_slo("ttft:p99<100s;tpot:p99<1s"))
    part = steady.window(found)
    counted = part.has(found.requests.arrival_s)
    assert everything == pytest.approx(counted.sum() / part.seconds)
    median = float(np.median(found.ttft_s[counted]))
    half = metrics.goodput(found, parse_slo(f"ttft:p50<{median:.9f}s"))
    assert half == pytest.approx(everything / 2.0, rel=0.02)


def test_requests_of_a_closed_loop_follow_each_other():
    count, clients = 60, 4
    table = linear_table(8, 200, step_s=1e-3, row_s=1e-5)
    book = Book([0.0] * count, [20] * count, [5] * count)
    replica = Replica(table, Scheduler("chunked", 8, 128), KvPool(1000, 16, 1.0), book)
    for i in range(clients):
        replica.add(i)
    replica.closed.extend(range(clients, count))
    replica.run()
    arrival, finish = np.array(book.arrival), np.array(book.finish)
    assert np.all(np.isfinite(finish))
    # Every request but the first of each client comes the moment another ends.
    assert set(np.round(arrival[clients:], 12)) <= set(np.round(finish, 12))
    at = np.sort(np.concatenate([arrival, finish - 1e-12]))
    present = [np.sum((arrival <= t) & (finish > t)) for t in at]
    assert max(present) <= clients


def test_one_request_is_traffic_too():
    one = Requests.of([0.0], [5], [5])
    assert one.rate == float("inf")
    assert one.first(None) is one
    assert metrics.status(simulate(served(1.0, 5).deployment, one)) == "STABLE"
