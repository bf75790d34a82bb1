"""Layers that keep a state in place of a KV cache: counts, lowering, memory and policies, worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.base.dtypes import get_format
from simulator.base.errors import InputError
from simulator.inference.group import group_of
from simulator.inference.lowering import Lowering
from simulator.inference.memory import kv_bytes_per_sequence
from simulator.model.architectures import from_config
from simulator.ops.linear_attention import LinearAttention
from simulator.ops.ops import Linear
from simulator.ops.step import Step, decode_step, prefill_step
from simulator.policies import parse
from simulator.scenario.scenario import Scenario

CONFIG: dict[str, Any] = {
    "model_type": "qwen3_next",
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 8,
    "max_position_embeddings": 65536,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 32,
}
CHANNELS = 2 * 2 * 16 + 4 * 32
STATE_BYTES = 4 * 16 * 32 * 4 + CHANNELS * 3 * 2
"""Four fp32 states of 16 x 32, and the three newest inputs of the convolution in 16 bit."""
KV_BYTES = 2 * (16 + 16) * 2
"""Two KV heads of 16 wide keys and values in 16 bit, per token and layer."""


def model(**change: Any):
    return from_config(CONFIG | change, "hybrid")


def lowering(tp: int = 1, policy: str = "dense") -> Lowering:
    return Lowering(model(), parse(policy), get_format("bf16"), 2.0, tp)


def test_every_fourth_layer_has_attention_unless_the_file_lists_them() -> None:
    kinds = [layer.attention is not None for layer in model().layers]
    assert kinds == [False, False, False, True] * 2
    listed = ["full_attention", *["linear_attention"] * 7]
    assert [layer.state is None for layer in model(layer_types=listed).layers] == [True] + [False] * 7


def test_parameters_of_one_block_by_hand() -> None:
    net = model().layers[0].state
    assert net is not None
    # q, k, v and the output gate; two gates a head; convolution; dt and A a head; norm of a head; output.
    by_hand = 64 * (CHANNELS + 128) + 64 * 8 + CHANNELS * 4 + 8 + 32 + 128 * 64
    assert net.n_params(64) == by_hand


def test_kv_counts_attention_layers_and_the_state_does_not_grow() -> None:
    m = model()
    assert m.n_attention_layers == 2
    assert m.kv_bytes_per_token(2.0) == 2 * KV_BYTES
    assert m.state_bytes() == 6 * STATE_BYTES
    per = kv_bytes_per_sequence(lowering(), np.array([1600.0, 16000.0]))
    assert per == pytest.approx([2 * KV_BYTES * n + 6 * STATE_BYTES for n in (1600, 16000)])
    split = kv_bytes_per_sequence(lowering(tp=2), np.array([1600.0]))
    assert split == pytest.approx(0.5 * per[:1])


@pytest.mark.parametrize(
    ("step", "phase", "batch", "q_len"),
    [(decode_step(4.0, 100.0), "decode", 4.0, 1.0), (prefill_step(3.0, 50.0), "prefill", 3.0, 50.0)],
)
def test_lowered_to_convolution_and_recurrence_of_six_layers(
    step: Step, phase: str, batch: float, q_len: float
) -> None:
    ops = [op for op in lowering(tp=2).ops(step) if isinstance(op, LinearAttention)]
    assert [op.kernel_part for op in ops] == ["conv", "scan"]
    for op in ops:
        assert (op.phase, op.batch, op.q_len, op.count) == (phase, batch, q_len, 6.0)
        assert (op.k_heads, op.v_heads, op.channels) == (1.0, 2.0, CHANNELS / 2)


def test_projections_of_a_block_hold_its_matrices() -> None:
    sizes = {op.role: (op.n, op.k, op.count) for op in lowering().one_token if isinstance(op, Linear)}
    assert sizes["state.in"] == (CHANNELS + 128, 64, 6.0)
    assert sizes["state.gates"] == (8, 64, 6.0)
    assert sizes["state.out"] == (64, 128, 6.0)
    # The output gate beside each query.
    assert sizes["attn.qkv"] == (2 * 8 * 16 + 2 * 2 * 16, 64, 2.0)


def test_a_kv_policy_keeps_the_states_as_they_are() -> None:
    few = kv_bytes_per_sequence(lowering(policy="streaming_llm(sinks=16,window=1008)"), np.array([16000.0]))
    assert few == pytest.approx([2 * KV_BYTES * 1024 + 6 * STATE_BYTES])


def test_heads_that_cannot_be_split_are_named() -> None:
    reason = lowering(tp=4).why_not()
    assert reason is not None
    assert reason.startswith("2 key heads of a gated delta net")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"layer_types": ["linear_attention"] * 7 + ["mamba"]}, "layer_types"),
        ({"layer_types": ["linear_attention"] * 7}, "layer_types"),
        ({"linear_num_value_heads": 3}, "linear_num_value_heads"),
        ({"mamba_ssm_dtype": "float8"}, "mamba_ssm_dtype"),
    ],
)
def test_what_is_not_understood_is_refused(change: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=key):
        model(**change)


def test_a_policy_on_attention_is_refused_where_no_layer_has_any() -> None:
    states_alone = model(layer_types=["linear_attention"] * 8)
    low = Lowering(states_alone, parse("quest"), get_format("bf16"), 2.0)
    assert low.why_not() == "quest works on attention, which no layer of hybrid has"


@pytest.mark.parametrize(("policy", "told"), [("teal(keep=0.5)", True), ("w4a16", False), ("quest", False)])
def test_the_answer_says_which_products_a_policy_leaves(tmp_path: Path, policy: str, told: bool) -> None:
    file = tmp_path / "hybrid.json"
    dense = {k: v for k, v in CONFIG.items() if "expert" not in k and not k.startswith("moe")}
    file.write_text(json.dumps(dense | {"model_type": "qwen3_5_text"}))
    note = f"{policy.partition('(')[0]} leaves the products of 6 layers that keep a state as they are"
    assert (note in group_of(Scenario(model=str(file), device="h100-sxm", policy=policy)).notes) == told


def test_a_residual_cannot_be_narrowed_around_a_state() -> None:
    dense = {k: v for k, v in CONFIG.items() if "expert" not in k and not k.startswith("moe")}
    narrowed = from_config(dense | {"model_type": "qwen3_5_text"}, "hybrid")
    reason = Lowering(narrowed, parse("slicegpt"), get_format("bf16"), 2.0).why_not()
    assert reason is not None
    assert "what keeps a state is not covered" in reason


@pytest.mark.parametrize(("policy", "told"), [("quest", True), ("dense", False), ("cats", False)])
def test_the_answer_says_how_many_layers_a_kv_policy_reaches(tmp_path: Path, policy: str, told: bool) -> None:
    file = tmp_path / "hybrid.json"
    file.write_text(json.dumps(CONFIG))
    scenario = Scenario(model=str(file), device="h100-sxm", policy=policy, prompt_tokens=4096)
    note = f"{policy} works on 2 of 8 layers, those with attention"
    assert (note in group_of(scenario).notes) == told
