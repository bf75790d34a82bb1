"""Weights with zeros, stored compressed: unstructured formats on tensor cores, V:N:M, 4-bit with sparsity."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from simulator.base.dtypes import DType, Format
from simulator.model.spec import ModelSpec
from simulator.ops.ops import Expand, Linear, Op
from simulator.policies.base import Aspect, Compatibility, Context, Policy, Swept, alias
from simulator.policies.common import ByDepth, only
from simulator.policies.grammar import POLICIES
from simulator.policies.weights import NM24, NM24_METADATA_BITS, is_weight

CSL_TILE = 128 * 64
"""Elements of a Tiled-CSL tile, 128 rows of 64 [-]."""
CSL_PADDING = 1.5
"""Expected padding of a tile's non-zeros to a multiple of four [-]."""
BITMAP_TILE = 64 * 64
"""Elements that share one offset of SpInfer's bitmap [-]."""


def tiled_csl_bytes(keep: float) -> float:
    """Bytes per dense weight of Tiled-CSL: 32-bit words {value, position}, one offset per tile [1]_.

    ``(4 (keep tile + 1.5) + 4) / tile``; below dense from 50 % sparsity on.

    References
    ----------
    .. [1] Flash-LLM, arXiv:2309.10285.
    """
    return (4.0 * (keep * CSL_TILE + CSL_PADDING) + 4.0) / CSL_TILE


def bitmap_bytes(keep: float, weight_bytes: float) -> float:
    """Bytes per dense weight of a bitmap format: the values, one bit each, an offset per 64 x 64 tile [1]_.

    References
    ----------
    .. [1] SpInfer, EuroSys 2025.
    """
    return weight_bytes * keep + 1.0 / 8.0 + 4.0 / BITMAP_TILE


def csr_bytes(keep: float, weight_bytes: float, k: float) -> float:
    """Bytes per dense weight of CSR: value and 32-bit column each, a 32-bit pointer per row of `k` elements."""
    return keep * (weight_bytes + 4.0) + 4.0 / k


def vector_bytes(keep: float, weight_bytes: float, v: int, k: float) -> float:
    """Bytes per dense weight of kept columns of `v` rows: the values, a 32-bit column for `v` of them, a pointer each.

    ``keep (b + 4 / v) + 4 / (v k)``, with rows of `k` elements.
    """
    return keep * (weight_bytes + 4.0 / v) + 4.0 / (v * k)


def residue_24(keep: float) -> float:
    """Non-zeros per weight that 2 of 4 cannot hold, zeros drawn independently [-].

    ``(P[3] + 2 P[4]) / 4`` of the binomial with four trials of probability `keep`.
    """
    three = 4.0 * keep**3 * (1.0 - keep)
    return (three + 2.0 * keep**4) / 4.0


