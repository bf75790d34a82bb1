"""Step tables, fleets, prefix caching, policies under two schedulers, and runs spread over processes."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from simulator.base.errors import InputError, UnsupportedError
from simulator.scenario.scenario import Scenario
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
from simulator.serving.tabulate import check, mixed_step, tabulate

SMALL = Scheduler(max_num_seqs=64, max_num_batched_tokens=2048)
BASE = Scenario(model="llama-3.1-8b", device="h100-sxm")
LINE = BASE.model_copy


def deployment(scheduler: Scheduler = SMALL, scenario: Scenario = BASE, **options: object) -> Deployment:
    return Deployment(scenario, scheduler, **options)


def traffic(rate: float, count: int = 600) -> Requests:
    return synthetic(count, rate, arrivals="poisson", prompt="lognormal(mean=900,cv=1)", output="exponential(mean=80)")


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
        {},
        {"tp": 2},
        {"tp": 2, "pp": 2},
        {"policy": "shadowllm(keep=0.5)"},
        {"policy": "kv_quant(bits=4)"},
        {"policy": "streaming_llm"},
        {"policy": "quest(budget=2048)"},
        {"device": "a100-sxm-80g"},
    ],
    ids=str,
)
def test_the_table_is_the_prediction(change):
    group = deployment(scenario=LINE(update=change)).group
    errors = check(group, tabulate(group, 32, 1024, 4096), probes=60)
    # Between nodes, attention of several chunks and thresholds of a policy are interpolated.
    assert np.median(errors) < 1e-5
    assert np.quantile(errors, 0.9) < 1e-3


def test_prompt_steps_are_exact_at_their_stairs():
    """Products and attention step up behind whole tiles: both sides of each are nodes of the table."""
    group = deployment().group
    table = tabulate(group, 32, 4096, 8192)
    for tokens in (1, 16, 32, 64, 65, 128, 129, 1000, 1024, 1025, 3000, 4096):
        for before in (0, 700):
            pairs = tokens * (tokens + before) - tokens * (tokens - 1) // 2
            full = mixed_step(group, 8.0, 500.0, 1.0, tokens, tokens + before).total_s
            assert table.mixed(8, 4000, 1, tokens, pairs) == pytest.approx(float(full), rel=1e-4)


def test_prompts_beyond_the_last_stair_are_interpolated_to_the_end_of_the_budget():
    group = deployment().group
    table = tabulate(group, 16, 32_768, 65_536)
    for tokens in (8192, 8193, 12_000, 16_384, 32_767, 32_768):
        full = mixed_step(group, 8.0, 500.0, 1.0, tokens, tokens).total_s
        ours = table.mixed(8, 4000, 1, tokens, tokens * (tokens + 1) // 2)
        assert ours == pytest.approx(float(full), rel=2e-3)


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
        router: float(np.sort(simulate(deployment(replicas=4, router=router), requests).e2e_s)[-150:].mean())
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


def test_chunks_at_hand_are_no_prefix_hits():
    requests = replace(conversations(), reused=np.full(296, 400))
    for prefix_cache in (False, True):
        fleet = deployment(prefix_cache=prefix_cache)
        plain = simulate(fleet, conversations())
        reused = simulate(fleet, requests)
        assert reused.hits.sum() == plain.hits.sum()
        computed = [sum(float(e["tokens"].sum()) for e in o.events) for o in (reused, plain)]
        assert computed[0] < computed[1]


def test_a_look_up_is_part_of_every_latency():
    """Capacity, both ends of the interval and the run itself see it alike."""
    slo = parse_slo("ttft:p99<500ms")
    cache = "semantic-cache(hit=0.3,lookup_ms=200)"
    task = Task(deployment(), traffic(4.0, 200), slo=slo, reuse=cache)
    with_, without = run(task).row, run(replace(task, reuse="example-routing(share=0.3)")).row
    for name in ("ttft_p50_s", "ttft_p99_s", "e2e_mean_s"):
        assert with_[name] == pytest.approx(without[name] + 0.2)
    assert with_["tpot_p50_s"] == pytest.approx(without["tpot_p50_s"])
    both = run(replace(task, interval=True)).row
    for p in ("p50", "p99"):
        assert both[f"ttft_{p}_lo_s"] < both[f"ttft_{p}_s"] < both[f"ttft_{p}_hi_s"]
    found = run(replace(task, search=True)).row
    assert found["meets_slo"]
    assert 0.2 < found["ttft_p99_s"] < 0.5
    assert found["rate_per_s"] == pytest.approx(found["capacity_per_s"])
    assert found["capacity_per_s"] < run(replace(task, reuse=None, search=True)).row["capacity_per_s"] / 0.7
    other = run(replace(task, seed=1)).row
    assert other["answered_elsewhere"] != with_["answered_elsewhere"]


def test_the_slow_end_of_an_interval_can_be_overloaded():
    fleet = deployment(Scheduler(max_num_seqs=16, max_num_batched_tokens=2048))
    requests = traffic(1.0, 4000)
    factor, _ = capacity(fleet, requests)
    row = run(Task(fleet, requests, factor, interval=True)).row
    assert row["status"] != "OVERLOADED"
    assert status(simulate(fleet, requests.scaled(factor), "hi")) == "OVERLOADED"
    assert row["ttft_p99_hi_s"] is None
    assert row["ttft_p99_lo_s"] < row["ttft_p99_s"]


def test_no_capacity_is_an_answer_and_not_the_end_of_the_others():
    slo = parse_slo("tpot:p99<8ms")
    fleets = [deployment(scenario=LINE(update={"device": d})) for d in ("l40s", "h200")]
    rows = [r.row for r in compute(run, [Task(f, traffic(2.0, 150), slo=slo, search=True) for f in fleets], quiet=True)]
    assert rows[0]["capacity_per_s"] is None
    assert rows[0]["meets_slo"] is False
    assert rows[0]["tpot_p99_s"] > 0.008
    assert rows[1]["capacity_per_s"] > 0.0
    assert rows[1]["meets_slo"]


def test_a_small_cache_finds_less_and_a_router_that_looks_finds_more():
    requests = conversations()
    tight = deployment(prefix_cache=True, scenario=LINE(update={"gpu_memory_utilization": 0.35}))
    less = float(simulate(tight, requests).hits.sum() / requests.prompt.sum())
    assert 0.0 < less < 0.9 * requests.prefix_bound()
    hits = {
        router: int(simulate(deployment(replicas=3, prefix_cache=True, router=router), requests).hits.sum())
        for router in ("round-robin", "prefix-aware")
    }
    assert hits["prefix-aware"] > 1.2 * hits["round-robin"]


def test_what_a_policy_or_the_traffic_excludes_is_one_line():
    with pytest.raises(InputError, match="does not say which prompts begin alike"):
        simulate(deployment(prefix_cache=True), traffic(1.0, 5))
    with pytest.raises(InputError, match="--block-size: 96 does not divide"):
        simulate(deployment(prefix_cache=True, scenario=LINE(update={"block_size": 96})), conversations())
    with pytest.raises(UnsupportedError, match="use --scheduler prefill-first"):
        deployment(scenario=LINE(update={"policy": "zipvl"})).check()
    long = Requests.of([0.0, 1.0], [10, 200_000], [10, 10], name="f.csv", lines=np.array([2, 3]))
    with pytest.raises(InputError, match=r"f\.csv:3: prompt and output of 200,010 tokens are more than the 131,072"):
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
    capped = simulate(deployment(scenario=LINE(update=tight | {"policy": "streaming_llm"})), requests)
    assert dense.preemptions.sum() > 0
    assert capped.preemptions.sum() == 0
    assert capped.makespan_s < dense.makespan_s


def test_swapping_keeps_what_recomputing_drops():
    requests = Requests.of(np.zeros(64), np.full(64, 3000), np.full(64, 600))
    scenario = LINE(update={"gpu_memory_utilization": 0.30})
    swap = replace(SMALL, preemption="swap")
    again = simulate(deployment(scenario=scenario), requests)
    moved = simulate(deployment(swap, scenario), requests)
    prompt = [sum(float(e["tokens"].sum()) for e in o.events) for o in (again, moved)]
    assert moved.preemptions.sum() > 0
    assert prompt[1] == float(requests.prompt.sum()) < prompt[0]


def test_prompts_take_from_a_contextual_policy_what_it_saves():
    """A prompt chunk makes the union of the step's neurons dense; without mixed steps the saving stays."""
    model = {"model": "opt-30b", "ignore_context_limit": True}
    sparse = LINE(update=model | {"policy": "dejavu(keep=0.25)"})
    requests = synthetic(300, 1.0, arrivals="poisson", prompt="600", output="100")
    gains = {}
    # Chunks of 128 tokens stand beside many decode steps; whole prompts never do.
    for name, tokens in (("chunked", 192), ("prefill-first", 2048)):
        dense, thin = (
            simulate(deployment(Scheduler(name, 64, tokens), s), requests).tpot_s.mean()
            for s in (LINE(update=model), sparse)
        )
        gains[name] = dense / thin
    assert gains["prefill-first"] > gains["chunked"] + 0.02 > 1.03


