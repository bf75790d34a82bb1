"""One reader for decoders that differ from Llama in facts and in names of keys; `families` lists them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from simulator.model.architectures.registry import ARCHITECTURES
from simulator.model.layer import (
    AttentionSpec,
    FfnSpec,
    Gate,
    LayerSpec,
    MlaSpec,
    MoeSpec,
    Norm,
    Position,
    QkNorm,
    SideSpec,
)
from simulator.model.reader import Reader
from simulator.model.spec import ModelSpec

Switch = bool | str | tuple[str, bool]
"""A fact, or the key that says it: false where the file does not, or else what stands beside the key."""
Layers = Callable[[Reader, int], tuple[bool, ...]]
"""Which of so many layers, by keys of the file."""

ACTIVATION_KEYS = ("hidden_activation", "hidden_act", "activation_function", "afn")


def on(reader: Reader, switch: Switch) -> bool:
    """Whether `switch` is on in this file."""
    if isinstance(switch, bool):
        return switch
    key, default = (switch, False) if isinstance(switch, str) else switch
    return reader.flag(key, default=default)


def every(reader: Reader, n_layers: int) -> tuple[bool, ...]:
    """All layers."""
    return (True,) * n_layers


def none(reader: Reader, n_layers: int) -> tuple[bool, ...]:
    """No layer."""
    return (False,) * n_layers


def all_but_nth(n: int, *keys: str, at: int = -1) -> Layers:
    """All but each n-th layer, n under the first of `keys` that is set; the one left out is number `at` of n."""

    def layers(reader: Reader, n_layers: int) -> tuple[bool, ...]:
        step = reader.whole(*keys, default=n) if keys else n
        return tuple(i % step != at % step for i in range(n_layers))

    return layers


def late_sliding(reader: Reader, n_layers: int) -> tuple[bool, ...]:
    """Qwen's rule: layers from ``max_window_layers`` on slide, if ``use_sliding_window`` is set."""
    first = reader.whole("max_window_layers", default=28, low=0)
    used = reader.flag("use_sliding_window")
    return tuple(used and index >= first for index in range(n_layers))


def sliding_if_used(reader: Reader, n_layers: int) -> tuple[bool, ...]:
    """All layers once ``use_sliding_window`` is set."""
    return (reader.flag("use_sliding_window"),) * n_layers


def sparse_steps(reader: Reader, n_layers: int) -> tuple[bool, ...]:
    """Every ``decoder_sparse_step``-th layer routes, unless listed in ``mlp_only_layers``."""
    step = reader.whole("decoder_sparse_step", default=1)
    listed = reader.numbers("mlp_only_layers") or ()
    return tuple(i not in listed and (i + 1) % step == 0 for i in range(n_layers))


def every_step(reader: Reader, n_layers: int) -> tuple[bool, ...]:
    """The layers that ``moe_layers`` lists, or every ``interleave_moe_layer_step``-th."""
    step, listed = reader.whole("interleave_moe_layer_step", default=1), reader.numbers("moe_layers")
    return tuple(i in listed if listed else (i + 1) % step == 0 for i in range(n_layers))


def between(reader: Reader, n_layers: int) -> tuple[bool, ...]:
    """Every ``moe_layer_interval``-th layer from ``moe_layer_start_index`` to ``moe_layer_end_index``."""
    step = reader.whole("moe_layer_interval", default=1)
    first = reader.whole("moe_layer_start_index", default=0, low=0)
    last = reader.whole("moe_layer_end_index", default=n_layers - 1, low=-1)
    last = n_layers - 1 if last < 0 else last
    return tuple((i + 1) % step == 0 and first <= i <= last for i in range(n_layers))


def listed_local(reader: Reader, n_layers: int) -> tuple[bool, ...]:
    """The layers that ``attention_layers`` calls local."""
    kinds = reader.strings("attention_layers")
    if kinds is None or len(kinds) != n_layers or set(kinds) - {"global", "local"}:
        reader.fail("attention_layers", f"must say global or local for each of the {n_layers} layers")
    return tuple(kind == "local" for kind in kinds)


def after_dense(first: int) -> Layers:
    """Layers after the first dense ones, every ``moe_layer_freq``-th of them."""

    def layers(reader: Reader, n_layers: int) -> tuple[bool, ...]:
        dense = reader.whole("first_k_dense_replace", "num_dense_layers", default=first, low=0)
        step = reader.whole("moe_layer_freq", default=1)
        return tuple(i >= dense and i % step == 0 for i in range(n_layers))

    return layers


