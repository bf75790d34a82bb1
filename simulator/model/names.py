"""What a checkpoint calls the modules of a decoder: the names that ignore lists and per-layer formats speak of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

from simulator.model.formats import LATENT
from simulator.model.layer import LayerSpec, MoeSpec
from simulator.model.spec import ModelSpec


@dataclass(frozen=True)
class Naming:
    """Names of one family of architectures.

    Attributes
    ----------
    layer : str
        Path of a layer, with ``{}`` for its number.
    attention, ffn, state : str
        Blocks within a layer; "" where their modules stand in the layer itself.
    modules : Mapping
        Modules of a matrix by what follows ``attn.``, ``state.``, ``mlp.`` or ``moe.`` in its name, without block.
    experts, shared : str
        Blocks of the routed experts, with ``{}`` for an expert's number, and of the shared one.
    router : str
        The router.
    embed, head : str
        The ends.
    """

    layer: str = "model.layers.{}"
    attention: str = "self_attn"
    ffn: str = "mlp"
    state: str = "linear_attn"
    modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    experts: str = "mlp.experts.{}"
    shared: str = "mlp.shared_experts"
    router: str = "mlp.gate"
    embed: str = "model.embed_tokens"
    head: str = "lm_head"


LLAMA: Mapping[str, tuple[str, ...]] = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "q_down": ("q_a_proj",),
    "q_up": ("q_b_proj",),
    "kv_down": ("kv_a_proj_with_mqa",),
    "kv_up": ("kv_b_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "up": ("up_proj",),
    "down": ("down_proj",),
}

_PACKED = {**LLAMA, "gate_up": ("gate_up_proj",)}
_GPT2 = {**LLAMA, "qkv": ("c_attn",), "o": ("c_proj",), "up": ("c_fc",), "down": ("c_proj",)}
_BLOOM = {**LLAMA, "qkv": ("query_key_value",), "o": ("dense",), "up": ("dense_h_to_4h",), "down": ("dense_4h_to_h",)}
_GPTJ = {**LLAMA, "o": ("out_proj",), "up": ("fc_in",), "down": ("fc_out",)}
_MIXTRAL = {**LLAMA, "gate_up": ("w1", "w3"), "down": ("w2",)}
_MIXTRAL_BLOCK = {"experts": "block_sparse_moe.experts.{}", "router": "block_sparse_moe.gate"}
_DELTA = {**LLAMA, "in": ("in_proj_qkv", "in_proj_z"), "gates": ("in_proj_b", "in_proj_a"), "out": ("out_proj",)}
_NEXT = {**_DELTA, "in": ("in_proj_qkvz",), "gates": ("in_proj_ba",)}
_MAMBA = {**LLAMA, "in": ("in_proj",), "gate_down": ("x_proj",), "state.gate_up": ("dt_proj",), "out": ("out_proj",)}
_KDA = {**LLAMA, "in": LLAMA["qkv"], "gates": ("b_proj",), "out": ("o_proj",)}
_KDA |= {"gate_down": ("f_a_proj", "g_a_proj"), "state.gate_up": ("f_b_proj", "g_b_proj")}
_PLAIN = Naming(modules=LLAMA)
_H = {"layer": "transformer.h.{}", "attention": "attn", "embed": "transformer.wte"}

_AS_LLAMA = """
axk1 beam laguna granite4_vision_text emu3_text_model chameleon iquestcoder granite granite_docling_text granite_swa
internlm3 helium smollm3 seed_oss cwm hyperclovax ernie4_5 paddleocr_vl_text ministral ministral3
voxtral_realtime_text qwen2_5_omni_text molmo2_text dots1 olmo olmo3 olmoe flex_olmo exaone4 exaone_moe
hunyuan_v1_dense hunyuan_vl_text hy_v3 cohere2 cohere_compass_text cohere2_moe vaultgemma gemma3n_text
gemma4_unified_text stablelm arcee nemotron apertus jais2 bitnet diffllama qwen3_omni_moe_text mellum kolibri1
ernie4_5_moe glm4v_moe_text solar_open mistral4 glm4_moe_lite minicpm3 youtu deepseek_ocr2_text afmoe
muse_glimmer_text
"""

NAMINGS: Mapping[str, Naming] = {
    **dict.fromkeys(
        ("llama", "aquila", "yi", "mistral", "qwen2", "qwen3", "olmo2", "cohere", "qwen3_moe", "glm4_moe"), _PLAIN
    ),
    **dict.fromkeys(("mimo", "mimo_v2_flash", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"), _PLAIN),
    "qwen3_next": Naming(modules=_NEXT, shared="mlp.shared_expert"),
    "qwen3_5_text": Naming(modules=_DELTA),
    "qwen3_5_moe_text": Naming(modules=_DELTA, shared="mlp.shared_expert"),
    "qwen3_vl_moe_text": Naming(modules=_PACKED, experts="mlp.experts"),
    **dict.fromkeys(
        ("gemma", "gemma2", "gemma3_text", "deepseek_v2", "deepseek_v3", "kimi_k2", "deepseek_v32", "glm_moe_dsa"),
        _PLAIN,
    ),
    **dict.fromkeys(
        ("deepseek_v4", "deepseek_ref"),
        Naming(
            layer="layers.{}",
            attention="attn",
            ffn="ffn",
            modules={
                "q_down": ("wq_a",),
                "q_up": ("wq_b",),
                "kv_down": ("wkv",),
                "o_down": ("wo_a",),
                "o": ("wo_b",),
                "fold": ("compressor.wkv", "compressor.wgate"),
                "gate_up": ("w1", "w3"),
                "down": ("w2",),
                "indexer.q": ("indexer.wq_b",),
                "indexer.k": ("indexer.compressor.wkv", "indexer.compressor.wgate"),
            },
            experts="ffn.experts.{}",
            shared="ffn.shared_experts",
            router="ffn.gate",
            embed="embed",
            head="head",
        ),
    ),
    **dict.fromkeys(("kimi_linear", "glm5_next_text"), Naming(state="self_attn", modules=_KDA)),
    **dict.fromkeys(
        ("minimax_m3", "minimax_m3_vl_text"),
        Naming(
            modules={
                **LLAMA,
                "moe.gate_up": ("w1", "w3"),
                "moe.down": ("w2",),
                "indexer.q": ("index_q_proj",),
                "indexer.k": ("index_k_proj",),
            },
            experts="block_sparse_moe.experts.{}",
            shared="block_sparse_moe.shared_experts",
            router="block_sparse_moe.gate",
        ),
    ),
    **dict.fromkeys(
        ("step3p5", "step3p7"), Naming(modules=LLAMA, shared="share_expert", experts="moe", router="moe.gate")
    ),
    "nemotron-nas": _PLAIN,
    "nemotron_h": Naming(
        layer="backbone.layers.{}",
        **dict.fromkeys(("attention", "ffn", "state"), "mixer"),
        modules={**_MAMBA, "latent_down": ("fc1_latent_proj",), "latent_up": ("fc2_latent_proj",)},
        experts="mixer.experts.{}",
        shared="mixer.shared_experts",
        router="mixer.gate",
        embed="backbone.embeddings",
    ),
    "bamba": Naming(ffn="feed_forward", state="mamba", modules=_MAMBA),
    "falcon_h1": Naming(ffn="feed_forward", state="mamba", modules=_MAMBA, head="lm_head"),
    "granitemoehybrid": Naming(
        ffn="shared_mlp",
        state="mamba",
        modules={**_MAMBA, "gate_up": ("input_linear",), "down": ("output_linear",)},
        experts="block_sparse_moe",
        shared="shared_mlp",
        router="block_sparse_moe.router",
    ),
    **dict.fromkeys(_AS_LLAMA.split(), _PLAIN),
    "gemma4_text": Naming(modules=LLAMA, shared="mlp", experts="experts.{}", router="router"),
    "llama4_text": Naming(
        modules=LLAMA,
        ffn="feed_forward",
        shared="feed_forward.shared_expert",
        experts="feed_forward.experts.{}",
        router="feed_forward.router",
    ),
    "hunyuan_v1_moe": Naming(modules=LLAMA, shared="mlp.shared_mlp", router="mlp.gate.wg"),
    **dict.fromkeys(("qwen2_moe", "flint"), Naming(modules=LLAMA, shared="mlp.shared_expert")),
    **dict.fromkeys(("mixtral", "minimax_m2"), Naming(modules=_MIXTRAL, **_MIXTRAL_BLOCK)),
    "gpt_oss": Naming(modules=_PACKED, experts="mlp.experts", router="mlp.router"),
    **dict.fromkeys(("phi3", "phi4_multimodal"), Naming(modules={**_PACKED, "qkv": ("qkv_proj",)})),
    **dict.fromkeys(("glm", "glm4", "glm4v_text", "glm_ocr_text"), Naming(modules=_PACKED)),
    "phi": Naming(modules={**LLAMA, "o": ("dense",), "up": ("fc1",), "down": ("fc2",)}),
    "starcoder2": Naming(modules={**LLAMA, "up": ("c_fc",), "down": ("c_proj",)}),
    "opt": Naming(
        layer="model.decoder.layers.{}",
        ffn="",
        modules={**LLAMA, "o": ("out_proj",), "up": ("fc1",), "down": ("fc2",)},
        embed="model.decoder.embed_tokens",
    ),
    **dict.fromkeys(
        ("bloom", "falcon"),
        Naming(
            layer="transformer.h.{}", attention="self_attention", modules=_BLOOM, embed="transformer.word_embeddings"
        ),
    ),
    "gpt_neox": Naming(
        layer="gpt_neox.layers.{}", attention="attention", modules=_BLOOM, embed="gpt_neox.embed_in", head="embed_out"
    ),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), Naming(modules=_GPT2, **_H)),
    "gptj": Naming(modules=_GPTJ, **_H),
    "codegen": Naming(modules={**_GPTJ, "qkv": ("qkv_proj",)}, **_H),
    "mpt": Naming(
        layer="transformer.blocks.{}",
        attention="attn",
        ffn="ffn",
        modules={**LLAMA, "qkv": ("Wqkv",), "o": ("out_proj",)},
        embed="transformer.wte",
    ),
    "chatglm": Naming(
        layer="transformer.encoder.layers.{}",
        attention="self_attention",
        modules={**_BLOOM, "gate_up": ("dense_h_to_4h",)},
        embed="transformer.embedding.word_embeddings",
        head="transformer.output_layer",
    ),
}
"""Names by ``model_type``, as the classes of transformers (or the repository's own code) register them."""


def naming_of(model: ModelSpec) -> Naming | None:
    """Names of the modules of `model`, None where nobody wrote them down."""
    return NAMINGS.get(model.architecture)


def modules_of(naming: Naming, layer: LayerSpec, matrix: str) -> tuple[str, ...]:
    """Modules of a matrix within its layer; those of experts keep ``{}`` for the expert's number."""
    block, _, rest = matrix.partition(".")
    if block == "attn":
        mla = layer.attention and layer.attention.mla
        # Without a query latent the one query matrix keeps its plain name.
        plain_query = matrix == "attn.q_up" and mla is not None and mla.q_lora_rank is None
        names = ("q_proj",) if plain_query else naming.modules[rest]
        if rest == "qkv" and layer.attention is not None and len(names) == 3:
            names = names[: {"own": 3, "k": 2, "before": 1}[layer.attention.kv_from]]
        return _under(naming.attention, names)
    if block == "indexer" and matrix in naming.modules:
        return _under(naming.attention, naming.modules[matrix])
    if block == "indexer":
        return _under(f"{naming.attention}.indexer", ("wq_b",) if rest == "q" else ("wk",))
    if block == "state":
        # Where a block's own word means another module than that of the FFN.
        return _under(naming.state, naming.modules.get(matrix) or naming.modules[rest])
    if matrix == "moe.experts":
        assert isinstance(layer.ffn, MoeSpec)
        both = ("gate_up" if layer.ffn.expert.gated else "up", "down")
        # Experts may call their matrices otherwise than the dense FFN does.
        names = (naming.modules.get(f"moe.{key}", naming.modules[key]) for key in both)
        return _under(naming.experts, tuple(chain.from_iterable(names)))
    if block == "moe" and matrix in LATENT:
        return _under(naming.router.rpartition(".")[0], naming.modules[rest])
    if block == "moe":
        return _under(naming.shared, naming.modules[rest.partition(".")[2]])
    return _under(naming.ffn, naming.modules[rest])


def others_of(naming: Naming) -> Iterator[str]:
    """Modules within a layer that are never quantised, but that lists name all the same."""
    yield naming.router
    yield f"{naming.state}.conv1d"
    yield from (f"{naming.attention}.{name}" for name in ("indexer.weights_proj", "indexer.k_norm", "indexers_proj"))
    yield from (f"{naming.ffn}.{name}" for name in ("router", "gate", "shared_expert_gate", "act_fn"))


def spellings(path: str) -> tuple[str, ...]:
    """Names of one module in a file of text alone and in the files of models with other parts around it."""
    inner = path.removeprefix("model.")
    around = ("language_model.", "language_model.model.", "model.language_model.", "model.language_model.model.")
    return (path, inner, *(outer + inner for outer in around))


def _under(block: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{block}.{name}" if block else name for name in names)
