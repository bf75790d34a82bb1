"""Number formats: what a value costs to store and which peak of a device multiplies it."""

from __future__ import annotations

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
    """Format called `name`; raises `UnknownNameError` with the nearest ones."""
    try:
        return FORMATS[name.casefold()]
    except KeyError:
        raise UnknownNameError("dtype", name, FORMATS, where="--dtype") from None
