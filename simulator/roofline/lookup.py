"""Which fit answers for an op on a device: the one rule, for predictions and for judging them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from simulator.base.dtypes import FORMATS, DType
from simulator.base.errors import UnsupportedError
from simulator.base.recurrence import RULES
from simulator.device.fits import ANY, LOCAL, VENDOR, Basis, Fit
from simulator.device.releases import answering, apart
from simulator.device.types import Device
from simulator.ops.expert_exchange import ExpertExchange
from simulator.ops.linear_attention import LinearAttention
from simulator.ops.module import AttentionModule
from simulator.ops.ops import Attention, Collective, Elementwise, Linear, Moe
from simulator.roofline.module import OWN_TERMS

NEAR_DTYPES: Mapping[str, tuple[str, ...]] = {
    "fp8": ("fp8_static", "fp8_block", "int8"),
    "fp8_static": ("fp8", "int8", "fp8_block"),
    "fp8_block": ("fp8", "fp8_static", "int8"),
    "int8": ("fp8_static", "fp8"),
    "nvfp4": ("mxfp4",),
    "mxfp4": ("nvfp4",),
    "w4a16": ("w8a16",),
    "w8a16": ("w4a16",),
    "tf32": ("fp32",),
    "fp32": ("tf32",),
    "prefill.bf16": ("prefill.fp8",),
    "prefill.fp8": ("prefill.bf16", "prefill.fp8.fp8"),
    "prefill.fp8.fp8": ("prefill.fp8", "prefill.bf16"),
    "decode.bf16": ("decode.fp8",),
    "decode.fp8": ("decode.bf16",),
    "decode-mla.bf16": ("decode-mla.fp8",),
    "decode-mla.fp8": ("decode-mla.bf16",),
    "decode.fp8.fp8": ("decode.fp8", "decode.bf16"),
    **{
        f"{part}.{phase}.{kind}": (
            f"{part}.{phase}.{other}",
            *((f"{part}.decode.{kind}",) if phase == "verify" else ()),
        )
        for part in ("scan", "conv")
        for kind, other in ((rule, "kda" if rule == "gdn" else "gdn") for rule in RULES)
        for phase in ("prefill", "decode", "verify")
    },
}
"""Formats whose kernels behave alike, nearest first; used when a device has no fit of its own."""


def _near(key: str) -> tuple[str, ...]:
    """Formats near `key`; those of a module's phase are those of attention."""
    kind, _, rest = key.partition(".")
    return NEAR_DTYPES.get(key) or tuple(f"{kind}.{near}" for near in NEAR_DTYPES.get(rest, ()))


TWINS: Mapping[str, str] = {"bf16": "fp16", "fp16": "bf16"}
"""Formats that run the same kernels at the same rate: a fit of one answers for the other."""

PREFERRED: Mapping[str, tuple[str, ...]] = {
    "attention": (
        "vllm-fa3",
        "vllm-trtllm-gen",
        "vllm-fa2",
        "vllm-flashinfer",
        "vllm",
        "fa3",
        "sglang-fa3",
        "sglang-trtllm-gen",
        "sglang-flashinfer",
        "sglang-fa2",
        "trtllm",
    ),
    "moe": ("trtllm_cutlass", "vllm_trtllmgen", "vllm_cutlass", "vllm_triton", "sglang_triton"),
    "collective": ("vllm_graph", "sglang_graph", "nccl", "nccl_tests", "trtllm", "nccl_torch"),
    "elementwise": ("vllm", "sarathi", "torch"),
}
"""Library assumed where nobody names one, best first; families that pool their libraries have a ``vendor`` fit."""

LEGACY_MATH: Mapping[tuple[str, str], float] = {("fa2", "sm90"): 0.55, ("fa2", "sm100"): 0.27}
"""Ampere kernels on newer tensor cores: share of the efficiency they reach on Ampere [-].

FlashAttention-2 issues mma.sync: median 34 % of an H100's peak and 17 % of a B200's (data/README.md)
against 62 % of an A100's. Added after H100 rows were seen to miss; the B200 value is untested.
"""


@dataclass(frozen=True, slots=True)
class Found:
    """The fit that answers, how good an answer it is, and whether it was made for another kernel or device."""

    fit: Fit
    basis: Basis
    stands_in: bool


def key_of(
    op: Linear | Attention | AttentionModule | LinearAttention | Moe | Collective | Elementwise | ExpertExchange,
) -> tuple[str, str]:
    """(family, format or operation) under which the kernels of `op` are fitted."""
    if isinstance(op, Linear):
        return "gemm", op.fmt.name
    if isinstance(op, Attention):
        return "attention", attention_key("decode-mla" if op.latent else op.phase, op.math, op.kv_element_bytes)
    if isinstance(op, AttentionModule):
        return "module", module_key(op)
    if isinstance(op, LinearAttention):
        return "linear_attention", linear_key(op)
    if isinstance(op, ExpertExchange):
        return "alltoall", exchange_key(op)
    if isinstance(op, Moe):
        return "moe", op.fmt.name
    # Of a streaming kernel only the bytes count, whatever their format.
    return ("collective", op.op) if isinstance(op, Collective) else ("elementwise", "bf16")


