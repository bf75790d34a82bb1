"""One step at a time answers what the step of a whole prediction does, whatever was asked before."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulator.base.errors import InputError, NothingFeasibleError
from simulator.device.fits import Fit, Residual
from simulator.device.surface import Surface
from simulator.inference.evaluate import evaluate
from simulator.inference.group import group_of
from simulator.inference.oracle import Oracle, oracle
from simulator.inference.step import StepTime, step_time
from simulator.ops.step import decode_step, mixed_step, prefill_step
from simulator.policies import POLICIES
from simulator.results.prediction import predict
from simulator.scenario.scenario import Scenario
from simulator.serving.deployment import Deployment

SHIPPED = Path(__file__).resolve().parents[2] / "traces/shipped/tiny-opt-py"
SAME = 1e-12
"""Sums of floats in another order."""
MODELS = ("llama-3.1-8b", "opt-6.7b", "deepseek-v3")
DEPLOYMENTS = {
    "plain": {},
    "another engine": {"engine": "trtllm"},
    "split in four": {"tp": 4},
    "two stages": {"tp": 2, "pp": 2},
    "experts": {"model": "mixtral-8x7b", "device": "h200", "tp": 4},
    "window": {"model": "gemma-3-12b"},
    "latent": {"model": "deepseek-v3", "device": "h200", "tp": 8, "engine": "sglang"},
}


def made(**changed: object) -> Oracle:
    fixed = {"model": "llama-3.1-8b", "device": "h100-sxm", "ignore_context_limit": True}
    return oracle(Scenario.of(**{**fixed, **changed}))


def assert_same(mine: StepTime, whole: StepTime) -> None:
    for name in ("total_s", "lo_s", "hi_s", "gpu_s", "host_s", "busy"):
        np.testing.assert_allclose(getattr(mine, name), getattr(whole, name), rtol=SAME, err_msg=name)
    for bound, seconds in whole.shares_s.items():
        np.testing.assert_allclose(mine.shares_s[bound], seconds, rtol=1e-9, atol=1e-15, err_msg=bound)
    assert (mine.mode, mine.basis) == (whole.mode, whole.basis)


def ask_all(ask: Oracle, seed: int, count: int = 4) -> None:
    """Random steps of every kind in random order, each against the whole step."""
    chosen, pp, group = random.Random(seed), float(ask.group.pp), ask.group
    for _ in range(count):
        n, x = float(chosen.choice((1, 2, 3, 16, 200))), chosen.uniform(40.0, 30_000.0)
        q, past, r = float(chosen.randint(1, 4000)), float(chosen.choice((0, 512, 9000))), float(chosen.randint(1, 3))
        prompt = chosen.choice((None, round(x / 2.0)))
        micro = min(n, pp), min(r, pp)
        assert_same(ask.decode(n, x, prompt), step_time(group, decode_step(n / micro[0], x, prompt)))
        assert_same(ask.prefill(q, past, r), step_time(group, prefill_step(r / micro[1], q, q + past)))
        mixed = mixed_step(n / micro[0], x, r / micro[1], q, q + past, prompt)
        assert_same(ask.mixed(n, x, q, past, r, prompt), step_time(group, mixed))


def test_a_prompt_is_not_cut_between_stages() -> None:
    """Sequences that decode beside a prompt cannot make its step shorter, however many stages there are."""
    for pp in (1, 2, 4):
        ask = made(pp=pp)
        assert ask.mixed_s(16, 1000, 1500) > ask.prefill_s(1500), f"pp={pp}"


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy(name: str) -> None:
    """What a policy makes of an op depends on what the op depends on: the rest is not asked again."""
    for model in MODELS:
        tp = 8 if model == "deepseek-v3" else 1
        group = group_of(Scenario.of(model=model, policy=name, tp=tp, device="h200", ignore_context_limit=True))
        host = group.device.tier("host")
        tiers = tuple(replace(host, name=tier) for tier in ("cxl", "pool", "network", "dram"))
        device = replace(group.device, memory=group.device.memory + tiers, profile_hash="all tiers")
        group = replace(group, device=device)
        if group.problem is None:
            ask_all(Oracle(group), seed=len(name))
            return
    pytest.fail(f"{name} runs on none of {MODELS}")


@pytest.mark.parametrize("changed", DEPLOYMENTS.values(), ids=list(DEPLOYMENTS))
def test_every_kind_of_deployment(changed: dict[str, object]) -> None:
    ask_all(made(**changed), seed=1, count=8)


@pytest.mark.parametrize("model", [str(SHIPPED / "model"), "opt-6.7b"], ids=["own trace", "another model's"])
def test_layers_with_curves_of_their_own(model: str) -> None:
    """A trace lowers every layer apart; another model's widens the interval by its density."""
    ask_all(made(model=model, policy="shadowllm(keep=0.3)", trace=str(SHIPPED / "trace"), trace_transfer=True), seed=2)


