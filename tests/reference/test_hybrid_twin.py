"""Parameters and caches of models that keep states, against transformers' own models of small configs."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.model.architectures import from_config
from simulator.model.spec import ModelSpec

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="torch not installed")
transformers = pytest.importorskip("transformers", reason="transformers not installed")

TOKENS = 6
_SMALL = {"vocab_size": 512, "hidden_size": 64, "max_position_embeddings": 4096, "pad_token_id": 0}
_ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
_GROUPED = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 24, "mamba_d_conv": 4}
_GROUPED |= {"mamba_expand": 2, "mamba_chunk_size": 8}
_NEMOTRON = {"mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 24, "conv_kernel": 4}
_NEMOTRON |= {"head_dim": 16, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
_NEMOTRON |= {"moe_shared_expert_intermediate_size": 40, "layers_block_type": ["mamba", "attention", "mlp", "moe"]}
_LFM = {"conv_L_cache": 3, "layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3}
_LATENTS = {"num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 96, "kv_lora_rank": 16}
_LATENTS |= {"qk_nope_head_dim": 24, "qk_rope_head_dim": 8, "v_head_dim": 32}
_KIMI = {"num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"]}
_KIMI |= {"num_experts": 8, "num_experts_per_token": 2, "num_shared_experts": 1, "moe_intermediate_size": 48}
_KIMI |= {"linear_num_heads": 2, "linear_head_dim": 16, "linear_conv_kernel_dim": 4}
_SECTION = {"num_heads": 4, "head_dim": 16, "short_conv_kernel_size": 4}
WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("mamba", {"num_hidden_layers": 3, "state_size": 8, "conv_kernel": 4, "expand": 2}),
    "mamba-biases": ("mamba", {"num_hidden_layers": 3, "state_size": 8, "conv_kernel": 3, "use_bias": True}),
    "falcon_mamba": ("falcon_mamba", {"num_hidden_layers": 2, "state_size": 8, "conv_kernel": 4}),
    "mamba2": (
        "mamba2",
        {"num_hidden_layers": 2, "num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 24, "conv_kernel": 4},
    ),
    "nemotron_h": ("nemotron_h", _ATTENTION | _NEMOTRON),
    "nemotron_h-latent": ("nemotron_h", _ATTENTION | _NEMOTRON | {"moe_latent_size": 32, "use_bias": True}),
    "nemotron_h-dense": ("nemotron_h", _ATTENTION | _NEMOTRON | {"mlp_bias": True, "use_conv_bias": False}),
    "bamba": ("bamba", _ATTENTION | _GROUPED | {"num_hidden_layers": 3, "attn_layer_indices": [1], "mlp_bias": True}),
    "falcon_h1": ("falcon_h1", _ATTENTION | _GROUPED | {"num_hidden_layers": 2, "mamba_d_ssm": 128}),
    "falcon_h1-norm": (
        "falcon_h1",
        _ATTENTION
        | _GROUPED
        | {"num_hidden_layers": 2, "mamba_d_ssm": 128, "mamba_rms_norm": True, "projectors_bias": True},
    ),
    "granitemoehybrid": (
        "granitemoehybrid",
        _ATTENTION
        | _GROUPED
        | {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 40}
        | {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "granitemoehybrid-dense": (
        "granitemoehybrid",
        _ATTENTION
        | _GROUPED
        | {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 40}
        | {"num_local_experts": 0, "num_experts_per_tok": 0},
    ),
    "lfm2": ("lfm2", _ATTENTION | _LFM),
    "lfm2-plain": (
        "lfm2",
        _ATTENTION | _LFM | {"block_auto_adjust_ff_dim": False, "conv_bias": True, "tie_word_embeddings": False},
    ),
    "lfm2_moe": (
        "lfm2_moe",
        _ATTENTION
        | _LFM
        | {"num_dense_layers": 1, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    ),
    "minimax": (
        "minimax",
        _ATTENTION
        | {"num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"]}
        | {"num_local_experts": 4, "num_experts_per_tok": 2, "block_size": 8},
    ),
    "kimi_linear": ("kimi_linear", _LATENTS | _KIMI),
    "kimi_linear-listed": (
        "kimi_linear",
        _LATENTS
        | {k: v for k, v in _KIMI.items() if k != "layer_types"}
        | {"q_lora_rank": 24, "first_k_dense_replace": 2, "linear_num_heads": 4}
        | {"linear_attn_config": {"kda_layers": [1, 3], "full_attn_layers": [2], **_SECTION}},
    ),
    "recurrent_gemma": (
        "recurrent_gemma",
        _ATTENTION | {"num_hidden_layers": 3, "lru_width": 48, "conv1d_width": 4, "attention_window_size": 64},
    ),
    "jamba": (
        "jamba",
        _ATTENTION
        | {"num_hidden_layers": 4, "attn_layer_period": 4, "attn_layer_offset": 2, "expert_layer_period": 2}
        | {"expert_layer_offset": 1, "num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 8}
        | {"mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 5},
    ),
}


def built(kind: str, config: dict[str, Any]) -> Any:
    return transformers.AutoConfig.for_model(kind, **_SMALL, **config)


def read(kind: str, config: dict[str, Any]) -> ModelSpec:
    return from_config({"model_type": kind, **_SMALL, **config}, "written")


@pytest.mark.parametrize("name", WRITTEN)
def test_as_many_parameters_as_the_twin(name: str) -> None:
    kind, config = WRITTEN[name]
    with torch.device("meta"):
        twin = transformers.AutoModelForCausalLM.from_config(built(kind, config))
    twin.tie_weights()
    assert read(kind, config).n_params == sum(p.numel() for p in twin.parameters())


_LISTED = {"num_hidden_layers": 4, "index_n_heads": 2, "index_head_dim": 16}
NESTED: dict[str, tuple[str, dict[str, Any]]] = {
    "glm5_next": (
        "glm5_next",
        _LATENTS
        | _LISTED
        | {"qk_rope_head_dim": 0, "q_lora_rank": 24, "index_topk": 64, "index_kpool": 4, "hc_mult": 4}
        | {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 48}
        | {"mlp_layer_types": ["dense", "dense", "sparse", "sparse"], "linear_num_heads": 2, "linear_head_dim": 16}
        | {"layer_types": ["linear_attention", "indexed_attention"] * 2, "linear_conv_kernel_dim": 4},
    ),
    "minimax_m3_vl": (
        "minimax_m3_vl",
        _ATTENTION
        | _LISTED
        | {"head_dim": 16, "num_local_experts": 8, "num_experts_per_tok": 2, "dense_intermediate_size": 80}
        | {"shared_intermediate_size": 40, "index_block_size": 32, "index_topk_blocks": 2}
        | {
            "layer_types": ["full_attention", *["minimax_m3_sparse"] * 3],
            "mlp_layer_types": ["dense", *["sparse"] * 3],
        },
    ),
    "step3p7": (
        "step3p7",
        _ATTENTION
        | {"num_hidden_layers": 4, "head_dim": 16, "n_routed_experts": 8, "num_experts_per_tok": 2}
        | {"moe_intermediate_size": 48, "share_expert_dim": 40, "sliding_window": 64, "num_sliding_attention_heads": 6}
        | {"layer_types": ["full_attention", *["sliding_attention"] * 3], "moe_layers_enum": "2,3"},
    ),
}
"""Text parts of models with towers."""


@pytest.mark.parametrize("name", NESTED)
def test_a_text_part_has_as_many_parameters_as_the_twins(name: str) -> None:
    kind, config = NESTED[name]
    config = transformers.AutoConfig.for_model(kind, text_config=_SMALL | config)
    with torch.device("meta"):
        twin = transformers.AutoModelForImageTextToText.from_config(config)
    outside = ("visual", "vision", "projector")
    of_text = sum(p.numel() for name, p in twin.named_parameters() if not any(word in name for word in outside))
    assert from_config(config.to_dict(), "written").n_params == of_text


FOLDED = {"num_hidden_layers": 3, "num_attention_heads": 8, "head_dim": 32, "q_lora_rank": 24, "o_lora_rank": 16}
FOLDED |= {"o_groups": 4, "index_n_heads": 4, "index_head_dim": 16, "index_topk": 4, "sliding_window": 16}
FOLDED |= {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "hc_mult": 4,
}
WORDS = ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"]


def test_folded_entries_are_those_that_the_twin_keeps() -> None:
    """DeepSeek-V4: all parameters, and after 256 tokens the entries of 4 and of 128 and the indexer's keys."""
    built_v4 = transformers.AutoConfig.for_model("deepseek_v4", **_SMALL, **FOLDED, layer_types=WORDS)
    twin = transformers.AutoModelForCausalLM.from_config(built_v4).eval()
    model = from_config({"model_type": "deepseek_v4", **_SMALL, **FOLDED, "layer_types": WORDS}, "folded")
    assert model.n_params == sum(p.numel() for p in twin.parameters())
    with torch.no_grad():
        cache = twin((torch.arange(256) % 500)[None], use_cache=True).past_key_values
    entries = [{name: t.numel() for name, t in getattr(x, "compressed_kv", {}).items()} for x in cache.layers]
    assert entries == [{}, {"compressor": 64 * 32, "indexer": 64 * 16}, {"compressor": 2 * 32}]
    attentions = [layer.attention for layer in model.layers]
    assert [256 * a.folded_elements_per_token for a in attentions if a] == [0.0, 64 * 32, 2 * 32]


