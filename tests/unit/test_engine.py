"""Engines: the step formula, look-ups, the closed loop's limits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from simulator.base.dtypes import FORMATS, DType, Format, weight_only
from simulator.base.errors import InputError, UnknownNameError
from simulator.device.catalogue import load
from simulator.fitting.e2e_fit import paces
from simulator.fitting.engine_file import rewritten, to_toml
from simulator.inference.closed_loop import Run, closed_loop, cycle, solve
from simulator.inference.group import group_of
from simulator.inference.step import step_time
from simulator.ops.ops import Moe
from simulator.ops.step import decode_step, prefill_step
from simulator.results.prediction import predict
from simulator.results.printed import how_sure
from simulator.roofline.engine import Engine, get_engine, load_engines, parse_engines
from simulator.roofline.lookup import kernel_key
from simulator.roofline.timing import time_op
from simulator.scenario.scenario import Scenario


def plain(**changes: object) -> Engine:
    base = Engine("x", "x", "test", True, False, 5e-6, 1e-6, 0.0, 0.0)
    return replace(base, **changes)  # type: ignore[arg-type]


def step_s(engine: Engine, gpu_s: float, launches: float = 100.0, **more: object) -> float:
    parts = engine.step(
        load("h100-sxm"),
        gpu_s=gpu_s,
        comm_extra_s=0.0,
        launches=launches,
        graph=True,
        prefills=False,
        sequences=8.0,
        prompt_tokens=0.0,
        **more,  # type: ignore[arg-type]
    )
    return float(parts.total_s)


def test_step_is_the_slower_of_stream_and_submission_plus_waiting() -> None:
    assert step_s(plain(), 1e-3) == pytest.approx(1e-3)
    assert step_s(plain(), 1e-5) == pytest.approx(100 * 1e-6)
    assert step_s(plain(schedule_s=1e-3, row_s=1e-4), 1e-3) == pytest.approx(1e-3 + 1e-3 + 8e-4)


def test_savings_stop_at_the_floor() -> None:
    engine = plain(hidden_s=1e-6, decode_stretch=0.85)
    assert step_s(engine, 1e-2, floor_s=9e-3) == pytest.approx(9e-3)
    assert step_s(engine, 1e-2) == pytest.approx(0.85e-2 - 100 * 1e-6)


def test_host_factor_scales_host_time_only() -> None:
    engine = plain(schedule_s=1e-3, host={"hopper": 2.0})
    assert step_s(engine, 1e-3) == pytest.approx(3e-3)


def test_large_messages_cost_more_only_beyond_two_ranks() -> None:
    engine = plain(burst_bytes=1e6, burst_s_per_byte=1e-12)
    assert engine.collective_extra_s(2e6, 2) == 0.0
    assert float(engine.collective_extra_s(2e6, 8)) == pytest.approx(2e6 * 1e-12 * 2)
    assert float(engine.collective_extra_s(1e5, 8)) == 0.0


def test_kernel_of_an_architecture_wins() -> None:
    engine = plain(kernels={"attention": "a", "attention.hopper": "b", "gemm": "nobody"})
    h100, a100 = load("h100-sxm"), load("a100-sxm-80g")
    assert engine.kernel(h100, "attention", "decode.bf16") == "b"
    assert engine.kernel(a100, "attention", "decode.bf16") == "a"
    assert engine.kernel(h100, "moe", "bf16") is None


def test_the_most_special_kernel_entry_wins_and_calling_replaces_them_all() -> None:
    names = {"moe": "a", "moe.fp8": "b", "moe.fp8.hopper": "c", "moe.hopper": "d", "gemm": "e"}
    engine, h100, a100 = plain(kernels=names), load("h100-sxm"), load("a100-sxm-80g")
    assert [engine.kernel(d, "moe", k) for d in (h100, a100) for k in ("fp8", "bf16")] == ["c", "d", "b", "a"]
    mine = engine.calling("moe", "x")
    assert [mine.kernel(d, "moe", k) for d in (h100, a100) for k in ("fp8", "bf16")] == ["x"] * 4
    assert mine.kernel(h100, "gemm", "bf16") == "e"


def test_spread_is_wider_where_never_measured() -> None:
    engine = plain(spread_decode=(0.1, 50), archs=("hopper",))
    near = engine.spread(load("h100-sxm"), False)
    assert near == pytest.approx(0.1)
    assert engine.spread(load("mi300x"), False) > near


def test_engines_file_round_trips_and_names_its_sources() -> None:
    engines = load_engines()
    again = parse_engines(to_toml(engines))
    assert list(again) == list(engines)
    for name, engine in engines.items():
        where = f"hw_profiles/engines.toml: [{name}]: "
        assert engine.source, f"{where}source is empty"
        assert engine.title, f"{where}title is empty; what people call it"
        assert again[name] == engine, f"{where}is not what it reads back as"
        assert engine.date or not engine.n, f"{where}fitted to {engine.n} rows without a date"
    with pytest.raises(UnknownNameError, match="vllm"):
        get_engine("vlm")


@pytest.mark.parametrize("engine", sorted(load_engines()))
def test_no_engine_beats_the_bandwidth(engine: str) -> None:
    group = group_of(Scenario(model="llama-3.1-8b", device="h100-sxm", engine=engine))
    step = step_time(group, decode_step(np.array([1.0, 16.0, 256.0]), 8192.0))
    kv = 8192.0 * 131072.0 * np.array([1.0, 16.0, 256.0])
    floor = (15.0e9 + kv - group.device.l2_bytes) / group.device.hbm_bytes_per_s
    assert np.all(step.total_s >= 0.98 * floor)
    assert np.all(step.lo_s <= step.total_s)
    assert np.all(step.total_s <= step.hi_s)
    shares = sum(np.broadcast_to(s, (3,)) for s in step.shares_s.values())
    np.testing.assert_allclose(shares, step.total_s, rtol=1e-9)


def test_one_client_waits_for_nobody() -> None:
    group = group_of(Scenario(model="llama-3.1-8b", device="h100-sxm"))
    loop = closed_loop(group, 1.0, 1024.0, 128.0)
    alone = float(step_time(group, prefill_step(1.0, 1024.0)).total_s)
    front = group.engine.request_s + group.engine.frontend_s * 1024.0
    assert float(loop.ttft_s) == pytest.approx(alone + front, rel=0.05)


def test_cycle_is_conserved_whatever_the_queue() -> None:
    group = group_of(Scenario(model="llama-3.1-8b", device="h100-sxm"))
    steps = cycle(group, 32.0, 2048.0, 256.0)
    d, m = steps.decode.total_s, steps.mixed.total_s
    whole = []
    for share in (0.3, 1.0):
        engine = replace(group.engine, queue_share=share, request_s=0.0, frontend_s=0.0)
        ttft, tpot = solve(steps, engine, d, m)
        whole.append(float(ttft + 255.0 * tpot))
    assert whole[0] == pytest.approx(whole[1])


def test_a_mean_over_few_rounds_holds_the_first() -> None:
    """Four clients ask at once, a prompt to a step: 1, 2, 3 and 4 steps, in the mean 2.5; later they take 1 + share."""
    group = group_of(Scenario(model="llama-3.1-8b", device="h100-sxm"))
    engine = replace(group.engine, queue_share=0.25, queue_alike=2.0, queue_power=0.0, request_s=0.007, frontend_s=0.0)
    told = {}
    for run in (Run(), Run(rounds=10.0), Run(alike=True, rounds=10.0), Run(rounds=1.0), Run(wait_steps=20.0)):
        steps = cycle(group, 4.0, 8000.0, 256.0, run)
        told[run], _ = solve(steps, engine, 0.010, 0.300)
    assert told[Run()] == pytest.approx(0.300 * 1.25 + 0.007)
    assert told[Run(rounds=1.0)] == pytest.approx(0.300 * 2.5 + 0.007)
    assert told[Run(rounds=10.0)] == pytest.approx(0.300 * (0.9 * 1.25 + 0.1 * 2.5) + 0.007)
    assert told[Run(alike=True, rounds=10.0)] == pytest.approx(0.300 * (0.9 * 3.0 + 0.1 * 2.5) + 0.007)
    assert told[Run(wait_steps=20.0)] == pytest.approx(0.300 * 1.25 + 0.200 + 0.007)


def test_a_wave_of_prompts_that_goes_first_waits_for_a_share_of_the_clients() -> None:
    assert plain(queue_share=0.4, queue_power=1.0).ahead(10.0, alike=False) == pytest.approx(4.0)
    assert plain(queue_alike=2.0).ahead(10.0, alike=True) == pytest.approx(2.0)


def test_figures_found_anew_are_written_in_place() -> None:
    text = '# head\n\n[a]\n# why\nrow_s = 1.0\nn = 3\nkernels = { "moe" = "x" }\n\n["b.1"]\nrow_s = 2.0 # not fitted\n'
    found = rewritten(text, {"a": {"row_s": 0.12345, "request_s": 0.01, "n": 4, "archs": ("ada", "hopper")}})
    assert found == text.replace(
        "row_s = 1.0\nn = 3\n", 'row_s = 0.123\nrequest_s = 0.01\narchs = ["ada", "hopper"]\nn = 4\n'
    )


def test_more_clients_never_answer_faster() -> None:
    group = group_of(Scenario(model="llama-3.1-8b", device="h100-sxm"))
    loop = closed_loop(group, np.array([1.0, 4.0, 16.0, 64.0, 256.0, 1024.0]), 4096.0, 128.0)
    assert np.all(np.diff(loop.ttft_s) > 0)
    assert np.all(np.diff(loop.tpot_s) >= -1e-12)
    assert np.all(loop.ttft_lo_s <= loop.ttft_s)
    assert np.all(loop.ttft_s <= loop.ttft_hi_s)
    assert loop.running[-1] < 1024.0


def test_every_engine_names_a_kernel_for_all_it_can_be_asked_for() -> None:
    """An engine without ``moe.w4a16`` took whichever kernel had most rows: 61 % off on GPT-OSS on H100."""
    assert {name: e.unnamed for name, e in load_engines().items() if e.unnamed} == {}


def test_a_kernel_that_is_not_named_is_told() -> None:
    unnamed = plain(kernels={"attention": "a", "collective": "b", "moe.bf16": "c"}).unnamed
    assert {"moe.w4a16.mx", "elementwise.bf16"} <= set(unnamed)
    assert not {"moe.bf16", "attention.prefill.fp8", "collective.all_reduce"} & set(unnamed)


def moe(fmt: Format) -> Moe:
    return Moe(role="experts", tokens=8, hidden=2880, intermediate=2880, top_k=4, n_experts=128, gated=True, fmt=fmt)


def test_experts_stored_in_mxfp4_run_another_kernel_than_integers() -> None:
    """Both are 4-bit weights that 16-bit units multiply: Marlin for one, on Hopper Triton's own for the other."""
    vllm, h100 = load_engines()["vllm"], load("h100-sxm")
    keys = []
    for fmt in (weight_only(FORMATS["mxfp4"], DType.BF16), FORMATS["w4a16"]):
        keys.append(kernel_key(moe(fmt)))
    assert keys == ["w4a16.mx", "w4a16"]
    assert [vllm.kernel(h100, "moe", key) for key in keys] == ["vllm_mx_oaitriton", "vllm_marlin"]


