"""Ways a file stores weights, each with the kernels that read it: bits per weight with their scales and zeros."""

from __future__ import annotations

from simulator.base.dtypes import FORMATS, DType, Format
from simulator.base.errors import InputError
from simulator.model.quantization.scheme import Stored


def grouped(bits: float, group: int, half: DType, *, scale: float = 16.0, zero: float = 0.0) -> Stored:
    """Weights of `bits` with a `scale` and a `zero` point per group, multiplied in 16 bit [bits].

    A `group` of 0 or less is a whole column, so that scale and zero belong to the output.
    """
    name = "w4a16" if bits < 6 else "w8a16"
    if group <= 0:
        return Stored(Format(name, half, bits), per_output=scale + zero)
    return Stored(Format(name, half, bits + (scale + zero) / group))


def float8(*, static: bool, per_output: float = 0.0) -> Stored:
    """FP8 weights and activations, `per_output` bits of scale for every output channel."""
    return Stored(FORMATS["fp8_static" if static else "fp8"], per_output=per_output)


def float8_blocks(rows: int, columns: int, *, scale: float = 32.0) -> Stored:
    """FP8 with one scale per block; of 1x32 with exponents as scales it is MXFP8."""
    size = rows * columns
    if size == 128 * 128:
        return Stored(FORMATS["fp8_block"])
    if size >= 1024:
        return Stored(Format("fp8_block", DType.FP8, 8 + scale / size, 8.0))
    bits = 8 + scale / size
    return Stored(Format("fp8", DType.FP8, bits, bits))


MXFP8 = float8_blocks(1, 32, scale=8.0)


def integer8(per_output: float = 32.0) -> Stored:
    """INT8 weights and activations."""
    return Stored(FORMATS["int8"], per_output=per_output)


def float4(group: int, half: DType, *, activations: bool, scale: float = 8.0) -> Stored:
    """FP4 weights with an 8-bit scale per group of 16 (NVFP4) or 32 (MXFP4).

    Without 4-bit activations they are widened on the way (W4A16).
    """
    if group not in (16, 32):
        raise InputError(f"FP4 has groups of 16 or 32, not {group}")
    if not activations:
        return Stored(Format("w4a16", half, 4 + scale / group))
    return Stored(FORMATS["nvfp4" if group == 16 else "mxfp4"])


def four_by_eight(bits: float) -> Stored:
    """4-bit weights of `bits` with their scales, multiplied in FP8 (W4A8)."""
    return Stored(Format("w4afp8", DType.FP8, bits, 8.0))
