"""What engines leave for KV, against hand-worked shares and start-up logs that are none of the field cases."""

from __future__ import annotations

import pytest

from simulator.fitting.e2e_steps import STATIC_UTILISATION
from simulator.fitting.e2e_steps import group_of as judged_group
from simulator.inference import memory
from simulator.inference.group import Group, group_of
from simulator.inference.kvpool import DoesNotStartError, kv_pool, starts
from simulator.results.prediction import predict
from simulator.roofline.engine import get_engine
from simulator.roofline.reserve import Start, load_reserves, parse_reserves
from simulator.scenario.scenario import Scenario

GIB = 2.0**30


def group(engine: str, model: str, device: str, **more: object) -> Group:
    return group_of(Scenario(model=model, device=device, engine=engine, **more))


def start_of(engine: str, model: str, device: str, **more: object) -> Start:
    found = group(engine, model, device, **more).start
    assert found is not None
    return found


def test_engines_start_with_their_own_numbers_on_each_class_of_card() -> None:
    """vLLM: 1024 and 8192 from 70 GiB on, 256 and 2048 below and on A100; V0 whole prompts of the context;
    SGLang leaves 512 + 1.5 * 8192 + 2 * 256 + 128 MiB of 81,559 and, on 24 GiB, 512 + 1.5 * 2048 + 2 * 24 + 128 MiB
    of 24,564."""
    on = {d: start_of("vllm", "llama-3-8b", d) for d in ("h100-sxm", "a100-sxm-80g", "rtx-4090")}
    assert [(s.seqs, s.tokens) for s in on.values()] == [(1024, 8192), (256, 2048), (256, 2048)]
    assert start_of("vllm-2024", "llama-3-8b", "h100-sxm").tokens == 8192
    assert start_of("vllm-2024", "llama-3.1-8b", "h100-sxm").tokens == 512
    assert start_of("sglang", "llama-3-8b", "h100-sxm").fraction == round(1 - 13_440 / 81_559, 3)
    assert start_of("sglang", "llama-3-8b", "rtx-4090").fraction == round(1 - 3_760 / 24_564, 3)
    assert start_of("vllm", "llama-3-8b", "rtx-4090", max_num_seqs=8, gpu_memory_utilization=0.5).seqs == 8
    assert group("hf", "llama-3-8b", "rtx-4090").start is None


def test_a_share_is_of_all_of_weights_and_kv_or_of_what_is_free() -> None:
    """100 GB after the driver's half, 40 of weights, 5 at the peak, 1 outside, a share of 0.8: 34, 39.2 and 43.2 GB."""
    reserves = load_reserves()
    for engine, left in (("vllm", 34.0), ("sglang", 39.2), ("trtllm", 43.2)):
        start = Start(reserves[engine], 0.8, 1, 1)
        assert start.pool_bytes(100.5e9, 40e9, 5e9, 1e9) == pytest.approx(left * 1e9)


