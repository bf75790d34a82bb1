"""How many neurons a step touches when its rows each choose their own.

The published router tables of Polar Sparsity [1]_ show that tokens share far more neurons than
independent draws would: OPT-66B touches 49 % at 64 rows, where ``1 - (1 - d)^B`` says 99 %.

References
----------
.. [1] Polar Sparsity, arXiv:2505.14884, released router configurations (k for 99 % recall).
"""

from __future__ import annotations

import numpy as np

from simulator.arrays import Array

ROWS = np.array([1, 2, 4, 8, 16, 32, 48, 64, 128, 256], float)

PUBLISHED = {
    "opt-6.7b": np.array(
        [0.0955, 0.1526, 0.2063, 0.2896, 0.3977, 0.5171, 0.5823, 0.6230, 0.7073, 0.7725]
    ),
    "opt-30b": np.array(
        [0.0751, 0.0979, 0.1407, 0.2087, 0.3037, 0.4185, 0.4863, 0.5300, 0.6137, 0.6758]
    ),
    "opt-66b": np.array(
        [0.0751, 0.0795, 0.1159, 0.1751, 0.2627, 0.3735, 0.4424, 0.4899, 0.5817, 0.6410]
    ),
}
"""Mean union density over the layers against `ROWS` [-]."""


def effective_rows(density: np.ndarray) -> np.ndarray:
    """Independent rows that would touch as much: ``ln(1 - d(B)) / ln(1 - d(1))`` [-]."""
    return np.log1p(-density) / np.log1p(-density[..., :1])


_POOLED = np.exp(np.mean([np.log(effective_rows(t)) for t in PUBLISHED.values()], axis=0))


def union_density(keep: Array, rows: Array, model: str | None = None) -> np.ndarray:
    """Share of neurons that at least one of `rows` tokens keeps [-].

    ``d(B) = 1 - (1 - keep)^r(B)`` with the effective rows r(B) of the published tables, interpolated
    in log B and continued with their last slope; a model with its own table uses that one, others the
    geometric mean of the three. d(1) = keep and d(B) = 1 at keep = 1 hold exactly.

    Parameters
    ----------
    keep : Array
        Share kept per token [-].
    rows : Array
        Tokens of the step [-].
    model : str, optional
        Model name; one with a published table uses it.
    """
    table = effective_rows(PUBLISHED[model]) if model in PUBLISHED else _POOLED
    b = np.maximum(np.asarray(rows, float), 1.0)
    log_b, log_r = np.log(ROWS), np.log(table)
    slope = (log_r[-1] - log_r[-3]) / (log_b[-1] - log_b[-3])
    inside = np.interp(np.log(b), log_b, log_r)
    beyond = np.maximum(np.log(b) - log_b[-1], 0.0) * slope
    effective = np.exp(inside + beyond)
    with np.errstate(divide="ignore"):
        return -np.expm1(effective * np.log1p(-np.asarray(keep, float)))


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
