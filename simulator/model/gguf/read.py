"""A model out of a GGUF file: layers from its facts, the format of each matrix from its table of tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from simulator.base.dtypes import FORMATS, Format, weights_only
from simulator.base.errors import InputError
from simulator.model.architectures import from_config
from simulator.model.gguf.facts import config_of
from simulator.model.gguf.header import Tensor, read_header
from simulator.model.layer import LayerSpec
from simulator.model.spec import ModelSpec

TENSORS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "attn.qkv": (("attn_q", "attn_k", "attn_v"), ("attn_qkv",)),
    "attn.o": (("attn_output",),),
    "attn.q_down": (("attn_q_a",),),
    "attn.q_up": (("attn_q_b",), ("attn_q",)),
    "attn.kv_down": (("attn_kv_a_mqa",),),
    "attn.kv_up": (("attn_k_b", "attn_v_b"), ("attn_kv_b",)),
    "indexer.q": (("indexer.attn_q_b",),),
    "indexer.k": (("indexer.attn_k",),),
    "state.in": (("attn_qkv", "attn_gate"), ("ssm_in",)),
    "state.gates": (("ssm_beta", "ssm_alpha"), ("ssm_ba",)),
    "state.out": (("ssm_out",),),
    "mlp.gate_up": (("ffn_gate", "ffn_up"), ("ffn_up",)),
    "mlp.up": (("ffn_up",),),
    "mlp.down": (("ffn_down",),),
    "moe.experts": (
        ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
        ("ffn_gate_up_exps", "ffn_down_exps"),
        ("ffn_up_exps", "ffn_down_exps"),
    ),
    "moe.shared.gate_up": (("ffn_gate_shexp", "ffn_up_shexp"),),
    "moe.shared.up": (("ffn_up_shexp",),),
    "moe.shared.down": (("ffn_down_shexp",),),
}
"""Tensors of a layer that a matrix stands for: the first of these lists that is there whole."""
_NO_WEIGHTS = re.compile(r"(?:blk\.\d+\.)?(?:rope_freqs|rope_factors_\w+|attn_rot_embd|exp_probs_b)(?:\.\w+)?\Z")
"""Tables that other files compute, and the router's correction: no parameters."""
_LAYER = re.compile(r"blk\.(\d+)\.")


def read_model(file: Path) -> ModelSpec:
    """Model of a GGUF file, called as the file is.

    Raises
    ------
    InputError
        A file or architecture that is not read, a tensor that is missing, or other parameters than the facts give.
    """
    where = str(file)
    header = read_header(file)
    config = config_of(header, where)
    name = re.sub(r"-\d{5}-of-\d{5}\Z", "", file.name.removesuffix(".gguf")) or "model"
    model = from_config(config, name, where=where, source=where)
    counted, notes = _weights(header.tensors.values(), model.n_layers)
    _check(model, counted, where)
    return replace(_with_formats(model, counted, where), method="gguf", notes=(*model.notes, *notes))


def _weights(tensors: Iterable[Tensor], n_layers: int) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors of the decoder by name, and what is said of the others."""
    counted, buffers, heads = {}, 0.0, 0.0
    for tensor in tensors:
        layer = _LAYER.match(tensor.name)
        if layer and int(layer[1]) >= n_layers:
            heads += tensor.bytes
        elif _NO_WEIGHTS.match(tensor.name):
            buffers += tensor.bytes
        else:
            counted[tensor.name] = tensor
    notes = []
    if heads:
        notes.append(f"{heads / 1e6:.4g} MB of multi-token-prediction layers in the file are left out")
    if buffers:
        notes.append(f"{buffers:,.0f} bytes of the file are tables (rope_freqs, exp_probs_b), no weights")
    return counted, tuple(notes)


def _check(model: ModelSpec, tensors: Mapping[str, Tensor], where: str) -> None:
    there = sum(tensor.elements for tensor in tensors.values())
    if there != model.n_params:
        raise InputError(
            f"holds {there:,} weights, but a {model.architecture} of its facts has {model.n_params:,};"
            " pass the model's config.json",
            where=where,
        )


def _with_formats(model: ModelSpec, tensors: dict[str, Tensor], where: str) -> ModelSpec:
    """`model` with every matrix stored as its tensors are, and all else at its mean."""
    rest = dict(tensors)
    half = "bf16" if tensors["token_embd.weight"].stored is FORMATS["bf16"] else "fp16"

    def taken(name: str) -> Tensor:
        return rest.pop(name)

    formats: dict[tuple[int | None, str], Format] = {(None, "embed"): taken("token_embd.weight").stored}
    formats[None, "lm_head"] = formats[None, "embed"] if model.tied_embeddings else taken("output.weight").stored
    for index, layer in enumerate(model.layers):
        for matrix in layer.matrices:
            names = _names(index, layer, matrix, rest, where)
            formats[index, matrix] = _together([taken(name) for name in names])
    out = model.stored(lambda index, matrix, _: None if (fmt := formats[index, matrix]).name == half else fmt)
    return replace(out, dtype=half, rest=_together(list(rest.values())) if rest else None)


def _names(index: int, layer: LayerSpec, matrix: str, there: Mapping[str, Tensor], where: str) -> tuple[str, ...]:
    for names in TENSORS[matrix]:
        full = tuple(f"blk.{index}.{name}.weight" for name in names)
        if all(name in there for name in full):
            return full
    kind = "mixture" if matrix.startswith("moe") else "layer"
    missing = f"blk.{index}.{TENSORS[matrix][0][0]}.weight"
    raise InputError(f"has no {missing}, which a {kind} of its facts multiplies by", where=where)


def _together(tensors: list[Tensor]) -> Format:
    """One format for tensors that are read as one: their own, else their mean bits."""
    kinds = list(dict.fromkeys(tensor.stored for tensor in tensors))
    if len(kinds) == 1:
        return kinds[0]
    bits = 8.0 * sum(tensor.bytes for tensor in tensors) / sum(tensor.elements for tensor in tensors)
    widest = max(kinds, key=lambda fmt: fmt.weight_bits)
    called = "+".join(sorted(fmt.spelling for fmt in kinds))
    if bits > 16:
        return replace(widest, weight_bits=bits, called=called)
    return weights_only(bits, called)
