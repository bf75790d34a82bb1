"""Parameter counts against transformers' own models on the meta device: no weights, no network.

The strongest check of the parsers: every bundled model whose architecture transformers knows must
agree to the last parameter.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest

from simulator.model import hub
from simulator.model.architectures import from_config

pytestmark = pytest.mark.torch

# These files speak the authors' own dialect, which transformers reads with remote code only.
REMOTE_ONLY = {"chatglm", "aquila"}


def bundled(name: str) -> dict[str, Any]:
    config = json.loads((files("hw_profiles") / "models" / f"{name}.json").read_text("utf-8"))
    return {key: value for key, value in config.items() if not key.startswith("_")}


TOWERS = ("visual", "vision_tower", "multi_modal_projector", "mm_projector")
"""Parts of a model beside its text part, by what transformers calls them."""


def twin_params(config: dict[str, Any]) -> int:
    """Parameters of transformers' model of `config`, each shared tensor once."""
    torch = pytest.importorskip("torch", reason="torch not installed")
    transformers = pytest.importorskip("transformers", reason="transformers not installed")
    # A quantised checkpoint has the same matrices; the quantiser would only rename their types.
    config = {key: value for key, value in config.items() if key != "quantization_config"}
    kind = config.pop("model_type")
    if kind == "kimi_k2":
        kind = "deepseek_v3"
    if "text_config" in config and "tie_word_embeddings" in config["text_config"]:
        config.setdefault("tie_word_embeddings", config["text_config"]["tie_word_embeddings"])
    built = transformers.AutoConfig.for_model(kind, **config)
    whole = transformers.AutoModelForImageTextToText if "text_config" in config else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = whole.from_config(built)
    model.tie_weights()
    # Of a model with a tower, the text part alone is what we read.
    return sum(p.numel() for name, p in model.named_parameters() if not any(part in name for part in TOWERS))


@pytest.mark.parametrize("name", hub.list_models())
def test_bundled_model_has_as_many_parameters_as_its_twin(name: str) -> None:
    config = bundled(name)
    if config["model_type"] in REMOTE_ONLY:
        pytest.skip(f"transformers reads {config['model_type']!r} with remote code only")
    assert hub.find_model(name).n_params == twin_params(config)


SWITCHES: list[tuple[str, dict[str, Any]]] = [
    ("llama-3.2-1b", {"attention_bias": True, "mlp_bias": True}),
    ("llama-3.2-1b", {"tie_word_embeddings": False, "num_key_value_heads": 32}),
    ("qwen3-0.6b", {"attention_bias": True}),
    ("phi-3-mini-4k", {"num_key_value_heads": 8, "tie_word_embeddings": True}),
    ("glm-4-9b-chat", {"model_type": "glm4", "attention_bias": False}),
    ("olmo-2-7b", {"attention_bias": True}),
    ("command-r-35b", {"use_qk_norm": True, "num_key_value_heads": 8}),
    ("starcoder2-3b", {"use_bias": False}),
    ("gemma-3-1b", {"attention_bias": True}),
    ("opt-125m", {"enable_bias": False}),
    ("opt-350m", {"do_layer_norm_before": True}),
    ("gpt-neox-20b", {"attention_bias": False, "use_parallel_residual": False}),
    ("starcoder", {"multi_query": False}),
    ("falcon-7b", {"multi_query": False, "parallel_attn": False, "bias": True, "alibi": True}),
    ("falcon-40b", {"num_ln_in_parallel_attn": 1}),
    ("gpt2", {"n_inner": 1000, "tie_word_embeddings": False}),
    ("qwen1.5-moe-a2.7b", {"mlp_only_layers": [0, 3], "decoder_sparse_step": 2}),
    ("qwen3-30b-a3b", {"mlp_only_layers": [1], "attention_bias": True}),
    ("deepseek-v2-lite", {"q_lora_rank": 64, "attention_bias": True, "n_shared_experts": 1}),
    ("deepseek-v3", {"q_lora_rank": None, "attention_bias": True, "first_k_dense_replace": 0}),
    ("gpt-oss-20b", {"num_key_value_heads": 64, "num_local_experts": 4}),
    (
        "qwen3-0.6b",
        {
            "model_type": "glm4_moe",
            "attention_bias": True,
            "use_qk_norm": True,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 96,
            "n_shared_experts": 2,
            "first_k_dense_replace": 3,
        },
    ),
]


