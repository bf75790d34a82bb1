"""Kimi delta attention beside latents: Kimi-Linear, and GLM-5.3-Flash with indexers over pools and residual streams."""

from __future__ import annotations

from dataclasses import replace

from simulator.model.architectures.compressed import hyper_connections
from simulator.model.architectures.experts import with_indexers
from simulator.model.architectures.family import Experts, after_dense, biased, read
from simulator.model.architectures.registry import architecture
from simulator.model.architectures.states import of_two_kinds
from simulator.model.delta_net import KimiDeltaSpec
from simulator.model.reader import Reader
from simulator.model.spec import ModelSpec

_WORDS = {"linear_attention": True, **dict.fromkeys(("full_attention", "indexed_attention"), False)}
_WORDS |= {"deepseek_sparse_attention": False}
_KIMI = biased(
    mla=True,
    experts=Experts(shared="count", where=after_dense(1)),
    keys={
        "num_experts_per_tok": ("num_experts_per_token",),
        "n_group": ("num_expert_group",),
        "max_position_embeddings": ("model_max_length",),
    },
)
_IGNORED = ("linear_attn_config", "hc_sinkhorn_iters", "mla_use_nope", "mhc", "index_kpool_always_select_tail")
_IGNORED += ("index_kpool_compress", "index_share_for_mtp_iteration", "indexer_rope_interleave")
_GLM = biased(mla=True, experts=Experts(shared="count", where=after_dense(3)))
_MORE = ("attn_res_block_size", "routed_expert_hidden_size", "mla_use_output_gate")
"""Keys of Kimi-K3: layers that it has beside Kimi-Linear's, and that nobody published in full."""


def _kept(reader: Reader, n_layers: int) -> tuple[bool, ...]:
    """Which layers keep a state: by word, or as the section of linear attention lists them from 1 on."""
    keeps = of_two_kinds(reader, n_layers, _WORDS)
    if keeps is not None:
        return keeps
    section = reader.section("linear_attn_config")
    lists = [section.numbers(key) for key in ("kda_layers", "full_attn_layers")] if section is not None else [None]
    if section is None or None in lists:
        reader.fail("layer_types", "is missing; the file must say which layers it means")
    kda, full = (set(numbers or ()) for numbers in lists)
    if kda & full or kda | full != set(range(1, n_layers + 1)):
        section.fail("kda_layers", f"and 'full_attn_layers' must name each of the {n_layers} layers once, from 1 on")
    return tuple(index + 1 in kda for index in range(n_layers))


def _block(reader: Reader) -> KimiDeltaSpec:
    section = reader.section("linear_attn_config")
    # transformers writes the section's sizes beside it, too.
    beside = [reader.optional_whole(f"linear_{key}") for key in ("num_heads", "head_dim", "conv_kernel_dim")]
    if section is None:
        sizes = [reader.whole(f"linear_{key}") for key in ("num_heads", "head_dim", "conv_kernel_dim")]
    else:
        sizes = [section.whole(key) for key in ("num_heads", "head_dim", "short_conv_kernel_size")]
        if section.flag("use_full_rank_gate"):
            section.fail("use_full_rank_gate", "is true; a gate of full rank is not known")
    if any(other not in (None, size) for other, size in zip(beside, sizes, strict=True)):
        reader.fail("linear_attn_config", f"says {sizes}, but the keys beside it {beside}")
    heads, head_dim, taps = sizes
    return KimiDeltaSpec(heads, head_dim, taps)


def _with_states(model: ModelSpec, reader: Reader) -> ModelSpec:
    keeps, block = _kept(reader, model.n_layers), _block(reader)
    pairs = zip(model.layers, keeps, strict=True)
    layers = (replace(layer, attention=None, state=block) if keep else layer for layer, keep in pairs)
    return replace(model, layers=tuple(layers))


@architecture("kimi_linear", ignored=("linear_attn_config", "mla_use_nope", "moe_renormalize", "use_grouped_topk"))
def kimi_linear(reader: Reader, name: str) -> ModelSpec:
    """Kimi-Linear: latents without positions in every fourth layer, delta attention in the others."""
    for key in _MORE:
        if reader.config.get(key):
            reader.fail(key, f"is {reader.config[key]}; Kimi-K3's layers are not known in full")
    return _with_states(read(reader.derived(without=("layer_types",)), name, _KIMI), reader)


@architecture("glm5_next_text", ignored=_IGNORED)
def glm5_next(reader: Reader, name: str) -> ModelSpec:
    """GLM-5.3-Flash: delta attention in most layers, picked latents in the others, four residual streams."""
    model = with_indexers(reader, read(reader.derived(without=("layer_types",)), name, _GLM))
    pool, hidden = reader.whole("index_kpool"), model.hidden
    streams = reader.whole("hc_mult")
    around, _ = hyper_connections(streams, hidden)
    layers = []
    for layer in _with_states(model, reader).layers:
        attention = layer.attention
        if attention is not None and attention.indexer is not None:
            attention = replace(attention, indexer=replace(attention.indexer, pool=pool))
        layers.append(replace(layer, attention=attention, sides=around, streams=streams))
    return replace(model, layers=tuple(layers))