@pytest.mark.parametrize(
    ("asked", "memory", "assumes"),
    [
        ("vllm@0.11", "vllm-2025", "vllm 0.11, not measured: told as vLLM of 2025"),
        ("VLLM@0.13", "vllm", "vllm 0.13, told as 0.12.0, the nearest older release measured"),
        ("vllm@0.15", "vllm", "vllm 0.15.1, measured"),
        ("vllm@0.6.3", "vllm-2024", "vllm 0.6.3, not measured: told as vLLM of 2024"),
        ("sglang@0.5.1.post1", "sglang", "sglang 0.5.1.post1, measured"),
        ("trtllm@1.2.0rc6.post2", "trtllm", "trtllm 1.2.0rc6.post2, measured"),
        ("vllm", "vllm", "vllm as of 0.19.0, the newest measured"),
        ("hf", "", ""),
    ],
)
def test_a_release_is_told_by_the_engine_that_stands_for_it(asked: str, memory: str, assumes: str) -> None:
    engine = get_engine(asked)
    assert (engine.reserve.name if engine.reserve else "") == memory
    assert engine.assumes.startswith(assumes)
    assert bool(engine.assumes) == bool(assumes)


def test_a_prediction_says_which_release_it_assumes() -> None:
    found = predict(Scenario(model="llama-3.1-8b", device="h100-sxm", engine="vllm@0.13"))
    told = "vllm 0.13, told as 0.12.0, the nearest older release measured"
    assert found.to_dict()["assumes"] == told
    assert how_sure(found).endswith(told)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("vllm@9.9", r"release '9.9' of vllm is not known; did you mean vllm@0\.31\.0\? known: 0\.2\.0, .* between"),
        ("vllm@0.1", r"did you mean vllm@0\.2\.0\?"),
        ("vlm@0.12", r"did you mean 'vllm@0\.12'"),
        ("hf@4.5", "hf is not told by release; write hf"),
        ("vllm@mine", "unknown engine 'vllm@mine'"),
    ],
)
def test_a_release_nobody_knows_is_refused_with_those_that_are(asked: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        get_engine(asked)


def test_a_release_changes_kernels_memory_and_pace_at_once() -> None:
    """From 0.5.14 on SGLang's Triton experts run otherwise; its own pace is on top of the family's stretch."""
    op = moe(FORMATS["bf16"])
    old, new = (time_op(op, load("h100-sxm"), get_engine(f"sglang@{r}")).source for r in ("0.5.10", "0.5.14"))
    assert (old.rpartition("/")[2], new.rpartition("/")[2]) == ("sglang_triton", "sglang_triton@0.5.14")
    paced = plain(family="x", releases=("1.0", "1.2"), pace={"1.2": (0.9, 1.1)})
    assert (paced.as_of("1.1").decode_stretch, paced.as_of("1.1").rows_of) == (1.0, "1.0")
    assert (paced.as_of("1.3").prefill_stretch, paced.as_of("1.3").decode_stretch) == (0.9, 1.1)
    assert paced.as_of("0.9").rows_of == ""


def test_a_pace_needs_two_models_that_agree() -> None:
    """Two models 10 and 21 % slow: exp((ln 1.1 + ln 1.21) / 3) = 1.1; one model says nothing of a release."""

    def rows(release: str, models: dict[str, float]) -> pd.DataFrame:
        told = [
            {"release": release, "model": m, "metric": "tpot", "time_s": f, "mid_s": 1.0} for m, f in models.items()
        ]
        return pd.DataFrame(told * 10)

    slow = rows("1.0", {"a": 1.1, "b": 1.21})
    found = paces(pd.concat([slow, rows("1.1", {"a": 2.0}), rows("1.2", {"a": 0.5, "b": 2.0})], ignore_index=True))
    assert list(found) == ["1.0"]
    assert found["1.0"] == pytest.approx((1.0, 1.1))
