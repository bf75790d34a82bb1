"""From the interval of every op to the interval of a step: widths add within a family, cancel between."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from simulator.arrays import Array
from simulator.calibration import Basis
from simulator.roofline.timing import OpTime

WITHIN_FAMILY = 0.6
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


def combine(times: Iterable[OpTime]) -> Interval:
    """Interval of the sum of `times`.

    ``W^2 = sum over families of rho (sum w)^2 + (1 - rho) sum w^2`` for either side, with w the half
    width of one op, rho = `WITHIN_FAMILY` and independence between families.
    """
    families: dict[str, list[Array]] = {}
    basis = Basis.CALIBRATED
    for t in times:
        below, above = t.total_s - t.lo_s, t.hi_s - t.total_s
        basis = basis.merge(t.basis)
        if t.family in families:
            f = families[t.family]
            families[t.family] = [
                f[0] + below,
                f[1] + below * below,
                f[2] + above,
                f[3] + above * above,
            ]
        else:
            families[t.family] = [below, below * below, above, above * above]
    rho = WITHIN_FAMILY
    low: Array = 0.0
    high: Array = 0.0
    for sum_low, square_low, sum_high, square_high in sorted(
        families.values(), key=lambda f: np.size(f[0])
    ):
        low = low + (rho * sum_low * sum_low + (1.0 - rho) * square_low)
        high = high + (rho * sum_high * sum_high + (1.0 - rho) * square_high)
    return Interval(np.sqrt(low), np.sqrt(high), basis)
