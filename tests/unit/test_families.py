"""Relatives of Llama, text parts of models with towers, and keys that nobody understands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from simulator.base.errors import InputError
from simulator.model.architectures import from_config
from simulator.model.architectures.families import FAMILIES
from simulator.model.layer import FfnSpec, MoeSpec
from simulator.models import app as models_app

SMALL: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 16,
    "max_position_embeddings": 32,
}
LAYER = 8 * (8 + 4 + 4 + 8) + 3 * 8 * 24 + 2 * 8
ENDS = 2 * 16 * 8 + 8


def small(kind: str, **more: Any) -> Any:
    return from_config({"model_type": kind, **SMALL, **more}, "small")


@pytest.mark.parametrize(
    ("kind", "more", "layer"),
    [
        ("granite", {}, LAYER),
        ("granite", {"attention_bias": True}, LAYER + 8 + 4 + 4 + 8),
        ("seed_oss", {}, LAYER + 16),
        ("glm4", {}, LAYER + 16 + 16),
        ("hyperclovax", {"use_post_norm": True}, LAYER + 16),
        ("arcee", {}, LAYER - 8 * 24),
        ("apertus", {}, LAYER - 8 * 24 + 4 + 2),
        ("olmo", {}, LAYER - 16),
        ("nanochat", {}, LAYER - 16 - 8 * 24),
        ("bitnet", {}, LAYER + 8 + 24),
        ("stablelm", {"use_parallel_residual": True}, LAYER + 16 - 16),
        ("persimmon", {"num_key_value_heads": 4}, LAYER + 64 - 8 * 24 + 16 + 24 + 8 + 24 + 8 + 8),
    ],
)
def test_a_relative_by_hand(kind: str, more: dict[str, Any], layer: int) -> None:
    """Llama's layer: Q 64, K 32, V 32, O 64, FFN 3 * 8 * 24, two norms 16; a relative adds or leaves out."""
    model = small(kind, **more)
    assert (
        model.layers[0].n_params("attention", 8)
        + model.layers[0].n_params("ffn", 8)
        + model.layers[0].n_params("norm", 8)
        == layer
    )


def test_experts_of_a_relative_by_hand() -> None:
    """dots.llm1: one dense layer, then a router of 8 * 6, six experts of 3 * 8 * 4, a shared one of two widths."""
    model = small(
        "dots1",
        moe_intermediate_size=4,
        n_routed_experts=6,
        n_shared_experts=2,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
    )
    dense, routed = model.layers[0].ffn, model.layers[1].ffn
    assert isinstance(dense, FfnSpec)
    assert isinstance(routed, MoeSpec)
    assert routed.n_params(8) + routed.n_router_params(8) == 8 * 6 + 6 * 96 + 3 * 8 * 8


def test_layers_without_positions() -> None:
    model = small("smollm3", no_rope_layers=[1, 1, 1, 0])
    assert [layer.attention.position for layer in model.layers] == ["rope"] * 3 + ["none"]


def test_layers_with_sizes_of_their_own() -> None:
    """transformers 5 lists what differs by layer: layer 2 has heads of 6, so Q 48, K 24, V 24 and O 48."""
    model = small("qwen3", head_dim=2, per_layer_config={"02": {"head_dim": 6}})
    assert [layer.attention.head_dim for layer in model.layers] == [2, 2, 6, 2]


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("llama", {"kv_lora_rank": 16}, "'kv_lora_rank' is 16, and what that means for 'llama' is not known"),
        ("llama", {"use_qk_norm": True}, "'use_qk_norm' is True"),
        ("mistral", {"shared_intermediate_size": 64}, "'shared_intermediate_size' is 64"),
        ("qwen3", {"layer_ffn_widths": {"1": 8}}, "'layer_ffn_widths' is given by layer"),
        ("llama", {"num_local_experts": 8}, "'num_local_experts' is 8, but 'llama' is read without experts"),
        ("llama", {"mlp_layer_types": ["dense"] * 4}, "'mlp_layer_types' is given by layer"),
    ],
)
def test_a_size_that_nobody_understands_is_refused(kind: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        small(kind, **more)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "more",
    [
        {"vision_hidden_size": 64},
        {"num_beams": 4},
        {"pretraining_tp": 2},
        {"num_experts": 0},
        {"rope_scaling": {"factor": 8.0}},
        {"use_qk_norm": False},
        {"num_mtp_modules": 3},
    ],
)
def test_a_key_of_something_else_is_left_alone(more: dict[str, Any]) -> None:
    assert small("llama", **more).n_params == 4 * LAYER + ENDS


