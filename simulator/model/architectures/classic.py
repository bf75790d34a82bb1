"""Decoders before Llama: GPT-2, -J, -NeoX, OPT, BLOOM, MPT, Falcon, StarCoder, Phi-2, CodeGen."""

from __future__ import annotations

from simulator.model.architectures.registry import architecture
from simulator.model.layer import AttentionSpec, FfnSpec, LayerSpec, Position
from simulator.model.reader import Reader
from simulator.model.spec import ModelSpec


def _layer(
    reader: Reader,
    *,
    hidden: int,
    n_heads: int,
    intermediate: int,
    activation: str,
    activation_keys: tuple[str, ...],
    position: Position,
    n_kv_heads: int | None = None,
    attention_bias: bool = True,
    ffn_bias: bool = True,
    fused_qkv: bool = True,
    n_norms: int = 2,
    norm_bias: bool = True,
    parallel: bool = False,
) -> LayerSpec:
    """Layer of LayerNorm, attention and a two-matrix FFN."""
    head_dim = reader.head_dim(hidden, n_heads)
    attention = AttentionSpec(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads or n_heads,
        head_dim=head_dim,
        v_head_dim=head_dim,
        position=position,
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        fused_qkv=fused_qkv,
    )
    ffn = FfnSpec(intermediate, False, reader.activation(*activation_keys, default=activation), ffn_bias)
    return LayerSpec(attention, ffn, n_norms, "layer", norm_bias, parallel)


@architecture("opt")
def opt(reader: Reader, name: str) -> ModelSpec:
    """OPT: position table with two offset rows; the 350m embeds narrow and has no final norm."""
    hidden = reader.whole("hidden_size")
    bias = reader.flag("enable_bias", default=True)
    max_context = reader.whole("max_position_embeddings")
    width = reader.whole("word_embed_proj_dim", default=hidden)
    pre_norm = reader.flag("do_layer_norm_before", default=True)
    layer = _layer(
        reader,
        hidden=hidden,
        n_heads=reader.whole("num_attention_heads"),
        intermediate=reader.whole("ffn_dim"),
        activation="relu",
        activation_keys=("activation_function",),
        position="learned",
        attention_bias=bias,
        ffn_bias=bias,
        fused_qkv=False,
    )
    return ModelSpec(
        name=name,
        architecture="opt",
        hidden=hidden,
        vocab=reader.whole("vocab_size"),
        layers=(layer,) * reader.layers("num_hidden_layers"),
        tied_embeddings=reader.flag("tie_word_embeddings", default=True),
        max_context=max_context,
        learned_positions=max_context + 2,
        embed_proj_dim=width if width != hidden else None,
        final_norm=pre_norm and not reader.flag("_remove_final_layer_norm"),
    )


@architecture("bloom")
def bloom(reader: Reader, name: str) -> ModelSpec:
    """BLOOM: ALiBi, and a norm right after the embedding."""
    hidden = reader.whole("hidden_size", "n_embed")
    layer = _layer(
        reader,
        hidden=hidden,
        n_heads=reader.whole("n_head", "num_attention_heads"),
        intermediate=4 * hidden,
        activation="gelu",
        activation_keys=(),
        position="alibi",
    )
    return ModelSpec(
        name=name,
        architecture="bloom",
        hidden=hidden,
        vocab=reader.whole("vocab_size"),
        layers=(layer,) * reader.layers("n_layer", "num_hidden_layers"),
        tied_embeddings=reader.flag("tie_word_embeddings", default=True),
        max_context=reader.whole("seq_length", default=2048),
        embed_norm=True,
    )


@architecture("gptj", "codegen")
def gptj(reader: Reader, name: str) -> ModelSpec:
    """GPT-J and CodeGen: one norm, both blocks in parallel, biases in the FFN and output only."""
    hidden = reader.whole("n_embd", "hidden_size")
    kind = reader.word("model_type", default="gptj")
    layer = _layer(
        reader,
        hidden=hidden,
        n_heads=reader.whole("n_head", "num_attention_heads"),
        intermediate=reader.whole("n_inner", default=4 * hidden),
        activation="gelu_new",
        activation_keys=("activation_function",),
        position="rope",
        attention_bias=False,
        fused_qkv=kind == "codegen",
        n_norms=1,
        parallel=True,
    )
    return ModelSpec(
        name=name,
        architecture=kind,
        hidden=hidden,
        vocab=reader.whole("vocab_size"),
        layers=(layer,) * reader.layers("n_layer", "num_hidden_layers"),
        tied_embeddings=reader.flag("tie_word_embeddings"),
        max_context=reader.whole("n_positions", "max_position_embeddings"),
        lm_head_bias=True,
    )


@architecture("gpt_neox")
def gpt_neox(reader: Reader, name: str) -> ModelSpec:
    """GPT-NeoX-20B and Pythia: two norms even though the blocks run in parallel."""
    hidden = reader.whole("hidden_size")
    layer = _layer(
        reader,
        hidden=hidden,
        n_heads=reader.whole("num_attention_heads"),
        intermediate=reader.whole("intermediate_size"),
        activation="gelu",
        activation_keys=("hidden_act",),
        position="rope",
        attention_bias=reader.flag("attention_bias", default=True),
        parallel=reader.flag("use_parallel_residual", default=True),
    )
    return ModelSpec(
        name=name,
        architecture="gpt_neox",
        hidden=hidden,
        vocab=reader.whole("vocab_size"),
        layers=(layer,) * reader.layers("num_hidden_layers"),
        tied_embeddings=reader.flag("tie_word_embeddings"),
        max_context=reader.whole("max_position_embeddings"),
    )


