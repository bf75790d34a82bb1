"""llama.cpp over several GPUs: layers are shared out, a step passes one GPU after another, prompts follow in pieces."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from simulator.api import Scenario
from simulator.base.dtypes import get_format
from simulator.base.errors import InputError
from simulator.device.catalogue import load
from simulator.fitting.e2e_rows import prepare
from simulator.inference.evaluate import evaluate
from simulator.inference.group import group_of
from simulator.roofline.engine import get_engine
from simulator.roofline.hardware import hardware
from simulator.serving.deployment import Deployment

SPLIT = {"model": "llama-3-8b", "device": "h100-pcie", "engine": "llama.cpp", "dtype": "fp16"}


def group(**more: object):
    return group_of(Scenario.of(**SPLIT | more))


def test_pieces_of_512_tokens_follow_each_other_through_the_stages() -> None:
    """2,048 tokens are four pieces: four stages take (4 + 3) / 4 of a stage's time each, 7/16 of one GPU's."""
    four = group(pp=4)
    assert float(four.passes(1.0, 2048.0)) == pytest.approx(7 / 16)
    assert float(four.passes(1.0, 512.0)) == float(four.passes(1.0, 100.0)) == 1.0
    assert float(four.passes(2.0, 1024.0)) == float(four.passes(1.0, 2048.0))
    assert float(group().passes(8.0, 2048.0)) == 1.0
    # Engines that share sequences out keep to them: two of four stages busy.
    assert float(group(engine="vllm", pp=4).passes(2.0, 2048.0)) == (2 + 3) / 4


def test_a_generated_token_passes_all_gpus_with_the_whole_batch() -> None:
    sizes = np.array([8.0]), np.array([512.0]), np.array([65.0])
    one, four = (float(evaluate(group(pp=pp), *sizes).tpot_s.mid[0]) for pp in (1, 4))
    assert one < four < one + 3 * 2e-3
    engine = get_engine("llama.cpp")
    assert four - one > 3 * engine.rank_s


def test_a_long_prompt_is_read_faster_a_short_one_is_not() -> None:
    def ttft(pp: int, prompt: float) -> float:
        return float(evaluate(group(pp=pp), np.array([1.0]), np.array([prompt]), np.array([2.0])).ttft_s.mid[0])

    assert ttft(4, 8192.0) < 0.5 * ttft(1, 8192.0)
    assert ttft(4, 256.0) >= ttft(1, 256.0)


def test_rows_that_say_how_layers_are_split_are_judged() -> None:
    row = {
        "source": "XiongjieDai-GPU-Benchmarks",
        "engine": "llama.cpp",
        "model": "Llama-3-8B",
        "device": "RTX-4090",
        "metric": "decode_tok_s",
        "value": 100.0,
        "batch": 1.0,
        "input_len": 0.0,
        "output_len": 512.0,
        "n_gpus": 2.0,
        "tp": None,
        "quant": "Q4_K_M",
        "note": "multi-GPU = llama.cpp layer split, not TP",
        "flag": None,
    }
    rows, left_out = prepare(pd.DataFrame([row, {**row, "note": ""}, {**row, "note": "", "tp": 2.0}]))
    assert rows[["tp", "pp"]].to_numpy().tolist() == [[1, 2]]
    assert set(left_out) == {
        "tensor parallelism not stated",
        "llama.cpp over several GPUs, by layers or by rows is not stated",
    }


def test_products_that_add_up_in_fp16_are_twice_as_fast_on_geforce_alone() -> None:
    """GA102's whitepaper: 142.3 TFLOP/s with an FP16 accumulator, 71.2 with FP32; the L40S has one rate."""
    engine, half, four_bit = get_engine("llama.cpp"), get_format("fp16"), get_format("w4a16")
    assert engine.adds_fast(half)
    assert engine.adds_fast(four_bit)
    assert not engine.adds_fast(get_format("bf16"))
    assert not get_engine("vllm").adds_fast(half)
    for name, ratio in (("rtx-3090", 142.3 / 71.2), ("l40s", 1.0)):
        fast, slow = (hardware(load(name), "fp16", fp16_accumulate=of).math_flop_per_s for of in (True, False))
        assert fast / slow == pytest.approx(ratio, rel=0.01)


def test_serving_refuses_what_it_does_not_follow() -> None:
    with pytest.raises(InputError, match="one after another"):
        Deployment(Scenario.of(**SPLIT, pp=2))
