"""Layers of Mamba and Nemotron-H's layers of one block: counts, states and ops of a step, worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.base.dtypes import get_format
from simulator.base.errors import InputError
from simulator.device.catalogue import load
from simulator.inference.group import group_of
from simulator.inference.lowering import Lowering
from simulator.inference.memory import kv_bytes_per_sequence
from simulator.model.architectures import from_config
from simulator.model.spec import ModelSpec
from simulator.ops.linear_attention import LinearAttention
from simulator.ops.ops import Collective, Linear, Moe
from simulator.ops.step import decode_step
from simulator.policies import parse
from simulator.roofline.lookup import RULE_SIGMA, lookup
from simulator.scenario.scenario import Scenario

NEMOTRON: dict[str, Any] = {
    "model_type": "nemotron_h",
    "vocab_size": 512,
    "hidden_size": 64,
    "hybrid_override_pattern": "MEM*-M",
    "num_hidden_layers": 6,
    "max_position_embeddings": 65536,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 24,
    "conv_kernel": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "moe_shared_expert_intermediate_size": 40,
    "moe_latent_size": 32,
}
INNER = 8 * 16
CHANNELS = INNER + 2 * 2 * 24
"""Inputs, and B and C of two groups."""
BLOCK = 64 * (INNER + CHANNELS + 8) + CHANNELS * 5 + 3 * 8 + INNER + INNER * 64
"""Gate, inputs, B, C and steps; convolution with bias; decay, skip and step's bias of a head; norm; output."""
STATE_BYTES = 8 * 24 * 16 * 4 + CHANNELS * 3 * 2
"""Eight fp32 states of 24 x 16, and the three newest inputs of the convolution in 16 bit."""
MOE = 8 * 2 * 32 * 48 + 2 * 64 * 32 + 2 * 64 * 40
"""Experts of two matrices at width 32, what narrows and widens, the shared expert at full width."""


def model(**change: Any) -> ModelSpec:
    return from_config(NEMOTRON | change, "one-block")


def lowering(tp: int = 1, policy: str = "dense") -> Lowering:
    return Lowering(model(), parse(policy), get_format("bf16"), 2.0, tp)


def test_every_layer_has_one_block_and_one_norm() -> None:
    kinds = [(layer.state is not None, layer.attention is not None, layer.ffn is not None) for layer in model().layers]
    mamba, attends, feeds = (True, False, False), (False, True, False), (False, False, True)
    assert kinds == [mamba, feeds, mamba, attends, feeds, mamba]
    words = ["mamba", "moe", "mamba", "attention", "mlp", "mamba"]
    assert model(hybrid_override_pattern=None, layers_block_type=words).layers == model().layers


def test_parameters_by_hand() -> None:
    m = model()
    assert m.layers[0].n_params("attention", 64) == BLOCK
    assert m.layers[1].n_params("ffn", 64) == MOE
    attention, dense = 64 * (8 + 2 + 2) * 16 + 8 * 16 * 64, 2 * 64 * 96
    norms = 7 * 64
    assert m.n_params == 2 * 512 * 64 + 3 * BLOCK + MOE + 8 * 64 + attention + dense + norms
    assert m.n_params - m.n_active_params == 6 * 2 * 32 * 48


def test_states_do_not_grow_and_groups_are_copied_to_each_gpu() -> None:
    assert model().state_bytes() == 3 * STATE_BYTES
    per = kv_bytes_per_sequence(lowering(), np.array([1600.0, 16000.0]))
    assert per == pytest.approx([2 * 2 * 16 * 2 * n + 3 * STATE_BYTES for n in (1600, 16000)])
    # Four GPUs have a group each, two of them twice.
    split = (2 * 24 * 16 * 4) + (INNER / 4 + 2 * 24) * 3 * 2
    assert model().state_bytes(4) == 3 * split


def test_ops_of_a_decode_step() -> None:
    ops = lowering(tp=2).ops(decode_step(4.0, 100.0))
    sizes = {op.role: (op.n, op.k, op.count) for op in ops if isinstance(op, Linear)}
    assert sizes["state.in"] == ((INNER + CHANNELS + 8) / 2, 64, 3.0)
    assert sizes["state.out"] == (64, INNER / 2, 3.0)
    # Engines hold what narrows and widens whole.
    assert sizes["moe.latent_down"] == (32, 64, 1.0)
    assert sizes["moe.latent_up"] == (64, 32, 1.0)
    experts = next(op for op in ops if isinstance(op, Moe))
    assert (experts.hidden, experts.intermediate, experts.gated) == (32, 48, False)
    conv, scan = (op for op in ops if isinstance(op, LinearAttention))
    assert (conv.kernel_part, conv.channels, conv.d_conv) == ("conv", CHANNELS / 2, 4.0)
    assert (scan.kernel_part, scan.k_heads, scan.v_heads, scan.k_dim, scan.v_dim) == ("scan", 1.0, 4.0, 24.0, 16.0)
    # 4 sequences read and write 4 heads' states.
    assert scan.kept_bytes == 2 * 4 * 4 * 24 * 16 * 4
    # One per layer, whichever block it has, and one of the embedding.
    assert sum(float(op.count) for op in ops if isinstance(op, Collective) and op.op == "all_reduce") == 7.0


def test_a_recurrence_that_was_not_measured_borrows_and_says_so() -> None:
    device = load("h100-sxm")
    borrowed = lookup(device, "linear_attention", "scan.decode.mamba2")
    own = lookup(device, "linear_attention", "scan.decode.gdn")
    assert borrowed.stands_in
    assert borrowed.fit.dtype == "scan.decode.gdn"
    assert borrowed.fit.residual.sigma_in == pytest.approx(np.hypot(own.fit.residual.sigma_in, RULE_SIGMA))


def test_an_answer_says_how_many_layers_a_policy_reaches(tmp_path: Path) -> None:
    file = tmp_path / "one-block.json"
    file.write_text(json.dumps(NEMOTRON))
    group = group_of(Scenario(model=str(file), device="h100-sxm", policy="quest", prompt_tokens=4096))
    assert "quest works on 1 of 6 layers, those with attention" in group.notes


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"hybrid_override_pattern": "MEM*-X"}, "hybrid_override_pattern"),
        ({"hybrid_override_pattern": None}, "hybrid_override_pattern"),
        ({"hybrid_override_pattern": "MEM*-"}, "num_hidden_layers"),
        ({"mamba_ssm_cache_dtype": "fp8"}, "mamba_ssm_cache_dtype"),
        ({"attention_bias": True}, "attention_bias"),
        ({"ssm_state_size": None}, "ssm_state_size"),
        ({"n_shared_experts": 2}, "n_shared_experts"),
        ({"n_groups": 3}, "3 groups"),
    ],
)
def test_what_is_not_understood_is_refused(change: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=key):
        model(**change)


def test_heads_that_cannot_be_split_are_named() -> None:
    assert lowering(tp=16).why_not() == "8 heads of Mamba-2 cannot be split over tp=16"