@pytest.mark.parametrize(("name", "change"), SWITCHES)
def test_every_switch_changes_the_count_as_in_the_twin(name: str, change: dict[str, Any]) -> None:
    config = {**bundled(name), **change}
    assert from_config(config, "switched").n_params == twin_params(config)


_SMALL = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 6, "max_position_embeddings": 4096}
_HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
_DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16}
_DELTA |= {"linear_value_head_dim": 32, "linear_conv_kernel_dim": 4}
_LATENT = {"num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 96, "q_lora_rank": 32, "n_group": 1}
_LATENT |= {"kv_lora_rank": 16, "qk_nope_head_dim": 24, "qk_rope_head_dim": 8, "v_head_dim": 32, "topk_group": 1}
_LATENT |= {"n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 2}
_LATENT |= {"index_n_heads": 4, "index_head_dim": 16, "index_topk": 64}
_SHARED = {"num_experts": 8, "shared_expert_intermediate_size": 32}
WRITTEN: list[tuple[str, dict[str, Any]]] = [
    ("qwen3_vl", {"text_config": _SMALL | _HEADS, "tie_word_embeddings": True}),
    ("qwen3_vl", {"text_config": _SMALL | _HEADS, "tie_word_embeddings": False}),
    ("qwen3_vl_moe", {"text_config": _SMALL | _HEADS | _EXPERTS | {"num_experts": 8}, "tie_word_embeddings": False}),
    ("deepseek_v32", _SMALL | _LATENT | _EXPERTS | {"attention_bias": True}),
    ("glm_moe_dsa", _SMALL | _LATENT | _EXPERTS | {"index_topk_freq": 4, "index_skip_topk_offset": 3}),
    ("glm_moe_dsa", _SMALL | _LATENT | _EXPERTS | {"indexer_types": ["full", "shared"] * 3}),
    ("qwen3_next", _SMALL | _HEADS | _EXPERTS | _DELTA | _SHARED | {"mlp_only_layers": [1]}),
    ("qwen3_next", _SMALL | _HEADS | _EXPERTS | _DELTA | _SHARED | {"attention_bias": True, "num_hidden_layers": 9}),
    ("qwen3_5_text", _SMALL | _HEADS | _DELTA | {"linear_num_value_heads": 2, "linear_conv_kernel_dim": 3}),
    ("qwen3_5_moe", {"text_config": _SMALL | _HEADS | _EXPERTS | _DELTA | _SHARED, "tie_word_embeddings": False}),
    (
        "mimo_v2_flash",
        _SMALL
        | _HEADS
        | _EXPERTS
        | {"v_head_dim": 8, "n_routed_experts": 8, "sliding_window": 128, "hidden_act": "silu"}
        | {"hybrid_layer_pattern": [0, 1, 1, 1, 1, 0], "moe_layer_freq": [0, 1, 1, 1, 1, 1]},
    ),
]
"""Small configs of architectures that no bundled model has, written as the published ones are."""


@pytest.mark.parametrize(("kind", "config"), WRITTEN)
def test_written_config_has_as_many_parameters_as_its_twin(kind: str, config: dict[str, Any]) -> None:
    config = {"model_type": kind, **config}
    nested = dict(config)
    if "text_config" in config:
        nested["text_config"] = {"model_type": f"{kind}_text", **config["text_config"]}
    assert from_config(nested, "written").n_params == twin_params(config)
