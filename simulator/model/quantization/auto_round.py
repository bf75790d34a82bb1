"""Intel AutoRound: one scheme with exceptions by module, packed as GPTQ, AWQ or its own."""

from __future__ import annotations

from collections.abc import Mapping

from simulator.base.dtypes import DType
from simulator.model.quantization.layouts import MXFP8, float4, float8, float8_blocks, grouped, integer8
from simulator.model.quantization.methods import group_of, left_out, method
from simulator.model.quantization.scheme import Listed, Rule, Scheme, Stored, entries
from simulator.model.reader import Reader


@method("auto-round", "auto_round", "intel/auto-round", "inc")
def auto_round(reader: Reader, half: DType) -> Scheme:
    """``extra_config`` names the exceptions, ``block_name_to_quantize`` what is quantised at all."""
    default = _stored(reader, half)
    rules, extra = [], reader.section("extra_config")
    named: dict[Stored | None, list[str]] = {}
    for name in extra.config if extra is not None else ():
        change = extra and extra.section(name)
        merged: Mapping[str, object] = {**reader.config, **(change.config if change is not None else {})}
        named.setdefault(_stored(Reader(merged, f"{reader.where} ({name})"), half), []).append(name)
    rules = [Rule(Listed(entries(names, "extra_config")), how) for how, names in named.items()]
    rules += left_out(reader)
    blocks = reader.config.get("block_name_to_quantize") or reader.config.get("to_quant_block_names")
    if blocks:
        # Text with commas, or a list of them.
        flat = [b.strip() for item in (blocks if isinstance(blocks, list) else [blocks]) for b in str(item).split(",")]
        rules.append(Rule(Listed(entries(flat, "block_name_to_quantize")), default))
    head = default if reader.flag("quant_lm_head", "lm_head") else None
    return Scheme("auto-round", None if blocks else default, tuple(rules), head=head)


def _stored(reader: Reader, half: DType) -> Stored | None:
    bits = reader.whole("bits", high=32)
    if bits >= 16:
        return None
    kind = reader.word("data_type", default="int").casefold()
    acts = reader.whole("act_bits", default=16, high=32)
    group = group_of(reader, "group_size")
    packing = reader.word("packing_format", default="auto_round:auto_gptq").casefold()
    if kind.startswith("mx_fp") and bits in (4, 8):
        return MXFP8 if bits == 8 else float4(32, half, activations=acts < 16)
    if kind.startswith("nv_fp") and bits == 4:
        return float4(16, half, activations=acts < 16)
    if kind in ("fp", "fp8", "float", "fp8_sym") and bits == 8:
        if acts >= 16:
            return grouped(8, -1, half)
        static = not reader.flag("act_dynamic", default=True)
        return float8(static=static, per_output=32) if group <= 0 else float8_blocks(group, group)
    if not kind.startswith("int"):
        reader.fail("data_type", f"is {kind!r} of {bits} bits, which is not modelled")
    if acts == 8 and bits == 8:
        return integer8()
    if acts < 16:
        reader.fail("act_bits", f"is {acts} beside weights of {bits} bits, which is not modelled")
    if bits not in (2, 3, 4, 8):
        reader.fail("bits", f"is {bits}; known: 2, 3, 4, 8")
    if "llm_compressor" in packing:
        return grouped(bits, group, half)
    if not any(
        known in packing for known in ("gptq", "awq", "auto_round", "autoround", "exllama", "triton", "tritonv2")
    ):
        reader.fail("packing_format", f"is {packing!r}, which is not modelled")
    stored = grouped(bits, group, half, zero=bits)
    # Its GPTQ layout keeps no order of the inputs, as none is ever changed.
    return Stored(stored.fmt, per_output=stored.per_output)
