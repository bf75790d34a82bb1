"""Step tables, fleets, prefix caching, policies under two schedulers, and runs spread over processes."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from simulator.errors import InputError, NothingFeasibleError, UnsupportedError
from simulator.scenario import Scenario
from simulator.serving.capacity import capacity, saturation
from simulator.serving.deployment import Deployment
from simulator.serving.estimate import HEADROOM, Load, estimate
from simulator.serving.fleet import simulate
from simulator.serving.metrics import meets, status
from simulator.serving.requests import Requests
from simulator.serving.runs import Task, run
from simulator.serving.scaleout import compute
from simulator.serving.scheduler import Scheduler
from simulator.serving.slo import parse_slo
from simulator.serving.synthetic import synthetic
from simulator.serving.tabulate import check, tabulate

SMALL = Scheduler(max_num_seqs=64, max_num_batched_tokens=2048)
BASE = Scenario(model="llama-3.1-8b", device="h100-sxm")
LINE = BASE.model_copy


def deployment(
    scheduler: Scheduler = SMALL, scenario: Scenario = BASE, **options: object
) -> Deployment:
    return Deployment(scenario, scheduler, **options)


def traffic(rate: float, count: int = 600) -> Requests:
    return synthetic(
        count,
        rate,
        arrivals="poisson",
        prompt="lognormal(mean=900,cv=1)",
        output="exponential(mean=80)",
    )


def conversations(count: int = 296, turns: int = 4) -> Requests:
    """Each conversation comes back `turns` times, two blocks longer every time."""
    rng = np.random.default_rng(0)
    arrival = np.sort(rng.uniform(0.0, 60.0, count))
    ids, prompts = [], []
    for i in range(count):
        blocks = 2 * (1 + i // (count // turns))
        ids.append(tuple(10_000 * (i % (count // turns)) + k for k in range(blocks)))
        prompts.append(512 * blocks + 20)
    return Requests.of(arrival, prompts, [20] * count, ids=tuple(ids))


@pytest.mark.parametrize(
    "change",
    [
        {}, {"tp": 2}, {"tp": 2, "pp": 2}, {"policy": "shadowllm(keep=0.5)"}, {"policy": "kv_quant(bits=4)"},
        {"policy": "streaming_llm"}, {"policy": "quest(budget=2048)"}, {"device": "a100-sxm-80g"},
    ],
    ids=str,
)  # fmt: skip
def test_the_table_is_the_prediction(change):
    group = deployment(scenario=LINE(update=change)).group
    errors = check(group, tabulate(group, 32, 1024, 4096), probes=60)
    # Between nodes, attention of several chunks and thresholds of a policy are interpolated.
    assert np.median(errors) < 2e-3
    assert np.quantile(errors, 0.9) < 2e-2


def test_the_interval_encloses_the_middle():
    requests = traffic(5.0, 200)
    ends = {end: simulate(deployment(), requests, end) for end in ("lo", "mid", "hi")}
    for metric in ("ttft_s", "tpot_s", "e2e_s"):
        lo, mid, hi = (np.nanmedian(getattr(ends[e], metric)) for e in ("lo", "mid", "hi"))
        assert lo < mid < hi


def test_round_robin_is_every_replica_by_itself():
    requests = traffic(20.0)
    fleet = simulate(deployment(replicas=3), requests)
    for k in range(3):
        mine = np.arange(k, len(requests), 3)
        alone = simulate(deployment(), requests.take(mine))
        np.testing.assert_array_equal(fleet.finish_s[mine], alone.finish_s)


def test_the_least_loaded_replica_shortens_the_tail():
    requests = traffic(60.0, 1500)
    tails = {
        router: float(
            np.quantile(simulate(deployment(replicas=4, router=router), requests).e2e_s, 0.99)
        )
        for router in ("round-robin", "least-loaded")
    }
    assert tails["least-loaded"] < tails["round-robin"]


def test_split_replicas_protect_decoding_from_prompts():
    requests = traffic(25.0)
    both = simulate(deployment(replicas=2), requests)
    split = simulate(deployment(replicas=1, prefill_replicas=1), requests)
    assert np.all(split.finish_s >= split.first_s)
    assert np.all(split.replica[requests.output > 1] == 1)
    # No prompt ever stands beside a decode step: the slowest tokens are faster.
    assert np.nanquantile(split.tpot_s, 0.99) < np.nanquantile(both.tpot_s, 0.99)
    with pytest.raises(InputError, match="--kv-transfer"):
        simulate(deployment(replicas=8, prefill_replicas=8), requests)
    # Decoding that cannot keep up is seen too, although every prompt is computed in time.
    long = Requests.of(np.arange(400) * 0.02, np.full(400, 50), np.full(400, 900))
    assert status(simulate(deployment(replicas=1, prefill_replicas=1), long)) == "OVERLOADED"
    slow = deployment(replicas=1, prefill_replicas=1, transfer_bytes_per_s=1e9)
    wait = simulate(slow, requests).finish_s - split.finish_s
    # 900 tokens of 128 KiB at 1 GB/s take 0.12 s.
    assert 0.05 < float(np.median(wait[requests.output > 1])) < 0.5


def test_prefix_caching_reaches_the_bound_when_nothing_is_evicted():
    requests = conversations()
    cached = simulate(deployment(prefix_cache=True), requests)
    rate = float(cached.hits.sum() / requests.prompt.sum())
    assert rate == pytest.approx(requests.prefix_bound(), rel=1e-12)
    assert np.median(cached.ttft_s) < np.median(simulate(deployment(), requests).ttft_s)


def test_a_small_cache_finds_less_and_a_router_that_looks_finds_more():
    requests = conversations()
    tight = deployment(prefix_cache=True, scenario=LINE(update={"gpu_memory_utilization": 0.35}))
    less = float(simulate(tight, requests).hits.sum() / requests.prompt.sum())
    assert 0.0 < less < 0.9 * requests.prefix_bound()
    hits = {
        router: int(
            simulate(deployment(replicas=3, prefix_cache=True, router=router), requests).hits.sum()
        )
        for router in ("round-robin", "prefix-aware")
    }
    assert hits["prefix-aware"] > 1.2 * hits["round-robin"]


def test_what_a_policy_or_the_traffic_excludes_is_one_line():
    with pytest.raises(InputError, match="does not say which prompts begin alike"):
        simulate(deployment(prefix_cache=True), traffic(1.0, 5))
    with pytest.raises(InputError, match="--block-size: 96 does not divide"):
        simulate(
            deployment(prefix_cache=True, scenario=LINE(update={"block_size": 96})), conversations()
        )
    with pytest.raises(UnsupportedError, match="use --scheduler prefill-first"):
        deployment(scenario=LINE(update={"policy": "zipvl"})).check()
    long = Requests.of([0.0, 1.0], [10, 200_000], [10, 10], name="f.csv", lines=np.array([2, 3]))
    with pytest.raises(
        InputError, match=r"f\.csv:3: prompt and output of 200,010 tokens are more than the 131,072"
    ):
        simulate(deployment(), long)
    tight = LINE(update={"gpu_memory_utilization": 0.24, "ignore_context_limit": True})
    words = r"f\.csv:3: .* more than the KV cache of [\d,]+ tokens; raise --tp"
    with pytest.raises(InputError, match=words):
        simulate(deployment(scenario=tight), long)
    with pytest.raises(UnsupportedError, match=r"short by .* raise --tp"):
        simulate(deployment(scenario=LINE(update={"model": "llama-3.1-70b"})), traffic(1.0, 5))


def test_a_policy_that_bounds_its_cache_is_never_preempted():
    requests = Requests.of(np.zeros(64), np.full(64, 3000), np.full(64, 600))
    tight = {"gpu_memory_utilization": 0.30}
    dense = simulate(deployment(scenario=LINE(update=tight)), requests)
    capped = simulate(
        deployment(scenario=LINE(update=tight | {"policy": "streaming_llm"})), requests
    )
    assert dense.preemptions.sum() > 0
    assert capped.preemptions.sum() == 0
    assert capped.makespan_s < dense.makespan_s


def test_swapping_keeps_what_recomputing_drops():
    requests = Requests.of(np.zeros(64), np.full(64, 3000), np.full(64, 600))
    scenario = LINE(update={"gpu_memory_utilization": 0.30})
    swap = replace(SMALL, preemption="swap")
    again = simulate(deployment(scenario=scenario), requests)
    moved = simulate(deployment(swap, scenario), requests)
    prompt = [sum(float(e[:, 6].sum()) for e in o.events) for o in (again, moved)]
    assert moved.preemptions.sum() > 0
    assert prompt[1] == float(requests.prompt.sum()) < prompt[0]


def test_prompts_take_from_a_contextual_policy_what_it_saves():
    """A prompt chunk makes the union of the step's neurons dense; without mixed steps the saving stays."""
    model = {"model": "opt-30b", "ignore_context_limit": True}
    sparse = LINE(update=model | {"policy": "dejavu(keep=0.25)"})
    requests = synthetic(150, 3.0, arrivals="poisson", prompt="600", output="100")
    gains = {}
    # Chunks of 128 tokens stand beside many decode steps; whole prompts never do.
    for name, tokens in (("chunked", 192), ("prefill-first", 2048)):
        dense, thin = (
            simulate(deployment(Scheduler(name, 64, tokens), s), requests).tpot_s.mean()
            for s in (LINE(update=model), sparse)
        )
        gains[name] = dense / thin
    assert gains["prefill-first"] > gains["chunked"] + 0.03 > 1.03