def kernel_key(
    op: Linear | Attention | AttentionModule | LinearAttention | Moe | Collective | Elementwise | ExpertExchange,
) -> str:
    """Key by which an engine names its kernel for `op`: that of the fit, and what tells two kernels of it apart.

    Experts stored in MXFP4 and widened on the way run other kernels (``w4a16.mx``) than integers with scales do.
    """
    key = key_of(op)[1]
    return f"{key}.mx" if isinstance(op, Moe) and key == "w4a16" and op.fmt.pads == FORMATS["mxfp4"].pads else key


def exchange_key(op: ExpertExchange) -> str:
    """Key of exchanges between experts' ranks: a copy per rank or per expert, direction, ranks, bits on the link."""
    return f"{'expert' if op.per_expert else 'rank'}.{op.op}.{op.n_ranks}.{8.0 * op.element_bytes:.0f}"


def linear_key(op: LinearAttention) -> str:
    """Key of linear attention: recurrence or convolution, phase, rule of the state."""
    return f"{op.kernel_part}.{op.phase}.{op.kind}"


def module_key(op: AttentionModule) -> str:
    """Key of module fits: module (or kernel of one), phase, KV format, and that of the products where it is fp8.

    A layer that takes another's choice (``dsa-reuse``) runs other kernels than one that makes it.
    """
    kind = op.kind if op.indexes else f"{op.kind}-reuse"
    return f"{kind}.{attention_key(op.phase, op.math, op.kv_element_bytes)}"


def attention_key(phase: str, math: DType, kv_element_bytes: float) -> str:
    """Key of attention fits: phase, format of the KV cache, and of the products where they are fp8."""
    cache = "fp8" if kv_element_bytes < 2.0 else "bf16"
    return f"{phase}.{cache}.fp8" if math is DType.FP8 else f"{phase}.{cache}"


def generation_of(library: str) -> str:
    """Kernel of a library, whoever ships it: ``trtllm-gen`` of ``vllm-trtllm-gen``, ``graph`` of ``vllm_old_graph``.

    A module belongs to its engine, whatever the release: ``vllm:FLASHMLA`` of ``vllm-0.25.0:FLASHMLA``.
    """
    if library == "sarathi":
        # Sarathi-Serve is a fork of vLLM, whose norms and activations it runs.
        return "vllm"
    engine, colon, kernel = library.partition(":")
    if colon:
        return f"{engine.partition('-')[0]}:{kernel}"
    return re.sub(r"^(vllm|sglang|trtllm|aiter)[-_](?!gen$)", "", library).rpartition("_")[2]


def same_kernel(fitted: str, library: str) -> bool:
    """Whether two libraries call one kernel; rows of ``vllm`` name none, and ran what it picks on their device."""
    default = fitted == "vllm" and library.startswith("vllm-")
    return default or generation_of(fitted) == generation_of(library)