def test_the_pool_by_hand() -> None:
    """Llama-3.1-8B on H100, vLLM of 2025: 0.9 of 85.02 GB less 16.06 of weights, 1024 * 128,256 words * 38 B and
    0.35 GB outside; at the lower end the peak times exp(1.645 * 0.25) and 0.6 GB. 33 tokens are three pages of 16."""
    found = group("vllm-2025", "llama-3.1-8b", "h100-sxm")
    weights, words = memory.weights_bytes(found.lowering), 1024 * 128_256 * 38.0
    share = 0.9 * (found.device.capacity_bytes - 0.5e9) - weights
    page = 16 * 131_072
    pool = kv_pool(found, 1024, 8192)
    assert pool.blocks == (share - words - 0.35e9) // page
    assert pool.between == ((share - words * 1.5087025 - 0.6e9) // page, (share - words / 1.5087025 - 0.1e9) // page)
    asked = Scenario(model="llama-3.1-8b", device="h100-sxm", engine="vllm-2025", prompt_tokens=17, output_tokens=16)
    answer = predict(asked).pool
    assert answer is not None
    assert answer.sequences == pool.blocks // 3 < answer.kv_tokens // 33


LOGS = (
    # https://github.com/vllm-project/vllm/pull/17122 (0.8.4: 1024 sequences on every card)
    ("vllm-2025", "llama-3.1-8b", "l40s", {"max_num_seqs": 1024, "max_model_len": 32_768}, 158_656),
    # start-up logs named in engine_memory.toml: 56.21 GiB at 0.92 and 19.92 GiB at 0.9
    ("vllm", "llama-3.1-8b", "h100-sxm", {"gpu_memory_utilization": 0.92, "max_num_batched_tokens": 8192}, 460_496),
    ("vllm", "llama-3.1-8b", "a100-sxm-40g", {"max_num_batched_tokens": 8192}, 163_168),
)


@pytest.mark.parametrize(("engine", "model", "device", "more", "measured"), LOGS, ids=lambda v: str(v)[:12])
def test_the_pool_is_what_start_up_logs_print(
    engine: str, model: str, device: str, more: dict[str, object], measured: int
) -> None:
    found = group(engine, model, device, **more)
    assert found.start is not None
    tokens = kv_pool(found, found.start.seqs, found.start.tokens).interval
    assert tokens.mid == pytest.approx(measured, rel=0.05)
    assert tokens.lo < measured < tokens.hi


@pytest.mark.parametrize(
    ("model", "device", "length", "lo", "hi"),
    [
        # https://github.com/vllm-project/vllm/issues/12529 and pull/12126: "PyTorch activation peak memory takes"
        ("qwen2.5-1.5b", "rtx-3090", 2000, 1.39, 1.39),
        ("llama-3-8b", "h100-sxm", 8192, 1.19, 1.26),
    ],
)
def test_the_sampler_sorts_every_word(model: str, device: str, length: int, lo: float, hi: float) -> None:
    """38 B a word and sequence, counted from the tensors that a sort of the logits holds."""
    found = group("vllm-2024", model, device, max_model_len=length)
    assert found.start is not None
    peak = memory.peak_bytes(found.lowering, found.start) / GIB
    assert 0.95 * lo < peak < 1.05 * hi


def test_an_engine_that_finds_no_room_does_not_start() -> None:
    """GPT-OSS-120B on one H100 under vLLM 0.10: the sampler of 1024 sequences, 201,088 words and 38 B each is 7.8 GB of
    what 70.8 GB of weights leave of 76.5 GB; 64 sequences start: of 7740 pages 640 tokens take 40 and windows 8."""
    asked = {"model": "gpt-oss-120b", "device": "h100-sxm", "engine": "vllm-2025"}
    found = predict(Scenario(**asked))
    assert found.pool is not None
    assert found.pool.kv_tokens == 0
    assert "vLLM of 2025 (V1, 0.8-0.11) does not start" in found.pool.sentence
    assert f"{found.pool.kv_tokens_hi:,} tokens fit" in found.pool.sentence
    assert not found.answer.ok
    assert not starts(group_of(Scenario(**asked)))
    few = predict(Scenario(**asked, max_num_seqs=64)).pool
    assert few is not None
    assert (few.kv_tokens, few.sequences) == (7740 * 16, 7740 // (40 + 8))


def test_who_surely_has_no_room_is_not_told_perhaps() -> None:
    """Llama-2-70B in 16 bit on one H100: weights alone are larger at either end of the interval."""
    found = group("vllm", "llama-2-70b", "h100-sxm")
    with pytest.raises(DoesNotStartError, match="does not start") as error:
        kv_pool(found, 1, 1)
    assert error.value.most_tokens == 0


def test_a_row_that_ran_was_started_with_room() -> None:
    """DeepSeek-V3's 168 GB a GPU are above SGLang's default share of a B200, which public rows with TP 4 ran on."""
    row = {
        "model": "deepseek-v3",
        "device": "b200",
        "dtype": "fp8_block",
        "kv_dtype": "auto",
        "tp": "4",
        "pp": "1",
        "ep": "1",
        "dp": "1",
    }
    large = judged_group({**row, "loop": "closed"}, get_engine("sglang"))
    assert large.utilisation == STATIC_UTILISATION
    assert starts(large)
    assert judged_group({**row, "tp": "8", "loop": "closed"}, get_engine("sglang")).utilisation is None


def test_a_figure_without_its_source_is_refused() -> None:
    """Each figure of the memory says how it is known."""
    kinds = {one.kind for r in load_reserves().values() for one in (r.logit_bytes, r.outside_bytes, r.link_bytes)}
    assert kinds == {"counted", "measured", "assumed"}
    known = '{ lo = 1.0, hi = 2.0, kind = "KIND", source = "SOURCE" }'
    text = (
        '[x]\nsource = "s"\nof = "free"\nfraction = 0.9\nflag = "--f"\ncards = [{ seqs = 1, tokens = 1 }]\n'
        f"logit_bytes = {known}\noutside_bytes = {known}\nlink_bytes = {known}\n"
    )
    good = parse_reserves(text.replace("KIND", "measured"))["x"]
    assert (good.outside(1).mid, good.outside(2).mid, good.outside(2).hi) == (1.5, 3.0, 4.0)
    for bad in (text, text.replace("KIND", "measured").replace("SOURCE", "")):
        with pytest.raises(ValueError, match="needs 0 <= lo <= hi, a source and a kind"):
            parse_reserves(bad)
