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


@pytest.mark.parametrize("name", WRITTEN)
def test_caches_hold_as_much_as_the_twins(name: str) -> None:
    """K and V of every token, and states in the elements that the twin keeps of a sequence.

    The twin keeps every tap of a convolution, engines all but the newest.
    """
    kind, config = WRITTEN[name]
    twin = transformers.AutoModelForCausalLM.from_config(built(kind, config)).eval()
    with torch.no_grad():
        out = twin(torch.arange(TOKENS)[None], use_cache=True)
    cache = out.get("past_key_values") or out.cache_params
    kept = {"conv": 0, "scan": 0, "kv": 0}
    for layer in cache.layers:
        for part, states in (("conv", "conv_states"), ("scan", "recurrent_states")):
            kept[part] += sum(t.numel() for t in (getattr(layer, states, None) or {}).values() if t is not None)
        kept["kv"] += sum(
            t.numel() for t in (getattr(layer, "keys", None), getattr(layer, "values", None)) if t is not None
        )
    model = read(kind, config)
    blocks = [layer.state for layer in model.layers if layer.state is not None]
    conv = [c.channels * c.taps for b in blocks if (c := b.convolution()) is not None]
    scan = [s.v_heads * s.k_dim * s.v_dim for b in blocks if (s := b.recurrence()) is not None]
    assert kept == {"conv": sum(conv), "scan": sum(scan), "kv": TOKENS * model.kv_bytes_per_token(1.0)}
