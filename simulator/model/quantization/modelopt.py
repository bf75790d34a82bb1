"""NVIDIA ModelOpt: ``hf_quant_config.json`` and the same in ``config.json``."""

from __future__ import annotations

from simulator.base.dtypes import DType
from simulator.model.quantization.compressed import kv_of
from simulator.model.quantization.layouts import MXFP8, float4, float8, float8_blocks, four_by_eight, grouped, integer8
from simulator.model.quantization.methods import left_out, method
from simulator.model.quantization.scheme import Listed, Rule, Scheme, Stored, entries
from simulator.model.reader import Reader

UNQUANTISED = ("", "NONE", "NO_QUANT")


@method("modelopt", "modelopt_fp4", "modelopt_fp8", "modelopt_mixed", "modelopt_mxfp8", "nvfp4")
def modelopt(reader: Reader, half: DType) -> Scheme:
    """One algorithm with modules left out, or ``MIXED_PRECISION`` with one for each module it lists."""
    section = reader.section("quantization") or reader
    algo = section.word("quant_algo", "quant_method" if section is not reader else "quant_algo", default="").upper()
    rules, default = list(left_out(section, "exclude_modules", "ignore")), None
    if algo == "MIXED_PRECISION":
        rules += _by_layer(section, half)
    elif algo not in UNQUANTISED:
        default = _stored(section, algo, half)
    elif section.config.get("kv_cache_quant_algo") is None and section.config.get("kv_cache_scheme") is None:
        section.fail("quant_algo", "is missing, so the format of the weights is not known")
    return Scheme("modelopt", default, tuple(rules), head=default, kv_dtype=_kv(section))


def _by_layer(section: Reader, half: DType) -> list[Rule]:
    layers = section.section("quantized_layers")
    if layers is None:
        section.fail("quantized_layers", "is missing, so the formats of MIXED_PRECISION are not known")
    named: dict[Stored | None, list[str]] = {}
    for name in layers.config:
        layer = layers.section(name)
        algo = "" if layer is None else layer.word("quant_algo", default="").upper()
        how = None if layer is None or algo in UNQUANTISED else _stored(layer, algo, half)
        named.setdefault(how, []).append(name)
    return [Rule(Listed(entries(names, "quantized_layers")), how) for how, names in named.items()]


def _stored(section: Reader, algo: str, half: DType) -> Stored:
    """Weights of one algorithm; AWQ keeps a 16-bit scale of every input beside them."""
    group = section.optional_whole("group_size")
    nv, integers = grouped_float(group, 16), group or 128
    kinds = {
        "FP8": float8(static=True),
        "FP8_PER_CHANNEL_PER_TOKEN": float8(static=False, per_output=32),
        "FP8_PB_WO": float8_blocks(128, 128),
        "FP8_PB_REAL": float8_blocks(128, 128),
        "MXFP8": MXFP8,
        "NVFP4": float4(nv, half, activations=True),
        "NVFP4_AWQ": _with_inputs(float4(nv, half, activations=True)),
        "W4A16_NVFP4": float4(nv, half, activations=False),
        "MXFP4": float4(grouped_float(group, 32), half, activations=True),
        "W4A16_MXFP4": float4(grouped_float(group, 32), half, activations=False),
        "W4A8_MXFP4_FP8": four_by_eight(4 + 8 / 32),
        "W4A8_NVFP4_FP8": four_by_eight(4 + 8 / 16),
        "W4A16_AWQ": _with_inputs(grouped(4, integers, half)),
        "INT4_AWQ": _with_inputs(grouped(4, integers, half)),
        "W4A16": grouped(4, integers, half),
        "W4A8_AWQ": _with_inputs(four_by_eight(4 + 16 / integers)),
        "W8A16": grouped(8, -1, half),
        "W8A8_SQ_PER_CHANNEL": _with_inputs(integer8()),
        "INT8_SQ": _with_inputs(integer8()),
    }
    if algo not in kinds:
        section.fail("quant_algo", f"is {algo!r}, which is not modelled; known: {', '.join(sorted(kinds))}")
    return kinds[algo]


def grouped_float(group: int | None, usual: int) -> int:
    """Group of a 4-bit float: what its format has, whatever other algorithms of the file say."""
    return group if group in (16, 32) else usual


def _with_inputs(stored: Stored) -> Stored:
    return Stored(stored.fmt, per_input=16.0, per_output=stored.per_output)


def _kv(section: Reader) -> str | None:
    algo = section.word("kv_cache_quant_algo", default="").upper()
    if algo in UNQUANTISED:
        return kv_of(section)
    if algo not in ("FP8", "INT8"):
        section.fail("kv_cache_quant_algo", f"is {algo!r}; known: FP8, INT8")
    return algo.lower()
