"""Quantisation configs of one format: FP8, AWQ, GPTQ, bitsandbytes, MXFP4 and smaller ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from simulator.base.dtypes import FORMATS, DType, Format
from simulator.base.errors import InputError
from simulator.model.quantization.layouts import MXFP8, float4, float8, float8_blocks, grouped, integer8
from simulator.model.quantization.scheme import Listed, Rule, Scheme, Stored, Style, entries
from simulator.model.reader import Reader

Method = Callable[[Reader, DType], Scheme]
METHODS: dict[str, Method] = {}
"""Readers of a config by its ``quant_method``."""

_GPTQ_ONLY = {"desc_act", "damp_percent", "true_sequential", "zero_point", "version", "sym"}
"""Keys of early GPTQ and AWQ files, which name no method either."""

SKIPPED = ("modules_to_not_convert", "ignored_layers", "llm_int8_skip_modules", "skip_modules")
"""Keys under which files list what is left in 16 bit."""


def method(*names: str) -> Callable[[Method], Method]:
    """Decorator: the function reads configs of these methods."""

    def add(function: Method) -> Method:
        METHODS.update(dict.fromkeys(names, function))
        return function

    return add


def left_out(reader: Reader, *keys: str, style: Style = Style.PART) -> tuple[Rule, ...]:
    """Rule of the modules that a config leaves in 16 bit, under the first of `keys` that is set."""
    for key in keys or SKIPPED:
        value = reader.config.get(key)
        if value is None:
            continue
        if not isinstance(value, list):
            reader.fail(key, "must be a list of modules")
        names = entries(value, key)
        if names:
            return (Rule(Listed(names, style), None),)
    return ()


def group_of(reader: Reader, *keys: str, default: int = 128) -> int:
    """Weights that share a scale; -1 = a whole column."""
    return reader.whole(*keys, default=default, low=-1, high=2**20)


def block_of(reader: Reader) -> tuple[int, int] | None:
    """Rows and columns that share a scale, None where the file gives none."""
    value = reader.config.get("weight_block_size")
    if value is None:
        return None
    whole = isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in value)
    if not whole or len(value) != 2:
        reader.fail("weight_block_size", f"is {str(value)[:40]}; it must be two whole numbers")
    return value[0], value[1]


@method("fp8")
def fp8(reader: Reader, half: DType) -> Scheme:
    """FP8 of transformers, DeepSeek and vLLM: per tensor, or in blocks; activations static or dynamic."""
    scheme = reader.word("activation_scheme", default="dynamic")
    if scheme not in ("dynamic", "static"):
        reader.fail("activation_scheme", f"is {scheme!r}; known: dynamic, static")
    kind = reader.word("fmt", default="e4m3").casefold()
    if kind not in ("e4m3", "float8_e4m3fn", "e5m2"):
        reader.fail("fmt", f"is {kind!r}; known: e4m3, e5m2")
    block = block_of(reader)
    exponents = reader.word("scale_fmt", default="").casefold() == "ue8m0"
    if block is None:
        stored = float8(static=scheme == "static")
    else:
        stored = float8_blocks(*block, scale=8.0 if exponents and block[0] * block[1] < 1024 else 32.0)
    again = reader.word("moe_quant_algo", default="").upper()
    if not again:
        return Scheme("fp8", stored, left_out(reader))
    if again != "NVFP4":
        reader.fail("moe_quant_algo", f"is {again!r}; known: NVFP4")
    # ModelOpt quantised the experts of an FP8 checkpoint again; what it ignored stayed as it was.
    return Scheme("fp8", stored, left_out(reader, "modules_to_not_convert"), experts=float4(16, half, activations=True))


@method("fbgemm_fp8", "ptpc_fp8")
def fbgemm_fp8(reader: Reader, half: DType) -> Scheme:
    """Meta's FP8: one fp32 scale per output channel, activations quantised per token."""
    return Scheme(
        reader.word("quant_method", default="fbgemm_fp8"), float8(static=False, per_output=32), left_out(reader)
    )


@method("mxfp8")
def mxfp8(reader: Reader, half: DType) -> Scheme:
    """MXFP8: an 8-bit exponent per 32 weights."""
    return Scheme("mxfp8", MXFP8, left_out(reader))


