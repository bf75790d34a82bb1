"""Weights stored or multiplied in another form: 2:4 sparsity, 4-bit weights."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from simulator.base.dtypes import DType, Format
from simulator.model.spec import ModelSpec
from simulator.ops.ops import Linear, Moe, Op
from simulator.policies.base import Aspect, Context, Policy
from simulator.policies.common import only
from simulator.policies.grammar import POLICIES

# Kept apart by every published recipe: accuracy lives in the embedding and the output matrix.
UNTOUCHED = ("lm_head", "unembed.proj", "moe.router", "attn.absorb_k", "attn.absorb_v")

NM24 = "2:4/vendor"
"""Kernels of the vendor's libraries (cuSPARSELt, CUTLASS, hipSPARSELt), fitted together."""
NM24_METADATA_BITS = 2.0
"""Index bits per kept value of the 2:4 format; sparse tensor cores of Ampere and later [1]_."""


def is_weight(op: Op) -> bool:
    """Whether `op` multiplies by a weight matrix that weight policies rewrite."""
    return isinstance(op, Linear | Moe) and not op.overhead and op.role not in UNTOUCHED


@POLICIES.register("nm24")
class Nm24(Policy):
    """Two of every four weights are zero; sparse tensor cores multiply at twice the dense rate.

    Stored per pair of kept values: the values and 2 bits of index each, so fp16 takes 9/16, int8 5/8
    of the dense bytes [1]_. Prefill and decode both change; batch rows share one mask. ``kernel=gemm_plugin`` hands
    the products with their zeros to a dense library, as TensorRT-LLM's plugin does: nothing changes [2]_.

    References
    ----------
    .. [1] Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv:2104.08378.
    .. [2] github.com/NVIDIA/TensorRT-LLM/issues/1559, github.com/NVIDIA/Model-Optimizer/issues/603 and 1974.
    """

    name: ClassVar[str] = "nm24"
    family: ClassVar[str] = "weights"
    summary: ClassVar[str] = "2:4 structured weights on sparse tensor cores"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_FORMAT})
    citation: ClassVar[str] = "Mishra et al. 2021, arXiv:2104.08378"
    not_modelled: ClassVar[str] = "accuracy; padding of rows to 32 in eager PyTorch"

    kernel: Literal["cusparselt", "gemm_plugin"] = Field("cusparselt", description="a sparse library, or a dense one")

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """Weight-only formats have no 2:4 kernel of this kind; expert layers have none at all."""
        if fmt.weight_bits < fmt.act_bits:
            return f"no 2:4 kernel for {fmt.name}; use a 16-bit or 8-bit dtype"
        if model.is_moe:
            return "no published 2:4 kernel for fused experts"
        return None

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Halve the stored values, add the index bits, multiply at the 2:4 rate."""
        if not is_weight(op) or not isinstance(op, Linear) or self.kernel == "gemm_plugin":
            return (op,)
        per_weight = (op.fmt.weight_bits + NM24_METADATA_BITS) / 2.0 / 8.0
        return (replace(op, bytes_per_weight=per_weight, flop_keep=0.5, nm24=True, kernel=only(op, NM24)),)


@POLICIES.register("w4a16")
class W4A16(Policy):
    """4-bit weights in groups with a 16-bit scale and a 4-bit zero, multiplied in 16 bit [1]_.

    ``bits = 4 + (16 + 4) / group``. Embedding, output matrix and routers stay in 16 bit.

    References
    ----------
    .. [1] Lin et al., "AWQ", arXiv:2306.00978; Frantar et al., "MARLIN", arXiv:2408.11743.
    """

    name: ClassVar[str] = "w4a16"
    family: ClassVar[str] = "weights"
    summary: ClassVar[str] = "4-bit weights, 16-bit arithmetic (AWQ, GPTQ, Marlin kernels)"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_FORMAT})
    citation: ClassVar[str] = "Lin et al. 2023, arXiv:2306.00978"
    not_modelled: ClassVar[str] = "accuracy"

    group: int = Field(128, ge=16, le=1024, description="weights that share a scale")

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """It sets the weight format itself."""
        if fmt.math not in (DType.BF16, DType.FP16) or fmt.weight_bits < 16:
            return f"w4a16 sets the weight format itself; use --dtype bf16 or fp16, not {fmt.name}"
        return None

    def weight_format(self, fmt: Format) -> Format:
        """The 4-bit format with the arithmetic of `fmt`."""
        return Format("w4a16", fmt.math, 4.0 + 20.0 / self.group, fmt.act_bits)

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Same product, quarter of the bytes."""
        if not is_weight(op):
            return (op,)
        return (replace(op, fmt=self.weight_format(op.fmt)),)  # type: ignore[type-var]


@POLICIES.register("bitnet")
class BitNet(Policy):
    """Weights of a model trained with three values, packed in `bits` bits, times 8-bit activations [1]_.

    ``bits / 8`` bytes per weight and one scale per matrix; products at the INT8 rate, activations quantised per token.
    Embedding and output matrix stay in 16 bit.

    References
    ----------
    .. [1] Ma et al., "The Era of 1-bit LLMs", arXiv:2402.17764; the W2A8 kernel of BitNet b1.58 2B4T, arXiv:2504.12285.
    """

    name: ClassVar[str] = "bitnet"
    family: ClassVar[str] = "weights"
    summary: ClassVar[str] = "ternary weights in 2 bits, 8-bit activations"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_FORMAT})
    citation: ClassVar[str] = "Ma et al. 2024, arXiv:2402.17764"
    not_modelled: ClassVar[str] = (
        "accuracy, which comes from training so; activations' quantising pass, fused with the norm"
    )
    always_shown: ClassVar[tuple[str, ...]] = ("bits",)

    bits: float = Field(2.0, ge=1.58, le=8.0, description="stored bits per weight; 1.67 where five share a byte")

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """It sets the weight format itself, for linear layers."""
        if fmt.math not in (DType.BF16, DType.FP16) or fmt.weight_bits < 16:
            return f"bitnet sets the weight format itself; use --dtype bf16 or fp16, not {fmt.name}"
        if model.is_moe:
            return "no published ternary kernel for fused experts"
        return None

    def weight_format(self, fmt: Format) -> Format:
        """8-bit arithmetic on 2-bit weights."""
        return Format("int8", DType.INT8, self.bits, 8.0)

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """An eighth of the bytes, 8-bit products."""
        if not is_weight(op) or not isinstance(op, Linear):
            return (op,)
        return (replace(op, fmt=self.weight_format(op.fmt), bytes_per_weight=self.bits / 8.0),)
