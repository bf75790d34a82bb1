"""AMD Quark: one config for all, others by layer or class of layers, and modules left out."""

from __future__ import annotations

from typing import Any

from simulator.base.dtypes import DType
from simulator.model.quantization.layouts import float4, float8, four_by_eight, grouped, integer8
from simulator.model.quantization.methods import left_out, method
from simulator.model.quantization.scheme import Listed, Rule, Scheme, Stored, entries
from simulator.model.reader import Reader


@method("quark")
def quark(reader: Reader, half: DType) -> Scheme:
    """``exclude`` first, then ``layer_quant_config`` by name, then what is global."""
    rules = list(left_out(reader, "exclude"))
    kinds = reader.section("layer_type_quant_config")
    if kinds is not None and kinds.config:
        reader.fail("layer_type_quant_config", "gives formats by class of module, which is not modelled")
    shared = reader.section("global_quant_config")
    default = None if shared is None else _stored(shared, half)
    layers, caches = reader.section("layer_quant_config"), _cache_names(reader)
    for name in layers.config if layers is not None else ():
        layer = layers and layers.section(name)
        # Entries of the KV cache give the format of what k_proj and v_proj write, beside that of their weights.
        if layer is not None and (layer.config.get("weight") is not None or name not in caches):
            rules.append(Rule(Listed(entries((name,), "layer_quant_config")), _stored(layer, half)))
    return Scheme("quark", default, tuple(rules), head=default, kv_dtype=_kv(reader, caches))


def _cache_names(reader: Reader) -> tuple[str, ...]:
    export = reader.section("export")
    names = () if export is None else export.config.get("kv_cache_group") or ()
    return entries(names, "kv_cache_group")


def _kv(reader: Reader, caches: tuple[str, ...]) -> str | None:
    if not caches:
        return None
    layers = reader.section("layer_quant_config")
    for name in caches:
        layer = layers and layers.section(name)
        outputs = layer and layer.section("output_tensors")
        if outputs is not None:
            kind = outputs.word("dtype", default="")
            if kind not in ("fp8_e4m3", "int8"):
                outputs.fail("dtype", f"is {kind!r}; KV caches of fp8_e4m3 and int8 are modelled")
            return "fp8" if kind == "fp8_e4m3" else "int8"
    raise reader.refusal("kv_cache_group", "is set, but no layer gives the format of the KV cache")


def _stored(section: Reader, half: DType) -> Stored | None:
    weight, inputs = section.config.get("weight"), section.config.get("input_tensors")
    if weight is None:
        return None
    steps, acts = _steps(section, "weight", weight), _steps(section, "input_tensors", inputs)
    kinds = tuple(s.word("dtype", default="") for s in steps)
    first, act = steps[0], acts[0].word("dtype", default="") if acts else None
    scheme, group = first.word("qscheme", default="per_tensor"), first.whole("group_size", default=0, low=-1)
    dynamic = bool(acts) and acts[0].flag("is_dynamic")
    scales = 32.0 if scheme == "per_channel" else 0.0
    match kinds, act:
        case (("fp8_e4m3",), "fp8_e4m3"):
            return float8(static=not dynamic, per_output=scales)
        case (("fp8_e4m3",), None):
            return grouped(8, -1, half, scale=scales)
        case (("int8",), "int8"):
            return integer8(per_output=scales)
        case (("int8",), None):
            return grouped(8, group, half)
        case (("fp4", "fp8_e4m3"), "fp4"):
            return float4(16, half, activations=True)
        case (("fp4",), ("fp4" | None)) if scheme == "per_group":
            return float4(group or 32, half, activations=act == "fp4")
        case (("fp4",), "fp8_e4m3") if scheme == "per_group":
            return four_by_eight(4 + 8 / (group or 32))
        case (("fp8_e4m3", "int4"), "fp8_e4m3"):
            return four_by_eight(4.0)
        case ((("int4" | "uint4") as kind,), None):
            return grouped(4, group if scheme == "per_group" else -1, half, zero=4.0 if kind == "uint4" else 0.0)
    raise section.refusal(
        "weight", f"is {'+'.join(kinds)} under activations of {act or '16 bit'}, which is not modelled"
    )


def _steps(section: Reader, key: str, value: Any) -> list[Reader]:
    """Quantisers one after the other: one object, or a list of them."""
    items = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(item, dict) for item in items) or (key == "weight" and not items):
        section.fail(key, "must be an object, or a list of them")
    return [Reader(item, f"{section.where} ({key})", section.text) for item in items]