@POLICIES.register("sparse_weights")
class SparseWeights(ByDepth):
    """Unstructured zeros, loaded compressed and multiplied densely (or, in CSR, as they are).

    ========== =========================================== ================================= ==================
    format     bytes per dense weight                      flop                              expansion
    ========== =========================================== ================================= ==================
    tiled_csl  4 keep + 10/8192 [1]_                       dense, tensor cores               elements, non-zeros
    bitmap     b keep + 1/8 + 4/4096 [2]_                  dense, tensor cores               elements, non-zeros
    csr        (b + 4) keep + 4/k [3]_                     keep, ordinary fp32 lanes         none
    vectors    (b + 4/v) keep + 4/(v k) [4]_               keep, tensor cores                none
    sparta     9/16 b, and CSR of what 2:4 cannot hold     half at 2:4, the rest as CSR      none
    ========== =========================================== ================================= ==================

    ``depth=0.3:0.5:0.7`` gives the share kept from the first to the last layer, linear in between; `keep` is its mean.

    References
    ----------
    .. [1] Xia et al., "Flash-LLM", arXiv:2309.10285.
    .. [2] Fan et al., "SpInfer", EuroSys 2025.
    .. [3] Gale et al., "Sparse GPU Kernels for Deep Learning", arXiv:2006.10901.
    .. [4] Castro et al., "Probing the Efficacy of Hardware-Aware Weight Pruning to Optimize the SpMM routine on Ampere
       GPUs" (CLASP), PACT 2022, doi:10.1145/3559009.3569691.
    """

    name: ClassVar[str] = "sparse_weights"
    family: ClassVar[str] = "weights"
    summary: ClassVar[str] = "unstructured sparse weights in a compressed format"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_FORMAT})
    citation: ClassVar[str] = "Xia et al. 2023, arXiv:2309.10285"
    not_modelled: ClassVar[str] = (
        "accuracy; uneven rows; activation reads of CSR through the cache; a bitmap's cheaper counting of places"
    )

    keep: float = Field(0.5, gt=0.0, le=1.0, description="share of weights that are not zero")
    format: Literal["tiled_csl", "bitmap", "csr", "vectors", "sparta"] = Field(
        "bitmap", description="how the non-zeros are stored"
    )
    v: int = Field(8, ge=2, le=8, description="rows of a column that are kept or dropped together: 2, 4 or 8 (vectors)")
    depth: str = Field("", max_length=200, description="shares kept from first to last layer, a:b:...")

    @field_validator("v")
    @classmethod
    def _published(cls, v: int) -> int:
        if v not in (2, 4, 8):
            raise ValueError("kernels exist for 2, 4 and 8")
        return v

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """Formats hold 8- and 16-bit values of ordinary linear layers."""
        if fmt.weight_bits < fmt.act_bits:
            return f"no sparse kernel for {fmt.name}; use a 16-bit or 8-bit dtype"
        if model.is_moe:
            return "no published unstructured kernel for fused experts"
        return None

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Stored and multiplied in the format."""
        if not is_weight(op) or not isinstance(op, Linear):
            return (op,)
        keep, b = self._keep(ctx), op.fmt.weight_bytes
        elements = op.n * op.k
        expand = Expand(elements=elements, nonzeros=elements * keep)
        if self.format == "tiled_csl":
            return (replace(op, bytes_per_weight=tiled_csl_bytes(keep), expand=expand),)
        if self.format == "bitmap":
            return (replace(op, bytes_per_weight=bitmap_bytes(keep, b), expand=expand),)
        lanes = replace(op.fmt, math=DType.FP32)
        if self.format == "csr":
            per = csr_bytes(keep, b, float(op.k))
            sputnik = only(op, "Sputnik/Sputnik")
            return (replace(op, fmt=lanes, bytes_per_weight=per, flop_keep=op.flop_keep * keep, kernel=sputnik),)
        if self.format == "vectors":
            per = vector_bytes(keep, b, self.v, float(op.k))
            kept, clasp = op.flop_keep * keep, only(op, f"CLASP/v={self.v}")
            return (replace(op, bytes_per_weight=per, flop_keep=kept, vector=float(self.v), kernel=clasp),)
        half = (8.0 * b + NM24_METADATA_BITS) / 2.0 / 8.0
        rest = residue_24(keep)
        return (
            replace(op, bytes_per_weight=half, flop_keep=op.flop_keep * 0.5, nm24=True, kernel=only(op, NM24)),
            replace(
                op,
                role=f"{op.role}.residue",
                fmt=lanes,
                bytes_per_weight=csr_bytes(rest, b, float(op.k)),
                flop_keep=op.flop_keep * rest,
            ),
        )


for _name, _summary, _citation, _defaults in (
    (
        "flash_llm",
        "unstructured weights in Tiled-CSL, loaded sparse and computed dense",
        "Xia et al. 2023, arXiv:2309.10285",
        {"format": "tiled_csl", "keep": 0.2},
    ),
    (
        "spinfer",
        "unstructured weights in a bitmap of 64-bit words",
        "Fan et al. 2025, EuroSys, doi:10.1145/3689031.3717481",
        {"keep": 0.4},
    ),
    (
        "sputnik",
        "unstructured weights in CSR on ordinary lanes",
        "Gale et al. 2020, arXiv:2006.10901",
        {"format": "csr", "keep": 0.2},
    ),
    (
        "clasp",
        "column vectors of weights kept or dropped whole, on tensor cores",
        "Castro et al. 2022, PACT, doi:10.1145/3559009.3569691",
        {"format": "vectors", "keep": 0.1},
    ),
    (
        "sparta",
        "a 2:4 part on sparse tensor cores and a CSR residue",
        "Zheng et al. 2022, OSDI (SparTA)",
        {"format": "sparta", "keep": 0.2},
    ),
    (
        "sparse_llama",
        "70 % sparse pretrained Llama in nm-vllm's bitmask kernels",
        "Agarwalla et al. 2024, arXiv:2405.03594",
        {"keep": 0.3},
    ),
    (
        "sparse_finetuning",
        "sparse fine-tuned weights in DeepSparse's bitmask",
        "Kurtic et al. 2023, arXiv:2310.06927",
        {"keep": 0.4},
    ),
    (
        "mixed_sparsity",
        "one-shot pruning, sensitive layers kept denser",
        "Shao et al. 2023, arXiv:2310.09499",
        {"depth": "0.6:0.4"},
    ),
    (
        "sparsegpt",
        "weights pruned one-shot by layer Hessians, in a bitmap",
        "Frantar and Alistarh 2023, arXiv:2301.00774",
        {},
    ),
    (
        "wanda",
        "weights pruned by magnitude times activation norm, in a bitmap",
        "Sun et al. 2023, arXiv:2306.11695",
        {},
    ),
    ("dsnot", "a pruned mask improved without training, in a bitmap", "Zhang et al. 2023, arXiv:2310.08915", {}),
    ("sparsellm", "globally pruned weights, in a bitmap", "Bai et al. 2024, arXiv:2402.17946", {"keep": 0.3}),
):
    POLICIES.register(_name)(alias(SparseWeights, _name, _summary, _citation, **_defaults))


@POLICIES.register("vnm")
class Vnm(Policy):
    """Blocks of `v` rows choose 4 of `m` columns, and 2:4 holds inside: N:M beyond one half on 2:4 units [1]_.

    Bytes per dense weight ``(2/m) (b + 1/4) + 4 / (v m)`` (uint8 columns per block); flop ``2/m`` of dense at the
    2:4 rate.

    References
    ----------
    .. [1] Castro et al., "VENOM", arXiv:2310.02065.
    """

    name: ClassVar[str] = "vnm"
    family: ClassVar[str] = "weights"
    summary: ClassVar[str] = "V:2:M weights on sparse tensor cores"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_FORMAT})
    citation: ClassVar[str] = "Castro et al. 2023, arXiv:2310.02065"
    not_modelled: ClassVar[str] = "accuracy"
    always_shown: ClassVar[tuple[str, ...]] = ("m",)

    v: int = Field(64, ge=1, le=1024, description="rows that share a choice of columns")
    m: int = Field(8, ge=4, le=256, description="columns of which 2 per row are kept")

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """As 2:4."""
        if fmt.weight_bits < fmt.act_bits:
            return f"no V:N:M kernel for {fmt.name}; use a 16-bit or 8-bit dtype"
        if model.is_moe:
            return "no published V:N:M kernel for fused experts"
        return None

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Values, index bits and columns; the 2:4 rate on 4/m of the columns."""
        if not is_weight(op) or not isinstance(op, Linear):
            return (op,)
        keep = 2.0 / self.m
        per = keep * (op.fmt.weight_bytes + NM24_METADATA_BITS / 8.0) + 4.0 / (self.v * self.m)
        return (
            replace(
                op,
                bytes_per_weight=per,
                flop_keep=op.flop_keep * keep,
                nm24=True,
                kernel=only(op, "V:N:M/Spatha"),
                vector=float(self.v),
            ),
        )