def test_capacity_is_where_the_promise_breaks():
    slo = parse_slo("ttft:p99<500ms;tpot:p99<30ms")
    requests = traffic(1.0, 800)
    factor, outcome = capacity(deployment(), requests, slo)
    assert meets(outcome, slo)
    assert not meets(simulate(deployment(), requests.scaled(factor * 1.03)), slo)
    assert factor * requests.rate < saturation(deployment(), requests)
    with pytest.raises(NothingFeasibleError, match=r"no rate keeps the promises: .* ttft:p99 is"):
        capacity(deployment(), requests, parse_slo("ttft:p99<1ms"))


@pytest.mark.parametrize(
    "change", [{}, {"tp": 2}, {"device": "a100-sxm-80g"}, {"policy": "w4a16"}], ids=str
)
@pytest.mark.parametrize(
    "scheduler", [SMALL, Scheduler("prefill-first", 64, 4096)], ids=lambda s: s.name
)
def test_the_closed_form_is_no_lower_than_what_is_simulated(change, scheduler):
    """Pruning must never drop what would have done: simulated saturation stays below the allowed rate."""
    fleet = deployment(scheduler, LINE(update=change))
    requests = traffic(5.0, 1500)
    found = estimate(fleet, requests, Load.of(requests), ())
    assert saturation(fleet, requests) <= found.rate * HEADROOM


