"""Mixtures of experts that need more than a line of `families`: indexers beside latents, MiMo-V2-Flash."""

from __future__ import annotations

from dataclasses import replace

from simulator.model.architectures.families import FAMILIES
from simulator.model.architectures.family import Experts, Family, read
from simulator.model.architectures.registry import architecture
from simulator.model.architectures.states import of_two_kinds
from simulator.model.indexer import IndexerSpec
from simulator.model.layer import AttentionSpec
from simulator.model.reader import Reader
from simulator.model.spec import ModelSpec

_SLIDES = {"sliding_attention": True, "full_attention": False}
_ROUTES = {"sparse": True, "dense": False}


def _indexers(reader: Reader) -> tuple[IndexerSpec, ...]:
    """Indexer of each layer: GLM-5.2's layers share a choice by list, pattern (F, S) or every n-th has its own."""
    n_layers = reader.layers("num_hidden_layers")
    if reader.optional_whole("q_lora_rank") is None:
        reader.fail("q_lora_rank", "is missing; the indexer takes its queries from their latent")
    types, pattern = reader.strings("indexer_types"), reader.word("index_topk_pattern", default="")
    every = reader.whole("index_topk_freq", default=1)
    offset = reader.whole("index_skip_topk_offset", default=2, low=0)
    if types is None and pattern:
        types = tuple({"F": "full", "S": "shared"}.get(letter, letter) for letter in pattern)
    if types is None:
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
    return with_indexers(reader, read(reader.derived(without=("layer_types",)), name, FAMILIES["deepseek_v3"]))


def with_indexers(reader: Reader, model: ModelSpec) -> ModelSpec:
    """`model` with the indexers that its file lists."""
    layers = []
    for layer, indexer in zip(model.layers, _indexers(reader), strict=True):
        assert layer.attention is not None
        layers.append(replace(layer, attention=replace(layer.attention, indexer=indexer)))
    return replace(model, layers=tuple(layers))


@architecture("mimo_v2_flash")
def mimo_v2_flash(reader: Reader, name: str) -> ModelSpec:
    """MiMo-V2-Flash: layers that slide have twice the KV heads and softmax sinks; values are narrower than keys."""
    n_layers = reader.layers("num_hidden_layers")
    # The authors' lists of numbers, or the words of transformers 5.
    slides = reader.switches("hybrid_layer_pattern", n_layers) or of_two_kinds(reader, n_layers, _SLIDES)
    routed = reader.switches("moe_layer_freq", n_layers) or of_two_kinds(reader, n_layers, _ROUTES, "mlp_layer_types")
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
    family = Family(experts=Experts(shared="count", where=lambda *_: routed), ignored=("attention_chunk_size",))
    model = read(reader.derived(without=("layer_types", "mlp_layer_types")), name, family)
    pairs = zip(model.layers, slides, strict=True)
    return replace(model, layers=tuple(replace(layer, attention=sliding if s else full) for layer, s in pairs))
