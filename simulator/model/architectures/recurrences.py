"""Layers of short convolutions, lightning attention or recurrent units: LFM2, MiniMax-M1, RecurrentGemma."""

from __future__ import annotations

from dataclasses import replace

from simulator.model.architectures.family import Experts, Family, dense_of, heads_of, mixture
from simulator.model.architectures.registry import architecture
from simulator.model.architectures.states import model_of, of_two_kinds
from simulator.model.layer import FfnSpec, LayerSpec, MoeSpec
from simulator.model.lightning import LightningSpec
from simulator.model.reader import Reader
from simulator.model.rg_lru import RgLruSpec
from simulator.model.short_conv import ShortConvSpec
from simulator.model.spec import ModelSpec


def _convolved(reader: Reader, name: str, ffns: tuple[FfnSpec | MoeSpec, ...]) -> ModelSpec:
    """Attention with normed heads where the file lists it, a short convolution elsewhere."""
    n_layers, hidden = len(ffns), reader.whole("hidden_size")
    keeps = of_two_kinds(reader, n_layers, {"conv": True, "full_attention": False})
    if keeps is None:
        listed = reader.numbers("full_attn_idxs")
        if listed is None:
            reader.fail("layer_types", "is missing; the file must say which layers it means")
        keeps = tuple(i not in listed for i in range(n_layers))
    attention = heads_of(reader, Family(qk_norm="head"), hidden)
    block = ShortConvSpec(hidden, reader.whole("conv_L_cache"), reader.flag("conv_bias"))
    layers = tuple(
        LayerSpec(None, ffn, state=block) if keep else LayerSpec(attention, ffn)
        for ffn, keep in zip(ffns, keeps, strict=True)
    )
    model = model_of(reader, name, layers)
    return replace(model, tied_embeddings=reader.flag("tie_embedding", "tie_word_embeddings", default=True))


@architecture("lfm2")
def lfm2(reader: Reader, name: str) -> ModelSpec:
    """LFM2, dense; the file's FFN width is cut to two thirds and rounded up unless it says otherwise."""
    width = reader.whole("block_ff_dim", "intermediate_size")
    if reader.flag("block_auto_adjust_ff_dim", default=True):
        multiple = reader.whole("block_multiple_of", default=256)
        width = int(reader.number("block_ffn_dim_multiplier", default=1.0) * int(2 * width / 3))
        width = multiple * -(-width // multiple)
    ffn = FfnSpec(width, True, "silu")
    return _convolved(reader, name, (ffn,) * reader.layers("num_hidden_layers"))


@architecture("lfm2_moe", ignored=("use_expert_bias",))
def lfm2_moe(reader: Reader, name: str) -> ModelSpec:
    """LFM2 with experts in all but the first layers."""
    n_layers, n_dense = reader.layers("num_hidden_layers"), reader.whole("num_dense_layers", low=0)
    dense, moe = dense_of(reader, Family(), reader.whole("hidden_size")), mixture(reader, Family(), Experts())
    return _convolved(reader, name, tuple(dense if i < n_dense else moe for i in range(n_layers)))


@architecture("minimax", "minimax_m1", "minimax_text_01", ignored=("block_size",))
def minimax(reader: Reader, name: str) -> ModelSpec:
    """MiniMax-Text-01 and M1: lightning attention in most layers, experts in all."""
    n_layers = reader.layers("num_hidden_layers")
    keeps = of_two_kinds(reader, n_layers, {"linear_attention": True, "full_attention": False})
    if keeps is None:
        softmax = reader.switches("attn_type_list", n_layers)
        if softmax is None:
            reader.fail("attn_type_list", "is missing; the file must say which layers it means")
        keeps = tuple(not attends for attends in softmax)
    if reader.whole("shared_intermediate_size", default=0, low=0):
        reader.fail("shared_intermediate_size", "is set; a shared expert of these models is not known")
    attention = heads_of(reader, Family(), reader.whole("hidden_size"))
    block = LightningSpec(attention.n_heads, attention.head_dim)
    moe = mixture(reader, Family(), Experts(width="intermediate_size"))
    attends, kept = LayerSpec(attention, moe), LayerSpec(None, moe, state=block)
    return model_of(reader, name, tuple(kept if keep else attends for keep in keeps))


@architecture("recurrent_gemma")
def recurrent_gemma(reader: Reader, name: str) -> ModelSpec:
    """RecurrentGemma: two recurrent units, then attention in a window; the file's FFN width counts both halves."""
    hidden, n_layers = reader.whole("hidden_size"), reader.layers("num_hidden_layers")
    kinds = reader.strings("block_types") or ("recurrent", "recurrent", "attention")
    unknown = set(kinds) - {"recurrent", "attention"}
    if unknown:
        reader.fail("block_types", f"has {sorted(unknown)[0]!r}, which is not supported")
    attention = heads_of(reader, Family(qkv_bias="attention_bias", o_bias=True), hidden)
    attention = replace(attention, window=reader.whole("attention_window_size"))
    width = reader.whole("lru_width", default=hidden)
    block = RgLruSpec(width, attention.n_heads, reader.whole("conv1d_width"))
    activation = reader.activation("hidden_activation", default="gelu_pytorch_tanh")
    ffn = FfnSpec(reader.whole("intermediate_size") // 2, True, activation, bias=True)
    attends, keeps = LayerSpec(attention, ffn), LayerSpec(None, ffn, state=block)
    layers = tuple(attends if kinds[i % len(kinds)] == "attention" else keeps for i in range(n_layers))
    # Files name no longest context; it was trained on 8192 tokens (arXiv:2404.07839).
    plain = reader.derived({"max_position_embeddings": reader.whole("max_position_embeddings", default=8192)})
    return model_of(plain, name, layers, tied=True)