@dataclass(frozen=True)
class Experts:
    """The mixture of a family.

    Attributes
    ----------
    width : str
        Key of the width of one expert.
    shared : {None, 'count', 'width', 'one', 'dense'}
        The shared block: none, so many experts' widths, a width of its own, one expert's width or a dense layer's.
    where : Layers
        Layers that route, where ``mlp_layer_types`` does not list them.
    when : Switch
        Whether there are experts at all.
    latent : str
        Key of the width that tokens are projected to before the experts; "": none.
    """

    width: str = "moe_intermediate_size"
    shared: Literal["count", "width", "one", "dense"] | None = None
    where: Layers = every
    when: Switch = True
    shared_gate: bool = False
    router_bias: Switch = False
    bias: Switch = False
    latent: str = ""


@dataclass(frozen=True)
class Family:
    """What sets a family apart from Llama: RMS norms before both blocks, rotary positions, a gated SiLU FFN.

    Attributes
    ----------
    qkv_bias, o_bias, ffn_bias, norm_bias, lm_head_bias : Switch
    qk_norm : {'head', 'width', 'plain'} or None
        With `qk_norm_if` the switch that turns it on.
    mla : bool
        Attention keeps latents.
    slides : Layers or None
        Layers with a window where ``layer_types`` does not list them; None: the file's window means nothing.
    chunks : bool
        Windows are chunks of ``attention_chunk_size``.
    no_rope_every : int
        Every so many layers have no positions where ``no_rope_layers`` does not list them; 0: none.
    norms : int
        Norms over the hidden width in a layer; `more_norms_if` turns on two more.
    parallel : Switch
        Attention and FFN in parallel, under one norm each or, with `one_norm`, under one together.
    dense_width : str
        Key of the width of a dense layer's FFN.
    ratio : int, optional
        Width of the FFN over the hidden width where the file gives none.
    ffn_halves : bool
        The file gives gate and up together as one width (Moshi).
    offset_rows : int
        Rows of a learned position table beyond the context.
    keys : Mapping
        This family's names of Llama's keys.
    defaults : Mapping
        Values of Llama's keys that this family's files leave out.
    ignored : tuple of str
        Keys of its files that change nothing.
    extra_rows : tuple of str or int
        Keys or numbers of rows that the embedding has and the output has not.
    vectors : Callable, optional
        Other learned elements of a layer, from its attention, the hidden width and the reader [-].
    sides : Callable, optional
        Small matrices of a layer, from the reader and the hidden width.
    """

    qkv_bias: Switch = False
    o_bias: Switch = False
    ffn_bias: Switch = False
    qk_norm: QkNorm | None = None
    qk_norm_if: Switch = True
    qk_norm_bias: bool = False
    mla: bool = False
    gate: Gate | None = None
    gate_if: Switch = True
    sinks: Switch = False
    fused_qkv: bool = False
    position: Position = "rope"
    one_kv_head: Switch = False
    slides: Layers | None = None
    chunks: bool = False
    no_rope_every: int = 0
    norms: int = 2
    more_norms_if: Switch = False
    norm: Norm = "rms"
    norm_bias: Switch = False
    norm_weight: bool = True
    parallel: Switch = False
    one_norm: bool = False
    gated: bool = True
    activation: str = "silu"
    dense_width: str = "intermediate_size"
    ratio: int | None = None
    ffn_halves: bool = False
    experts: Experts | None = None
    tied: bool = False
    lm_head_bias: Switch = False
    final_norm: bool = True
    embed_norm: bool = False
    offset_rows: int = 0
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    extra_rows: tuple[str | int, ...] = ()
    vectors: Callable[[AttentionSpec, int, Reader], int] | None = None
    sides: Callable[[Reader, int], tuple[SideSpec, ...]] | None = None


def biased(**more: Any) -> Family:
    """Llama with the biases that ``attention_bias`` turns on."""
    return Family(qkv_bias="attention_bias", o_bias="attention_bias", **more)


