"""Kinds of layers beside attention and FFN, worked by hand: delta attention, blocks, convolutions, searched layers."""

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
from simulator.ops.module import AttentionModule
from simulator.ops.ops import Attention, Elementwise, Linear
from simulator.ops.step import decode_step
from simulator.policies import parse
from simulator.scenario.scenario import Scenario

SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "max_position_embeddings": 65536,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
LATENTS = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 24, "qk_rope_head_dim": 0, "v_head_dim": 32}
DELTA = {"linear_num_heads": 4, "linear_head_dim": 16, "linear_conv_kernel_dim": 4}
POOLED = SMALL | EXPERTS | LATENTS | DELTA
POOLED |= {"model_type": "glm5_next_text", "n_routed_experts": 8, "n_shared_experts": 1, "hc_mult": 4}
POOLED |= {"index_n_heads": 4, "index_head_dim": 16, "index_topk": 64, "index_kpool": 4}
POOLED |= {"layer_types": ["linear_attention"] * 3 + ["indexed_attention"], "first_k_dense_replace": 3}
PICKED = SMALL | EXPERTS | {"model_type": "minimax_m3", "num_local_experts": 8, "moe_layer_freq": [0, 1, 1, 1]}
PICKED |= {"intermediate_size": 48, "dense_intermediate_size": 80, "shared_intermediate_size": 40}
SECTION = {"sparse_num_index_heads": 2, "sparse_index_dim": 16, "sparse_block_size": 128, "sparse_topk_blocks": 16}
SECTION |= {"sparse_attention_freq": [0, 1, 1, 1]}
PICKED["sparse_attention_config"] = SECTION
CONVOLVED = SMALL | {"model_type": "lfm2", "conv_L_cache": 3, "layer_types": ["conv", "conv", "full_attention", "conv"]}
BLOCK = {"attention": {"n_heads_in_group": 4, "no_op": False}, "ffn": {"ffn_mult": 3.0, "no_op": False}}
GONE = {"attention": {"n_heads_in_group": None, "no_op": True}, "ffn": {"ffn_mult": 1.5, "no_op": False}}
EMPTY = {"attention": {"no_op": True}, "ffn": {"no_op": True}}
SEARCHED = SMALL | {"model_type": "nemotron-nas", "block_configs": [BLOCK, GONE, EMPTY, BLOCK]}


def lowering(config: dict[str, Any], policy: str = "dense", *, tp: int = 1, as_modules: bool = False) -> Lowering:
    model = from_config(config, "layers")
    return Lowering(model, parse(policy), get_format("bf16"), 2.0, tp, as_modules=as_modules)


def linears(low: Lowering) -> dict[str, tuple[float, float, float]]:
    return {op.role: (float(op.n), float(op.k), float(op.count)) for op in low.one_token if isinstance(op, Linear)}


def test_delta_attention_by_hand() -> None:
    model = from_config(POOLED, "layers")
    block = model.layers[0].state
    assert block is not None
    width = 4 * 16
    # q, k and v; the step's size; decay and gate down and up; output; convolution, decay's bias, rates, norm.
    products = 64 * 3 * width + 64 * 4 + 64 * 2 * 16 + 16 * 2 * width + width * 64
    assert block.n_params(64) == products + 3 * width * 4 + width + 4 + 16
    assert model.state_bytes() == 3 * (4 * 16 * 16 * 4 + 3 * width * 3 * 2)
    sizes = linears(lowering(POOLED, tp=2))
    assert sizes["state.in"] == (3 * width / 2, 64, 3.0)
    # What is narrowed is narrowed on every GPU.
    assert sizes["state.gate_down"] == (32, 64, 3.0)
    assert sizes["state.gate_up"] == (width, 16, 3.0)
    conv, scan = (op for op in lowering(POOLED).ops(decode_step(4.0, 100.0)) if isinstance(op, LinearAttention))
    assert (conv.kind, scan.kind, scan.v_heads, conv.channels) == ("kda", "kda", 4.0, 3 * width)


def test_pooled_keys_are_fewer() -> None:
    low = lowering(POOLED)
    per = kv_bytes_per_sequence(low, np.array([16000.0]))
    # One latent of 16 in 16 bit and a quarter of a key of 16 + 4 bytes in one layer, states in three.
    assert per == pytest.approx([16000 * (32 + 5) + low.state_bytes])
    ops = low.ops(decode_step(4.0, 16000.0))
    scored = next(op for op in ops if isinstance(op, Attention) and op.role == "kv.index")
    assert float(np.max(scored.kv_len)) == 4000.0
    searched = next(op for op in ops if isinstance(op, Elementwise) and op.role == "kv.top_k")
    assert float(np.max(searched.select_elements)) == 4 * 4000.0
    assert linears(low)["indexer.gate"] == (16, 64, 1.0)
    # No engine was measured with it as a module, and nothing turns without a position.
    assert not any(
        isinstance(op, AttentionModule) for op in lowering(POOLED, as_modules=True).ops(decode_step(4.0, 9.0))
    )
    assert not any(op.role == "attn.rope" for op in ops)


