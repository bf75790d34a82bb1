"""Models whose layers mostly keep a state in place of a KV cache: Qwen3-Next, Qwen3.5 and 3.6."""

from __future__ import annotations

from dataclasses import replace

from simulator.model.architectures.family import Experts, biased, read, sparse_steps
from simulator.model.architectures.registry import architecture
from simulator.model.architectures.states import element_bytes, of_two_kinds
from simulator.model.delta_net import DeltaNetSpec
from simulator.model.reader import Reader
from simulator.model.spec import ModelSpec


def _states(reader: Reader) -> tuple[bool, ...]:
    """Which layers keep a state: those listed, else all but every ``full_attention_interval``-th."""
    n_layers = reader.layers("num_hidden_layers")
    listed = of_two_kinds(reader, n_layers, {"linear_attention": True, "full_attention": False})
    every = reader.whole("full_attention_interval", default=4)
    return listed or tuple((index + 1) % every != 0 for index in range(n_layers))


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


def _hybrid(reader: Reader, name: str, experts: Experts | None) -> ModelSpec:
    """Gated attention in some layers, a gated delta net in the others."""
    states, net = _states(reader), _delta_net(reader)
    family = biased(qk_norm="head", gate="width", gate_if=("attn_output_gate", True), experts=experts)
    # Kinds of layers were read above.
    model = read(reader.derived(without=("layer_types",)), name, family)
    pairs = zip(model.layers, states, strict=True)
    layers = tuple(replace(layer, attention=None, state=net) if state else layer for layer, state in pairs)
    return replace(model, layers=layers)


@architecture("qwen3_5_text")
def qwen3_5(reader: Reader, name: str) -> ModelSpec:
    """Qwen3.5 and 3.6, dense: three gated delta nets, then one attention."""
    return _hybrid(reader, name, None)


@architecture("qwen3_next", "qwen3_5_moe_text")
def qwen3_next(reader: Reader, name: str) -> ModelSpec:
    """Qwen3-Next and the Qwen3.5 to 3.8 with experts: the same layers, and a gated shared expert."""
    return _hybrid(reader, name, Experts(shared="width", shared_gate=True, where=sparse_steps))