@architecture("gpt2", "gpt_bigcode")
def gpt2(reader: Reader, name: str) -> ModelSpec:
    """GPT-2, GPT-3's shape, and StarCoder, which shares one key/value head."""
    hidden = reader.whole("n_embd", "hidden_size")
    kind = reader.word("model_type", default="gpt2")
    n_heads = reader.whole("n_head", "num_attention_heads")
    max_context = reader.whole("n_positions", "n_ctx", "max_position_embeddings")
    multi_query = kind == "gpt_bigcode" and reader.flag("multi_query", default=True)
    layer = _layer(
        reader,
        hidden=hidden,
        n_heads=n_heads,
        n_kv_heads=1 if multi_query else n_heads,
        intermediate=reader.whole("n_inner", default=4 * hidden),
        activation="gelu_new",
        activation_keys=("activation_function",),
        position="learned",
    )
    return ModelSpec(
        name=name,
        architecture=kind,
        hidden=hidden,
        vocab=reader.whole("vocab_size"),
        layers=(layer,) * reader.layers("n_layer", "num_hidden_layers"),
        tied_embeddings=reader.flag("tie_word_embeddings", default=True),
        max_context=max_context,
        learned_positions=max_context,
    )


@architecture("mpt")
def mpt(reader: Reader, name: str) -> ModelSpec:
    """MPT: ALiBi, no bias anywhere."""
    hidden = reader.whole("d_model", "hidden_size")
    n_heads = reader.whole("n_heads", "num_attention_heads")
    bias = not reader.flag("no_bias", default=True)
    max_context = reader.whole("max_seq_len")
    inner = reader.section("attn_config")
    n_kv_heads, alibi = n_heads, True
    if inner is not None:
        kind = inner.word("attn_type", default="multihead_attention")
        if kind == "multiquery_attention":
            n_kv_heads = 1
        elif kind == "grouped_query_attention":
            n_kv_heads = inner.heads(n_heads, "kv_n_heads")
        alibi = inner.flag("alibi", default=True)
    layer = _layer(
        reader,
        hidden=hidden,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        intermediate=reader.whole("expansion_ratio", default=4, high=1024) * hidden,
        activation="gelu",
        activation_keys=(),
        position="alibi" if alibi else "learned",
        attention_bias=bias,
        ffn_bias=bias,
        norm_bias=bias,
    )
    return ModelSpec(
        name=name,
        architecture="mpt",
        hidden=hidden,
        vocab=reader.whole("vocab_size"),
        layers=(layer,) * reader.layers("n_layers", "num_hidden_layers"),
        tied_embeddings=reader.flag("tie_word_embeddings", default=True),
        max_context=max_context,
        learned_positions=0 if alibi else max_context,
    )


@architecture("falcon")
def falcon(reader: Reader, name: str) -> ModelSpec:
    """Falcon: 7B shares one key/value head and one norm; 40B and 180B use the new decoder."""
    hidden = reader.whole("hidden_size")
    n_heads = reader.whole("num_attention_heads", "n_head")
    new = reader.flag("new_decoder_architecture")
    parallel = new or reader.flag("parallel_attn", default=True)
    bias = reader.flag("bias")
    if new:
        n_kv_heads = reader.heads(n_heads, "num_kv_heads", "n_head_kv")
        n_norms = reader.whole("num_ln_in_parallel_attn", default=2, high=2)
    else:
        n_kv_heads = 1 if reader.flag("multi_query", default=True) else n_heads
        n_norms = 1 if parallel else 2
    layer = _layer(
        reader,
        hidden=hidden,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        intermediate=reader.whole("ffn_hidden_size", default=4 * hidden),
        activation="gelu",
        activation_keys=("activation",),
        position="alibi" if reader.flag("alibi") else "rope",
        attention_bias=bias,
        ffn_bias=bias,
        n_norms=n_norms,
        parallel=parallel,
    )
    return ModelSpec(
        name=name,
        architecture="falcon",
        hidden=hidden,
        vocab=reader.whole("vocab_size"),
        layers=(layer,) * reader.layers("num_hidden_layers", "n_layer"),
        tied_embeddings=reader.flag("tie_word_embeddings", default=True),
        max_context=reader.whole("max_position_embeddings", default=2048),
    )


@architecture("phi")
def phi(reader: Reader, name: str) -> ModelSpec:
    """Phi-1, Phi-1.5, Phi-2: one norm, parallel blocks, biases everywhere."""
    hidden = reader.whole("hidden_size")
    n_heads = reader.whole("num_attention_heads")
    if reader.flag("qk_layernorm"):
        reader.fail("qk_layernorm", "is set, which no published Phi model does; not supported")
    layer = _layer(
        reader,
        hidden=hidden,
        n_heads=n_heads,
        n_kv_heads=reader.heads(n_heads, "num_key_value_heads"),
        intermediate=reader.whole("intermediate_size"),
        activation="gelu_new",
        activation_keys=("hidden_act",),
        position="rope",
        fused_qkv=False,
        n_norms=1,
        parallel=True,
    )
    return ModelSpec(
        name=name,
        architecture="phi",
        hidden=hidden,
        vocab=reader.whole("vocab_size"),
        layers=(layer,) * reader.layers("num_hidden_layers"),
        tied_embeddings=reader.flag("tie_word_embeddings"),
        max_context=reader.whole("max_position_embeddings"),
        lm_head_bias=True,
    )
