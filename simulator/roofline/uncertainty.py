"""From the interval of every op to the interval of a step: widths add within a family, cancel between."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from simulator.base.arrays import Array, log, maximum, sqrt
from simulator.base.interval import Z90
from simulator.roofline.optime import OpTime

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


Widths = tuple[Array, Array | None]
"""Sum of half widths, and of their squares; None for a single one, whose square is the first's."""


@dataclass(frozen=True, slots=True)
class Errors:
    """Half widths of the 90 % intervals of several ops, added up within each family.

    Attributes
    ----------
    families : mapping of family to (below, above)
        Widths towards shorter and towards longer times [s], [s^2].
    rank : Array of int
        `Basis.rank` of the worst op at each point [-].
    """

    families: Mapping[str, tuple[Widths, Widths]]
    rank: Array = 0

    @classmethod
    def of(cls, times: Iterable[OpTime], *, by_role: bool = False) -> Errors:
        """Errors of `times`; `by_role` takes ops of one role as one kernel, whose errors add and do not cancel."""
        widths: dict[object, tuple[str, Array, Array]] = {}
        rank: Array = 0
        for i, t in enumerate(times):
            rank = maximum(rank, t.rank)
            low, high = t.factors
            key, below, above = t.op.role if by_role else i, t.total_s * (1.0 - low), t.total_s * (high - 1.0)
            if key in widths:
                family, first, second = widths[key]
                widths[key] = family, first + below, second + above
            else:
                widths[key] = t.family, below, above
        families: dict[str, tuple[Widths, Widths]] = {}
        for family, below, above in widths.values():
            own = (below, None), (above, None)
            families[family] = _joined(families[family], own) if family in families else own
        return cls(families, rank)

    def __add__(self, other: Errors) -> Errors:
        families = dict(self.families)
        for family, own in other.families.items():
            families[family] = _joined(families[family], own) if family in families else own
        return Errors(families, maximum(self.rank, other.rank))

    def of_family(self, family: str, step_s: Array) -> Array:
        """Log error of what of `step_s` seconds is of one family [-]: ``ln(hi / lo) / (2 z)`` of its 90 % interval."""
        below, above = (sqrt(_square(widths)) / step_s for widths in self.families[family])
        return log((1.0 + above) / maximum(1.0 - below, 1e-3)) / (2.0 * Z90)

    def each(self, f: Callable[[Array], Array]) -> Errors:
        """`f`, which takes some of the points, of every width, sum of squares and rank."""

        def both(widths: Widths) -> Widths:
            return f(widths[0]), None if widths[1] is None else f(widths[1])

        return Errors({family: (both(lo), both(hi)) for family, (lo, hi) in self.families.items()}, f(self.rank))

    def scaled(self, factor: Array) -> Errors:
        """The errors of ops that take `factor` times as long."""

        def both(widths: Widths) -> Widths:
            return widths[0] * factor, None if widths[1] is None else widths[1] * factor * factor

        return Errors({family: (both(lo), both(hi)) for family, (lo, hi) in self.families.items()}, self.rank)

    def interval(self, step_s: Array, sigma: float, density_s: Array = 0.0) -> Interval:
        """Interval of a step of `step_s` seconds that runs the ops.

        ``W^2 = sum over families of rho (sum w)^2 + (1 - rho) sum w^2 + (step_s d)^2`` for either side, with w
        the half width of one op, rho = `WITHIN_FAMILY`, independence between families, and d the log-space
        error `sigma` of the whole step: ``1 - exp(-1.645 sigma)`` below, ``exp(1.645 sigma) - 1`` above. `density_s`,
        one standard deviation by what is read, adds ``1.645 density_s`` to either side.
        """
        low: Array = 0.0
        high: Array = 0.0
        for below, above in self.families.values():
            low, high = low + _square(below), high + _square(above)
        if sigma:
            square = step_s * step_s
            low = low + square * math.expm1(-Z90 * sigma) ** 2
            high = high + square * math.expm1(Z90 * sigma) ** 2
        apart = Z90 * density_s
        low, high = low + apart * apart, high + apart * apart
        return Interval(sqrt(low), sqrt(high))


def _joined(a: tuple[Widths, Widths], b: tuple[Widths, Widths]) -> tuple[Widths, Widths]:
    (p, p2), (q, q2) = a
    (r, r2), (s, s2) = b
    return (
        (p + r, (p * p if p2 is None else p2) + (r * r if r2 is None else r2)),
        (q + s, (q * q if q2 is None else q2) + (s * s if s2 is None else s2)),
    )


def _square(widths: Widths) -> Array:
    total, squares = widths
    if squares is None:
        return total * total
    return WITHIN_FAMILY * total * total + (1.0 - WITHIN_FAMILY) * squares