def test_the_outer_file_says_whether_the_ends_are_tied() -> None:
    inner = {"model_type": "llama", **SMALL, "tie_word_embeddings": False}
    untied = from_config({"model_type": "internvl", "text_config": inner}, "vl")
    tied = from_config({"model_type": "internvl", "text_config": inner, "tie_word_embeddings": True}, "vl")
    assert untied.n_params - tied.n_params == 16 * 8


def test_a_text_part_keeps_its_class_s_defaults() -> None:
    """As LLaVA-1.5-7B is published: only what differs from `LlamaConfig`'s defaults."""
    text = {"model_type": "llama", "max_position_embeddings": 4096, "vocab_size": 32064}
    model = from_config({"model_type": "llava", "text_config": text}, "llava")
    assert model.n_params == 6_738_415_616 + 2 * 64 * 4096
    assert any("hidden_size 4096" in note for note in model.notes)
    with pytest.raises(InputError, match="'hidden_size' is missing"):
        from_config(text, "alone")


def test_paligemma_2_as_published() -> None:
    """Gemma-2 2B's text part of 257,216 rows: 2,614,341,888 parameters and 1,216 rows of 2304 more."""
    text = {"model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26}
    text |= {"num_key_value_heads": 4, "vocab_size": 257_216}
    model = from_config({"model_type": "paligemma", "text_config": text}, "paligemma2")
    assert model.n_params == 2_614_341_888 + 1216 * 2304


def test_a_text_part_without_model_type() -> None:
    text = {**SMALL, "vocab_size": 16}
    assert from_config({"model_type": "qwen2_vl", "text_config": text}, "vl").architecture == "qwen2_vl_text"
    with pytest.raises(InputError, match="'unheard_vl' is not supported"):
        from_config({"model_type": "unheard_vl", "text_config": text}, "vl")


def test_a_flat_file_of_a_model_with_a_tower() -> None:
    """Qwen2-VL before transformers 4.52: the text part's keys stand at the top."""
    flat = small("qwen2_vl")
    nested = from_config({"model_type": "qwen2_vl", "text_config": {"model_type": "qwen2_vl_text", **SMALL}}, "vl")
    assert flat.layers == nested.layers
    assert flat.notes == nested.notes


def test_every_family_reads_the_small_file() -> None:
    """None of the table's lines needs a key that its relatives would not have, experts and latents aside."""
    for kind, family in FAMILIES.items():
        if family.experts is None and not family.mla and kind not in ("gpt_neo", "gpt_bigcode"):
            assert small(kind).n_layers == 4, kind


def test_llama_4_by_hand() -> None:
    """Layers 0 to 2 attend in chunks with positions, layer 3 to everything without; every second layer routes."""
    model = small(
        "llama4_text",
        intermediate_size_mlp=24,
        intermediate_size=4,
        attention_chunk_size=8,
        num_local_experts=2,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
    )
    assert [(layer.attention.window, layer.attention.chunked) for layer in model.layers] == [(8, True)] * 3 + [
        (None, False)
    ]
    assert [layer.attention.position for layer in model.layers] == ["rope"] * 3 + ["none"]
    assert [isinstance(layer.ffn, MoeSpec) for layer in model.layers] == [False, True, False, True]
    # Q 64, K 32, V 32, O 64, two norms; a dense FFN, or a router, two experts and a shared one.
    dense, routed = 192 + 16 + 3 * 8 * 24, 192 + 16 + 2 * 8 + 3 * (3 * 8 * 4)
    assert model.n_params == 2 * dense + 2 * routed + ENDS
    # Three layers keep a chunk of 8 tokens at most, one all 20 of 2 * 2 * 2 elements.
    assert model.kv_bytes(20) == (3 * 8 + 20) * 8 * 2


def test_gemma_4_by_hand() -> None:
    """Full layers have heads of 4 and one KV head whose keys are the values; the last two layers keep no KV."""
    types = ["sliding_attention", "full_attention"] * 2
    more = {"head_dim": 2, "global_head_dim": 4, "num_global_key_value_heads": 1, "attention_k_eq_v": True}
    more |= {"layer_types": types, "sliding_window": 8, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 3}
    model = small("gemma4_text", vocab_size_per_layer_input=16, use_double_wide_mlp=True, **more)
    around = 3 * 8 * 24 + 5 * 8 + 2 * 8 * 3
    sliding, full = 64 + 32 + 32 + 64 + 2 * 2, 128 + 32 + 128 + 2 * 4
    last = (64 + 64 + 2) + (128 + 128 + 4) + 2 * 3 * 8 * 24
    ends = 16 * 8 + 8 + 16 * 12 + 12 * 8 + 3
    assert model.n_params == sliding + full + last + 4 * around + ends
    # K and V of 2 heads of 2 in the window, and of 1 head of 4, which are kept apart though V is K.
    assert model.kv_bytes(20) == (8 * 8 + 20 * 8) * 2
    assert [layer.attention.kv_from for layer in model.layers] == ["own", "k", "before", "before"]


def test_gemma_4_with_experts_beside_a_dense_block() -> None:
    """A router of 8 * 4 with a scale each and 8 over the width, four experts of 3 * 8 * 2, seven norms."""
    more = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 2}
    more |= {"hidden_size_per_layer_input": 0, "head_dim": 2, "global_head_dim": 2, "sliding_window": 8}
    model = small("gemma4_text", **more)
    layer = 192 + 2 * 2 + 7 * 8 + 3 * 8 * 24 + (8 * 4 + 4 + 8) + 4 * 48
    assert model.n_params == 4 * layer + 16 * 8 + 8


