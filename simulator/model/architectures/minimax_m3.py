"""MiniMax-M3: blocks that an indexer picks under grouped-query attention, experts in all but the first layers."""

from __future__ import annotations

from dataclasses import replace

from simulator.model.architectures.family import Experts, Family, dense_of, heads_of, mixture
from simulator.model.architectures.registry import architecture
from simulator.model.architectures.states import model_of
from simulator.model.indexer import BlockIndexerSpec
from simulator.model.layer import LayerSpec
from simulator.model.reader import Reader
from simulator.model.spec import ModelSpec

_SIZES = {
    "index_n_heads": "sparse_num_index_heads",
    "index_head_dim": "sparse_index_dim",
    "index_block_size": "sparse_block_size",
    "index_topk_blocks": "sparse_topk_blocks",
}
"""Keys of transformers 5, and of the section that the published files have in their place."""
_IGNORED = (
    "sparse_attention_config",
    "first_k_dense_replace",
    "use_gemma_norm",
    "use_routing_bias",
    "index_local_blocks",
)


def _picks(reader: Reader, n_layers: int) -> tuple[tuple[bool, ...], BlockIndexerSpec | None]:
    """Which layers pick their blocks, and with what."""
    section = reader.section("sparse_attention_config")
    reader.asked.update(_SIZES)
    if section is not None and not section.flag("use_sparse_attention", default=True):
        return (False,) * n_layers, None
    words = reader.strings("layer_types")
    if words is not None:
        unknown = set(words) - {"minimax_m3_sparse", "full_attention"}
        if unknown or len(words) != n_layers:
            reader.fail("layer_types", f"must say minimax_m3_sparse or full_attention for all {n_layers} layers")
        picks = tuple(word == "minimax_m3_sparse" for word in words)
    else:
        given = section.switches("sparse_attention_freq", n_layers) if section is not None else None
        if given is None:
            reader.fail("layer_types", "is missing; the file must say which layers pick their blocks")
        picks = given
    if not any(picks):
        return picks, None
    beside = [reader.optional_whole(new) for new in _SIZES]
    sizes = [section.whole(old) if section is not None else reader.whole(new) for new, old in _SIZES.items()]
    if any(other not in (None, size) for other, size in zip(beside, sizes, strict=True)):
        reader.fail("sparse_attention_config", f"says {sizes}, but the keys beside it {beside}")
    return picks, BlockIndexerSpec(*sizes)


@architecture("minimax_m3", "minimax_m3_vl_text", ignored=_IGNORED)
def minimax_m3(reader: Reader, name: str) -> ModelSpec:
    """MiniMax-M3 and its text part: normed heads, dense first layers of another width, one shared expert."""
    n_layers = reader.layers("num_hidden_layers")
    if reader.flag("attention_output_gate"):
        reader.fail("attention_output_gate", "is true, which is not supported")
    if not reader.flag("use_qk_norm", default=True):
        reader.fail("use_qk_norm", "is false, which is not supported")
    width = reader.whole("intermediate_size")
    if (
        reader.whole("moe_intermediate_size", default=width) != width
        or reader.whole("n_shared_experts", default=1) != 1
    ):
        reader.fail(
            "moe_intermediate_size", f"and 'n_shared_experts' must agree with experts of {width} beside one more"
        )
    attention = heads_of(reader, Family(qk_norm="head"), reader.whole("hidden_size"))
    picks, index = _picks(reader, n_layers)
    if index is not None and index.n_heads != attention.n_kv_heads:
        reader.fail("num_key_value_heads", f"is {attention.n_kv_heads}, but {index.n_heads} heads pick blocks")
    words, routed = reader.strings("mlp_layer_types"), reader.switches("moe_layer_freq", n_layers)
    if words is not None:
        routed = tuple(word == "sparse" for word in words)
    if routed is None or len(routed) != n_layers:
        reader.fail("moe_layer_freq", f"must say for each of the {n_layers} layers whether it has experts")
    family = Family(dense_width="dense_intermediate_size")
    moe = mixture(reader, family, Experts(width="intermediate_size", shared="width"))
    dense = dense_of(reader, family, reader.whole("hidden_size"))
    sparse = replace(attention, blocks=index)
    layers = (
        LayerSpec(sparse if picking else attention, moe if routes else dense)
        for picking, routes in zip(picks, routed, strict=True)
    )
    return model_of(reader, name, tuple(layers))
