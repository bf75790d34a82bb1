"""Which attention fit answers for a device, a format and a kernel library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from simulator.base.errors import InputError
from simulator.device.fits import ANY, Fit
from simulator.fitting.attention_rows import generation_of

PREFERRED = (
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
)
"""Library assumed when nobody names one: vLLM's default kernel of the device, then the others."""

LEGACY_MATH: Mapping[tuple[str, str], float] = {("fa2", "sm90"): 0.55, ("fa2", "sm100"): 0.27}
"""Ampere kernels on newer tensor cores: share of the efficiency they reach on Ampere [-].

FlashAttention-2 issues mma.sync: median 34 % of an H100's peak and 17 % of a B200's (data/README.md)
against 62 % of an A100's. Added after H100 rows were seen to miss; the B200 value is untested.
"""


def choose(fits: Sequence[Fit], device: str, scope: str, key: str, library: str) -> tuple[Fit, bool]:
    """Fit that answers for a row, and whether it stands in for another source or device.

    Own device before its scope before any; in each: the library named, its kernel generation,
    `PREFERRED`, the largest; then the same phase with another number format.
    """
    phase = key.split(".")[0]
    generation = generation_of(library)
    older = (generation, scope) in LEGACY_MATH and any(
        f.device == ANY and f.dtype == key and generation_of(f.library) == generation for f in fits
    )
    own_key = [f for f in fits if f.dtype == key]
    any_key = [f for f in fits if f.dtype.split(".")[0] == phase]
    for pool in (own_key, any_key):
        for place in (device, scope, ANY):
            here = [f for f in pool if f.device == place]
            if not here:
                continue
            named = [f for f in here if f.library == library]
            if named:
                return max(named, key=lambda f: f.n), place != device
            kin = [f for f in here if generation_of(f.library) == generation]
            if not kin and older and place != ANY:
                continue
            rank = {name: i for i, name in enumerate(PREFERRED)}
            best = min(kin or here, key=lambda f: (rank.get(f.library, 99), -f.n))
            if older and place == ANY:
                best = _on_newer_cores(best, LEGACY_MATH[generation, scope])
            return best, True
    raise InputError(f"no attention fit covers {key} on {device}; fit rows of that phase first")


def _on_newer_cores(fit: Fit, share: float) -> Fit:
    """`fit` of an older kernel generation where it draws `share` of the tensor rate it drew before."""
    coef = dict(fit.coefficients)
    coef["math_eff"] *= share
    return replace(fit, coefficients=coef, surface=None, residual=fit.residual.widened(0.15))
