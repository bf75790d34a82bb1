"""Models with layers of Mamba: Mamba, Mamba-2, Nemotron-H and Nemotron-3, Bamba, Falcon-H1, Granite 4, Jamba."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from simulator.model.architectures.family import Family, biased, dense_of, heads_of, picked
from simulator.model.architectures.registry import architecture
from simulator.model.architectures.states import element_bytes, model_of, of_two_kinds
from simulator.model.layer import AttentionSpec, FfnSpec, LayerSpec, MoeSpec, Position
from simulator.model.mamba import Mamba2Spec, MambaSpec
from simulator.model.reader import Reader
from simulator.model.spec import ModelSpec

_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
"""Layers of Nemotron-H's ``hybrid_override_pattern``."""
_WORDS = {"linear_attention": "mamba", "full_attention": "attention"}
"""Words of transformers 5 for the same."""


def _mamba(reader: Reader, prefix: str, *, inner: int, state: int, taps: int, inner_norms: bool) -> MambaSpec:
    rank = ceil(reader.whole("hidden_size") / 16)
    key = f"{prefix}dt_rank" if prefix else "time_step_rank"
    if reader.config.get(key, "auto") != "auto":
        rank = reader.whole(key)
    conv_bias = reader.flag(f"{prefix}conv_bias" if prefix else "use_conv_bias", default=True)
    bias = reader.flag(f"{prefix}proj_bias" if prefix else "use_bias")
    return MambaSpec(inner, state, rank, taps, conv_bias, bias, inner_norms)


@architecture("mamba", "falcon_mamba")
def mamba(reader: Reader, name: str) -> ModelSpec:
    """Mamba and Falcon-Mamba, whose inner norms have no weights."""
    inner = reader.whole("intermediate_size", default=reader.whole("expand", default=2) * reader.whole("hidden_size"))
    sizes = {"state": reader.whole("state_size"), "taps": reader.whole("conv_kernel", "d_conv")}
    block = _mamba(reader, "", inner=inner, inner_norms=False, **sizes)
    layers = (LayerSpec(None, None, n_norms=1, state=block),) * reader.layers("num_hidden_layers")
    return model_of(reader, name, layers, tied=True)


@architecture("mamba2", ignored=("time_step_rank",))
def mamba2(reader: Reader, name: str) -> ModelSpec:
    """Mamba-2 and Codestral Mamba."""
    block = Mamba2Spec(
        reader.whole("num_heads"),
        reader.whole("head_dim"),
        reader.whole("n_groups"),
        reader.whole("state_size"),
        reader.whole("conv_kernel"),
        reader.flag("use_conv_bias", default=True),
        reader.flag("use_bias"),
        reader.flag("use_bias"),
    )
    layers = (LayerSpec(None, None, n_norms=1, state=block),) * reader.layers("num_hidden_layers")
    return model_of(reader, name, layers)


def _nemotron_kinds(reader: Reader) -> tuple[str, ...]:
    """Each layer's kind: a list of words, or a pattern of letters."""
    words = reader.strings("layers_block_type") or reader.strings("layer_types")
    if words is None:
        pattern = reader.word("hybrid_override_pattern", default="")
        if not pattern:
            reader.fail("hybrid_override_pattern", "is missing; the file must say which layers it means")
        words = tuple(_LETTERS.get(letter, letter) for letter in pattern)
    words = tuple(_WORDS.get(word, word) for word in words)
    unknown = set(words) - set(_LETTERS.values())
    if unknown:
        reader.fail("hybrid_override_pattern", f"has {sorted(unknown)[0]!r}, which is not supported")
    n_layers = reader.whole("num_hidden_layers", default=len(words))
    if len(words) != n_layers:
        reader.fail("num_hidden_layers", f"is {n_layers}, but {len(words)} layers are listed")
    return words


