"""From a Hugging Face ``config.json`` to a `ModelSpec`: no torch, no transformers, no remote code.

One function per ``model_type``, registered by name: it reads a `Reader` and returns a `ModelSpec`.
Packages outside register theirs under the entry point group ``shadowline.architectures``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from simulator.base.dtypes import DType
from simulator.base.errors import InputError, suggest
from simulator.base.units import format_bytes

# Each of these registers its family.
from simulator.model.architectures import (  # noqa: F401
    classic,
    compressed,
    delta_net,
    experts,
    families,
    gemma,
    kimi,
    mamba,
    minimax_m3,
    recurrences,
    singles,
    uneven,
)
from simulator.model.architectures.nested import NESTED_DEFAULTS, NESTED_KINDS
from simulator.model.architectures.registry import ARCHITECTURES, Parser, architecture
from simulator.model.architectures.towers import tower_of
from simulator.model.architectures.unread import check
from simulator.model.quantization import Scheme, apply, scheme_of
from simulator.model.quantization.layouts import float4
from simulator.model.reader import Reader, with_where
from simulator.model.spec import ModelSpec

__all__ = ["ARCHITECTURES", "Parser", "Reader", "architecture", "from_config"]

_TEXT_SECTIONS = ("text_config", "llm_config", "language_config", "thinker_config", "vlm_config")
_TEXT_ALONE = "only the text part of"
_QUANTISED = ("quantization_config", "compression_config", "quantization")
"""Where a config says how it is quantised; the last is MLX's."""
_SHARED = ("torch_dtype", "dtype", "expert_dtype", "tie_word_embeddings", *_QUANTISED)
"""Keys that stand outside the text part of a nested config."""


def from_config(
    config: Mapping[str, Any],
    name: str,
    *,
    where: str | None = None,
    text: str | None = None,
    source: str = "",
    beside: Mapping[str, Any] | None = None,
) -> ModelSpec:
    """Model described by a ``config.json``.

    Parameters
    ----------
    config : Mapping
        The parsed JSON object.
    name : str
        Name the model gets.
    where : str, optional
        File the config came from, for messages.
    text : str, optional
        That file's text, so that a message can name the line.
    source : str, optional
        Reference kept in `ModelSpec.source`.
    beside : Mapping, optional
        What its quantisation file beside it says (``hf_quant_config.json``, ...), which must agree with its own.

    Raises
    ------
    InputError
        Unknown architecture or quantisation, or a key that is missing or absurd.
    """
    where = where or name
    if not isinstance(config, Mapping):
        raise InputError("a model config must be a JSON object with keys", where=where)
    reader, notes = _text_part(Reader(config, where, text), config)
    kind = reader.word("model_type", default="")
    if kind not in ARCHITECTURES:
        raise InputError(_unsupported(kind, config), where=where)
    try:
        model = ARCHITECTURES[kind](reader, name)
    except InputError as error:
        raise with_where(error, where) from None
    check(model, reader)
    if reader.whole("num_nextn_predict_layers", "mtp_num_hidden_layers", default=0, low=0):
        notes += ("multi-token-prediction layers count only where they draft (--speculate)",)
    if model.n_state_layers:
        where_kept = "beside" if any(layer.state and layer.attention for layer in model.layers) else "in place of"
        kept = f"{format_bytes(model.state_bytes())} of each sequence"
        notes += (f"{model.n_state_layers} of {model.n_layers} layers keep a state {where_kept} a KV cache, {kept}",)
    tower, told = tower_of(config, Reader(config, where, text), model.hidden)
    if tower is not None or told:
        notes = (*(note for note in notes if not note.startswith(_TEXT_ALONE)), *told)
    model = replace(model, dtype=reader.dtype(), source=source, tower=tower, notes=model.notes + notes)
    try:
        return _quantised(model, reader, beside)
    except InputError as error:
        raise with_where(error, where) from None


