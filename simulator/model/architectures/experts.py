"""Mixtures of experts: Mixtral, Qwen-MoE, DeepSeek (with MLA), GPT-OSS, GLM-4.5, MiniMax-M2, MiMo."""

from __future__ import annotations

from dataclasses import replace

from simulator.model.architectures.llama import decoder, gated_ffn, late_sliding, rotary_attention
from simulator.model.architectures.registry import architecture
from simulator.model.indexer import IndexerSpec
from simulator.model.layer import AttentionSpec, FfnSpec, MlaSpec, MoeSpec
from simulator.model.reader import Reader
from simulator.model.spec import ModelSpec


def top_k(reader: Reader, n_experts: int, *keys: str) -> int:
    """Experts of a token, no more than there are [-]."""
    count = reader.whole(*keys)
    if count > n_experts:
        reader.fail(keys[0], f"is {count}, more than the {n_experts} experts")
    return count


@architecture("mixtral")
def mixtral(reader: Reader, name: str) -> ModelSpec:
    """Mixtral: every FFN is a mixture."""
    attention = rotary_attention(reader, reader.whole("hidden_size"))
    n_experts = reader.whole("num_local_experts")
    moe = MoeSpec(n_experts, top_k(reader, n_experts, "num_experts_per_tok"), gated_ffn(reader))
    return decoder(reader, name, attention, moe, sliding=None)


def qwen_layers(reader: Reader, moe: MoeSpec) -> tuple[FfnSpec | MoeSpec, ...]:
    """Every ``decoder_sparse_step``-th layer routes, unless listed in ``mlp_only_layers``."""
    step = reader.whole("decoder_sparse_step", default=1)
    listed = reader.config.get("mlp_only_layers") or []
    if not isinstance(listed, list) or not all(isinstance(item, int) for item in listed):
        reader.fail("mlp_only_layers", "must be a list of layer numbers")
    n_layers = reader.layers("num_hidden_layers")
    routed = [i not in listed and (i + 1) % step == 0 for i in range(n_layers)]
    if all(routed):
        return (moe,) * n_layers
    dense = gated_ffn(reader)
    return tuple(moe if routes else dense for routes in routed)


@architecture("qwen2_moe")
def qwen2_moe(reader: Reader, name: str) -> ModelSpec:
    """Qwen1.5-MoE and Qwen2-57B-A14B: a gated shared expert beside the routed ones."""
    attention = rotary_attention(reader, reader.whole("hidden_size"), qkv_bias=reader.flag("qkv_bias", default=True))
    activation = reader.activation("hidden_act", default="silu")
    n_experts = reader.whole("num_experts", "num_local_experts")
    moe = MoeSpec(
        n_experts,
        top_k(reader, n_experts, "num_experts_per_tok"),
        FfnSpec(reader.whole("moe_intermediate_size"), True, activation),
        shared=FfnSpec(reader.whole("shared_expert_intermediate_size"), True, activation),
        shared_gate=True,
    )
    sliding = late_sliding(reader, 28)
    return decoder(reader, name, attention, qwen_layers(reader, moe), sliding=sliding)


@architecture("qwen3_moe", "qwen3_vl_moe_text")
def qwen3_moe(reader: Reader, name: str) -> ModelSpec:
    """Qwen3-30B-A3B, 235B-A22B, Qwen3-Coder and the text part of Qwen3-VL's: no shared expert."""
    bias = reader.flag("attention_bias")
    attention = rotary_attention(reader, reader.whole("hidden_size"), qkv_bias=bias, o_bias=bias, qk_norm="head")
    activation = reader.activation("hidden_act", default="silu")
    n_experts = reader.whole("num_experts", "num_local_experts")
    expert = FfnSpec(reader.whole("moe_intermediate_size"), True, activation)
    moe = MoeSpec(n_experts, top_k(reader, n_experts, "num_experts_per_tok"), expert)
    # transformers slides all layers here once `use_sliding_window` is set.
    sliding = (reader.flag("use_sliding_window"),) * reader.layers("num_hidden_layers")
    return decoder(reader, name, attention, qwen_layers(reader, moe), sliding=sliding)