def test_blocks_are_picked_per_kv_head() -> None:
    low = lowering(PICKED, tp=2)
    ops = low.ops(decode_step(4.0, 16000.0))
    cores = {
        float(np.max(op.tokens)): float(op.count) for op in ops if isinstance(op, Attention) and op.role == "attn.core"
    }
    assert cores == {16000.0: 1.0, 2048.0: 3.0}
    scored = next(op for op in ops if isinstance(op, Attention) and op.role == "kv.index")
    assert (float(scored.n_heads), scored.head_dim, float(np.max(scored.count))) == (1.0, 16.0, 3.0)
    sizes = linears(low)
    assert (sizes["indexer.q"], sizes["indexer.k"]) == ((16, 64, 3.0), (16, 64, 3.0))
    own = low.model.layers[1].attention
    without = low.model.layers[0].attention
    assert own is not None
    assert without is not None
    assert own.n_params(64) - without.n_params(64) == 64 * 3 * 16 + 2 * 16
    per = kv_bytes_per_sequence(lowering(PICKED), np.array([16000.0]))
    assert per == pytest.approx([16000 * (4 * 2 * 32 * 2 + 3 * 32)])


@pytest.mark.parametrize(("device", "engine"), [("b200", "vllm"), ("h100-sxm", "vllm"), ("h200-sxm", "sglang")])
def test_measured_engines_pick_blocks_as_modules(tmp_path: Path, device: str, engine: str) -> None:
    file = tmp_path / "picked.json"
    file.write_text(json.dumps(PICKED))
    group = group_of(Scenario(model=str(file), device=device, engine=engine))
    ops = group.lowering.ops(decode_step(4.0, 16000.0))
    modules = [(op.kind, float(op.count)) for op in ops if isinstance(op, AttentionModule)]
    assert modules == [("msa", 3.0)]
    assert sum(float(op.count) for op in ops if isinstance(op, Attention)) == 1.0


def test_a_policy_that_picks_is_refused_where_the_model_picks() -> None:
    reason = "quest works on all cached tokens; layers attends to blocks that it picks itself"
    assert lowering(PICKED, "quest").why_not() == reason
    assert lowering(PICKED, "kv_quant(bits=4)").why_not() is None


def test_a_short_convolution_keeps_two_tokens() -> None:
    low = lowering(CONVOLVED)
    block = low.model.layers[0].state
    assert block is not None
    assert block.n_params(64) == 64 * 3 * 64 + 64 * 3 + 64 * 64
    assert low.model.state_bytes() == 3 * 64 * 2 * 2
    # Two thirds of 96, rounded up to 256.
    assert {ffn.intermediate for ffn, _ in low.model.feed_forwards} == {256}
    parts = [op.kernel_part for op in low.ops(decode_step(4.0, 100.0)) if isinstance(op, LinearAttention)]
    assert parts == ["conv"]


def test_searched_layers_have_what_the_search_left() -> None:
    attention, wide, narrow = 64 * (8 + 2 + 2) * 8 + 64 * 64, 3 * 64 * 256, 3 * 64 * 256
    plain = dict(SEARCHED)
    for key in ("head_dim", "num_key_value_heads", "intermediate_size"):
        del plain[key]
    sizes = [(x.n_params("attention", 64), x.n_params("ffn", 64), x.n_norms) for x in from_config(plain, "n").layers]
    assert sizes == [(attention, wide, 2), (0, narrow, 1), (0, 0, 0), (attention, wide, 2)]
    # 2/3 of 3 x 64 is 128, of 1.5 x 64 it is 64: both round up to 256.
    ops = lowering(plain).ops(decode_step(4.0, 100.0))
    assert sum(float(op.count) for op in ops if op.role == "attn.core") == 2.0
    assert sum(float(op.count) for op in ops if op.role == "mlp.down") == 3.0


@pytest.mark.parametrize(
    ("config", "change", "key"),
    [
        (POOLED, {"layer_types": None}, "layer_types"),
        (POOLED, {"model_type": "deepseek_v41"}, "engram_layer_ids"),
        (POOLED, {"mlp_layer_types": ["sparse", "dense"]}, "mlp_layer_types"),
        (POOLED, {"linear_attn_config": {"num_heads": 2, "head_dim": 16, "short_conv_kernel_size": 4}}, "linear_attn"),
        (POOLED, {"index_kpool": None}, "index_kpool"),
        (POOLED, {"model_type": "kimi_linear", "attn_res_block_size": 12}, "attn_res_block_size"),
        (PICKED, {"sparse_attention_config": None}, "layer_types"),
        (PICKED, {"sparse_attention_config": SECTION | {"sparse_num_index_heads": 4}}, "num_key_value_heads"),
        (PICKED, {"moe_layer_freq": None}, "moe_layer_freq"),
        (CONVOLVED, {"layer_types": None}, "layer_types"),
        (SEARCHED, {"block_configs": [BLOCK]}, "block_configs"),
        (SEARCHED, {"block_configs": [{"attention": {"no_op": True}}] * 4}, "block_configs"),
        (SEARCHED, {"block_configs": [BLOCK | {"ffn": {"ffn_mult": None}}] * 4}, "ffn_mult"),
    ],
)
def test_what_is_not_understood_is_refused(config: dict[str, Any], change: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=key):
        from_config(config | change, "layers")
