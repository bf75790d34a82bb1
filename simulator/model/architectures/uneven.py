"""Layers of different sizes: Step-3.5 and 3.7 (heads by kind of layer), Nemotron-NAS (searched, layer by layer)."""

from __future__ import annotations

from dataclasses import replace

from simulator.model.architectures.family import Experts, biased, none, read
from simulator.model.architectures.registry import architecture
from simulator.model.architectures.states import model_of
from simulator.model.layer import AttentionSpec, FfnSpec, LayerSpec
from simulator.model.reader import Reader
from simulator.model.spec import ModelSpec

_NAS_MULTIPLE = 256


def _after_dense(reader: Reader, n_layers: int) -> tuple[bool, ...]:
    """Layers with experts where no word says it: those listed by number, or all but the first few."""
    listed = reader.config.get("moe_layers_enum")
    if reader.strings("mlp_layer_types") is not None:
        return (False,) * n_layers
    if listed is None:
        n_dense = reader.whole("first_k_dense_replace", low=0)
        return tuple(i >= n_dense for i in range(n_layers))
    parts = [part.strip() for part in listed.split(",")] if isinstance(listed, str) else listed
    if not isinstance(parts, list) or not all(str(part).isdigit() for part in parts):
        reader.fail("moe_layers_enum", "must list numbers of layers")
    numbers = {int(part) for part in parts}
    return tuple(i in numbers for i in range(n_layers))


_STEP = biased(
    qk_norm="head",
    gate="head",
    ffn_bias="mlp_bias",
    slides=none,
    experts=Experts(shared="width", where=_after_dense),
    keys={
        "num_experts": ("n_routed_experts", "moe_num_experts", "num_local_experts"),
        "num_experts_per_tok": ("moe_top_k",),
        "num_key_value_heads": ("num_attention_groups",),
        "shared_expert_intermediate_size": ("share_expert_dim", "share_expert_dims"),
    },
    ignored=("moe_layers_enum", "n_shared_experts", "first_k_dense_replace", "use_moe_router_bias"),
)


@architecture("step3p5", "step3p7", ignored=("attention_other_setting", "num_sliding_attention_heads"))
def step(reader: Reader, name: str) -> ModelSpec:
    """Step-3.5 and 3.7 Flash: a gate per head, more heads where layers slide, experts in all but the first layers."""
    text = reader.section("text_config")
    if text is not None:
        reader.asked.add("text_config")
        note = "only the text part of 'step3p7' is modelled, no vision or audio part"
        return replace(step(text, name), notes=(note,))
    n_layers = reader.layers("num_hidden_layers")
    # Files list the layers of multi-token prediction after the model's own.
    lists = {key: words for key in ("layer_types", "mlp_layer_types") if (words := reader.strings(key)) is not None}
    model = read(reader.derived({key: list(words[:n_layers]) for key, words in lists.items()}), name, _STEP)
    other = reader.section("attention_other_setting")
    heads = reader.whole("num_sliding_attention_heads", default=0, low=0)
    if not heads and other is not None:
        heads = other.whole("num_attention_heads", default=0, low=0)
    layers = []
    for layer in model.layers:
        a = layer.attention
        slides = a is not None and a.window is not None and heads > 0
        layers.append(replace(layer, attention=replace(a, n_heads=heads)) if a is not None and slides else layer)
    return replace(model, layers=tuple(layers))


def _width(reader: Reader, hidden: int) -> int:
    """FFN width of a searched layer: two thirds of a multiple of the model's, rounded up."""
    factor = reader.number("ffn_mult", default=0.0)
    if not factor:
        reader.fail("ffn_mult", "is missing")
    return _NAS_MULTIPLE * -(-int(2 * factor * hidden / 3) // _NAS_MULTIPLE)


@architecture("nemotron-nas")
def nemotron_nas(reader: Reader, name: str) -> ModelSpec:
    """Llama-Nemotron Super and Ultra: each layer of Llama kept, thinned or left out [1]_.

    References
    ----------
    .. [1] Puzzle, arXiv:2411.19146.
    """
    hidden, n_heads = reader.whole("hidden_size"), reader.whole("num_attention_heads")
    head_dim = reader.head_dim(hidden, n_heads, "head_dim")
    activation = reader.activation("hidden_act", default="silu")
    bias, listed = reader.flag("mlp_bias"), reader.config.get("block_configs")
    n_layers = reader.layers("num_hidden_layers")
    if not isinstance(listed, list) or len(listed) != n_layers:
        reader.fail("block_configs", f"must list the blocks of each of the {n_layers} layers")
    layers = []
    for index, item in enumerate(listed):
        block = Reader({"block": item}, f"{reader.where} (block_configs {index})", reader.text).section("block")
        parts = {key: block.section(key) if block is not None else None for key in ("attention", "ffn")}
        attention, ffn = None, None
        for key, part in parts.items():
            if part is None:
                reader.fail("block_configs", f"of layer {index} has no {key!r}")
            for odd in ("replace_with_linear", "sparsify", "window_length", "num_sink_tokens", "unshifted_sink"):
                if part.config.get(odd):
                    part.fail(odd, f"is {part.config[odd]}, which is not supported")
            if part.flag("no_op"):
                continue
            if key == "attention":
                group = part.whole("n_heads_in_group")
                if n_heads % group:
                    part.fail("n_heads_in_group", f"is {group}, which does not divide the {n_heads} heads")
                attention = AttentionSpec(n_heads, n_heads // group, head_dim, head_dim)
            else:
                ffn = FfnSpec(_width(part, hidden), True, activation, bias)
        # A block that is left out takes its norm with it.
        layers.append(LayerSpec(attention, ffn, n_norms=int(attention is not None) + int(ffn is not None)))
    return model_of(reader, name, tuple(layers))