def read(reader: Reader, name: str, family: Family) -> ModelSpec:
    """Model of a file of `family`."""
    reader = reader.derived(aliases=family.keys)
    reader.asked.update(family.ignored)
    missing = {k: v for k, v in family.defaults.items() if reader.unset(k)}
    reader = reader.derived(missing) if missing else reader
    hidden, n_layers = reader.whole("hidden_size"), reader.layers("num_hidden_layers")
    context = reader.whole("max_position_embeddings")
    attentions = _attentions(reader, family, hidden, n_layers, context)
    ffns = _ffns(reader, family, hidden, n_layers)
    parallel = on(reader, family.parallel)
    n_norms = 1 if parallel and family.one_norm else family.norms + (2 if on(reader, family.more_norms_if) else 0)
    layers = tuple(
        LayerSpec(
            attention,
            ffn,
            n_norms,
            family.norm,
            on(reader, family.norm_bias),
            parallel,
            norm_weight=family.norm_weight,
            sides=family.sides(reader, hidden) if family.sides else (),
            vectors=family.vectors(attention, hidden, reader) if family.vectors else 0,
        )
        for attention, ffn in zip(attentions, ffns, strict=True)
    )
    extra = sum(k if isinstance(k, int) else reader.whole(k, default=0, low=0) for k in family.extra_rows)
    return ModelSpec(
        name=name,
        architecture=reader.word("model_type", default=""),
        hidden=hidden,
        vocab=reader.whole("vocab_size"),
        layers=layers,
        tied_embeddings=reader.flag("tie_word_embeddings", default=family.tied),
        max_context=context,
        learned_positions=context + family.offset_rows if family.position == "learned" else 0,
        final_norm=family.final_norm,
        embed_norm=family.embed_norm,
        lm_head_bias=on(reader, family.lm_head_bias),
        tables=extra * hidden,
    )


def _attentions(reader: Reader, family: Family, hidden: int, n_layers: int, context: int) -> tuple[AttentionSpec, ...]:
    """Attention of each layer."""
    if family.slides is None and reader.strings("layer_types") is None:
        reader.whole("sliding_window", default=0, low=0)
        spans: tuple[int | None, ...] = (None,) * n_layers
    else:
        slides = none if family.slides is None else family.slides
        spans = windows(reader, n_layers, context, slides(reader, n_layers), chunks=family.chunks)
    own = reader.section("per_layer_config")
    changes = {} if own is None else {int(k): v for k, v in own.config.items() if str(k).isdigit()}
    turned = turned_layers(reader, n_layers, family.no_rope_every)
    read_one = latents_of if family.mla else heads_of
    usual = read_one(reader, family, hidden)
    found = []
    for i, span in enumerate(spans):
        one = read_one(reader.derived(changes[i]), family, hidden) if i in changes else usual
        position = one.position if turned[i] else "none"
        found.append(replace(one, window=span, chunked=family.chunks and span is not None, position=position))
    return tuple(found)


def turned_layers(reader: Reader, n_layers: int, every_nth: int = 0) -> tuple[bool, ...]:
    """Layers with rotary positions: all but those that ``no_rope_layers`` marks with a 0, or each n-th."""
    step = reader.whole("no_rope_layer_interval", "nope_layer_interval", default=every_nth, low=0)
    listed = reader.numbers("no_rope_layers")
    if not listed:
        return tuple(not step or (i + 1) % step != 0 for i in range(n_layers))
    if len(listed) != n_layers:
        reader.fail("no_rope_layers", f"lists {len(listed)} layers, the model has {n_layers}")
    return tuple(bool(kept) for kept in listed)


def heads_of(reader: Reader, family: Family, hidden: int) -> AttentionSpec:
    """Attention of heads."""
    n_heads = reader.whole("num_attention_heads")
    head_dim = reader.head_dim(hidden, n_heads, "head_dim")
    n_kv_heads = 1 if on(reader, family.one_kv_head) else reader.heads(n_heads, "num_key_value_heads")
    return AttentionSpec(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        v_head_dim=head_dim,
        position=family.position,
        qkv_bias=on(reader, family.qkv_bias),
        o_bias=on(reader, family.o_bias),
        qk_norm=family.qk_norm if on(reader, family.qk_norm_if) else None,
        qk_norm_bias=family.qk_norm_bias,
        sinks=on(reader, family.sinks),
        fused_qkv=family.fused_qkv,
        gate=family.gate if on(reader, family.gate_if) else None,
    )


def latents_of(reader: Reader, family: Family, hidden: int) -> AttentionSpec:
    """Multi-head latent attention."""
    n_heads = reader.whole("num_attention_heads")
    mla = MlaSpec(
        q_lora_rank=reader.optional_whole("q_lora_rank"),
        kv_lora_rank=reader.whole("kv_lora_rank"),
        qk_nope_head_dim=reader.whole("qk_nope_head_dim"),
        qk_rope_head_dim=reader.whole("qk_rope_head_dim", low=0),
    )
    # What these files say beside the latents follows from them.
    reader.asked.update(("head_dim", "qk_head_dim", "num_key_value_heads"))
    return AttentionSpec(
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=mla.qk_nope_head_dim + mla.qk_rope_head_dim,
        v_head_dim=reader.whole("v_head_dim"),
        qkv_bias=on(reader, family.qkv_bias),
        o_bias=on(reader, family.o_bias),
        mla=mla,
    )


