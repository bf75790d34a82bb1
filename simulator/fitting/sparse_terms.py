"""Families of sparse rows that no single op stands for, in the terms of `simulator.roofline.speedup`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simulator.fitting import sparse_ops
from simulator.roofline import speedup
from simulator.roofline.speedup import Rates, Side, Term, norm4

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]


def log_slopes(side: Side, coef: Mapping[str, float], size: int) -> tuple[Array, Array]:
    """Time of `size` rows [s] and its slope d ln t / d ln c, shapes (rows,) and (rows, coefficients)."""
    total: Array = np.zeros(size)
    slopes: list[Array] = []
    for stage in side:
        parts = [[np.full(size, coef[t.name] * t.seconds) for t in resource] for resource in stage]
        sums = [np.sum(part, axis=0) for part in parts]
        time = sums[0] if len(sums) == 1 else norm4(sums)
        total = total + time
        for part, own in zip(parts, sums, strict=True):
            weight = (own / np.maximum(time, 1e-30)) ** 3
            slopes += [weight * p for p in part]
    return total, np.stack(slopes, axis=1) / total[:, None]


def _whole_prefill(rows: pd.DataFrame, r: Rates) -> tuple[Side, Side]:
    """Whole Llama-3-8B prefill: products per token, attention per pair; the sparse one fixed per token."""
    q = rows["q_len"].to_numpy(float)
    products = 2.0 * 7.5e9 * q / r.math
    pairs = 32.0 * 32.0 * 4.0 * 128.0 * q * q / 2.0 / r.math
    dense = [[[Term("launch_s", 1.0, 0.2)]], [[Term("products", products, 1.3), Term("pairs", pairs, 1.5)]]]
    sparse = [[[Term("launch_s", 1.0, 1.0)]], [[Term("products", products, 1.5), Term("pairs", pairs, 0.2)]]]
    return dense, sparse


FAMILIES: Mapping[str, Callable[[pd.DataFrame, Rates], tuple[Side, Side]]] = {"MInference": _whole_prefill}


def sides(family: str, rows: pd.DataFrame) -> tuple[Side, Side]:
    """Terms of the dense and of the sparse time of `rows` of one family."""
    if family in FAMILIES:
        return FAMILIES[family](rows, sparse_ops.rates(rows))
    return speedup.FAMILIES[family](sparse_ops.shapes(rows), sparse_ops.rates(rows))