def test_the_closed_form_allows_for_shared_prefixes():
    requests = conversations()
    fleet = deployment(prefix_cache=True)
    found = estimate(fleet, requests, Load.of(requests, prefix_cache=True), ())
    assert saturation(fleet, requests) <= found.rate * HEADROOM
    assert found.rate > estimate(fleet, requests, Load.of(requests), ()).rate


def test_one_client_of_a_closed_loop_sees_an_empty_replica():
    from simulator.evaluate import evaluate
    from simulator.serving.reality import Setup, closed_loop

    setup = Setup("vllm", "h100-sxm", "llama-3.1-8b", "auto", "auto", 1, 1, 1, 1000, 100, 1.0)
    ttft, tpot = closed_loop(setup)
    alone = evaluate(deployment().group, 1.0, 1000.0, 100.0)
    # The tables interpolate attention; a request waits for its tokeniser as the fitted engine says.
    frontend = deployment().group.engine.frontend_s * 1000.0
    assert ttft - frontend == pytest.approx(float(alone.ttft_s), rel=2e-3)
    assert tpot == pytest.approx(float(alone.tpot_s), rel=2e-3)


def _square(x: int) -> int:
    return x * x


def test_processes_give_what_one_gives_bit_for_bit():
    tasks = [Task(deployment(), traffic(5.0, 60), scale) for scale in (0.5, 2.0)]
    here, there = ([r.row for r in compute(run, tasks, workers=w, quiet=True)] for w in (1, 2))
    for row in here + there:
        del row["simulated_per_s"]  # a time, not a result
    assert here == there


def test_a_killed_worker_loses_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "fragile.py").write_text(
        "import os, pathlib, signal\n"
        "def square(task):\n"
        "    number, marker = task\n"
        "    if number == 3 and not pathlib.Path(marker).exists():\n"
        "        pathlib.Path(marker).touch()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return number * number\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import fragile

    tasks = [(i, str(tmp_path / "died")) for i in range(8)]
    assert compute(fragile.square, tasks, workers=2, label="squares") == [i * i for i in range(8)]
    assert "a worker died" in capsys.readouterr().err
    del sys.modules["fragile"]


def test_an_error_of_a_task_is_the_error_of_all():
    bad = Task(deployment(prefix_cache=True), traffic(1.0, 5))
    with pytest.raises(InputError, match="--prefix-cache"):
        compute(run, [bad, bad], quiet=True)
    with pytest.raises(InputError, match="--workers"):
        compute(_square, [1], workers=0)
    with pytest.raises(InputError, match="--cluster: cannot reach"):
        compute(_square, [1, 2], cluster="tcp", quiet=True)


def test_a_row_has_the_columns_that_are_documented():
    from simulator.serving.output import COLUMNS, RECORDS, SERVE_COLUMNS, records

    row = run(Task(deployment(), traffic(5.0, 50))).row
    assert list(row) == [*COLUMNS, *SERVE_COLUMNS]
    outcome = simulate(deployment(), traffic(5.0, 50))
    assert records(outcome).column_names == list(RECORDS)