@POLICIES.register("sparse_marlin")
class SparseMarlin(Policy):
    """4-bit weights with 2:4 zeros: ``(4 + 2) / 2`` bits per dense weight and a 16-bit scale per group [1]_.

    References
    ----------
    .. [1] Frantar et al., "MARLIN", arXiv:2408.11743.
    """

    name: ClassVar[str] = "sparse_marlin"
    family: ClassVar[str] = "weights"
    summary: ClassVar[str] = "4-bit weights with 2:4 sparsity (Sparse-Marlin)"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_FORMAT})
    citation: ClassVar[str] = "Frantar et al. 2024, arXiv:2408.11743"
    not_modelled: ClassVar[str] = "accuracy"

    group: int = Field(128, ge=16, le=1024, description="weights that share a scale")

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """It sets the weight format itself."""
        if fmt.math not in (DType.BF16, DType.FP16) or fmt.weight_bits < 16:
            return f"it sets the weight format itself; use --dtype bf16 or fp16, not {fmt.name}"
        if model.is_moe:
            return "no published 2:4 kernel for fused experts"
        return None

    @property
    def _bits(self) -> float:
        return (4.0 + NM24_METADATA_BITS) / 2.0 + 16.0 / self.group

    def weight_format(self, fmt: Format) -> Format:
        """4-bit weight-only arithmetic."""
        return Format("w4a16", fmt.math, self._bits, fmt.act_bits)

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """3/16 of the fp16 bytes, half the flop at the 2:4 rate."""
        if not is_weight(op) or not isinstance(op, Linear):
            return (op,)
        fmt = self.weight_format(op.fmt)
        return (replace(op, fmt=fmt, flop_keep=op.flop_keep * 0.5, nm24=True),)