def test_layers_that_take_kv_of_earlier_ones_do_not_keep_it() -> None:
    """Half the layers: half the cache, and their decode still reads the K and V that are kept once."""
    from simulator.base.dtypes import get_format
    from simulator.inference.lowering import Lowering
    from simulator.inference.memory import kv_bytes_per_sequence, weights_bytes
    from simulator.ops.ops import Attention
    from simulator.ops.step import decode_step
    from simulator.policies import Policies

    more = {"head_dim": 2, "global_head_dim": 2, "hidden_size_per_layer_input": 0, "sliding_window": 64}
    models = [small("gemma4_text", num_kv_shared_layers=n, **more) for n in (0, 2)]
    own, shared = (Lowering(m, Policies(), get_format("bf16"), 2.0) for m in models)
    assert kv_bytes_per_sequence(shared, 32.0) == kv_bytes_per_sequence(own, 32.0) / 2
    assert weights_bytes(shared) == 2 * models[1].n_params
    read = [
        sum(op.kv_read_bytes * op.count for op in lowering.ops(decode_step(1.0, 32.0)) if isinstance(op, Attention))
        for lowering in (own, shared)
    ]
    written = [
        sum(op.kv_write_bytes * op.count for op in lowering.ops(decode_step(1.0, 32.0)) if isinstance(op, Attention))
        for lowering in (own, shared)
    ]
    assert read[0] == read[1]
    assert written[1] == written[0] / 2


def test_check_tells_state_and_notes(tmp_path: Path) -> None:
    """One line for a note of several files, with how many share it."""
    text = {"model_type": "llama", **SMALL}
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"model_type": "internvl", "text_config": text}))
    (tmp_path / "wrong.json").write_text(json.dumps({"model_type": "llama", **SMALL, "kv_lora_rank": 16}))
    done = CliRunner().invoke(models_app, ["--check", str(tmp_path)])
    assert done.exit_code == 2
    assert "2 of 3 read" in done.stdout
    assert "state MB" in done.stdout
    assert "and 1 more: only the text part of 'internvl' is modelled" in done.stdout.replace("\n", " ")
    assert "'kv_lora_rank' is 16" in done.stdout
