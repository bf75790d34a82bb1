"""Families of one: a relative's facts, and what no other has."""

from __future__ import annotations

from dataclasses import replace

from simulator.model.architectures.compressed import hyper_connections
from simulator.model.architectures.experts import with_indexers
from simulator.model.architectures.families import CLASSIC, FAMILIES, old
from simulator.model.architectures.family import Experts, Family, after_dense, biased, every, read
from simulator.model.architectures.registry import architecture
from simulator.model.layer import MoeSpec, SideSpec
from simulator.model.reader import Reader
from simulator.model.spec import ModelSpec


@architecture("axk1")
def axk1(reader: Reader, name: str) -> ModelSpec:
    """A.X K1: DeepSeek-V3 with a norm behind the experts."""
    model = read(reader, name, FAMILIES["deepseek_v3"])
    layers = (replace(x, n_norms=3) if isinstance(x.ffn, MoeSpec) else x for x in model.layers)
    return replace(model, layers=tuple(layers))


@architecture("laguna")
def laguna(reader: Reader, name: str) -> ModelSpec:
    """Laguna: query heads by layer, and a gate for each of them or for each of their outputs."""
    gating = reader.config.get("gating", True)
    if gating not in (True, False, "per-head", "per-element"):
        reader.fail("gating", f"is {gating!r}; known: true, false, per-head, per-element")
    family = biased(
        qk_norm="head",
        gate="head" if gating in (True, "per-head") else "width",
        gate_if=gating is not False,
        slides=every,
        experts=Experts(shared="width", router_bias=True, where=after_dense(1)),
    )
    heads = reader.numbers("num_attention_heads_per_layer") or ()
    own = {str(i): {"num_attention_heads": n} for i, n in enumerate(heads)}
    return read(reader.derived({"per_layer_config": own} if own else {}), name, family)


@architecture("ernie4_5_vl_moe_text")
def ernie_vl(reader: Reader, name: str) -> ModelSpec:
    """ERNIE 4.5 VL: text and image tokens have experts of their own; those of the text are read."""
    widths = reader.numbers("moe_intermediate_size")
    counts = reader.config.get("moe_num_experts")
    changes = {} if widths is None else {"moe_intermediate_size": widths[0]}
    changes |= {"moe_num_experts": counts[0]} if isinstance(counts, list) and counts else {}
    model = read(reader.derived(changes), name, FAMILIES["ernie4_5_moe"])
    return replace(model, notes=(*model.notes, "the experts of image tokens are left out"))


@architecture("hy_v4", ignored=("head_dim",))
def hy_v4(reader: Reader, name: str) -> ModelSpec:
    """Hunyuan 4: GLM-5's layers with sinks, a gate on the output and residual streams."""
    streams, hidden = reader.whole("hc_mult"), reader.whole("hidden_size")
    outputs, width = 2 * streams, streams * hidden
    around = [SideSpec(f"streams.{block}", outputs, width, outputs + 2) for block in ("mixer", "ffn")]
    model = with_indexers(reader, read(reader.derived(without=("layer_types",)), name, FAMILIES["deepseek_v3"]))
    layers = []
    for layer in model.layers:
        assert layer.attention is not None
        attention = replace(layer.attention, sinks=True)
        gate = SideSpec("attn.gate", attention.n_heads * attention.v_head_dim, hidden)
        layers.append(replace(layer, attention=attention, sides=(*around, gate), streams=streams))
    return replace(model, layers=tuple(layers), sides=hyper_connections(streams, hidden)[1])


@architecture("gpt_neox_japanese")
def gpt_neox_japanese(reader: Reader, name: str) -> ModelSpec:
    """GPT-NeoX without biases but one, behind the last attention."""
    ratio = reader.whole("intermediate_multiple_size", default=4, high=1024)
    family = old(qkv_bias=False, o_bias=False, ffn_bias=False, ratio=ratio, fused_qkv=True, tied=True)
    model = read(reader, name, family)
    return replace(model, layers=(*model.layers[:-1], replace(model.layers[-1], vectors=model.hidden)))


@architecture("modernbert-decoder", ignored=("classifier_bias", "global_attn_every_n_layers"))
def modernbert(reader: Reader, name: str) -> ModelSpec:
    """ModernBERT's decoder: no norm before the first attention, and a dense layer with a norm before the output."""
    family = biased(
        ffn_bias="mlp_bias",
        norm="layer",
        norm_bias="norm_bias",
        activation="gelu",
        slides=every,
        embed_norm=True,
        lm_head_bias=("decoder_bias", True),
        tied=True,
    )
    model = read(reader, name, family)
    first = replace(model.layers[0], n_norms=1, vectors=0)
    # The head's norm counts with its dense layer.
    norm = model.layers[0].norm_params(model.hidden)
    head = (SideSpec("head.dense", model.hidden, model.hidden, norm),)
    return replace(model, layers=(first, *model.layers[1:]), sides=head)


@architecture("kyutai_speech_to_text", ignored=("frame_size",))
def kyutai(reader: Reader, name: str) -> ModelSpec:
    """Kyutai's speech to text: a token of the text and one of each audio codebook are embedded together."""
    rows = reader.whole("num_codebooks") * reader.whole("codebook_vocab_size") + 1
    return read(reader, name, Family(ffn_halves=True, slides=every, keys=CLASSIC, extra_rows=(rows,)))
