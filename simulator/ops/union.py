"""How many neurons a step touches when its rows each choose their own.

The published router tables of Polar Sparsity [1]_ show that tokens share far more neurons than
independent draws would: OPT-66B touches 49 % at 64 rows, where ``1 - (1 - d)^B`` says 99 %.

References
----------
.. [1] Polar Sparsity, arXiv:2505.14884, released router configurations (k for 99 % recall).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from simulator.base.arrays import Array, exp, expm1, interp, log, log1p, maximum, real
from simulator.base.errors import InputError

ROWS = np.array([1, 2, 4, 8, 16, 32, 48, 64, 128, 256], float)

PUBLISHED = {
    "opt-6.7b": np.array([0.0955, 0.1526, 0.2063, 0.2896, 0.3977, 0.5171, 0.5823, 0.6230, 0.7073, 0.7725]),
    "opt-30b": np.array([0.0751, 0.0979, 0.1407, 0.2087, 0.3037, 0.4185, 0.4863, 0.5300, 0.6137, 0.6758]),
    "opt-66b": np.array([0.0751, 0.0795, 0.1159, 0.1751, 0.2627, 0.3735, 0.4424, 0.4899, 0.5817, 0.6410]),
}
"""Mean union density over the layers against `ROWS` [-]."""


_FULL = 1.0 - 1e-9
"""Density above which a measured union counts as everything: its logarithm must stay finite."""


def _touch(density: np.ndarray) -> np.ndarray:
    return -np.log1p(-np.minimum(density, _FULL))


def effective_rows(density: np.ndarray) -> np.ndarray:
    """Independent rows that would touch as much: ``ln(1 - d(B)) / ln(1 - d(1))`` [-]."""
    return _touch(density) / _touch(density[..., :1])


@dataclass(frozen=True, eq=False)
class UnionTable:
    """Measured union densities of one layer at several shares kept.

    Attributes
    ----------
    rows : ndarray, shape (R,)
        Tokens of different sequences, ascending from 1 [-].
    density : ndarray, shape (K, R)
        Share of units touched [-]; rows of the table ascend in their first column d(1).
    """

    rows: np.ndarray
    density: np.ndarray

    def __post_init__(self) -> None:
        first = self.density[:, 0]
        if len(self.rows) < 2 or self.rows[0] != 1.0 or np.any(np.diff(self.rows) <= 0.0):
            raise InputError("a union curve needs two or more rows that ascend from 1")
        if np.any(np.diff(first) <= 0.0) or np.any(first <= 0.0) or np.any(self.density > 1.0):
            raise InputError("union densities must be in (0, 1] and ascend with the share kept")

    def effective_rows(self, keep: Array, rows: Array) -> np.ndarray:
        """Independent rows that would touch as much as `rows` of the text do [-].

        ``-ln(1 - d(B))`` is linear in ``-ln(1 - keep)`` between measured shares, so it grows with `keep` and
        meets every measured point; below the first and above the last share the ratio r(B) stays.
        """
        z = np.asarray(_touch(np.asarray(keep, float)))
        nodes = _touch(self.density[:, 0])
        ratios = np.array([_Growth.of(self.rows, r).at(rows) for r in effective_rows(self.density)])
        z, ratios = np.broadcast_arrays(z[None], ratios)
        z = z[0]
        if len(nodes) == 1:
            return ratios[0]
        low = np.clip(np.searchsorted(nodes, z, side="right") - 1, 0, len(nodes) - 2)
        pick = np.stack([low, low + 1])
        r = np.take_along_axis(ratios, pick, axis=0)
        a, b = nodes[pick[0]], nodes[pick[1]]
        between = (r[0] * a * (b - z) + r[1] * b * (z - a)) / ((b - a) * z)
        return np.where(z <= nodes[0], r[0], np.where(z >= nodes[-1], r[1], between))


def union_density(keep: Array, rows: Array, table: UnionTable) -> Array:
    """Share of units that at least one of `rows` tokens keeps [-].

    ``d(B) = 1 - (1 - keep)^r(B)`` with the effective rows r(B) of `table`, interpolated in log B and continued with
    their last slope. d(1) = keep and d(B) = 1 at keep = 1 hold exactly.

    Parameters
    ----------
    keep : Array
        Share kept per token [-].
    rows : Array
        Tokens of the step [-].
    table : UnionTable
        Measured densities: a trace's, or those of `simulator.ops.union_law`.
    """
    return -expm1(real(table.effective_rows(keep, rows)) * log1p(-real(keep)))


@dataclass(frozen=True, slots=True)
class _Growth:
    """Effective rows against rows: linear in log-log, continued with the slope of the last three points."""

    log_rows: tuple[float, ...]
    log_effective: tuple[float, ...]
    slope: float

    @classmethod
    def of(cls, rows: np.ndarray, effective: np.ndarray) -> _Growth:
        b, r = (tuple(np.log(x).tolist()) for x in (rows, effective))
        first = max(len(b) - 3, 0)
        return cls(b, r, (r[-1] - r[first]) / (b[-1] - b[first]))

    def at(self, rows: Array) -> Array:
        """Effective rows at `rows` [-]."""
        b = log(maximum(rows, 1.0))
        beyond = maximum(b - self.log_rows[-1], 0.0)
        return exp(interp(b, self.log_rows, self.log_effective) + beyond * self.slope)


@cache
def published(model: str = "", without: str = "") -> UnionTable:
    """The model's own router table, or one whose effective rows are the geometric mean of all but `without`."""
    found = [PUBLISHED[model]] if model in PUBLISHED else [t for name, t in PUBLISHED.items() if name != without]
    first = np.exp(np.mean([np.log(t[0]) for t in found]))
    effective = np.exp(np.mean([np.log(effective_rows(t)) for t in found], axis=0))
    return UnionTable(ROWS, -np.expm1(effective * np.log1p(-first))[None])