def test_a_device_whose_caches_were_measured() -> None:
    """Operands come from where the whole step's bytes put them: 8 times faster below 1 MiB than beyond 2 GiB."""
    curve = Surface((("bytes", (20.0, 31.0)),), np.log([8.0, 1.0]))
    residual = Residual(0.1, 0.1, -0.2, 0.2)
    memory = Fit("memory", "h100-sxm", "any", "local", {}, curve, 1, (), "2026-11-30", residual)
    group = group_of(Scenario(model="llama-3.1-8b", device="h100-sxm", ignore_context_limit=True))
    ask_all(Oracle(replace(group, device=group.device.with_fits("memory", [memory]))), seed=3)


@pytest.mark.parametrize(
    "changed",
    [{}, {"policy": "quest(budget=256)"}, {"policy": "dejavu", "model": "opt-6.7b", "tp": 2}, {"tp": 2, "pp": 2}],
    ids=["dense", "attention follows", "predictors run beside all-reduces", "two stages"],
)
def test_points_that_share_their_batch(changed: dict[str, object]) -> None:
    """Flat points with few batches among them: each answers as if it were alone."""
    group = made(**changed).group
    drawn = np.random.default_rng(0)
    batch, prompt, output = (drawn.integers(1, most, 48).astype(float) for most in (5, 3000, 400))
    together = evaluate(group, batch, prompt, output)
    for i in (0, 17, 47):
        alone = evaluate(group, batch[i : i + 1], prompt[i : i + 1], output[i : i + 1])
        for name in ("ttft_s", "tpot_s", "e2e_s"):
            for one, all_ in zip(getattr(alone, name), getattr(together, name), strict=True):
                np.testing.assert_allclose(one[0], all_[i], rtol=SAME, err_msg=name)
        np.testing.assert_allclose(alone.power_w[0], together.power_w[i], rtol=SAME)
        assert alone.bound[0] == together.bound[i]


def test_it_is_the_prediction_of_two_tokens() -> None:
    """TTFT is the prefill, TPOT of two output tokens the one decode step behind the prompt."""
    scenario = Scenario(
        model="llama-3.1-8b", device="h100-sxm", policy="snapkv", batch=5, prompt_tokens=3000, output_tokens=2
    )
    row, ask = predict(scenario).row, oracle(scenario)
    assert ask.prefill_s(3000, prompts=5) == pytest.approx(row["ttft_s"], rel=SAME)
    assert ask.decode_s(5, 3001, prompt=3000) == pytest.approx(row["tpot_s"], rel=SAME)


def test_memory_is_the_servers() -> None:
    """8.03e9 weights of two bytes; 32 layers x 8 heads x 256 elements x 2 bytes a token; the pool a server has."""
    ask = oracle(Scenario(model="llama-3.1-8b", device="h100-sxm"), max_num_seqs=64, max_num_batched_tokens=2048)
    assert ask.weights_bytes == pytest.approx(8.03e9 * 2.0, rel=1e-3)
    assert ask.kv_bytes_per_token == 32 * 8 * 256 * 2
    assert oracle(Scenario(model="llama-3.1-8b", device="h100-sxm")).kv_pool_tokens == (
        Deployment(Scenario(model="llama-3.1-8b", device="h100-sxm")).pool.tokens
    )
    assert ask.kv_pool_tokens > oracle(Scenario(model="llama-3.1-8b", device="h100-sxm")).kv_pool_tokens


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda ask: ask.decode_s(0, 100), "batch: must be a number of 1 or more, not 0"),
        (lambda ask: ask.decode_s(1, float("nan")), "context: must be a number of 1 or more, not nan"),
        (lambda ask: ask.prefill_s(0), "tokens: must be a number of 1 or more, not 0"),
        (lambda ask: ask.prefill_s(10, past=-1), "past: must be 0 or more, not -1"),
        (lambda ask: ask.mixed_s(1, 100, 10, prompts=0.5), "prompts: must be a number of 1 or more, not 0.5"),
        (lambda ask: ask.decode_s(float("inf"), 10), "batch: must be a number of 1 or more, not inf"),
        (lambda ask: ask.decode_s(1, 100, prompt=500), "prompt: must be 0 to the context of 100 tokens, not 500"),
        (lambda ask: ask.mixed_s(1, 100, 10, prompt=-5), "prompt: must be 0 to the context of 100 tokens, not -5"),
        (lambda ask: ask.decode_s(1, 200_000), "context: 200000 tokens exceed the model's 131072"),
        (lambda ask: ask.mixed_s(1, 10, 100_000, past=40_000), "context: 140000 tokens exceed the model's 131072"),
    ],
)
def test_what_is_no_step_is_refused_in_a_line(call, what: str) -> None:
    with pytest.raises(InputError, match=what):
        call(oracle(Scenario(model="llama-3.1-8b", device="h100-sxm")))


@pytest.mark.parametrize("seqs", [0, -5, "8"])
def test_an_engine_without_sequences_has_no_oracle(seqs: int) -> None:
    with pytest.raises(InputError, match="max_num_seqs: must be a whole number of 1 or more"):
        oracle(Scenario(model="llama-3.1-8b", device="h100-sxm"), max_num_seqs=seqs)


def test_what_cannot_run_has_no_oracle() -> None:
    with pytest.raises(NothingFeasibleError, match="heads cannot be split over tp=3"):
        oracle(Scenario(model="llama-3.1-8b", device="h100-sxm", tp=3))