@POLICIES.register("gqsa")
class Gqsa(Policy):
    """4-bit weights in groups along a row, whole groups removed: block-sparse rows with an index per kept group [1]_.

    Bytes per dense weight ``keep (bits/8 + (2.5 + 2) / group)``: values, 16-bit scale and 4-bit zero, 16-bit index.

    References
    ----------
    .. [1] Zeng et al., "GQSA", arXiv:2412.17560.
    """

    name: ClassVar[str] = "gqsa"
    family: ClassVar[str] = "weights"
    summary: ClassVar[str] = "group quantised and group sparse weights"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_FORMAT})
    citation: ClassVar[str] = "Zeng et al. 2024, arXiv:2412.17560"
    not_modelled: ClassVar[str] = "accuracy; uneven rows, which its task-centric split hides"
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)
    swept: ClassVar[Swept | None] = ("keep", "share")

    keep: float = Field(0.5, gt=0.0, le=1.0, description="share of groups kept")
    group: int = Field(16, ge=8, le=256, description="weights per group")
    bits: Literal["2", "4", "8"] = Field("4", description="bits per weight")

    compatibility: ClassVar[Compatibility] = Compatibility()

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """It sets the weight format itself."""
        if fmt.math not in (DType.BF16, DType.FP16) or fmt.weight_bits < 16:
            return f"it sets the weight format itself; use --dtype bf16 or fp16, not {fmt.name}"
        if model.is_moe:
            return "no published kernel for fused experts"
        return None

    @property
    def _bytes(self) -> float:
        return self.keep * (int(self.bits) / 8.0 + (2.5 + 2.0) / self.group)

    def weight_format(self, fmt: Format) -> Format:
        """Weight-only arithmetic of 4-bit kernels."""
        return Format("w4a16", fmt.math, 8.0 * self._bytes, fmt.act_bits)

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Kept groups only, in bytes and flop."""
        if not is_weight(op) or not isinstance(op, Linear):
            return (op,)
        return (
            replace(
                op, fmt=self.weight_format(op.fmt), bytes_per_weight=self._bytes, flop_keep=op.flop_keep * self.keep
            ),
        )


@POLICIES.register("flightllm")
class FlightLlm(Policy):
    """n of every m weights kept, in a mean of `bits`, with their places, multiplied with 8-bit activations [1]_.

    Bytes per dense weight ``(n/m) (bits + log2 m) / 8``; flop ``n/m`` at the INT8 rate: its DSP chains take either
    density.

    References
    ----------
    .. [1] Zeng et al., "FlightLLM", arXiv:2401.03868.
    """

    name: ClassVar[str] = "flightllm"
    family: ClassVar[str] = "weights"
    summary: ClassVar[str] = "N:M weights in 3 to 8 bits on sparse DSP chains"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_FORMAT})
    citation: ClassVar[str] = "Zeng et al. 2024, arXiv:2401.03868"
    hardware: ClassVar[str] = "fpga"
    not_modelled: ClassVar[str] = (
        "accuracy; block-sparse attention; activations that never leave the chip; on the FPGA profiles (alveo-u280,"
        " vhk158) kernels are carried from GPUs"
    )
    always_shown: ClassVar[tuple[str, ...]] = ("n", "m", "bits")

    n: int = Field(8, ge=1, le=64, description="weights kept of m; assumed")
    m: Literal["2", "4", "8", "16", "32", "64"] = Field("16", description="weights per group")
    bits: float = Field(4.0, ge=2.0, le=8.0, description="mean of its 3, 4 and 8 bit weights; assumed")

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """It sets the weight format itself."""
        if self.n > int(self.m):
            return f"{self.n} of {self.m} weights cannot be kept; use n up to m"
        if fmt.weight_bits < 8:
            return f"it sets the weight format itself; use --dtype int8 or fp16, not {fmt.name}"
        if model.is_moe:
            return "no published kernel for fused experts"
        return None

    @property
    def _bits(self) -> float:
        m = int(self.m)
        return self.n / m * (self.bits + (m - 1).bit_length())

    def weight_format(self, fmt: Format) -> Format:
        """8-bit arithmetic on fewer bits."""
        return Format("int8", DType.INT8, self._bits, 8.0)

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Kept weights and their places."""
        if not is_weight(op) or not isinstance(op, Linear):
            return (op,)
        fmt, keep = self.weight_format(op.fmt), self.n / int(self.m)
        per = self._bits / 8.0
        return (replace(op, fmt=fmt, bytes_per_weight=per, flop_keep=op.flop_keep * keep),)