def _quantised(model: ModelSpec, reader: Reader, beside: Mapping[str, Any] | None) -> ModelSpec:
    """`model` with the formats that its config, or the file beside it, states."""
    half = DType.FP16 if model.dtype == "fp16" else DType.BF16
    other = None if beside is None else scheme_of(beside, f"{reader.where} (the file beside it)", half)
    for key in _QUANTISED:
        section = reader.section(key)
        if section is not None and section.config:
            scheme = scheme_of(section.config, section.where, half, reader.text)
            # Of a checkpoint whose experts alone were quantised again, the file beside it speaks of these.
            again = scheme.experts is not None and other is not None and other.method == "modelopt"
            if other is not None and other.method != scheme.method and not again:
                reader.fail(key, f"says {scheme.method}, but the file beside it {other.method}")
            return apply(_with_experts(scheme, reader, half), model)
    if other is None and reader.config.get("expert_dtype") is not None:
        other = Scheme("expert_dtype", None)
    return model if other is None else apply(_with_experts(other, reader, half), model)


def _with_experts(scheme: Scheme, reader: Reader, half: DType) -> Scheme:
    """`scheme` with the experts' own format, which DeepSeek-V4 states beside it: MXFP4 under FP8."""
    kind = reader.word("expert_dtype", default="")
    if kind not in ("", "fp4", "fp8"):
        reader.fail("expert_dtype", f"is {kind!r}; known: fp4, fp8")
    told = kind != "fp4" or scheme.experts is not None
    return scheme if told else replace(scheme, experts=float4(32, half, activations=True))


def _text_part(reader: Reader, config: Mapping[str, Any]) -> tuple[Reader, tuple[str, ...]]:
    """The reader of the language model in a file, and what to say of what is around it."""
    kind = reader.word("model_type", default="")
    if kind in ARCHITECTURES:
        return reader, ()
    note = (f"{_TEXT_ALONE} {kind!r} is modelled, no vision or audio part",)
    text_kind = next((k for k in (f"{kind}_text", NESTED_KINDS.get(kind, "")) if k in ARCHITECTURES), "")
    for key in _TEXT_SECTIONS:
        section = reader.section(key)
        if section is None:
            continue
        shared = {k: config[k] for k in _SHARED if config.get(k) is not None}
        inside, more = _text_part(section, {**section.config, **shared})
        inner = inside.word("model_type", default=text_kind)
        if inner not in ARCHITECTURES:
            continue
        # The outer file decides whether the ends are tied; of the rest the text part knows better.
        tied = {k: v for k, v in shared.items() if k == "tie_word_embeddings"}
        missing = {k: v for k, v in NESTED_DEFAULTS.get(inner, {}).items() if inside.unset(k)}
        if missing:
            listed = ", ".join(f"{k} {v}" for k, v in missing.items())
            more = (f"left out of the text part, so as transformers has it: {listed}", *more)
        filled = {**shared, **missing, **inside.config, **tied, "model_type": inner}
        return inside.derived(filled), (*note, *(m for m in more if not m.startswith(_TEXT_ALONE)))
    if text_kind and not reader.unset("hidden_size"):
        # Files before transformers 4.52 have the text part's keys at the top.
        return reader.derived({"model_type": text_kind}), note
    return reader, ()


_MISSING: Mapping[str, str] = {
    "deepseek_v41": "tables of n-grams (engram_layer_ids), cache entries that layers share (kv_source_layer_ids)",
    **dict.fromkeys(("zamba", "zamba2"), "one attention block that several layers of Mamba share"),
    "rwkv": "its own time mixing and channel mixing",
}
"""What the layers of architectures have that ours have not, where it is known."""


def _unsupported(kind: str, config: Mapping[str, Any]) -> str:
    if kind in _MISSING:
        return f"architecture {kind!r} is not supported; not modelled: {_MISSING[kind]}"
    known = ", ".join(sorted(ARCHITECTURES))
    if not kind:
        return (
            "key 'model_type' is missing, so this is not a Hugging Face config.json of a language "
            f"model; set it to one of: {known}"
        )
    close = suggest(kind, ARCHITECTURES)
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    code = " (it ships its own code, which is never run)" if config.get("auto_map") else ""
    return (
        f"architecture {kind!r} is not supported{hint}{code}; write the same layers as one of the "
        f"supported model_types, or register a parser with simulator.model.architectures.architecture: "
        f"{known}"
    )
