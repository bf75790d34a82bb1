"""Models whose layers mostly keep a state in place of a KV cache: Qwen3-Next, Qwen3.5 and 3.6."""

from __future__ import annotations

from dataclasses import replace

from simulator.base.errors import InputError
from simulator.base.units import format_bytes
from simulator.model.architectures.experts import qwen_layers, top_k
from simulator.model.architectures.llama import decoder, gated_ffn, rotary_attention
from simulator.model.architectures.registry import architecture
from simulator.model.delta_net import DeltaNetSpec
from simulator.model.layer import FfnSpec, MoeSpec
from simulator.model.reader import Reader
from simulator.model.spec import ModelSpec

_STATE_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}


def _states(reader: Reader) -> tuple[bool, ...]:
    """Which layers keep a state: those listed, else all but every ``full_attention_interval``-th."""
    n_layers = reader.layers("num_hidden_layers")
    types = reader.strings("layer_types")
    if types is None:
        every = reader.whole("full_attention_interval", default=4)
        return tuple((index + 1) % every != 0 for index in range(n_layers))
    if len(types) != n_layers:
        reader.fail("layer_types", f"lists {len(types)} layers, the model has {n_layers}")
    unknown = set(types) - {"linear_attention", "full_attention"}
    if unknown:
        reader.fail("layer_types", f"has {sorted(unknown)[0]!r}, which is not supported")
    return tuple(kind == "linear_attention" for kind in types)


def _delta_net(reader: Reader) -> DeltaNetSpec:
    dtype = reader.word("mamba_ssm_dtype", default="float32")
    if dtype not in _STATE_BYTES:
        reader.fail("mamba_ssm_dtype", f"is {dtype!r}; known: {', '.join(_STATE_BYTES)}")
    k_heads, v_heads = reader.whole("linear_num_key_heads"), reader.whole("linear_num_value_heads")
    if v_heads % k_heads:
        reader.fail("linear_num_value_heads", f"is {v_heads}, no multiple of the {k_heads} key heads")
    return DeltaNetSpec(
        k_heads,
        v_heads,
        reader.whole("linear_key_head_dim"),
        reader.whole("linear_value_head_dim"),
        reader.whole("linear_conv_kernel_dim"),
        _STATE_BYTES[dtype],
    )


def _hybrid(reader: Reader, name: str, ffn: FfnSpec | tuple[FfnSpec | MoeSpec, ...]) -> ModelSpec:
    """Gated attention in some layers, a gated delta net in the others."""
    states, net = _states(reader), _delta_net(reader)
    if all(states):
        raise InputError("no layer has attention; models of states alone are not supported", where=reader.where)
    bias = reader.flag("attention_bias")
    attention = replace(
        rotary_attention(reader, reader.whole("hidden_size"), qkv_bias=bias, o_bias=bias, qk_norm="head"),
        gate="width" if reader.flag("attn_output_gate", default=True) else None,
    )
    # Kinds of layers were read above; what slides is asked of what is left, which is nothing.
    plain = Reader({k: v for k, v in reader.config.items() if k != "layer_types"}, reader.where, reader.text)
    model = decoder(plain, name, attention, ffn)
    pairs = zip(model.layers, states, strict=True)
    layers = tuple(replace(layer, attention=None, delta_net=net) if state else layer for layer, state in pairs)
    model = replace(model, layers=layers)
    kept = format_bytes(model.state_bytes)
    note = f"{sum(states)} of {len(states)} layers keep a state in place of a KV cache, {kept} of each sequence"
    return replace(model, notes=(note,))


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
