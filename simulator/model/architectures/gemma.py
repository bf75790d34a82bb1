"""Gemma 3n and 4: heads of two widths, K and V of earlier layers, embeddings by layer, experts beside a dense FFN."""

from __future__ import annotations

from dataclasses import replace

from simulator.model.architectures.families import gemma
from simulator.model.architectures.family import Experts, all_but_nth, read
from simulator.model.architectures.registry import architecture
from simulator.model.layer import FfnSpec, LayerSpec, SideSpec
from simulator.model.reader import Reader
from simulator.model.spec import ModelSpec


def _with_layer_inputs(reader: Reader, model: ModelSpec, width: int) -> ModelSpec:
    """`model` with an embedding of `width` for each layer, gated into its output."""
    if not width:
        return model
    hidden, all_layers = model.hidden, model.n_layers * width
    rows = reader.whole("vocab_size_per_layer_input", default=model.vocab)
    sides = (SideSpec("layer_input.gate", width, hidden), SideSpec("layer_input.up", hidden, width))
    layers = (replace(x, n_norms=x.n_norms + 1, sides=(*x.sides, *sides)) for x in model.layers)
    inputs = SideSpec("layer_inputs", all_layers, hidden, width)
    return replace(model, layers=tuple(layers), tables=rows * all_layers, sides=(*model.sides, inputs))


def _with_shared_kv(reader: Reader, model: ModelSpec) -> ModelSpec:
    """`model` whose last layers take K and V from the last layers of their kind that have their own."""
    shared = reader.whole("num_kv_shared_layers", default=0, low=0)
    if shared >= model.n_layers:
        reader.fail("num_kv_shared_layers", f"is {shared} of {model.n_layers} layers; some layer must keep K and V")
    wide = 2 if reader.flag("use_double_wide_mlp") else 1

    def taking(layer: LayerSpec) -> LayerSpec:
        assert layer.attention is not None
        ffn = layer.ffn
        if isinstance(ffn, FfnSpec):
            ffn = replace(ffn, intermediate=ffn.intermediate * wide)
        elif wide > 1:
            reader.fail("use_double_wide_mlp", "is true beside experts; their widths are not known")
        return replace(layer, attention=replace(layer.attention, kv_from="before"), ffn=ffn)

    own = model.n_layers - shared
    return replace(model, layers=(*model.layers[:own], *map(taking, model.layers[own:])))


@architecture("gemma3n_text")
def gemma3n(reader: Reader, name: str) -> ModelSpec:
    """Gemma 3n: four residual streams, a low-rank path beside attention, embeddings by layer, shared KV."""
    hidden, streams = reader.whole("hidden_size"), reader.whole("altup_num_inputs", default=4)
    rank = reader.whole("laurel_rank", default=64)
    sides = (
        SideSpec("streams.router", streams, hidden),
        SideSpec("streams.predict", streams * streams, streams),
        SideSpec("streams.correct", streams, streams),
        SideSpec("laurel.down", rank, hidden),
        SideSpec("laurel.up", hidden, rank),
    )
    # Norms: around both blocks, of the router of the streams, and after the low-rank path.
    scales = hidden if reader.flag("altup_correct_scale", default=True) else 0
    family = gemma(norms=6, qk_norm="head", slides=all_but_nth(5), sides=lambda *_: sides, vectors=lambda *_: scales)
    model = read(reader, name, family)
    reader.asked.add("activation_sparsity_pattern")
    ends = tuple(SideSpec(f"streams.{end}", (streams - 1) * hidden, hidden) for end in ("split", "join"))
    model = replace(model, layers=tuple(replace(x, streams=streams) for x in model.layers), sides=ends)
    model = _with_layer_inputs(reader, model, reader.whole("hidden_size_per_layer_input", default=256, low=0))
    note = "the FFN's own activation sparsity is not modelled: all its weights are read"
    return replace(_with_shared_kv(reader, model), notes=(*model.notes, note))


@architecture("gemma4_text", "gemma4_unified_text")
def gemma4(reader: Reader, name: str) -> ModelSpec:
    """Gemma 4: full layers have wider heads, fewer KV heads and, where the file says so, keys for values."""
    n_layers = reader.layers("num_hidden_layers")
    types = list(reader.strings("layer_types") or ())
    if not types:
        types = ["sliding_attention" if slides else "full_attention" for slides in all_but_nth(6)(reader, n_layers)]
    types[-1] = "full_attention"
    same = reader.flag("attention_k_eq_v")
    full = {"head_dim": reader.whole("global_head_dim", default=512)}
    kv_heads = reader.optional_whole("num_global_key_value_heads")
    if kv_heads is not None and same:
        full["num_key_value_heads"] = kv_heads
    changes: dict[str, object] = {"layer_types": types}
    if reader.section("per_layer_config") is None:
        changes["per_layer_config"] = {str(i): full for i, kind in enumerate(types) if kind == "full_attention"}
    routes = reader.flag("enable_moe_block")
    family = gemma(
        norms=7 if routes else 4,
        qk_norm="head",
        slides=all_but_nth(6),
        experts=Experts(shared="dense", when=routes, router_bias=True),
        vectors=lambda _, hidden, reader: hidden if routes else 0,
        ignored=("use_bidirectional_attention",),
    )
    model = read(reader.derived(changes), name, family)
    layers = []
    for layer, kind in zip(model.layers, types, strict=True):
        assert layer.attention is not None
        keys = "k" if same and kind == "full_attention" else "own"
        layers.append(replace(layer, attention=replace(layer.attention, kv_from=keys)))
    default = 256 if reader.word("model_type", default="") == "gemma4_text" else 0
    width = reader.whole("hidden_size_per_layer_input", default=default, low=0)
    reader.asked.update(("vocab_size_per_layer_input", "moe_intermediate_size", "num_experts", "top_k_experts"))
    return _with_shared_kv(reader, _with_layer_inputs(reader, replace(model, layers=tuple(layers)), width))
