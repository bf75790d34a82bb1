"""Google's Gemma family: wide heads, tied embeddings, alternating windows from Gemma 2 on."""

from __future__ import annotations

from dataclasses import replace

from simulator.model.architectures.llama import rotary_attention, with_window
from simulator.model.architectures.llama import windows as layer_windows
from simulator.model.architectures.registry import architecture
from simulator.model.layer import AttentionSpec, FfnSpec, LayerSpec
from simulator.model.reader import Reader
from simulator.model.spec import ModelSpec


def _gemma(
    reader: Reader,
    name: str,
    attention: AttentionSpec,
    *,
    n_norms: int,
    sliding: tuple[bool, ...] | None,
    n_layers: int,
    hidden: int,
    intermediate: int,
    vocab: int,
    max_context: int,
) -> ModelSpec:
    # `hidden_act` of the first files said "gelu"; the weights always ran with the tanh form.
    activation = reader.activation("hidden_activation", "hidden_act", default="gelu_pytorch_tanh")
    ffn = FfnSpec(intermediate, True, activation)
    bias = reader.flag("attention_bias")
    attention = replace(attention, qkv_bias=bias, o_bias=bias)
    if sliding is None:
        spans: tuple[int | None, ...] = (None,) * n_layers
    else:
        spans = layer_windows(reader, n_layers, max_context, sliding)
    return ModelSpec(
        name=name,
        architecture=reader.word("model_type", default=""),
        hidden=hidden,
        vocab=vocab,
        layers=tuple(LayerSpec(with_window(attention, w), ffn, n_norms=n_norms) for w in spans),
        tied_embeddings=reader.flag("tie_word_embeddings", default=True),
        max_context=max_context,
    )


@architecture("gemma")
def gemma(reader: Reader, name: str) -> ModelSpec:
    """Gemma 1, CodeGemma."""
    hidden = reader.whole("hidden_size")
    return _gemma(
        reader,
        name,
        rotary_attention(reader, hidden),
        n_norms=2,
        sliding=None,
        n_layers=reader.layers("num_hidden_layers"),
        hidden=hidden,
        intermediate=reader.whole("intermediate_size"),
        vocab=reader.whole("vocab_size"),
        max_context=reader.whole("max_position_embeddings"),
    )


@architecture("gemma2")
def gemma2(reader: Reader, name: str) -> ModelSpec:
    """Gemma 2: even layers slide, norms before and after both blocks."""
    hidden = reader.whole("hidden_size")
    n_layers = reader.layers("num_hidden_layers")
    return _gemma(
        reader,
        name,
        rotary_attention(reader, hidden),
        n_norms=4,
        sliding=tuple(index % 2 == 0 for index in range(n_layers)),
        n_layers=n_layers,
        hidden=hidden,
        intermediate=reader.whole("intermediate_size"),
        vocab=reader.whole("vocab_size"),
        max_context=reader.whole("max_position_embeddings"),
    )


@architecture("gemma3_text")
def gemma3_text(reader: Reader, name: str) -> ModelSpec:
    """Gemma 3: five sliding layers, then one full.

    The published files nest the text part and leave out what equals the defaults of transformers'
    ``Gemma3TextConfig`` (the 4B file has no head counts), so those defaults stand here too.
    """
    hidden = reader.whole("hidden_size", default=2304)
    n_layers = reader.whole("num_hidden_layers", default=26, high=10_000)
    n_heads = reader.whole("num_attention_heads", default=8)
    n_kv_heads = reader.whole("num_key_value_heads", default=4)
    if n_heads % n_kv_heads:
        reader.fail("num_key_value_heads", f"is {n_kv_heads}, no divisor of {n_heads} heads")
    head_dim = reader.whole("head_dim", default=256)
    pattern = reader.whole("sliding_window_pattern", "_sliding_window_pattern", default=6)
    return _gemma(
        reader,
        name,
        AttentionSpec(n_heads, n_kv_heads, head_dim, head_dim, qk_norm="head"),
        n_norms=4,
        sliding=tuple((index + 1) % pattern != 0 for index in range(n_layers)),
        n_layers=n_layers,
        hidden=hidden,
        intermediate=reader.whole("intermediate_size", default=9216),
        vocab=reader.whole("vocab_size", default=262_208),
        max_context=reader.whole("max_position_embeddings", default=131_072),
    )
