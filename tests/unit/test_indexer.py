"""Layers that pick their latents: counts, lowering and memory of DeepSeek-V3.2 and GLM-5, worked by hand."""

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
from simulator.model.spec import ModelSpec
from simulator.ops.module import AttentionModule
from simulator.ops.ops import Attention, Linear
from simulator.ops.step import decode_step
from simulator.policies import parse
from simulator.scenario.scenario import Scenario

CONFIG: dict[str, Any] = {
    "model_type": "glm_moe_dsa",
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "max_position_embeddings": 65536,
    "num_attention_heads": 8,
    "intermediate_size": 96,
    "moe_intermediate_size": 48,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 5,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 32,
    "index_n_heads": 4,
    "index_head_dim": 16,
    "index_topk": 2048,
    "index_topk_freq": 4,
    "index_skip_topk_offset": 3,
}
LATENT_BYTES, KEY_BYTES = (16 + 8) * 2, 16 + 4
"""Of a token: the latent in 16 bit, and the indexer's fp8 key with its scale."""


def model(**change: Any) -> ModelSpec:
    return from_config(CONFIG | change, "sparse")


def lowering(policy: str = "dense", *, as_modules: bool = False) -> Lowering:
    return Lowering(model(), parse(policy), get_format("bf16"), 2.0, as_modules=as_modules)


def shared(m: ModelSpec) -> list[bool]:
    return [bool(layer.attention and layer.attention.indexer and layer.attention.indexer.shared) for layer in m.layers]


def test_who_has_an_indexer_is_read_three_ways() -> None:
    # Every fourth from the third on: layers 0 to 2, then 6, which is not there.
    by_step = [False, False, False, True, True, True]
    assert shared(model()) == by_step
    assert shared(model(index_topk_pattern="FFFSSS")) == by_step
    assert shared(model(indexer_types=["full"] * 3 + ["shared"] * 3)) == by_step
    assert shared(model(index_topk_freq=None)) == [False] * 6


def test_an_indexer_has_four_matrices_and_a_norm() -> None:
    own, without = model().layers[0].attention, model().layers[5].attention
    assert own is not None
    assert without is not None
    assert own.n_params(64) - without.n_params(64) == 32 * 4 * 16 + 64 * 16 + 64 * 4 + 2 * 16


def test_the_cache_holds_a_key_for_each_indexer() -> None:
    per = kv_bytes_per_sequence(lowering(), np.array([16000.0]))
    assert per == pytest.approx([16000 * (6 * LATENT_BYTES + 3 * KEY_BYTES)])


def test_decoding_reads_the_picked_latents_alone() -> None:
    ops = lowering().ops(decode_step(4.0, 16000.0))
    cores = [op for op in ops if isinstance(op, Attention) and op.role == "attn.core"]
    assert sum(float(op.count) for op in cores) == 6.0
    assert {float(np.max(op.tokens)) for op in cores} == {2048.0}
    scored = [op for op in ops if isinstance(op, Attention) and op.role == "kv.index"]
    assert sum(float(np.max(op.count)) for op in scored) == 3.0
    # It is the model's own work, not a policy's.
    assert not any(op.overhead for op in ops)
    sizes = {op.role: (op.n, op.k) for op in ops if isinstance(op, Linear)}
    assert sizes["indexer.q"] == (64, 32)
    assert sizes["indexer.k"] == (16, 64)
    assert sizes["indexer.weights"] == (4, 64)


def test_a_module_with_a_shared_choice_does_not_index() -> None:
    blocks = [op for op in lowering(as_modules=True).ops(decode_step(4.0, 16000.0)) if isinstance(op, AttentionModule)]
    assert {op.kind for op in blocks} == {"dsa"}
    assert sum(float(op.count) for op in blocks if op.indexes) == 3.0
    assert sum(float(op.count) for op in blocks if not op.indexes) == 3.0


def test_the_policy_that_it_has_already_is_refused() -> None:
    assert lowering("dsa").why_not() == "sparse has it already"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"q_lora_rank": None}, "q_lora_rank"),
        ({"indexer_types": ["shared"] * 6}, "indexer_types"),
        ({"indexer_types": ["full"] * 5}, "indexer_types"),
        ({"layer_types": ["linear_attention"] * 6}, "layer_types"),
        ({"index_topk": None}, "index_topk"),
    ],
)
def test_what_is_not_understood_is_refused(change: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=key):
        model(**change)


@pytest.mark.parametrize("device", ["h200-sxm", "b200"])
def test_a_measured_engine_answers_with_its_modules(tmp_path: Path, device: str) -> None:
    file = tmp_path / "sparse.json"
    file.write_text(json.dumps(CONFIG))
    assert group_of(Scenario(model=str(file), device=device, engine="vllm")).as_modules