def independent_density(keep: Array, rows: Array) -> Array:
    """Union density if every token drew its neurons independently: ``1 - (1 - keep)^B`` [-]."""
    return -expm1(real(rows) * log1p(-real(keep)))


def beta_density(keep: float, spread: float, rows: Array) -> np.ndarray:
    """Union density of neurons whose frequencies follow a Beta law of mean `keep` [-].

    ``d(B) = 1 - Beta(a, b + B) / Beta(a, b)`` with ``a = keep c`` and ``b = (1 - keep) c``, so d(1) = keep;
    a large `spread` parameter c is the independent law, a small one lets the same neurons fire always.
    """
    from scipy.special import betaln

    a, b = keep * spread, (1.0 - keep) * spread
    return -np.expm1(betaln(a, b + np.asarray(rows, float)) - betaln(a, b))


def fit_beta(rows: np.ndarray, density: np.ndarray) -> float:
    """The c of `beta_density` with the smallest worst relative error on a measured curve [-]."""
    from scipy.optimize import minimize_scalar

    def worst(log_c: float) -> float:
        law = beta_density(float(density[0]), float(np.exp(log_c)), rows)
        return float(np.max(np.abs(law / density - 1.0)))

    best: Any = minimize_scalar(worst, bounds=(-7.0, 12.0), method="bounded")
    return float(np.exp(best.x))


def frequency_density(frequency: np.ndarray, rows: Array) -> np.ndarray:
    """Union density of independent rows over neurons that fire with probability p_j [-].

    ``d(B) = mean_j 1 - (1 - p_j)^B``.

    Parameters
    ----------
    frequency : ndarray, shape (neurons,)
        Share of tokens that use each neuron [-].
    rows : Array
        Tokens of the step [-].
    """
    b = np.asarray(rows, float)[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        alone = np.exp(b * np.log1p(-np.asarray(frequency, float)))
    return 1.0 - np.nan_to_num(alone, nan=1.0).mean(axis=-1)