@method("mxfp4")
def mxfp4(reader: Reader, half: DType) -> Scheme:
    """GPT-OSS: routed experts in MXFP4, all else in 16 bit."""
    return Scheme("mxfp4", float4(32, half, activations=True), left_out(reader), only="experts")


@method("fp_quant")
def fp_quant(reader: Reader, half: DType) -> Scheme:
    """FP-Quant: MXFP4 or NVFP4 weights and activations after a rotation."""
    kind = reader.word("forward_dtype", default="nvfp4")
    if kind not in ("mxfp4", "nvfp4"):
        reader.fail("forward_dtype", f"is {kind!r}; known: mxfp4, nvfp4")
    return Scheme("fp_quant", Stored(FORMATS[kind]), left_out(reader))


@method("awq")
def awq(reader: Reader, half: DType) -> Scheme:
    """AWQ: int4 in groups, a 16-bit scale and a packed 4-bit zero each."""
    bits = reader.whole("bits", "w_bit", default=4)
    if bits != 4:
        reader.fail("bits", f"is {bits}; AWQ packs 4")
    return Scheme("awq", grouped(4, group_of(reader, "group_size", "q_group_size"), half, zero=4), left_out(reader))


@method("gptq")
def gptq(reader: Reader, half: DType) -> Scheme:
    """GPTQ and GPTQModel: packed ints, 16-bit scales, packed zeros and the group of every input (``g_idx``).

    ``dynamic`` overrides or leaves out modules by pattern; ``modules_in_block_to_quantize`` lists what is quantised.
    """
    kind = reader.word("checkpoint_format", default="gptq")
    if kind not in ("gptq", "gptq_v2", "marlin"):
        reader.fail("checkpoint_format", f"is {kind!r}; known: gptq, gptq_v2, marlin")
    default = packed_gptq(reader, half)
    rules: list[Rule] = []
    dynamic = reader.section("dynamic")
    for pattern in dynamic.config if dynamic is not None else ():
        sign, colon, rest = str(pattern).partition(":")
        name = rest if colon and sign in "+-" else str(pattern)
        change = None if sign == "-" and colon else dynamic and dynamic.section(pattern)
        merged = None if change is None else packed_gptq(Reader({**reader.config, **change.config}, change.where), half)
        rules.append(Rule(Listed(entries((f"re:(?:.*\\.)?{name}",), "dynamic")), merged))
    inside = reader.config.get("modules_in_block_to_quantize")
    if inside:
        if not isinstance(inside, list):
            reader.fail("modules_in_block_to_quantize", "must be a list of modules")
        flat = [name for item in inside for name in (item if isinstance(item, list) else [item])]
        rules.append(Rule(Listed(entries(flat, "modules_in_block_to_quantize")), default))
    head = default if reader.flag("lm_head") else None
    return Scheme("gptq", None if inside else default, (*rules, *left_out(reader)), head=head)


def packed_gptq(reader: Reader, half: DType) -> Stored:
    """Weights packed as GPTQ does."""
    bits = reader.whole("bits", high=8)
    if bits not in (2, 3, 4, 8):
        reader.fail("bits", f"is {bits}; GPTQ packs 2, 3, 4 or 8")
    stored = grouped(bits, group_of(reader, "group_size"), half, zero=bits)
    return Stored(stored.fmt, per_input=32.0, per_output=stored.per_output)


@method("bitsandbytes")
def bitsandbytes(reader: Reader, half: DType) -> Scheme:
    """bitsandbytes: NF4 or FP4 in blocks of 64 with fp32 maxima (quantised again in blocks of 256), or LLM.int8()."""
    four = reader.flag("load_in_4bit", "_load_in_4bit")
    eight = reader.flag("load_in_8bit", "_load_in_8bit")
    if four == eight:
        reader.fail("load_in_4bit", "and 'load_in_8bit' must be one true and one false")
    if eight:
        return Scheme("bitsandbytes", integer8(per_output=32), left_out(reader))
    kind = reader.word("bnb_4bit_quant_type", default="fp4")
    if kind not in ("nf4", "fp4"):
        reader.fail("bnb_4bit_quant_type", f"is {kind!r}; known: nf4, fp4")
    twice = reader.flag("bnb_4bit_use_double_quant")
    return Scheme("bitsandbytes", grouped(4, 64, half, scale=8 + 32 / 256 if twice else 32), left_out(reader))