def _nemotron_moe(reader: Reader) -> MoeSpec:
    activation = reader.activation("mlp_hidden_act", default="relu2")
    bias = reader.flag("mlp_bias")
    n_experts = reader.whole("n_routed_experts")
    shared = FfnSpec(reader.whole("moe_shared_expert_intermediate_size"), False, activation, bias)
    if reader.whole("n_shared_experts", default=1) != 1:
        reader.fail("n_shared_experts", "must be 1; the width of several together is not known")
    return MoeSpec(
        n_experts,
        picked(reader, n_experts),
        FfnSpec(reader.whole("moe_intermediate_size"), False, activation),
        shared=shared,
        n_groups=reader.whole("n_group", default=1),
        top_k_groups=reader.whole("topk_group", default=1),
        latent=reader.optional_whole("moe_latent_size"),
    )


@architecture("nemotron_h", ignored=("moe_shared_expert_overlap", "intermediate_size", "time_step_rank"))
def nemotron_h(reader: Reader, name: str) -> ModelSpec:
    """Nemotron-H and Nemotron-3: every layer is one of Mamba-2, attention without positions, FFN and experts."""
    words = _nemotron_kinds(reader)
    hidden = reader.whole("hidden_size")
    if reader.flag("attention_bias"):
        reader.fail("attention_bias", "is true; its attention is read without biases")
    activation = reader.activation("mlp_hidden_act", default="relu2")
    width = reader.config.get("intermediate_size")
    if isinstance(width, list):
        reader.fail("intermediate_size", "lists a width for each layer, which is not supported")
    plain: dict[str, LayerSpec] = {}
    for word in dict.fromkeys(words):
        if word == "mamba":
            block = Mamba2Spec(
                reader.whole("mamba_num_heads"),
                reader.whole("mamba_head_dim"),
                reader.whole("n_groups"),
                reader.whole("ssm_state_size"),
                reader.whole("conv_kernel"),
                reader.flag("use_conv_bias", default=True),
                reader.flag("use_bias"),
                reader.flag("use_bias"),
                state_element_bytes=element_bytes(reader, "mamba_ssm_cache_dtype"),
            )
            plain[word] = LayerSpec(None, None, n_norms=1, state=block)
        elif word == "attention":
            n_heads = reader.whole("num_attention_heads")
            head_dim = reader.head_dim(hidden, n_heads, "head_dim", "attention_head_dim")
            n_kv_heads = reader.heads(n_heads, "num_key_value_heads")
            attention = AttentionSpec(n_heads, n_kv_heads, head_dim, head_dim, position="none")
            plain[word] = LayerSpec(attention, None, n_norms=1)
        elif word == "mlp":
            ffn = FfnSpec(reader.whole("intermediate_size"), False, activation, reader.flag("mlp_bias"))
            plain[word] = LayerSpec(None, ffn, n_norms=1)
        else:
            plain[word] = LayerSpec(None, _nemotron_moe(reader), n_norms=1)
    return model_of(reader, name, tuple(plain[word] for word in words))


def _grouped(reader: Reader, *, norm: bool = True) -> Mamba2Spec:
    """Mamba-2 under the names that Bamba brought; widths that do not agree are refused."""
    heads = reader.whole("mamba_n_heads")
    inner = reader.optional_whole("mamba_d_ssm")
    times = reader.whole("mamba_expand", **({} if inner is None else {"default": 2}))
    inner = inner or times * reader.whole("hidden_size")
    head_dim = inner // heads if reader.config.get("mamba_d_head", "auto") == "auto" else reader.whole("mamba_d_head")
    if heads * head_dim != inner:
        reader.fail("mamba_d_head", f"is {head_dim}, but {heads} heads together are {inner} wide")
    return Mamba2Spec(
        heads,
        head_dim,
        reader.whole("mamba_n_groups"),
        reader.whole("mamba_d_state"),
        reader.whole("mamba_d_conv"),
        reader.flag("mamba_conv_bias", default=True),
        reader.flag("mamba_proj_bias"),
        reader.flag("mamba_proj_bias"),
        norm,
    )