def kept_by(twin: Any, out: Any) -> dict[str, int]:
    """Elements that the twin keeps of one sequence, wherever it keeps them."""
    kept = {"conv": 0, "scan": 0, "kv": 0}
    cache = out.get("past_key_values") or out.get("cache_params")
    for layer in cache.layers if cache is not None else ():
        for part, states in (("conv", "conv_states"), ("scan", "recurrent_states")):
            kept[part] += sum(t.numel() for t in (getattr(layer, states, None) or {}).values() if t is not None)
        both = (getattr(layer, "keys", None), getattr(layer, "values", None))
        kept["kv"] += sum(t.numel() for t in both if t is not None)
    # MiniMax keeps its states beside the layers; RecurrentGemma in its modules, there without the newest tap.
    kept["scan"] += sum(state.numel() for state in getattr(cache, "linear_cache", ()) if len(state))
    for module in twin.modules():
        conv, scan = (getattr(module, name, None) for name in ("conv1d_state", "recurrent_states"))
        kept["conv"] += conv[..., 0].numel() * (conv.shape[-1] + 1) if conv is not None else 0
        kept["scan"] += scan.numel() if scan is not None else 0
    if cache is None:
        del kept["kv"]
    return kept


@pytest.mark.parametrize("name", WRITTEN)
def test_caches_hold_as_much_as_the_twins(name: str) -> None:
    """K and V of every token, and states in the elements that the twin keeps of a sequence.

    The twin keeps every tap of a convolution, engines all but the newest.
    """
    kind, config = WRITTEN[name]
    twin = transformers.AutoModelForCausalLM.from_config(built(kind, config)).eval()
    with torch.no_grad():
        out = twin(torch.arange(TOKENS)[None], use_cache=True)
    model = read(kind, config)
    blocks = [layer.state for layer in model.layers if layer.state is not None]
    conv = [c.channels * c.taps for b in blocks if (c := b.convolution()) is not None]
    scan = [s.v_heads * s.k_dim * s.v_dim for b in blocks if (s := b.recurrence()) is not None]
    by_us = {"conv": sum(conv), "scan": sum(scan), "kv": TOKENS * model.kv_bytes_per_token(1.0)}
    kept = kept_by(twin, out)
    assert kept == {part: by_us[part] for part in kept}