@method("hqq")
def hqq(reader: Reader, half: DType) -> Scheme:
    """HQQ: ints in groups with a 16-bit scale and zero."""
    section = reader.section("quant_config")
    weights = section and section.section("weight_quant_params")
    if weights is None:
        reader.fail("quant_config", "must hold 'weight_quant_params'")
    bits = weights.whole("nbits", high=8)
    if bits not in (1, 2, 3, 4, 8):
        weights.fail("nbits", f"is {bits}; HQQ packs 1, 2, 3, 4 or 8")
    # Three bits are packed ten to an int32.
    stored = grouped(3.2 if bits == 3 else bits, group_of(weights, "group_size", default=64), half, zero=16)
    return Scheme("hqq", stored, left_out(reader))


@method("eetq")
def eetq(reader: Reader, half: DType) -> Scheme:
    """EETQ: int8 weights with a 16-bit scale per output, multiplied in 16 bit."""
    return Scheme("eetq", grouped(8, -1, half), left_out(reader))


@method("bitnet")
def bitnet(reader: Reader, half: DType) -> Scheme:
    """BitNet: three values in 2 bits, 8-bit activations."""
    return Scheme("bitnet", Stored(Format("int8", DType.INT8, 2.0, 8.0)), left_out(reader))


@method("mlx")
def mlx(reader: Reader, half: DType) -> Scheme:
    """MLX: every linear layer and the embedding in groups with a 16-bit scale and bias; modules by name differ."""

    def stored(one: Reader) -> Stored:
        mode = one.word("mode", default="affine")
        if mode in ("mxfp4", "nvfp4"):
            return float4(32 if mode == "mxfp4" else 16, half, activations=False)
        bits = one.whole("bits", high=8)
        if mode != "affine" or bits not in (2, 3, 4, 5, 6, 8):
            one.fail("bits", f"is {bits} in mode {mode!r}; known: 2 to 6 and 8 in affine, mxfp4, nvfp4")
        return grouped(bits, one.whole("group_size", default=64, high=2**20), half, zero=16)

    default, rules = stored(reader), []
    for name, change in reader.config.items():
        if isinstance(change, Mapping):
            how = stored(Reader({**reader.config, **change}, f"{reader.where} ({name})"))
            rules.append(Rule(Listed(entries((name,), "quantization")), how))
        elif change is False and "." in name:
            rules.append(Rule(Listed(entries((name,), "quantization")), None))
    return Scheme("mlx", default, tuple(rules), head=default, embedding=default)


@method("exl2", "exl3")
def exllama(reader: Reader, half: DType) -> Scheme:
    """EXL2 and EXL3: the mean bits per weight, scales included, and those of the output matrix."""
    bits, head = reader.number("bits", default=0.0), reader.number("head_bits", default=16.0)
    for key, value in (("bits", bits), ("head_bits", head)):
        if not 1.0 <= value <= 16.0:
            reader.fail(key, f"is {value:g}; it must lie between 1 and 16")
    return Scheme(
        reader.word("quant_method", default="exl2"),
        grouped(bits, 2**20, half, scale=0),
        head=None if head == 16 else grouped(head, 2**20, half, scale=0),
    )


def scheme_of(config: Mapping[str, Any], where: str, half: DType, text: str | None = None) -> Scheme:
    """What a quantisation config says.

    Raises
    ------
    InputError
        A method or a layout that is not known.
    """
    reader = Reader(config, where, text)
    # ModelOpt's own file and its early configs name no method.
    producer = reader.config.get("producer")
    modelopt = (isinstance(producer, Mapping) and producer.get("name") == "modelopt") or "quantization" in config
    name = reader.word("quant_method", default="modelopt" if modelopt else "").casefold()
    if not name and (reader.flag("load_in_4bit") or reader.flag("load_in_8bit")):
        name = "bitsandbytes"
    if not name and {"bits", "group_size"} <= set(config) and set(config) - _GPTQ_ONLY == set(config):
        name = "mlx"
    if not name:
        reader.fail("quant_method", "is missing, so the format of the weights is not known")
    if name not in METHODS:
        raise InputError(
            f"quantisation method {name!r} is not modelled; give the unquantised model with --dtype, known:"
            f" {', '.join(sorted(METHODS))}",
            where=where,
        )
    return METHODS[name](reader, half)