@architecture("bamba")
def bamba(reader: Reader, name: str) -> ModelSpec:
    """Bamba: Mamba-2 in most layers, attention in those listed, an FFN in all."""
    listed = reader.numbers("attn_layer_indices") or ()
    hidden = reader.whole("hidden_size")
    attention = heads_of(reader, biased(), hidden)
    ffn = dense_of(reader, Family(ffn_bias="mlp_bias"), hidden)
    attends, keeps = LayerSpec(attention, ffn), LayerSpec(None, ffn, state=_grouped(reader))
    n_layers = reader.layers("num_hidden_layers")
    return model_of(reader, name, tuple(attends if i in listed else keeps for i in range(n_layers)))


@architecture("falcon_h1", ignored=("mamba_norm_before_gate",))
def falcon_h1(reader: Reader, name: str) -> ModelSpec:
    """Falcon-H1: attention and Mamba-2 side by side in every layer."""
    hidden = reader.whole("hidden_size")
    attention = heads_of(reader, biased(), hidden)
    block = _grouped(reader, norm=reader.flag("mamba_rms_norm"))
    block = replace(block, out_bias=reader.flag("projectors_bias"))
    layer = LayerSpec(attention, dense_of(reader, Family(ffn_bias="mlp_bias"), hidden), state=block)
    return model_of(reader, name, (layer,) * reader.layers("num_hidden_layers"))


@architecture("granitemoehybrid")
def granitemoehybrid(reader: Reader, name: str) -> ModelSpec:
    """Granite 4: Mamba-2 in most layers, an FFN in all, beside experts where there are any."""
    n_layers = reader.layers("num_hidden_layers")
    words = {"mamba": True, "linear_attention": True, "attention": False, "full_attention": False}
    states = of_two_kinds(reader, n_layers, words)
    if states is None:
        reader.fail("layer_types", "is missing; the file must say which layers it means")
    hidden = reader.whole("hidden_size")
    attention = heads_of(reader, biased(), hidden)
    # Without the word "rope" there are no positions.
    position: Position = "rope" if reader.word("position_embedding_type", default="") == "rope" else "none"
    activation = reader.activation("hidden_act", default="silu")
    ffn: FfnSpec | MoeSpec = FfnSpec(reader.whole("shared_intermediate_size"), True, activation)
    n_experts = reader.whole("num_local_experts", low=0)
    width = reader.whole("intermediate_size", **({} if n_experts else {"default": 1}))
    if n_experts:
        expert = FfnSpec(width, True, activation)
        ffn = MoeSpec(n_experts, picked(reader, n_experts), expert, shared=ffn)
    attends = LayerSpec(replace(attention, position=position), ffn)
    keeps = LayerSpec(None, ffn, state=_grouped(reader)) if any(states) else attends
    return model_of(reader, name, tuple(keeps if state else attends for state in states))


@architecture("jamba")
def jamba(reader: Reader, name: str) -> ModelSpec:
    """Jamba: Mamba with inner norms, attention without positions every few layers, experts in every other."""
    inner = reader.whole("mamba_expand") * reader.whole("hidden_size")
    sizes = {"state": reader.whole("mamba_d_state"), "taps": reader.whole("mamba_d_conv")}
    block = _mamba(reader, "mamba_", inner=inner, inner_norms=True, **sizes)
    hidden = reader.whole("hidden_size")
    attention = heads_of(reader, Family(position="none"), hidden)
    dense, n_experts = dense_of(reader, Family(), hidden), reader.whole("num_experts")
    moe = MoeSpec(n_experts, picked(reader, n_experts), dense) if n_experts > 1 else dense
    routed = reader.whole("expert_layer_period"), reader.whole("expert_layer_offset", low=0)
    attends = reader.whole("attn_layer_period"), reader.whole("attn_layer_offset", low=0)
    layers = []
    for i in range(reader.layers("num_hidden_layers")):
        ffn = moe if i % routed[0] == routed[1] else dense
        mixes = i % attends[0] == attends[1]
        layers.append(LayerSpec(attention, ffn) if mixes else LayerSpec(None, ffn, state=block))
    return model_of(reader, name, tuple(layers))
