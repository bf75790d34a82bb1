"""Models whose layers mostly keep a state in place of a KV cache: Qwen3-Next, Qwen3.5 and 3.6."""

from __future__ import annotations

from dataclasses import replace

from simulator.model.architectures.experts import qwen_layers, top_k
from simulator.model.architectures.llama import decoder, gated_ffn, rotary_attention
from simulator.model.architectures.registry import architecture
from simulator.model.architectures.states import element_bytes, of_two_kinds
from simulator.model.delta_net import DeltaNetSpec
from simulator.model.layer import FfnSpec, MoeSpec
from simulator.model.reader import Reader
from simulator.model.spec import ModelSpec


def _states(reader: Reader) -> tuple[bool, ...]:
    """Which layers keep a state: those listed, else all but every ``full_attention_interval``-th."""
    n_layers = reader.layers("num_hidden_layers")
    listed = of_two_kinds(reader, n_layers, {"linear_attention": True, "full_attention": False})
    if listed is not None:
        return listed
    every = reader.whole("full_attention_interval", default=4)
    return tuple((index + 1) % every != 0 for index in range(n_layers))


def _delta_net(reader: Reader) -> DeltaNetSpec:
    k_heads, v_heads = reader.whole("linear_num_key_heads"), reader.whole("linear_num_value_heads")
    if v_heads % k_heads:
        reader.fail("linear_num_value_heads", f"is {v_heads}, no multiple of the {k_heads} key heads")
    return DeltaNetSpec(
        k_heads,
        v_heads,
        reader.whole("linear_key_head_dim"),
        reader.whole("linear_value_head_dim"),
        reader.whole("linear_conv_kernel_dim"),
        element_bytes(reader, "mamba_ssm_dtype"),
    )


def _hybrid(reader: Reader, name: str, ffn: FfnSpec | tuple[FfnSpec | MoeSpec, ...]) -> ModelSpec:
    """Gated attention in some layers, a gated delta net in the others."""
    states, net = _states(reader), _delta_net(reader)
    bias = reader.flag("attention_bias")
    attention = replace(
        rotary_attention(reader, reader.whole("hidden_size"), qkv_bias=bias, o_bias=bias, qk_norm="head"),
        gate="width" if reader.flag("attn_output_gate", default=True) else None,
    )
    # Kinds of layers were read above; what slides is asked of what is left, which is nothing.
    plain = Reader({k: v for k, v in reader.config.items() if k != "layer_types"}, reader.where, reader.text)
    model = decoder(plain, name, attention, ffn)
    pairs = zip(model.layers, states, strict=True)
    layers = tuple(replace(layer, attention=None, state=net) if state else layer for layer, state in pairs)
    return replace(model, layers=layers)


@architecture("qwen3_5_text")
def qwen3_5(reader: Reader, name: str) -> ModelSpec:
    """Qwen3.5 and 3.6, dense: three gated delta nets, then one attention."""
    return _hybrid(reader, name, gated_ffn(reader))


@architecture("qwen3_next", "qwen3_5_moe_text")
def qwen3_next(reader: Reader, name: str) -> ModelSpec:
    """Qwen3-Next and the Qwen3.5 to 3.8 with experts: the same layers, and a gated shared expert."""
    activation = reader.activation("hidden_act", default="silu")
    n_experts = reader.whole("num_experts", "num_local_experts")
    moe = MoeSpec(
        n_experts,
        top_k(reader, n_experts, "num_experts_per_tok"),
        FfnSpec(reader.whole("moe_intermediate_size"), True, activation),
        shared=FfnSpec(reader.whole("shared_expert_intermediate_size"), True, activation),
        shared_gate=True,
    )
    return _hybrid(reader, name, qwen_layers(reader, moe))
