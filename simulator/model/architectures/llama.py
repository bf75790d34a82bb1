"""Rotary decoders with gated FFN: Llama and its relatives (Mistral, Qwen, Phi-3, GLM, ...)."""

from __future__ import annotations

from dataclasses import replace

from simulator.model.architectures.registry import architecture
from simulator.model.layer import AttentionSpec, FfnSpec, LayerSpec, MoeSpec, QkNorm
from simulator.model.reader import Reader
from simulator.model.spec import ModelSpec


def windows(
    reader: Reader, n_layers: int, max_context: int, sliding: tuple[bool, ...] | None = None
) -> tuple[int | None, ...]:
    """Attention window of each layer [tokens].

    Parameters
    ----------
    sliding : tuple of bool, optional
        Which layers slide when the file does not list ``layer_types``; all of them when None.
    """
    types = reader.strings("layer_types")
    if types is not None:
        if len(types) != n_layers:
            reader.fail("layer_types", f"lists {len(types)} layers, the model has {n_layers}")
        unknown = set(types) - {"full_attention", "sliding_attention"}
        if unknown:
            reader.fail("layer_types", f"has {sorted(unknown)[0]!r}, which is not supported")
        sliding = tuple(kind == "sliding_attention" for kind in types)
    # transformers 5 writes 0 for "no window" in some of its own defaults.
    window = reader.whole("sliding_window", default=0, low=0)
    if not window and types is not None and any(sliding or ()):
        reader.fail("sliding_window", "is missing although 'layer_types' has sliding layers")
    if not window or window >= max_context:
        return (None,) * n_layers
    if sliding is None:
        return (window,) * n_layers
    return tuple(window if slides else None for slides in sliding)


def rotary_attention(
    reader: Reader,
    hidden: int,
    *,
    qkv_bias: bool = False,
    o_bias: bool = False,
    qk_norm: QkNorm | None = None,
    fused_qkv: bool = False,
) -> AttentionSpec:
    """Attention under the key names most configs share."""
    n_heads = reader.whole("num_attention_heads")
    head_dim = reader.head_dim(hidden, n_heads, "head_dim")
    return AttentionSpec(
        n_heads=n_heads,
        n_kv_heads=reader.heads(n_heads, "num_key_value_heads"),
        head_dim=head_dim,
        v_head_dim=head_dim,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        qk_norm=qk_norm,
        fused_qkv=fused_qkv,
    )


def gated_ffn(reader: Reader, *, bias: bool = False, default: str = "silu") -> FfnSpec:
    """Gated FFN under the key names most configs share."""
    activation = reader.activation("hidden_act", "hidden_activation", default=default)
    return FfnSpec(reader.whole("intermediate_size"), True, activation, bias)


def with_window(attention: AttentionSpec, window: int | None) -> AttentionSpec:
    """The same attention with another window."""
    return attention if window is None else replace(attention, window=window)


def decoder(
    reader: Reader,
    name: str,
    attention: AttentionSpec,
    ffn: FfnSpec | MoeSpec | tuple[FfnSpec | MoeSpec, ...],
    *,
    sliding: tuple[bool, ...] | None = (),
    tied: bool = False,
    n_norms: int = 2,
    norm: LayerSpec | None = None,
) -> ModelSpec:
    """Model of rotary layers under the key names most configs share.

    Parameters
    ----------
    ffn : FfnSpec, MoeSpec or tuple
        One for all layers, or one per layer.
    sliding : tuple of bool or None
        Layers that slide; empty = none whatever the file says, None = all if it gives a window.
    tied : bool
        Default of ``tie_word_embeddings`` in transformers, which its files leave out.
    norm : LayerSpec, optional
        Template for norm kind, bias and `parallel`; RMS norms one after the other when None.
    """
    n_layers = reader.layers("num_hidden_layers")
    max_context = reader.whole("max_position_embeddings")
    if sliding == () and reader.strings("layer_types") is None:
        window: tuple[int | None, ...] = (None,) * n_layers
    else:
        window = windows(reader, n_layers, max_context, sliding)
    ffns = ffn if isinstance(ffn, tuple) else (ffn,) * n_layers
    template = norm or LayerSpec(attention, ffns[0], n_norms=n_norms)
    layers = tuple(
        replace(template, attention=with_window(attention, w), ffn=f) for w, f in zip(window, ffns, strict=True)
    )
    return ModelSpec(
        name=name,
        architecture=reader.word("model_type", default=""),
        hidden=reader.whole("hidden_size"),
        vocab=reader.whole("vocab_size"),
        layers=layers,
        tied_embeddings=reader.flag("tie_word_embeddings", default=tied),
        max_context=max_context,
    )


@architecture("llama", "aquila", "yi")
def llama(reader: Reader, name: str) -> ModelSpec:
    """Llama 1 to 3, CodeLlama, Vicuna, Yi, TinyLlama, Aquila, DeepSeek-Coder."""
    bias = reader.flag("attention_bias")
    attention = rotary_attention(reader, reader.whole("hidden_size"), qkv_bias=bias, o_bias=bias)
    return decoder(reader, name, attention, gated_ffn(reader, bias=reader.flag("mlp_bias")))


@architecture("mistral")
def mistral(reader: Reader, name: str) -> ModelSpec:
    """Mistral: every layer slides when the file gives a window (v0.1)."""
    attention = rotary_attention(reader, reader.whole("hidden_size"))
    return decoder(reader, name, attention, gated_ffn(reader), sliding=None)