@lru_cache(maxsize=8192)
def lookup(device: Device, family: str, key: str, library: str | None = None) -> Found:
    """The fit that answers for `key` of `family` on `device`, where `library` (None: whichever) does the work.

    Best first: the same kernel before another; the same format (or its twin) before a near one; the device itself
    before its `Device.scope`, its architecture and all devices; the user's own fits; then the library named, a `LOCAL`
    fit, the kernel another framework ships, ``vendor``, `PREFERRED`, most rows. The same kernel is the library named,
    one of its generation, ``vendor`` (a pool of a place's libraries) and `LOCAL`. Libraries between machines
    (``..._2nodes``) answer for themselves only. The order is the measured one, see docs/validation.md. Of fits that
    differ by their release alone the newest not after the one asked for stands, the newest where none is
    (`simulator.device.releases`).

    CALIBRATED is the device's own fit of the format and of the library named (or ``vendor``, `LOCAL`, or any where
    none is named); DATASHEET where neither the device nor its like was measured; EXTRAPOLATED what is between.

    Raises
    ------
    UnsupportedError
        No fit of the family has this format or a near one.
    """
    measured, span = device.measured, _span(library)
    formats = (key, TWINS.get(key, key)), *((n,) for n in _near(key))
    near = {name: i for i, names in reversed(list(enumerate(formats))) for name in names}
    places = {ANY: 4, device.arch: 3, device.scope: 2, device.name: 1}
    preferred = {name: i for i, name in enumerate(PREFERRED.get(family, ()))}
    library, release = apart(library) if library else (library, "")
    generation = generation_of(library) if library else ""

    def order(at: tuple[Fit, int]) -> tuple[float, ...]:
        fit, place = at
        name = apart(fit.library)[0]
        named, kin = name == library, library is not None and same_kernel(name, library)
        local, vendor = fit.library == LOCAL, fit.library == VENDOR
        other = library is not None and not (named or kin or local or vendor)
        rank = preferred.get(name, len(preferred))
        placed = (other, near[fit.dtype], place, not fit.by_user)
        return *placed, not named, not local, not kin, not vendor, rank, fit.dtype != key, -fit.n

    def usable(fits: Iterable[tuple[Fit, int]]) -> list[tuple[Fit, int]]:
        return answering([(f, place) for f, place in fits if f.dtype in near and _span(f.library) == span], release)

    own = [(f, 1) for f in measured.own(family)]
    found, known = usable(own), {f.dtype for f, _ in own}
    # The device's own fit of the same kernel and format comes before all pooled ones: these need not be read.
    if not found or min(map(order, found))[:2] != (False, 0):
        pooled = [(f, places[f.device]) for f in measured.pooled(family) if f.device in places]
        found, known = found + usable(pooled), known | {f.dtype for f, _ in pooled}
    if not found:
        raise UnsupportedError(
            f"no {family} fit for {key} on {device.name} or its like; "
            f"fitted: {', '.join(sorted(known)) or 'none'}; "
            "measure it with `python -m sparse_kernels.calibrate`"
        )
    fit, place = min(found, key=order)
    other = order((fit, place))[0]
    alike = library is None or apart(fit.library)[0] in (library, LOCAL, VENDOR)
    exact = place == 1 and near[fit.dtype] == 0 and alike
    share = LEGACY_MATH.get((generation, device.scope), 1.0) if place == places[ANY] and family == "attention" else 1.0
    if share != 1.0:
        fit = _on_newer_cores(fit, share)
    if family in ANOTHER_SIGMA and other:
        own = OWN_TERMS if family == "module" else ()
        shared = {name: value for name, value in fit.coefficients.items() if name not in own}
        fit = replace(fit, coefficients=shared, residual=fit.residual.widened(ANOTHER_SIGMA[family]))
    if near[fit.dtype]:
        other_rule = family == "linear_attention" and key.startswith("scan.")
        fit = replace(fit, residual=fit.residual.widened(RULE_SIGMA if other_rule else NEAR_SIGMA))
    if release and fit.releases and release not in fit.releases:
        fit = replace(fit, residual=fit.residual.widened(BETWEEN_RELEASE[family]))
    if exact:
        return Found(fit, Basis.CALIBRATED, stands_in=False)
    alone = min(at for _, at in found) == places[ANY]
    return Found(fit, Basis.DATASHEET if alone else Basis.EXTRAPOLATED, stands_in=True)


ANOTHER_SIGMA: Mapping[str, float] = {"module": 0.45, "linear_attention": 0.3, "alltoall": 0.3}
"""Log standard deviation added to a fit of another engine's kernels, without the terms of that engine, by family [-].

Median miss of a module by another engine's fit is 25 %, see docs/calibration_sparse_attention.md; kernels of the other
families differ less, and their `Residual.between_source` says by how much.
"""
BETWEEN_RELEASE: Mapping[str, float] = {"gemm": 0.18, "attention": 0.10, "moe": 0.10}
"""Log standard deviation of a kernel about the release before it, by family, added for a release not measured [-].

90 % of ``abs(ln ratio)`` over 1.645 of the same shapes in consecutive releases (17,609 shapes): GEMM 0.18, MoE 0.10;
attention 0.04 on NVIDIA's devices and 1 on Intel's B60, where it changed with every release.
"""
NEAR_SIGMA = 0.10
"""Log standard deviation added to a fit that stands in for another number format [-]."""
RULE_SIGMA = 0.6
"""Log standard deviation added to a recurrence's fit that stands in for another rule's [-]: kernels of the gated delta
rule and of KDA answered by each other's fits miss by a median of 25 % in decode and 39 % in prefill."""


def _on_newer_cores(fit: Fit, share: float) -> Fit:
    """`fit` of an older kernel generation where it draws `share` of the tensor rate it drew before."""
    coef = dict(fit.coefficients, math_eff=fit.coefficients["math_eff"] * share)
    return replace(fit, coefficients=coef, surface=None, residual=fit.residual.widened(0.15))


def _span(library: str | None) -> str:
    """Machines that a communication library works between; "" for one."""
    return library.rpartition("_")[2] if library and library.endswith("nodes") else ""
