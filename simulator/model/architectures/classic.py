"""Families whose files need more than a line of `families`: OPT, MPT, Falcon, ChatGLM."""

from __future__ import annotations

from dataclasses import replace

from simulator.model.architectures.families import CLASSIC, old
from simulator.model.architectures.family import Family, read
from simulator.model.architectures.registry import architecture
from simulator.model.reader import Reader
from simulator.model.spec import ModelSpec


@architecture("opt")
def opt(reader: Reader, name: str) -> ModelSpec:
    """OPT: position table with two offset rows; the 350m embeds narrow and has no final norm."""
    bias = reader.flag("enable_bias", default=True)
    pre_norm = reader.flag("do_layer_norm_before", default=True)
    family = old(
        qkv_bias=bias,
        o_bias=bias,
        ffn_bias=bias,
        activation="relu",
        position="learned",
        offset_rows=2,
        tied=True,
        final_norm=pre_norm and not reader.flag("_remove_final_layer_norm"),
    )
    model = read(reader, name, family)
    width = reader.whole("word_embed_proj_dim", default=model.hidden)
    return replace(model, embed_proj_dim=width if width != model.hidden else None)


@architecture("mpt")
def mpt(reader: Reader, name: str) -> ModelSpec:
    """MPT: ALiBi, no bias anywhere."""
    bias = not reader.flag("no_bias", default=True)
    inner = reader.section("attn_config")
    kind = "" if inner is None else inner.word("attn_type", default="")
    alibi = inner is None or inner.flag("alibi", default=True)
    heads = None
    if inner is not None and kind == "grouped_query_attention":
        heads = inner.whole("kv_n_heads")
    family = old(
        qkv_bias=bias,
        o_bias=bias,
        ffn_bias=bias,
        norm_bias=bias,
        ratio=reader.whole("expansion_ratio", default=4, high=1024),
        position="alibi" if alibi else "learned",
        one_kv_head=kind == "multiquery_attention",
        fused_qkv=True,
        tied=True,
        keys={**CLASSIC, "max_position_embeddings": ("max_seq_len",)},
    )
    return read(reader.derived({} if heads is None else {"num_key_value_heads": heads}), name, family)


@architecture("falcon")
def falcon(reader: Reader, name: str) -> ModelSpec:
    """Falcon: 7B shares one key/value head and one norm; 40B and 180B use the new decoder."""
    new = reader.flag("new_decoder_architecture")
    parallel = new or reader.flag("parallel_attn", default=True)
    one = not new and reader.flag("multi_query", default=True)
    norms = reader.whole("num_ln_in_parallel_attn", default=2, high=2) if new else 1 if parallel else 2
    family = old(
        qkv_bias="bias",
        o_bias="bias",
        ffn_bias="bias",
        norms=norms,
        parallel=parallel,
        one_kv_head=one,
        position="alibi" if reader.flag("alibi") else "rope",
        fused_qkv=True,
        tied=True,
        defaults={"max_position_embeddings": 2048},
        keys={
            **CLASSIC,
            "num_key_value_heads": ("num_kv_heads", "n_head_kv"),
            "intermediate_size": ("ffn_hidden_size",),
            "hidden_act": ("activation",),
        },
    )
    # Files of the old decoder state KV heads that it has not.
    return read(reader.derived(without=() if new else ("num_kv_heads", "n_head_kv")), name, family)


@architecture("chatglm")
def chatglm(reader: Reader, name: str) -> ModelSpec:
    """ChatGLM2/3 and GLM-4-9B in the authors' format, which has key names of its own."""
    grouped = reader.flag("multi_query_attention")
    bias = reader.flag("add_bias_linear")
    rms = reader.flag("rmsnorm", default=True)
    family = Family(
        qkv_bias=bias or reader.flag("add_qkv_bias"),
        o_bias=bias,
        ffn_bias=bias,
        fused_qkv=True,
        norm="rms" if rms else "layer",
        norm_bias=not rms,
        final_norm=reader.flag("post_layer_norm", default=True),
        keys={
            "num_hidden_layers": ("num_layers",),
            "head_dim": ("kv_channels",),
            "num_key_value_heads": ("multi_query_group_num",),
            "intermediate_size": ("ffn_hidden_size",),
            "vocab_size": ("padded_vocab_size",),
            "max_position_embeddings": ("seq_length",),
        },
    )
    without = ("vocab_size",) if reader.config.get("padded_vocab_size") else ()
    return read(reader.derived(without=without if grouped else (*without, "multi_query_group_num")), name, family)
