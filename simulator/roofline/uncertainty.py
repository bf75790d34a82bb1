"""From the interval of every op to the interval of a step: widths add within a family, cancel between."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from simulator.base.arrays import Array
from simulator.device.fits import Basis
from simulator.roofline.timing import OpTime

WITHIN_FAMILY = 0.3
"""Correlation of the log errors of two ops of one family on one device [-].

A library that is slow on one shape tends to be slow on its neighbours; whole-model steps judge it
(`python -m simulator.validate --kind e2e`).
"""


@dataclass(frozen=True, slots=True)
class Interval:
    """Half widths of the 90 % interval of a sum [s]."""

    below_s: Array
    above_s: Array
    basis: Basis


def combine(
    times: Iterable[OpTime], step_s: Array = 0.0, sigma: float = 0.0, density_s: Array = 0.0, density_sigma: float = 0.0
) -> Interval:
    """Interval of a step of `step_s` seconds that runs `times`.

    ``W^2 = sum over families of rho (sum w)^2 + (1 - rho) sum w^2 + (step_s d)^2`` for either side, with w
    the half width of one op, rho = `WITHIN_FAMILY`, independence between families, and d the log-space
    error `sigma` of the whole step: ``1 - exp(-1.645 sigma)`` below, ``exp(1.645 sigma) - 1`` above. `density_s`
    seconds whose density has a log-space error of its own add a term of the same form.
    """
    families: dict[str, list[Array]] = {}
    basis = Basis.CALIBRATED
    for t in times:
        below, above = t.total_s - t.lo_s, t.hi_s - t.total_s
        basis = basis.merge(t.basis)
        if t.family in families:
            f = families[t.family]
            families[t.family] = [f[0] + below, f[1] + below * below, f[2] + above, f[3] + above * above]
        else:
            families[t.family] = [below, below * below, above, above * above]
    rho = WITHIN_FAMILY
    low: Array = 0.0
    high: Array = 0.0
    for sum_low, square_low, sum_high, square_high in families.values():
        low = low + (rho * sum_low * sum_low + (1.0 - rho) * square_low)
        high = high + (rho * sum_high * sum_high + (1.0 - rho) * square_high)
    for seconds, error in ((step_s, sigma), (density_s, density_sigma)):
        if error:
            down, up = seconds * -math.expm1(-1.645 * error), seconds * math.expm1(1.645 * error)
            low, high = low + down * down, high + up * up
    return Interval(np.sqrt(low), np.sqrt(high), basis)