def _first_dense(reader: Reader, moe: MoeSpec, default: int) -> tuple[FfnSpec | MoeSpec, ...]:
    n_layers = reader.layers("num_hidden_layers")
    n_dense = reader.whole("first_k_dense_replace", default=default, low=0)
    step = reader.whole("moe_layer_freq", default=1)
    dense = gated_ffn(reader)
    return tuple(moe if i >= n_dense and i % step == 0 else dense for i in range(n_layers))


def shared_moe(reader: Reader, *, n_experts: int) -> MoeSpec:
    """Routed experts beside shared ones of the same width, under DeepSeek's key names."""
    activation = reader.activation("hidden_act", default="silu")
    width = reader.whole("moe_intermediate_size")
    n_shared = reader.whole("n_shared_experts", default=0, low=0, high=10_000)
    n_groups = reader.whole("n_group", default=1)
    if n_experts % n_groups:
        reader.fail("n_group", f"is {n_groups}, which does not divide the {n_experts} experts")
    return MoeSpec(
        n_experts,
        top_k(reader, n_experts, "num_experts_per_tok"),
        FfnSpec(width, True, activation),
        shared=FfnSpec(width * n_shared, True, activation) if n_shared else None,
        n_groups=n_groups,
        top_k_groups=reader.whole("topk_group", default=1, high=n_groups),
    )


def _indexers(reader: Reader) -> tuple[IndexerSpec, ...]:
    """Indexer of each layer: GLM-5.2's layers share a choice by list, pattern (F, S) or every n-th has its own."""
    n_layers = reader.layers("num_hidden_layers")
    if reader.optional_whole("q_lora_rank") is None:
        reader.fail("q_lora_rank", "is missing; the indexer takes its queries from their latent")
    types, pattern = reader.strings("indexer_types"), reader.word("index_topk_pattern", default="")
    if types is None and pattern:
        types = tuple({"F": "full", "S": "shared"}.get(letter, letter) for letter in pattern)
    if types is None:
        every = reader.whole("index_topk_freq", default=1)
        offset = reader.whole("index_skip_topk_offset", default=2, low=0)
        types = tuple("full" if max(i - offset + 1, 0) % every == 0 else "shared" for i in range(n_layers))
    if len(types) != n_layers or set(types) - {"full", "shared"} or types[0] != "full":
        reader.fail("indexer_types", f"must say full or shared for each of the {n_layers} layers, full for the first")
    sizes = [reader.whole(key) for key in ("index_n_heads", "index_head_dim", "index_topk")]
    return tuple(IndexerSpec(*sizes, shared=kind == "shared") for kind in types)


@architecture("deepseek_v32", "glm_moe_dsa")
def sparse_deepseek(reader: Reader, name: str) -> ModelSpec:
    """DeepSeek-V3.2 and GLM-5: DeepSeek-V3 with an indexer that picks the latents a query attends to."""
    types = reader.strings("layer_types")
    unknown = set(types or ()) - {"indexed_attention", "deepseek_sparse_attention"}
    if unknown:
        reader.fail("layer_types", f"has {sorted(unknown)[0]!r}, which is not supported")
    plain = Reader({k: v for k, v in reader.config.items() if k != "layer_types"}, reader.where, reader.text)
    model = deepseek(plain, name)
    layers = []
    for layer, indexer in zip(model.layers, _indexers(reader), strict=True):
        assert layer.attention is not None
        layers.append(replace(layer, attention=replace(layer.attention, indexer=indexer)))
    return replace(model, layers=tuple(layers))


@architecture("deepseek_v2", "deepseek_v3", "kimi_k2")
def deepseek(reader: Reader, name: str) -> ModelSpec:
    """DeepSeek-V2, V2-Lite, V3, R1 and Kimi-K2: multi-head latent attention, first layers dense."""
    n_heads = reader.whole("num_attention_heads")
    mla = MlaSpec(
        q_lora_rank=reader.optional_whole("q_lora_rank"),
        kv_lora_rank=reader.whole("kv_lora_rank"),
        qk_nope_head_dim=reader.whole("qk_nope_head_dim"),
        qk_rope_head_dim=reader.whole("qk_rope_head_dim"),
    )
    bias = reader.flag("attention_bias")
    attention = AttentionSpec(
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=mla.qk_nope_head_dim + mla.qk_rope_head_dim,
        v_head_dim=reader.whole("v_head_dim"),
        qkv_bias=bias,
        o_bias=bias,
        mla=mla,
    )
    n_experts = reader.optional_whole("n_routed_experts")
    if n_experts is None:
        return decoder(reader, name, attention, gated_ffn(reader))
    moe = shared_moe(reader, n_experts=n_experts)
    return decoder(reader, name, attention, _first_dense(reader, moe, default=0))


