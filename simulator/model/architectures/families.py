"""Decoders that differ from Llama in facts and key names only, by ``model_type``: a relative costs a line.

Checked parameter by parameter against transformers' own models (`tests/reference/test_every_decoder.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.model.architectures.family import (
    Experts,
    Family,
    after_dense,
    all_but_nth,
    between,
    biased,
    every,
    every_step,
    late_sliding,
    listed_local,
    register,
    sliding_if_used,
    sparse_steps,
    turned_layers,
)
from simulator.model.layer import SideSpec
from simulator.model.reader import Reader

CLASSIC: Mapping[str, tuple[str, ...]] = {
    "hidden_size": ("n_embd", "n_embed", "d_model", "embed_dim"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers", "layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads", "attention_heads"),
    "intermediate_size": ("n_inner", "ffn_dim", "dff"),
    "max_position_embeddings": ("n_positions", "n_ctx", "seq_length"),
    "sliding_window": ("window_size",),
}
"""What decoders before Llama call its keys."""


def old(**more: Any) -> Family:
    """LayerNorm with bias, biases everywhere, an FFN of two matrices, as before Llama."""
    facts: dict[str, Any] = {"qkv_bias": True, "o_bias": True, "ffn_bias": True, "norm": "layer", "norm_bias": True}
    facts |= {"gated": False, "activation": "gelu", "ratio": 4, "keys": CLASSIC}
    return Family(**facts | more)


def gemma(**more: Any) -> Family:
    """Llama with a GELU in the FFN and tied ends."""
    return biased(**{"activation": "gelu_pytorch_tanh", "tied": True} | more)


def _latent(**more: Any) -> Family:
    return biased(**{"mla": True, "experts": Experts(shared="count", where=after_dense(0))} | more)


def _width(reader: Reader) -> int:
    return reader.whole("intermediate_size")


_PLAIN = biased(ffn_bias="mlp_bias")
_QWEN3 = biased(qk_norm="head", slides=late_sliding)
_OLD_PARALLEL = {"parallel": True, "one_norm": True}
_GRANITE_MOE = Experts(width="intermediate_size", shared="width")
_ERNIE = Family(qkv_bias="use_bias", o_bias="use_bias", ffn_bias="use_bias", tied=True)
_COHERE: dict[str, Any] = {"norm": "layer", "parallel": True, "one_norm": True, "tied": True}
_QUARTERS = all_but_nth(4, "sliding_window_pattern", "_sliding_window_pattern", "global_attn_every_n_layers")

FAMILIES: Mapping[str, Family] = {
    # Llama and what its weights can be loaded as.
    **dict.fromkeys(
        ("llama", "aquila", "yi", "iquestcoder", "granite", "granite_docling_text", "granite4_vision_text"), _PLAIN
    ),
    "internlm3": biased(ffn_bias="mlp_bias", keys={"attention_bias": ("qkv_bias",), "mlp_bias": ("bias",)}),
    "helium": Family(qkv_bias="attention_bias", ffn_bias="mlp_bias"),
    "smollm3": biased(ffn_bias="mlp_bias", slides=sliding_if_used, no_rope_every=4, tied=True),
    "seed_oss": Family(qkv_bias=("attention_bias", True), o_bias="attention_out_bias", ffn_bias="mlp_bias"),
    "cwm": Family(ffn_bias="mlp_bias", slides=all_but_nth(4, at=0)),
    "hyperclovax": biased(ffn_bias="mlp_bias", more_norms_if="use_post_norm"),
    "bitnet": biased(norms=3, activation="relu2", vectors=lambda *a: _width(a[-1])),
    "diffllama": biased(vectors=lambda a, hidden, reader: 4 * a.head_dim),
    **dict.fromkeys(("ernie4_5", "paddleocr_vl_text"), _ERNIE),
    "emu3_text_model": Family(),
    "chameleon": biased(ffn_bias="mlp_bias", qk_norm="width", qk_norm_bias=True, ignored=("swin_norm",)),
    "mistral": Family(slides=every),
    **dict.fromkeys(("ministral", "ministral3"), Family(slides=every)),
    "phi3": Family(slides=every, fused_qkv=True),
    "phi4_multimodal": Family(slides=every, fused_qkv=True),
    "glm": Family(qkv_bias=("attention_bias", True)),
    **dict.fromkeys(("glm4", "glm4v_text"), Family(qkv_bias=("attention_bias", True), norms=4)),
    "glm_ocr_text": Family(norms=4),
    "voxtral_realtime_text": Family(
        slides=every,
        tied=True,
        sides=lambda reader, hidden: (SideSpec("norm.down", 32, hidden), SideSpec("norm.up", hidden, 32)),
    ),
    # Qwen.
    **dict.fromkeys(
        ("qwen2", "mimo", "qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text"),
        Family(qkv_bias=True, slides=late_sliding, ignored=("attention_bias",)),
    ),
    **dict.fromkeys(("qwen3", "qwen3_vl_text"), _QWEN3),
    "qwen2_moe": Family(
        qkv_bias=("qkv_bias", True),
        slides=late_sliding,
        experts=Experts(shared="width", shared_gate=True, where=sparse_steps),
    ),
    # transformers slides all layers here once `use_sliding_window` is set.
    **dict.fromkeys(
        ("qwen3_moe", "qwen3_vl_moe_text", "qwen3_omni_moe_text"),
        biased(
            qk_norm="head",
            slides=sliding_if_used,
            experts=Experts(where=sparse_steps),
            ignored=("max_window_layers", "use_qk_norm"),
        ),
    ),
    "mellum": biased(qk_norm="head", slides=every, experts=Experts()),
    "flint": biased(qk_norm="head", sinks=True, slides=every, experts=Experts(shared="width", where=sparse_steps)),
    "kolibri1": Family(norms=4, qk_norm="head", slides=every, experts=Experts(shared="width")),
    "molmo2_text": Family(
        qkv_bias="attention_bias",
        qk_norm="head",
        keys={"attention_bias": ("qkv_bias",)},
        extra_rows=("additional_vocab_size",),
    ),
    "dots1": biased(qk_norm="head", slides=late_sliding, experts=Experts(shared="count", where=after_dense(0))),
    # Norms elsewhere: OLMo, EXAONE, HunYuan, Cohere, Gemma.
    "olmo": biased(norm="layer", norm_weight=False),
    "olmo2": biased(qk_norm="width"),
    "olmo3": biased(qk_norm="width", slides=_QUARTERS),
    "olmoe": biased(qk_norm="width", experts=Experts(width="intermediate_size")),
    "flex_olmo": biased(qk_norm="width", experts=Experts(width="intermediate_size")),
    "exaone4": Family(qk_norm="head", slides=_QUARTERS),
    "exaone_moe": Family(qk_norm="head", slides=_QUARTERS, experts=Experts(shared="count", where=after_dense(1))),
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_vl_text"), biased(qk_norm="head")),
    "hunyuan_v1_moe": biased(qk_norm="head", experts=Experts(width="intermediate_size", shared="one")),
    "hy_v3": biased(ffn_bias="mlp_bias", qk_norm="head", experts=Experts(shared="count", where=after_dense(1))),
    "cohere": biased(qk_norm="width", qk_norm_if="use_qk_norm", **_COHERE),
    **dict.fromkeys(("cohere2", "cohere_compass_text"), biased(slides=_QUARTERS, **_COHERE)),
    "cohere2_moe": biased(
        slides=_QUARTERS, experts=Experts(width="intermediate_size", shared="count", where=after_dense(0)), **_COHERE
    ),
    "gemma": gemma(),
    "gemma2": gemma(norms=4, slides=all_but_nth(2)),
    "vaultgemma": gemma(slides=all_but_nth(2)),
    # The 4B file has no head counts: what equals the defaults of transformers' `Gemma3TextConfig` is left out.
    "gemma3_text": gemma(
        norms=4,
        qk_norm="head",
        slides=all_but_nth(6, "sliding_window_pattern", "_sliding_window_pattern"),
        defaults={
            "hidden_size": 2304,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "intermediate_size": 9216,
            "vocab_size": 262_208,
            "max_position_embeddings": 131_072,
        },
    ),
    "muse_glimmer_text": biased(norms=4, qk_norm="plain", gate="width", slides=_QUARTERS),
    # Two matrices in the FFN.
    "arcee": biased(ffn_bias="mlp_bias", gated=False, activation="relu2"),
    "cosmos3_edge_text": biased(ffn_bias="mlp_bias", gated=False, activation="relu2"),
    "nemotron": biased(ffn_bias="mlp_bias", gated=False, activation="relu2", norm="layer", norm_bias=True),
    "apertus": biased(gated=False, activation="xielu", qk_norm="head", vectors=lambda *_: 2),
    "jais2": Family(
        qkv_bias=("attention_bias", True),
        o_bias=("attention_bias", True),
        ffn_bias=("mlp_bias", True),
        gated=False,
        activation="relu2",
        norm="layer",
        norm_bias=True,
    ),
    "nanochat": biased(gated=False, activation="relu2", norm_weight=False, qk_norm="plain"),
    "starcoder2": Family(
        qkv_bias=("use_bias", True),
        o_bias=("use_bias", True),
        ffn_bias=("use_bias", True),
        gated=False,
        activation="gelu_pytorch_tanh",
        norm="layer",
        norm_bias=True,
        slides=every,
        tied=True,
    ),
    # LayerNorm with a gated FFN.
    "stablelm": Family(
        qkv_bias="use_qkv_bias",
        qk_norm="width",
        qk_norm_if="qk_layernorm",
        norm="layer",
        norm_bias=True,
        parallel="use_parallel_residual",
        one_norm=True,
    ),
    "phimoe": biased(
        norm="layer",
        norm_bias=True,
        slides=every,
        lm_head_bias="lm_head_bias",
        experts=Experts(width="intermediate_size"),
    ),
    # Experts.
    "mixtral": Family(slides=every, experts=Experts(width="intermediate_size")),
    "minimax_m2": Family(
        qk_norm="width",
        qk_norm_if=("use_qk_norm", True),
        experts=Experts(width="intermediate_size"),
        ignored=("use_routing_bias",),
    ),
    "llama4_text": biased(
        qk_norm="plain",
        qk_norm_if=("use_qk_norm", True),
        slides=lambda reader, n_layers: turned_layers(reader, n_layers, 4),
        chunks=True,
        no_rope_every=4,
        dense_width="intermediate_size_mlp",
        experts=Experts(width="intermediate_size", shared="one", where=every_step),
    ),
    "gpt_oss": Family(
        qkv_bias=("attention_bias", True),
        o_bias=("attention_bias", True),
        sinks=True,
        slides=all_but_nth(2),
        experts=Experts(width="intermediate_size", bias=True, router_bias=True),
    ),
    **dict.fromkeys(("granitemoe", "granitemoeshared"), biased(experts=_GRANITE_MOE)),
    "granitemoe_swa": biased(experts=_GRANITE_MOE, sinks=True, slides=all_but_nth(4, at=0)),
    "granite_swa": biased(ffn_bias="mlp_bias", sinks=True, slides=all_but_nth(4, at=0), tied=True),
    "ernie4_5_moe": Family(
        qkv_bias="use_bias",
        o_bias="use_bias",
        ffn_bias="use_bias",
        tied=True,
        experts=Experts(shared="count", router_bias=True, bias="use_bias", where=between),
    ),
    "aria_text": biased(experts=Experts(width="intermediate_size", shared="count"), ffn_bias="mlp_bias"),
    **dict.fromkeys(
        ("glm4_moe",),
        Family(
            qkv_bias="attention_bias",
            qk_norm="head",
            qk_norm_if="use_qk_norm",
            experts=Experts(shared="count", where=after_dense(1)),
        ),
    ),
    "glm4v_moe_text": Family(qkv_bias=("attention_bias", True), experts=Experts(shared="count", where=after_dense(1))),
    "solar_open": Family(qkv_bias="attention_bias", experts=Experts(shared="count")),
    "afmoe": biased(
        norms=4,
        qk_norm="head",
        gate="width",
        slides=_QUARTERS,
        experts=Experts(shared="count", router_bias=True, where=after_dense(1)),
    ),
    "deepseek_ocr2_text": biased(experts=Experts(shared="count", where=after_dense(0))),
    # Latents.
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "kimi_k2", "mistral4"), _latent()),
    "glm4_moe_lite": _latent(experts=Experts(shared="count", where=after_dense(1))),
    **dict.fromkeys(("minicpm3", "youtu"), _latent(experts=None, ffn_bias="mlp_bias", tied=True)),
    "beam": biased(norms=4, qk_norm="head", gate="width", vectors=lambda a, *_: a.n_heads, experts=Experts()),
    "muse_spark_text": biased(
        norms=3,
        qk_norm="plain",
        gate="width",
        vectors=lambda _, hidden, reader: 2 * hidden + 2 * reader.whole("moe_hidden_size"),
        experts=Experts(latent="moe_hidden_size"),
    ),
    # Speech: gate and up are one matrix whose width the file gives.
    "moshi": Family(
        ffn_halves=True, slides=every, keys=CLASSIC, extra_rows=(1,), ignored=("num_codebooks", "depth_decoder_config")
    ),
    # Before Llama.
    "bloom": old(
        position="alibi", tied=True, embed_norm=True, fused_qkv=True, defaults={"max_position_embeddings": 2048}
    ),
    "gptj": old(qkv_bias=False, o_bias=False, lm_head_bias=True, **_OLD_PARALLEL),
    "codegen": old(qkv_bias=False, o_bias=False, lm_head_bias=True, fused_qkv=True, **_OLD_PARALLEL),
    "gpt_neox": old(
        qkv_bias=("attention_bias", True),
        o_bias=("attention_bias", True),
        parallel=("use_parallel_residual", True),
        fused_qkv=True,
    ),
    **dict.fromkeys(("gpt2", "gpt-sw3"), old(position="learned", tied=True, fused_qkv=True)),
    "gpt_bigcode": old(position="learned", tied=True, fused_qkv=True, one_kv_head=("multi_query", True)),
    "openai-gpt": old(position="learned", tied=True, fused_qkv=True, final_norm=False),
    "gpt_neo": old(qkv_bias=False, position="learned", tied=True, slides=listed_local),
    "biogpt": old(position="learned", tied=True, offset_rows=2),
    "kosmos_2_text_model": old(position="none", tied=True, norms=3, vectors=lambda *a: 2 * _width(a[-1])),
    "kosmos_2_5_text_model": old(position="none", tied=True, extra_rows=(2,), vectors=lambda *a: 2 * _width(a[-1])),
    "git": old(position="learned", embed_norm=True, final_norm=False, lm_head_bias=True),
    "xglm": old(position="none", tied=True),
    "ctrl": old(position="none", tied=True, lm_head_bias=True),
    "phi": old(lm_head_bias=True, qk_norm="head", qk_norm_bias=True, qk_norm_if="qk_layernorm", **_OLD_PARALLEL),
    "persimmon": old(
        activation="relu2", fused_qkv=True, qk_norm="head", qk_norm_bias=True, qk_norm_if=("qk_layernorm", True)
    ),
}

register(FAMILIES)
