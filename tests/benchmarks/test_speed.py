"""The speed contract of design.md section 6, on one core, intervals included.

`make bench` prints a table; `points_per_s` stands in each benchmark's extra info.
"""

import subprocess
import sys

import numpy as np
import pytest

from simulator.results.scatter import scattered
from simulator.results.swept import blocks
from simulator.scenario.grid import Grid
from simulator.scenario.scenario import Scenario

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
    return sum(block.rows for block in blocks([grid]))


def timed(benchmark, points: int, work) -> None:
    done = benchmark.pedantic(work, rounds=3, warmup_rounds=1)
    assert done == points
    benchmark.extra_info["points_per_s"] = round(points / benchmark.stats.stats.min)
    print(f"\n  {points / benchmark.stats.stats.min:,.0f} points/s ({benchmark.name})")


def test_million_points_dense(benchmark):
    grid = product_grid("dense")
    assert len(grid) == 1_000_000
    timed(benchmark, len(grid), lambda: count(grid))


# The dense twin of every point is evaluated too: speed-ups are part of each row.
@pytest.mark.parametrize("policy", ["quest(budget=256)", "shadowllm(keep=0.5)", "mustafar(keep=0.3)"])
def test_heavy_policy(benchmark, policy):
    grid = product_grid(policy, MODELS[:1])
    timed(benchmark, len(grid), lambda: count(grid))


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
    timed(benchmark, n, lambda: scattered(columns).rows)


def test_one_prediction_in_process(benchmark):
    from simulator.results.prediction import predict

    scenario = Scenario.of(model="llama-2-7b", device="h100-sxm", policy="mustafar(keep=0.3)", batch=16)
    benchmark(lambda: predict(scenario))


@pytest.mark.parametrize(
    "arguments",
    [["simulator.sweep", "--help"], ["simulator.predict", "--model", "llama-2-7b", "--device", "h100-sxm"]],
    ids=["help", "prediction"],
)
def test_from_the_shell(benchmark, arguments):
    command = [sys.executable, "-m", *arguments]
    benchmark.pedantic(lambda: subprocess.run(command, check=True, capture_output=True), rounds=5, warmup_rounds=1)