@pytest.mark.parametrize("pp", [1, 2, 4])
@pytest.mark.parametrize("split", [0, 1])
def test_a_prompt_that_comes_alone_passes_all_stages(pp, split):
    """As `predict` answers it; what follows it is not slowed: the pipeline is full again a step later."""
    from simulator.inference.evaluate import evaluate

    scenario = LINE(update={"pp": pp})
    fleet = replace(deployment(Scheduler(), scenario), prefill_replicas=split, transfer_bytes_per_s=5e10)
    lone = simulate(fleet, Requests.of([0.0], [4000], [20]))
    told = evaluate(fleet.group, *(np.array([float(v)]) for v in (1, 4000, 20)))
    assert lone.ttft_s[0] == pytest.approx(float(told.ttft_s.mid[0]), rel=0.02)
    if pp > 1 and not split:
        # Sixteen prompts at once fill the stages: together far from sixteen times the lone one.
        burst = simulate(fleet, Requests.of([0.0] * 16, [4000] * 16, [1] * 16))
        assert burst.ttft_s.max() < (16.0 / pp + 1.0) * 1.1 * lone.ttft_s[0]


def test_capacity_is_where_the_promise_breaks():
    slo = parse_slo("ttft:p99<500ms;tpot:p99<30ms")
    requests = traffic(1.0, 800)
    factor, outcome = capacity(deployment(), requests, slo)
    assert meets(outcome, slo)
    assert not meets(simulate(deployment(), requests.scaled(factor * 1.05)), slo)
    assert factor * requests.rate < saturation(deployment(), requests)
    none, slowest = capacity(deployment(), requests, parse_slo("ttft:p99<1ms"))
    assert none is None
    assert slowest.requests.rate < 1e-2 * factor * requests.rate
    with pytest.raises(InputError, match="--capacity: all requests arrive at once"):
        capacity(deployment(), requests.at_once(), slo)


