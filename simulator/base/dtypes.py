"""Number formats: what a value costs to store and which peak of a device multiplies it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from simulator.base.errors import UnknownNameError


class DType(StrEnum):
    """Arithmetic a device has a peak rate for."""

    FP32 = "fp32"
    TF32 = "tf32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"
    INT8 = "int8"
    FP4 = "fp4"


AUTO = "auto"
"""Format as the model was published."""


@dataclass(frozen=True, slots=True)
class Format:
    """How the operands of a matrix product are stored and multiplied.

    Attributes
    ----------
    name : str
        Spelling on the command line and in `measured/` tables.
    math : DType
        Peak used for the product.
    weight_bits : float
        Stored bits per weight, scales included (w4a16 g128: 4 + 16/128 + 4/128 zero point).
    act_bits : float
        Bits per activation element read by the product.
    called : str
        Spelling of a layout that shares the kernels of `name`; "" where that is its own.
    pads : tuple of int
        Multiples that engines pad the hidden and the intermediate width of stored experts to (per GPU): 256 and 128 for
        MXFP4, in whose blocks GPT-OSS's 2880 is no whole number of tiles [1]_.

    References
    ----------
    .. [1] vLLM, ``layers/quantization/mxfp4.py``, ``create_weights`` (Marlin).
    """

    name: str
    math: DType
    weight_bits: float
    act_bits: float = 16.0
    pads: tuple[int, int] = (1, 1)
    called: str = ""

    @property
    def spelling(self) -> str:
        """What ``--dtype`` calls it."""
        return self.called or self.name

    @property
    def weight_bytes(self) -> float:
        """Bytes per stored weight [B]."""
        return self.weight_bits / 8.0

    @property
    def act_bytes(self) -> float:
        """Bytes per activation element [B]."""
        return self.act_bits / 8.0

    @property
    def label(self) -> str:
        """Name, with the stored bits where they are not those the name stands for."""
        if self.called:
            return self.called
        known = FORMATS.get(self.name)
        if known is not None and abs(known.weight_bits - self.weight_bits) < 0.01 * self.weight_bits:
            return self.name
        return f"{self.name} ({self.weight_bits:.3g} bits)"

    @property
    def out_bytes(self) -> float:
        """Bytes per element that a product writes: 32-bit formats write fp32, all others 16 bit [B]."""
        return 4.0 if self.math in (DType.FP32, DType.TF32) else 2.0


# Scale overheads: fp8_block one fp32 per 128x128 tile, nvfp4 one fp8 per 16, mxfp4 one e8m0 per 32.
FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("fp32", DType.FP32, 32, 32),
        Format("tf32", DType.TF32, 32, 32),
        Format("bf16", DType.BF16, 16),
        Format("fp16", DType.FP16, 16),
        Format("fp8", DType.FP8, 8, 8),
        Format("fp8_static", DType.FP8, 8, 8),
        Format("fp8_block", DType.FP8, 8 + 32 / 128**2, 8),
        Format("int8", DType.INT8, 8, 8),
        Format("w8a16", DType.FP16, 8, 16),
        Format("w4a16", DType.FP16, 4 + 20 / 128, 16),
        Format("nvfp4", DType.FP4, 4 + 8 / 16, 4 + 8 / 16),
        Format("mxfp4", DType.FP4, 4 + 8 / 32, 4 + 8 / 32, (256, 128)),
    )
}


def weights_only(bits: float, called: str, math: DType = DType.FP16) -> Format:
    """Weights of `bits` that are widened to `math` on the way, by the kernels for 4 or 8 bits."""
    return Format("w4a16" if bits < 6 else "w8a16", math, bits, called=called)


def _blocks(**sizes: tuple[int, int, int]) -> dict[int, tuple[int, Format]]:
    """Types of GGUF from their number, the weights of a block and its bytes."""
    return {n: (block, weights_only(8 * size / block, name)) for name, (n, block, size) in sizes.items()}


GGUF_TYPES: dict[int, tuple[int, Format]] = {
    0: (1, FORMATS["fp32"]),
    1: (1, FORMATS["fp16"]),
    30: (1, FORMATS["bf16"]),
    **_blocks(q4_0=(2, 32, 18), q4_1=(3, 32, 20), q5_0=(6, 32, 22), q5_1=(7, 32, 24), q8_0=(8, 32, 34)),
    **_blocks(q2_k=(10, 256, 84), q3_k=(11, 256, 110), q4_k=(12, 256, 144), q5_k=(13, 256, 176), q6_k=(14, 256, 210)),
    **_blocks(iq2_xxs=(16, 256, 66), iq2_xs=(17, 256, 74), iq3_xxs=(18, 256, 98), iq1_s=(19, 256, 50)),
    **_blocks(iq4_nl=(20, 32, 18), iq3_s=(21, 256, 110), iq2_s=(22, 256, 82), iq4_xs=(23, 256, 136)),
    **_blocks(iq1_m=(29, 256, 56), tq1_0=(34, 256, 54), tq2_0=(35, 256, 66)),
    **_blocks(gguf_mxfp4=(39, 32, 17), gguf_nvfp4=(40, 64, 36)),
}
"""Weights of a block and format of each type of tensor in a GGUF file, by its number [1]_.

.. [1] ggml, ``ggml.h`` (``enum ggml_type``) and ``ggml-common.h`` (the blocks).
"""
LAYOUTS: dict[str, Format] = {fmt.called: fmt for _, fmt in GGUF_TYPES.values() if fmt.called}
"""Formats of GGUF by what llama.cpp calls them, in small letters."""
_EXL = re.compile(r"exl([23])_(\d(?:\.\d{1,3})?)bpw")

KV_FORMATS: dict[str, float] = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0}
"""Bytes per stored element of the dense model's KV cache [B]."""


def sixteen_bit(fmt: Format) -> Format:
    """Format of the matrices that a model quantised to `fmt` leaves in 16 bit."""
    if fmt.weight_bits >= 16:
        return fmt
    math = fmt.math if fmt.math in (DType.BF16, DType.FP16) else DType.BF16
    return Format(str(math), math, 16.0)


def weight_only(fmt: Format, math: DType) -> Format:
    """`fmt` where nothing multiplies it: weights stay stored so and are widened to `math` on the way."""
    return Format("w4a16" if fmt.weight_bits < 8 else "w8a16", math, fmt.weight_bits, pads=fmt.pads)


def get_format(name: str) -> Format:
    """Format called `name`: one of `FORMATS`, of `LAYOUTS`, or ExLlama's bits per weight as ``exl2_4.65bpw``.

    Raises
    ------
    UnknownNameError
        With the nearest names.
    """
    name = name.casefold()
    found = FORMATS.get(name) or LAYOUTS.get(name)
    if found is not None:
        return found
    exl = _EXL.fullmatch(name)
    if exl and 1.0 <= float(exl[2]) <= 8.0:
        return weights_only(float(exl[2]), name)
    raise UnknownNameError("dtype", name, (*FORMATS, *LAYOUTS, "exl2_4.65bpw", "exl3_4bpw"), where="--dtype")
