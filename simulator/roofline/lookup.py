"""Which fit answers for an op on a device: the one rule, for predictions and for judging them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from simulator.base.errors import UnsupportedError
from simulator.device.fits import ANY, LOCAL, VENDOR, Basis, Fit
from simulator.device.types import Device

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
}
"""Formats whose kernels behave alike, nearest first; used when a device has no fit of its own."""


TWINS: Mapping[str, str] = {"bf16": "fp16", "fp16": "bf16"}
"""Formats that run the same kernels at the same rate: a fit of one answers for the other."""


@lru_cache(maxsize=4096)
def lookup(device: Device, family: str, dtype: str, library: str | None = None) -> tuple[Fit, Basis]:
    """The fit that answers for `device`, and how good an answer it is.

    In order: the device's own fit of this dtype (or its twin) and library (None: the `LOCAL` fit, else
    ``vendor``, else its largest), or its `LOCAL` fit -> CALIBRATED; its fit of another library or a near dtype ->
    EXTRAPOLATED; the pooled fit of its `Device.scope`, then architecture, -> EXTRAPOLATED; the family's
    pooled fit -> DATASHEET.
    """
    own = device.measured.own(family)
    same = [f for f in own if f.dtype == dtype] or [f for f in own if f.dtype == TWINS.get(dtype)]
    exact = [f for f in same if library is None or f.library == library]
    exact = exact or [f for f in same if f.library == LOCAL]
    if exact:
        return _largest(exact), Basis.CALIBRATED
    if same:
        return _wider(_largest(same)), Basis.EXTRAPOLATED
    near = _near(own, dtype)
    if near is not None:
        return _wider(near), Basis.EXTRAPOLATED
    pooled = device.measured.pooled(family)
    scopes = (device.scope, device.arch)
    for scope, basis in (*((s, Basis.EXTRAPOLATED) for s in scopes), (ANY, Basis.DATASHEET)):
        here = [f for f in pooled if f.device == scope]
        best = [f for f in here if f.dtype in (dtype, TWINS.get(dtype))]
        if best:
            named = [f for f in best if f.library == library]
            return _largest(named or best), basis
        near = _near(here, dtype)
        if near is not None:
            return _wider(near), basis
    known = sorted({f.dtype for f in own} | {f.dtype for f in pooled})
    raise UnsupportedError(
        f"no {family} fit for {dtype} on {device.name} or its like; "
        f"fitted: {', '.join(known) or 'none'}; "
        "measure it with `python -m sparse_kernels.calibrate`"
    )


def _largest(fits: Sequence[Fit]) -> Fit:
    return max(fits, key=lambda f: (f.library == LOCAL, f.library == VENDOR, f.n))


def _near(fits: Sequence[Fit], dtype: str) -> Fit | None:
    for other in NEAR_DTYPES.get(dtype, ()):
        hits = [f for f in fits if f.dtype == other]
        if hits:
            return _largest(hits)
    return None


def _wider(fit: Fit) -> Fit:
    """`fit` standing in for another library or dtype: two sources' distance, at least 10 %."""
    extra = max(fit.residual.between_source, 0.10)
    return replace(fit, residual=fit.residual.widened(extra))