@pytest.mark.parametrize("change", [{}, {"tp": 2}, {"device": "a100-sxm-80g"}, {"policy": "w4a16"}], ids=str)
@pytest.mark.parametrize("scheduler", [SMALL, Scheduler("prefill-first", 64, 4096)], ids=lambda s: s.name)
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
    from simulator.inference.evaluate import evaluate
    from simulator.serving.reality import Setup, closed_loop

    setup = Setup("vllm", "h100-sxm", "llama-3.1-8b", "auto", "auto", 1, 1, 1, 1000, 100, 1.0, 10.0)
    ttft, tpot = closed_loop(setup)
    alone = evaluate(deployment().group, 1.0, 1000.0, 100.0)
    # The tables interpolate attention; a request waits for its tokeniser as the fitted engine says.
    engine = deployment().group.engine
    frontend = engine.request_s + engine.frontend_s * 1000.0
    assert ttft - frontend == pytest.approx(float(alone.ttft_s.mid), rel=2e-3)
    assert tpot == pytest.approx(float(alone.tpot_s.mid), rel=2e-3)


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


@pytest.mark.parametrize(("flag", "where"), [("--workers", {}), ("--cluster", {"cluster": "local"})])
def test_workers_that_always_die_are_one_line(tmp_path, monkeypatch, flag, where):
    """Dask's KilledWorker was a traceback."""
    if where:
        pytest.importorskip("distributed", reason="distributed not installed")
    (tmp_path / "hopeless.py").write_text(
        "import os, signal\ndef die(task):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import hopeless

    with pytest.raises(InputError, match=f"{flag}: workers die again and again"):
        compute(hopeless.die, [1, 2], workers=2, quiet=True, **where)
    del sys.modules["hopeless"]


def test_an_error_of_a_task_is_the_error_of_all():
    bad = Task(deployment(prefix_cache=True), traffic(1.0, 5))
    with pytest.raises(InputError, match="--prefix-cache"):
        compute(run, [bad, bad], quiet=True)
    with pytest.raises(InputError, match="--workers"):
        compute(_square, [1], workers=0)


def test_a_cluster_that_cannot_be_reached_is_one_line():
    pytest.importorskip("distributed", reason="distributed not installed")
    with pytest.raises(InputError, match="--cluster: cannot reach"):
        compute(_square, [1, 2], cluster="tcp", quiet=True)


def test_a_row_has_the_columns_that_are_documented():
    from simulator.serving.output import COLUMNS, RECORDS, SERVE_COLUMNS, records

    row = run(Task(deployment(), traffic(5.0, 50))).row
    assert list(row) == [*COLUMNS, *SERVE_COLUMNS]
    outcome = simulate(deployment(), traffic(5.0, 50))
    assert records(outcome).column_names == list(RECORDS)