@architecture("glm4_moe")
def glm4_moe(reader: Reader, name: str) -> ModelSpec:
    """GLM-4.5: DeepSeek's experts under grouped-query attention."""
    attention = rotary_attention(
        reader,
        reader.whole("hidden_size"),
        qkv_bias=reader.flag("attention_bias"),
        qk_norm="head" if reader.flag("use_qk_norm") else None,
    )
    moe = shared_moe(reader, n_experts=reader.whole("n_routed_experts"))
    return decoder(reader, name, attention, _first_dense(reader, moe, default=1))


@architecture("minimax_m2")
def minimax_m2(reader: Reader, name: str) -> ModelSpec:
    """MiniMax-M2: grouped-query attention with norms over all heads, experts in every layer."""
    attention = rotary_attention(
        reader, reader.whole("hidden_size"), qk_norm="width" if reader.flag("use_qk_norm", default=True) else None
    )
    n_experts = reader.whole("num_local_experts")
    moe = MoeSpec(n_experts, top_k(reader, n_experts, "num_experts_per_tok"), gated_ffn(reader))
    return decoder(reader, name, attention, moe)


@architecture("mimo_v2_flash")
def mimo_v2_flash(reader: Reader, name: str) -> ModelSpec:
    """MiMo-V2-Flash: layers that slide have twice the KV heads and softmax sinks; values are narrower than keys."""
    n_layers = reader.layers("num_hidden_layers")
    slides = reader.switches("hybrid_layer_pattern", n_layers)
    routed = reader.switches("moe_layer_freq", n_layers)
    if slides is None or routed is None:
        missing = "hybrid_layer_pattern" if slides is None else "moe_layer_freq"
        reader.fail(missing, "is missing; the file must say which layers it means")
    bias = reader.flag("attention_bias")

    def attention(prefix: str, n_kv_heads: int | None, sinks: bool, window: int | None) -> AttentionSpec:
        n_heads = reader.whole(f"{prefix}num_attention_heads", "num_attention_heads")
        return AttentionSpec(
            n_heads,
            n_kv_heads or reader.heads(n_heads, f"{prefix}num_key_value_heads"),
            reader.whole(f"{prefix}head_dim", "head_dim"),
            reader.whole(f"{prefix}v_head_dim", "v_head_dim"),
            window,
            qkv_bias=bias,
            sinks=sinks,
        )

    full = attention("", None, reader.flag("add_full_attention_sink_bias"), None)
    # transformers leaves the sliding heads' number out and doubles the other.
    doubled = None if reader.config.get("swa_num_key_value_heads") else 2 * full.n_kv_heads
    sinks = reader.flag("add_swa_attention_sink_bias", default=True)
    sliding = attention("swa_", doubled, sinks, reader.whole("sliding_window"))
    moe, dense = shared_moe(reader, n_experts=reader.whole("n_routed_experts")), gated_ffn(reader)
    model = decoder(reader, name, full, tuple(moe if r else dense for r in routed))
    pairs = zip(model.layers, slides, strict=True)
    return replace(model, layers=tuple(replace(layer, attention=sliding if s else full) for layer, s in pairs))


@architecture("gpt_oss")
def gpt_oss(reader: Reader, name: str) -> ModelSpec:
    """GPT-OSS: every other layer slides, softmax sinks, biases everywhere, experts in MXFP4."""
    bias = reader.flag("attention_bias", default=True)
    attention = replace(rotary_attention(reader, reader.whole("hidden_size"), qkv_bias=bias, o_bias=bias), sinks=True)
    n_experts = reader.whole("num_local_experts", "num_experts")
    moe = MoeSpec(
        n_experts,
        top_k(reader, n_experts, "num_experts_per_tok", "experts_per_token"),
        gated_ffn(reader, bias=True),
        router_bias=True,
    )
    sliding = tuple(i % 2 == 0 for i in range(reader.layers("num_hidden_layers")))
    return decoder(reader, name, attention, moe, sliding=sliding)