def late_sliding(reader: Reader, max_window_layers: int) -> tuple[bool, ...]:
    """Qwen's rule: layers from ``max_window_layers`` on slide, if ``use_sliding_window`` is set."""
    n_layers = reader.layers("num_hidden_layers")
    if not reader.flag("use_sliding_window"):
        return (False,) * n_layers
    first = reader.whole("max_window_layers", default=max_window_layers, low=0)
    return tuple(index >= first for index in range(n_layers))


@architecture("qwen2", "mimo", "qwen2_vl_text", "qwen2_5_vl_text")
def qwen2(reader: Reader, name: str) -> ModelSpec:
    """Qwen1.5, Qwen2, Qwen2.5, QwQ, the text part of Qwen2-VL, MiMo-7B: biases on Q, K and V only."""
    attention = rotary_attention(reader, reader.whole("hidden_size"), qkv_bias=True)
    return decoder(reader, name, attention, gated_ffn(reader), sliding=late_sliding(reader, 28))


@architecture("qwen3", "qwen3_vl_text")
def qwen3(reader: Reader, name: str) -> ModelSpec:
    """Qwen3 dense and the text part of Qwen3-VL: RMS norm on each query and key head."""
    bias = reader.flag("attention_bias")
    attention = rotary_attention(reader, reader.whole("hidden_size"), qkv_bias=bias, o_bias=bias, qk_norm="head")
    return decoder(reader, name, attention, gated_ffn(reader), sliding=late_sliding(reader, 28))


@architecture("phi3")
def phi3(reader: Reader, name: str) -> ModelSpec:
    """Phi-3, Phi-3.5, Phi-4: Q, K, V in one matrix, gate and up in one."""
    attention = rotary_attention(reader, reader.whole("hidden_size"), fused_qkv=True)
    return decoder(reader, name, attention, gated_ffn(reader), sliding=None)


@architecture("glm")
def glm(reader: Reader, name: str) -> ModelSpec:
    """GLM-4-9B in transformers' own format."""
    attention = rotary_attention(
        reader, reader.whole("hidden_size"), qkv_bias=reader.flag("attention_bias", default=True)
    )
    return decoder(reader, name, attention, gated_ffn(reader))


@architecture("glm4")
def glm4(reader: Reader, name: str) -> ModelSpec:
    """GLM-4-0414: norms before and after both blocks."""
    attention = rotary_attention(
        reader, reader.whole("hidden_size"), qkv_bias=reader.flag("attention_bias", default=True)
    )
    return decoder(reader, name, attention, gated_ffn(reader), n_norms=4)


@architecture("chatglm")
def chatglm(reader: Reader, name: str) -> ModelSpec:
    """ChatGLM2/3 and GLM-4-9B in the authors' format, which has key names of its own."""
    hidden = reader.whole("hidden_size")
    n_heads = reader.whole("num_attention_heads")
    head_dim = reader.head_dim(hidden, n_heads, "kv_channels")
    grouped = reader.flag("multi_query_attention")
    bias = reader.flag("add_bias_linear")
    attention = AttentionSpec(
        n_heads=n_heads,
        n_kv_heads=reader.heads(n_heads, "multi_query_group_num") if grouped else n_heads,
        head_dim=head_dim,
        v_head_dim=head_dim,
        qkv_bias=bias or reader.flag("add_qkv_bias"),
        o_bias=bias,
        fused_qkv=True,
    )
    ffn = FfnSpec(reader.whole("ffn_hidden_size"), True, "silu", bias)
    rms = reader.flag("rmsnorm", default=True)
    layer = LayerSpec(attention, ffn, norm="rms" if rms else "layer", norm_bias=not rms)
    return ModelSpec(
        name=name,
        architecture="chatglm",
        hidden=hidden,
        vocab=reader.whole("padded_vocab_size", "vocab_size"),
        layers=(layer,) * reader.layers("num_layers", "num_hidden_layers"),
        tied_embeddings=reader.flag("tie_word_embeddings"),
        max_context=reader.whole("seq_length", "max_position_embeddings"),
        final_norm=reader.flag("post_layer_norm", default=True),
    )


@architecture("olmo2")
def olmo2(reader: Reader, name: str) -> ModelSpec:
    """OLMo-2: norms after the blocks, and over all query and all key heads at once."""
    bias = reader.flag("attention_bias")
    attention = rotary_attention(reader, reader.whole("hidden_size"), qkv_bias=bias, o_bias=bias, qk_norm="width")
    return decoder(reader, name, attention, gated_ffn(reader))


@architecture("cohere")
def cohere(reader: Reader, name: str) -> ModelSpec:
    """Command-R: parallel blocks under one LayerNorm without bias."""
    bias = reader.flag("attention_bias")
    attention = rotary_attention(
        reader,
        reader.whole("hidden_size"),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm="width" if reader.flag("use_qk_norm") else None,
    )
    ffn = gated_ffn(reader)
    template = LayerSpec(attention, ffn, n_norms=1, norm="layer", parallel=True)
    return decoder(reader, name, attention, ffn, tied=True, norm=template)


@architecture("starcoder2")
def starcoder2(reader: Reader, name: str) -> ModelSpec:
    """StarCoder2: LayerNorm, biases everywhere, FFN of two matrices."""
    bias = reader.flag("use_bias", default=True)
    attention = rotary_attention(reader, reader.whole("hidden_size"), qkv_bias=bias, o_bias=bias)
    activation = reader.activation("hidden_act", default="gelu_pytorch_tanh")
    ffn = FfnSpec(reader.whole("intermediate_size"), False, activation, bias)
    template = LayerSpec(attention, ffn, norm="layer", norm_bias=True)
    return decoder(reader, name, attention, ffn, sliding=None, tied=True, norm=template)
