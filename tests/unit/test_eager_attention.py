"""The copies of eager PyTorch's attention, counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.base.dtypes import get_format
from simulator.inference.lowering import Lowering
from simulator.ops.ops import Elementwise, Op
from simulator.ops.step import Step, decode_step, prefill_step
from simulator.ops.traffic import Operand
from simulator.policies import parse
from simulator.roofline.engine import get_engine
from simulator.roofline.timing import time_op
from simulator.scenario.catalogue import CATALOGUE

LAYERS = 32


def ops(model: str, policy: str, step: Step) -> dict[str, Op]:
    lowering = Lowering(CATALOGUE.model(model).in_one_format(), parse(policy), get_format("fp16"), 2.0)
    return {op.role: op for op in lowering.ops(step)}


def moved(op: Op, operand: Operand) -> tuple[float, float]:
    access = op.traffic().access[operand]
    return float(access.read_bytes), float(access.write_bytes)


def test_a_decode_step_copies_the_cache_and_writes_its_scores() -> None:
    found = ops("llama-2-7b", "eager_attention", decode_step(2.0, 1000.0))
    kv = 2 * 1000 * 2 * 32 * 128 * 2
    assert moved(found["kv.concat"], Operand.KV) == (kv, kv)
    assert sum(moved(found["attn.scores"], Operand.ACTIVATION)) == 24 * 2 * 32 * 1000
    assert moved(found["attn.core"], Operand.KV)[0] == kv
    assert "kv.repeat" not in found
    assert found["kv.concat"].count == found["attn.scores"].count == LAYERS


def test_a_cache_is_joined_element_by_element() -> None:
    """80 instructions an element. In 16 bits A100's 19.5e12 lanes a second take 4.1 ps for 4 B, 0.98 TB/s, below its
    memory's rate; an RTX 6000 Ada's 45.5e12 take 1.8, more than its memory gives; in 32 bits no card waits for them."""
    step = decode_step(8.0, 4000.0)
    concat = ops("llama-2-7b", "eager_attention", step)["kv.concat"]
    assert isinstance(concat, Elementwise)
    elements = 8 * 4000 * 2 * 32 * 128
    assert concat.flop == 80 * elements
    for device, bound in (("a100-sxm-80g", True), ("rtx-6000-ada", False)):
        engine = get_engine("hf")
        plain, slow = (time_op(op, CATALOGUE.device(device), engine) for op in (replace(concat, flop=0.0), concat))
        assert (slow.total_s > 1.2 * plain.total_s) == bound, device
    wide = Lowering(
        CATALOGUE.model("llama-2-7b").in_one_format(), parse("eager_attention"), get_format("fp32"), 4.0
    ).ops(step)
    joined = next(op for op in wide if op.role == "kv.concat")
    assert joined.flop == 80 * elements
    assert joined.read_bytes == 4 * elements


def test_shared_heads_are_written_out() -> None:
    found = ops("llama-3-8b", "eager_attention(cache=static)", decode_step(2.0, 1000.0))
    kv = 2 * 1000 * 2 * 8 * 128 * 2
    assert moved(found["kv.repeat"], Operand.KV) == (4 * kv, 4 * kv)
    assert "kv.concat" not in found


def test_a_prompt_computes_the_masked_half_and_has_no_cache_to_copy() -> None:
    step = prefill_step(1.0, 2048.0)
    found = ops("llama-2-7b", "eager_attention", step)
    dense = ops("llama-2-7b", "dense", step)
    core = "attn.core.prefill"
    causal, square = 2048 * 2049 / 2, 2048 * 2048
    share = found[core].flop / dense[core].flop  # type: ignore[attr-defined]
    assert share == pytest.approx(square / causal)
    assert sum(moved(found["attn.scores"], Operand.ACTIVATION)) == 24 * 32 * square
    assert "kv.concat" not in found


@pytest.mark.parametrize("step", [decode_step(1.0, 500.0), prefill_step(1.0, 500.0)])
def test_a_flash_kernel_on_a_static_cache_is_dense(step: Step) -> None:
    assert ops("llama-3-8b", "eager_attention(cache=static,kernel=flash)", step) == ops("llama-3-8b", "dense", step)


def test_it_follows_the_tokens_that_are_left() -> None:
    policy = "streaming_llm(window=96)+eager_attention"
    found = ops("llama-2-7b", policy, decode_step(1.0, 1000.0))
    assert moved(found["kv.concat"], Operand.KV)[0] == 100 * 2 * 32 * 128 * 2
