"""compressed-tensors: groups of modules, each with its own weights and activations."""

from __future__ import annotations

from simulator.base.dtypes import DType
from simulator.base.errors import InputError
from simulator.model.quantization.layouts import MXFP8, float4, float8, float8_blocks, four_by_eight, grouped, integer8
from simulator.model.quantization.methods import left_out, method
from simulator.model.quantization.scheme import Listed, Rule, Scheme, Stored, Style, entries
from simulator.model.reader import Reader

FILED = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "mixed-precision",
)
"""Layouts of the file that are read; others (dense, sparse, marlin-24) are refused."""


@method("compressed-tensors", "compressed_tensors")
def compressed_tensors(reader: Reader, half: DType) -> Scheme:
    """Rules of ``ignore``, then of the groups' targets by name, then those of every ``Linear``."""
    sparsity = reader.section("sparsity_config")
    if sparsity is not None and sparsity.word("format", default="dense") != "dense":
        sparsity.fail("format", f"is {sparsity.config['format']!r}; sparse files are not modelled")
    if reader.config.get("transform_config"):
        reader.fail("transform_config", "rotates activations on the way, which is not modelled")
    filed = reader.word("format", default="")
    groups = reader.section("config_groups")
    rules, default = list(left_out(reader, "ignore", style=Style.EXACT)), None
    for key in groups.config if groups is not None else ():
        group = groups and groups.section(key)
        if group is None:
            continue
        stored = _weights(group, group.word("format", default=filed), half)
        targets = entries(group.config.get("targets") or (), "targets")
        if not targets:
            group.fail("targets", "must list modules")
        if "Linear" in targets:
            if default is not None and default != stored:
                group.fail("targets", "names every Linear a second time")
            default = stored
        named = tuple(t for t in targets if t != "Linear")
        classes = [t for t in named if "." not in t and not t.startswith("re:") and t[:1].isupper()]
        if classes:
            group.fail("targets", f"names the class {classes[0]!r}; known: Linear, names and re: patterns")
        if named:
            rules.append(Rule(Listed(named, Style.EXACT), stored))
    if groups is None and reader.config.get("kv_cache_scheme") is None:
        reader.fail("config_groups", "is missing")
    return Scheme("compressed-tensors", default, tuple(rules), head=default, kv_dtype=kv_of(reader))


def kv_of(reader: Reader) -> str | None:
    """KV format of a ``kv_cache_scheme``: an object, or its name."""
    if isinstance(reader.config.get("kv_cache_scheme"), str):
        name = reader.word("kv_cache_scheme", default="").casefold()
        if name not in ("fp8", "int8"):
            reader.fail("kv_cache_scheme", f"is {name!r}; known: fp8, int8")
        return name
    section = reader.section("kv_cache_scheme")
    if section is None:
        return None
    bits, kind = section.whole("num_bits", default=8), section.word("type", default="float")
    if bits != 8 or kind not in ("float", "int"):
        section.fail("num_bits", f"is {bits} of type {kind!r}; KV caches of 8 bit are modelled")
    return "fp8" if kind == "float" else "int8"


def _weights(group: Reader, filed: str, half: DType) -> Stored | None:
    """How the weights of one group are stored."""
    if filed and filed not in FILED:
        group.fail("format", f"is {filed!r}; known: {', '.join(FILED)}")
    weights, inputs = group.section("weights"), group.section("input_activations")
    if weights is None:
        return None
    bits, kind = weights.whole("num_bits", high=16), weights.word("type", default="int")
    strategy = weights.word("strategy", default="tensor")
    size = weights.whole("group_size", default=0, low=-1) if strategy in ("group", "tensor_group") else 0
    acts = None if inputs is None else (inputs.whole("num_bits", high=16), inputs.word("type", default="int"))
    if acts is not None and acts[0] == 16:
        acts = None
    if strategy not in ("tensor", "channel", "group", "block", "tensor_group", "token"):
        weights.fail("strategy", f"is {strategy!r}, which is not modelled")
    scales = 16.0 if strategy == "channel" else 0.0
    match kind, bits, acts:
        case "float", 8, None:
            return grouped(8, size, half, scale=scales if not size else 16)
        case "float", 8, (8, "float"):
            if strategy == "block":
                return float8_blocks(*_block(weights))
            if size:
                return MXFP8 if size == 32 else float8_blocks(1, size)
            static = inputs is not None and not inputs.flag("dynamic")
            return float8(static=static, per_output=scales)
        case "float", 4, (None | (4, "float")):
            return float4(size or 16, half, activations=acts is not None)
        case "float", 4, (8, "float"):
            return four_by_eight(4 + 8 / (size or 32))
        case "int", 8, (8, "int"):
            return integer8(per_output=scales * 2)
        case "int", 4, (8, "float"):
            return four_by_eight(4 + (16 / size if size > 0 else 0))
        case "int", (2 | 3 | 4 | 5 | 6 | 7 | 8), None:
            return _packed(weights, bits, size, filed, strategy, half)
    raise InputError(f"weights of {bits} bits ({kind}) under activations of {acts} are not modelled", where=group.where)


def _packed(weights: Reader, bits: int, size: int, filed: str, strategy: str, half: DType) -> Stored:
    """Ints packed to int32, as many whole ones as fit; those of ``naive-quantized`` take a byte each."""
    kept = 8.0 if filed in ("naive-quantized", "int-quantized") else 32 / (32 // bits)
    zero = 0.0 if weights.flag("symmetric", default=True) else kept
    stored = grouped(kept, size, half, scale=0.0 if strategy == "tensor" else 16.0, zero=zero)
    ordered = weights.config.get("actorder") in ("group", True)
    # An order of the inputs is an int32 for each.
    return Stored(stored.fmt, per_input=32.0 if ordered else 0.0, per_output=stored.per_output)


def _block(weights: Reader) -> tuple[int, int]:
    value = weights.config.get("block_structure")
    sizes = value.split("x") if isinstance(value, str) else value if isinstance(value, list) else []
    if len(sizes) != 2 or not all(str(size).isdecimal() and int(size) > 0 for size in sizes):
        weights.fail("block_structure", f"is {str(value)[:40]}; it must be two whole numbers")
    return int(sizes[0]), int(sizes[1])