def _ffns(reader: Reader, family: Family, hidden: int, n_layers: int) -> tuple[FfnSpec | MoeSpec, ...]:
    """Feed-forward block of each layer."""
    experts = family.experts
    if experts is None or not on(reader, experts.when):
        return (dense_of(reader, family, hidden),) * n_layers
    routed = experts.where(reader, n_layers)
    kinds = reader.strings("mlp_layer_types")
    if kinds is not None:
        if len(kinds) != n_layers or set(kinds) - {"dense", "sparse"}:
            reader.fail("mlp_layer_types", f"must say dense or sparse for each of the {n_layers} layers")
        routed = tuple(kind == "sparse" for kind in kinds)
    moe = mixture(reader, family, experts) if any(routed) else None
    dense = None if all(routed) else dense_of(reader, family, hidden)
    # A family whose every layer routes often gives the width of a dense layer all the same.
    reader.asked.update((family.dense_width, *family.keys.get(family.dense_width, ())))
    found = (moe if routes else dense for routes in routed)
    return tuple(ffn for ffn in found if ffn is not None)


def dense_of(reader: Reader, family: Family, hidden: int) -> FfnSpec:
    """A feed-forward block without experts."""
    default = {} if family.ratio is None else {"default": family.ratio * hidden}
    width = reader.uniform(family.dense_width, **default)
    activation = reader.activation(*ACTIVATION_KEYS, default=family.activation)
    return FfnSpec(width // (2 if family.ffn_halves else 1), family.gated, activation, on(reader, family.ffn_bias))


def picked(reader: Reader, n_experts: int) -> int:
    """Experts of a token, no more than there are [-]."""
    keys = ("num_experts_per_tok", "experts_per_token", "moe_topk", "moe_k", "top_k_experts")
    count = reader.uniform(*keys)
    if count > n_experts:
        reader.fail(reader.set_of(*keys), f"is {count}, more than the {n_experts} experts")
    return count


def mixture(reader: Reader, family: Family, experts: Experts) -> MoeSpec:
    """The routed experts of a layer, and the block beside them."""
    activation = reader.activation(*ACTIVATION_KEYS, default=family.activation)
    n_experts = reader.uniform("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    width = reader.whole(experts.width)
    bias = on(reader, experts.bias)
    shared = 0
    if experts.shared == "count":
        keys = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")
        shared = width * reader.uniform(*keys, default=0)
    elif experts.shared == "width":
        shared = reader.whole("shared_expert_intermediate_size", "shared_intermediate_size", default=0, low=0)
    elif experts.shared == "one":
        shared = width
    elif experts.shared == "dense":
        shared = reader.whole(family.dense_width)
    n_groups = reader.whole("n_group", default=1)
    if n_experts % n_groups:
        reader.fail("n_group", f"is {n_groups}, which does not divide the {n_experts} experts")
    return MoeSpec(
        n_experts,
        picked(reader, n_experts),
        FfnSpec(width, family.gated, activation, bias),
        shared=FfnSpec(shared, family.gated, activation, bias) if shared else None,
        router_bias=on(reader, experts.router_bias),
        shared_gate=experts.shared_gate and bool(shared),
        latent=reader.whole(experts.latent) if experts.latent else None,
        n_groups=n_groups,
        top_k_groups=reader.whole("topk_group", default=1, high=n_groups),
    )


def windows(
    reader: Reader, n_layers: int, max_context: int, sliding: tuple[bool, ...], *, chunks: bool = False
) -> tuple[int | None, ...]:
    """Attention window of each layer [tokens].

    Parameters
    ----------
    sliding : tuple of bool
        Which layers slide where the file does not list ``layer_types``.
    chunks : bool
        They attend within chunks instead.
    """
    word, key = ("chunked_attention", "attention_chunk_size") if chunks else ("sliding_attention", "sliding_window")
    types = reader.strings("layer_types")
    if types is not None:
        if len(types) != n_layers:
            reader.fail("layer_types", f"lists {len(types)} layers, the model has {n_layers}")
        unknown = set(types) - {"full_attention", word}
        if unknown:
            reader.fail("layer_types", f"has {sorted(unknown)[0]!r}, which is not supported")
        sliding = tuple(kind == word for kind in types)
    # transformers 5 writes 0 for "no window" in some of its own defaults.
    window = reader.whole(key, default=0, low=0)
    if not window and types is not None and any(sliding):
        reader.fail(key, "is missing although 'layer_types' has sliding layers")
    if not window or window >= max_context:
        return (None,) * n_layers
    return tuple(window if slides else None for slides in sliding)


def register(families: Mapping[str, Family]) -> None:
    """Register the reader of each of `families` under its ``model_type``."""
    for model_type, family in families.items():
        ARCHITECTURES.register(model_type)(partial(read, family=family))
