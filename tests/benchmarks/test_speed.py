"""The speed contract, on one core, intervals included: `make bench` prints each median beside its target.

What runs in this process is told in processor time, so that others on the machine do not count.
"""

import itertools
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from simulator.inference.oracle import oracle
from simulator.results.prediction import predict
from simulator.results.scatter import scattered
from simulator.results.swept import blocks, write
from simulator.scenario.grid import Grid
from simulator.scenario.scenario import Scenario

IN_PROCESS = pytest.mark.benchmark(timer=time.process_time)
MODELS = ("llama-2-7b", "llama-3.1-8b")
DEVICES = ("a100-sxm-80g", "h100-sxm", "h200", "rtx-4090")
TP = (1, 2, 4, 8, 16)


def product_grid(policy: str, models: tuple[str, ...] = MODELS) -> Grid:
    """2 models x 4 devices x 25 batches x 100 prompts x 10 outputs x 5 tp: a million points."""
    return Grid(
        model=models,
        device=DEVICES,
        policy=(policy,),
        tp=TP,
        batch=tuple(range(1, 26)),
        prompt_tokens=tuple(range(64, 64 + 100 * 16, 16)),
        output_tokens=tuple(range(16, 176, 16)),
    )


def count(grid: Grid) -> int:
    return sum(block.n for block in blocks([grid]))


def told(benchmark, what: str, value: float, unit: str, target: float, more: str = "") -> None:
    """The median beside the contract's figure."""
    benchmark.extra_info |= {unit: value, f"target_{unit}": target}
    print(f"\n  {what}: {value:,.3g} {unit}, target {target:,.3g}{more}")


def timed(benchmark, what: str, points: int, target: float, work, *, rounds: int = 3) -> None:
    done = benchmark.pedantic(work, rounds=rounds, warmup_rounds=1)
    assert done == points
    told(benchmark, what, points / benchmark.stats.stats.median, "points/s", target)


@IN_PROCESS
def test_million_points_dense(benchmark):
    grid = product_grid("dense")
    assert len(grid) == 1_000_000
    timed(benchmark, "dense grid", len(grid), 2e6, lambda: count(grid))


# The dense twin of every point is evaluated too: speed-ups are part of each row.
@IN_PROCESS
@pytest.mark.parametrize("policy", ["quest(budget=256)", "shadowllm(keep=0.5)", "mustafar(keep=0.3)"])
def test_heavy_policy(benchmark, policy):
    grid = product_grid(policy, MODELS[:1])
    timed(benchmark, policy, len(grid), 5e5, lambda: count(grid))


@IN_PROCESS
def test_shuffled_scenarios(benchmark):
    n, rng = 100_000, np.random.default_rng(0)
    columns = {
        "model": np.array(MODELS)[rng.integers(0, 2, n)],
        "device": np.array(DEVICES)[rng.integers(0, 4, n)],
        "tp": np.array(TP)[rng.integers(0, 5, n)],
        "batch": rng.integers(1, 65, n),
        "prompt_tokens": rng.integers(1, 3000, n),
        "output_tokens": rng.integers(2, 1000, n),
    }
    timed(benchmark, "shuffled", n, 3e5, lambda: scattered(columns).n)


@IN_PROCESS
def test_a_million_rows_to_parquet(benchmark, tmp_path):
    """A file a round: a second sweep into the same would only replace it."""
    grid, names = product_grid("dense"), iter(range(100))

    def swept() -> int:
        return write([grid], tmp_path / f"{next(names)}.parquet", command="bench", quiet=True).rows

    done = benchmark.pedantic(swept, rounds=3, warmup_rounds=1)
    assert done == len(grid)
    told(benchmark, "1,000,000 rows to Parquet", benchmark.stats.stats.median, "s", 4.0)


@IN_PROCESS
@pytest.mark.parametrize("policy", ["dense", "shadowllm(keep=0.5)", "mustafar(keep=0.3)"])
def test_one_prediction_in_process(benchmark, policy):
    """Another batch and prompt each time, so that no answer is one that was given before."""
    scenarios = itertools.cycle(
        Scenario.of(model="llama-2-7b", device="h100-sxm", policy=policy, batch=b, prompt_tokens=p)
        for p, b in zip(range(300, 3300), itertools.cycle(range(1, 65)), strict=False)
    )
    benchmark.pedantic(predict, setup=lambda: ((next(scenarios),), {}), rounds=300, warmup_rounds=10)
    told(benchmark, f"predict() {policy}", benchmark.stats.stats.median * 1e3, "ms", 3.0)


@IN_PROCESS
@pytest.mark.parametrize(("kind", "target"), [("decode", 20_000), ("mixed", 10_000)])
def test_one_step_at_a_time(benchmark, kind, target):
    """Batches, contexts and chunks drawn anew for every round; what an emulator asked before has been asked."""
    ask, drawn, n = oracle(Scenario(model="llama-3.1-8b", device="h100-sxm")), random.Random(0), 10_000

    def steps() -> tuple[tuple[list[tuple[float, ...]]], dict[str, object]]:
        mixed = ((drawn.randint(1, 2048), drawn.randint(0, 8000)) for _ in range(n))
        decode = ((drawn.randint(1, 256), drawn.uniform(2.0, 20_000.0)) for _ in range(n))
        return ([(*d, *m) for d, m in zip(decode, mixed, strict=True)] if kind == "mixed" else list(decode),), {}

    def run(asked: list[tuple[float, ...]]) -> None:
        one = ask.mixed_s if kind == "mixed" else ask.decode_s
        for step in asked:
            one(*step)

    benchmark.pedantic(run, setup=steps, rounds=5, warmup_rounds=1)
    told(benchmark, f"oracle, {kind} steps", n / benchmark.stats.stats.median, "steps/s", target)


@pytest.mark.parametrize(
    ("arguments", "target"),
    [
        (["simulator.sweep", "--help"], 0.1),
        (["simulator.predict", "--model", "llama-2-7b", "--device", "h100-sxm"], 0.5),
    ],
    ids=["help", "prediction"],
)
def test_from_the_shell(benchmark, arguments, target):
    command = [sys.executable, "-m", *arguments]
    benchmark.pedantic(lambda: subprocess.run(command, check=True, capture_output=True), rounds=5, warmup_rounds=1)
    told(benchmark, " ".join(arguments[:2]), benchmark.stats.stats.median, "s", target)
