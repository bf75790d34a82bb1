"""torchao: a config object by its class name, or one for each module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.base.dtypes import DType
from simulator.model.quantization.layouts import MXFP8, float4, float8, four_by_eight, grouped, integer8
from simulator.model.quantization.methods import left_out, method
from simulator.model.quantization.scheme import Listed, Rule, Scheme, Stored, entries
from simulator.model.reader import Reader

OLD = {
    "int4_weight_only": "Int4WeightOnlyConfig",
    "int8_weight_only": "Int8WeightOnlyConfig",
    "int8_dynamic_activation_int8_weight": "Int8DynamicActivationInt8WeightConfig",
    "float8_weight_only": "Float8WeightOnlyConfig",
    "float8_dynamic_activation_float8_weight": "Float8DynamicActivationFloat8WeightConfig",
    "float8_static_activation_float8_weight": "Float8StaticActivationFloat8WeightConfig",
}
"""Names of the first releases for the classes of today."""

BY_MODULE = ("ModuleFqnToConfig", "FqnToConfig")


@method("torchao")
def torchao(reader: Reader, half: DType) -> Scheme:
    """``quant_type`` as text with ``quant_type_kwargs``, or ``{"default": {"_type": ..., "_data": {...}}}``."""
    if reader.flag("include_input_output_embeddings"):
        reader.fail("include_input_output_embeddings", "is true, which is not modelled")
    given = reader.config.get("quant_type")
    rules = list(left_out(reader))
    if isinstance(given, str):
        more = reader.section("quant_type_kwargs")
        return Scheme("torchao", _stored(reader, given, {} if more is None else more.config, half), tuple(rules))
    outer = reader.section("quant_type")
    inner = outer and outer.section("default")
    if inner is None:
        reader.fail("quant_type", "must name a config")
    name, data = inner.word("_type", default=""), inner.config.get("_data") or {}
    if name not in BY_MODULE:
        return Scheme("torchao", _stored(inner, name, data, half), tuple(rules))
    section = inner.section("_data") or inner
    table = section.section("module_fqn_to_config") or section.section("fqn_to_config")
    if table is None:
        inner.fail("_data", "must hold 'module_fqn_to_config'")
    default = None
    for key in table.config:
        one = table.section(key)
        how = None if one is None else _stored(one, one.word("_type", default=""), one.config.get("_data") or {}, half)
        if key == "_default":
            default = how
        else:
            rules.append(Rule(Listed(entries((str(key),), "module_fqn_to_config")), how))
    return Scheme("torchao", default, tuple(rules))


def _stored(reader: Reader, name: str, data: Mapping[str, Any], half: DType) -> Stored:
    """Weights of one config class."""
    if not isinstance(data, Mapping):
        reader.fail("_data", "must be an object")
    name, inner = OLD.get(name, name), Reader(data, f"{reader.where} ({name})", reader.text)
    match name:
        case "Int4WeightOnlyConfig":
            # A 16-bit scale and a 16-bit zero per group.
            return grouped(4, inner.whole("group_size", default=128), half, zero=16)
        case "Int8WeightOnlyConfig":
            return grouped(8, inner.whole("group_size", default=-1, low=-1), half)
        case "Int8DynamicActivationInt8WeightConfig":
            return integer8(per_output=16)
        case "Float8WeightOnlyConfig":
            return grouped(8, -1, half, scale=32)
        case "Float8DynamicActivationFloat8WeightConfig":
            return float8(static=False, per_output=32 if "PerRow" in str(data.get("granularity")) else 0)
        case "Float8StaticActivationFloat8WeightConfig":
            return float8(static=True)
        case "Float8DynamicActivationInt4WeightConfig":
            return four_by_eight(4 + 32 / 128)
        case "NVFP4DynamicActivationNVFP4WeightConfig" | "NVFP4InferenceConfig":
            return float4(16, half, activations=True)
        case "NVFP4WeightOnlyConfig":
            return float4(16, half, activations=False)
        case "MXDynamicActivationMXWeightConfig":
            return MXFP8 if "8" in str(data.get("weight_dtype", "float8")) else float4(32, half, activations=True)
    raise reader.refusal("quant_type", f"is {name!r}, which is not modelled")
