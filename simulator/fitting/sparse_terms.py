"""What a sparse kernel and its dense counterpart spend time on, pattern family by pattern family.

A time is a sum of stages; a stage is the 4-norm of its resources (they overlap); a resource is a sum
of terms ``coefficient * seconds``: the coefficient is 1 where the resource runs at its datasheet
rate, and in seconds for launches and fixed work. Every term is a physical count over a rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
SHARED_ROWS = 8.0
"""Sparse rows of one thread block that read an operand row once [-]."""
NM24_WEIGHT = 0.5 + 2.0 / 16.0 / 2.0
"""Stored bytes of a 2:4 fp16 weight over dense: half the values and two bits for each kept one."""


class Term(NamedTuple):
    """`seconds` at coefficient 1, and the coefficient to start from."""

    name: str
    seconds: Array
    start: float


Side = list[list[list[Term]]]
"""Stages of resources of terms."""


class Rates(NamedTuple):
    """Datasheet rates of each row's device, (rows,) [flop/s], [B/s], [-]."""

    math: Array
    vector: Array
    hbm: Array
    sm: Array


def names(side: Side) -> dict[str, float]:
    """Coefficients of `side` and where a fit starts."""
    return {t.name: t.start for stage in side for resource in stage for t in resource}


def total_s(side: Side, coef: Mapping[str, float]) -> Array:
    """Time of `side`, shape (rows,) [s]."""
    return log_slopes(side, coef)[0]


def log_slopes(side: Side, coef: Mapping[str, float]) -> tuple[Array, Array]:
    """Time [s], shape (rows,), and its slope d ln t / d ln c, shape (rows, coefficients)."""
    total: Array = np.zeros(len(side[0][0][0].seconds))
    slopes: list[Array] = []
    for stage in side:
        parts = [[coef[t.name] * t.seconds for t in resource] for resource in stage]
        sums = [np.sum(part, axis=0) for part in parts]
        time = sums[0]
        if len(sums) > 1:
            time = np.sqrt(np.sqrt(np.sum([np.square(np.square(s)) for s in sums], axis=0)))
        total = total + time
        for part, own in zip(parts, sums, strict=True):
            weight = (own / np.maximum(time, 1e-30)) ** 3
            slopes += [weight * p for p in part]
    return total, np.stack(slopes, axis=1) / total[:, None]


def rates(rows: pd.DataFrame) -> Rates:
    """Rates of `rows`' devices."""
    from simulator.base.dtypes import DType
    from simulator.device.catalogue import load

    names = rows["device"].astype(str)
    found = {}
    for name in names.unique():
        device = load(name)
        half = device.peak_flop_per_s(DType.BF16 if device.has(DType.BF16) else DType.FP16)
        found[name] = (half, device.vector_flop_per_s, device.hbm_bytes_per_s, float(device.sm_count))
    return Rates(*np.array([found[name] for name in names], float).reshape(-1, 4).T)


def _columns(rows: pd.DataFrame, *columns: str) -> list[Array]:
    return [rows[c].to_numpy(float) for c in columns]


def _launch(start: float, n: int, name: str = "launch_s") -> list[list[Term]]:
    return [[Term(name, np.ones(n), start)]]


def _waves(m: Array, n: Array, flop: Array, r: Rates, tall: float, tn: float) -> Array:
    """Seconds of `flop` in whole waves of tiles tall x tn, one tile per SM; few rows take a flatter tile."""
    tm = np.clip(2.0 ** np.ceil(np.log2(m)), 16.0, tall)
    tiles = np.ceil(m / tm) * np.ceil(n / tn)
    return np.ceil(tiles / r.sm) * r.sm * (tm * tn) / (m * n) * flop / r.math


def _product(rows: pd.DataFrame, r: Rates) -> tuple[Side, Side]:
    """2:4: half the flop (coefficient 1: at the dense rate of the datasheet) in whole waves of one large tile.

    The vendor's dense product chooses among tiles, so its waves do not show.
    """
    m, n, k = _columns(rows, "m", "n", "k")
    flop = 2.0 * m * n * k

    def side(weight: float, math_s: Array) -> Side:
        stream = 2.0 * (weight * n * k + m * k + m * n) / r.hbm
        return [_launch(5e-6, len(rows)), [[Term("math", math_s, 1.2)], [Term("stream", stream, 1.2)]]]

    return side(1.0, flop / r.math), side(NM24_WEIGHT, _waves(m, n, 0.5 * flop, r, 128, 256))


def _vnm(rows: pd.DataFrame, r: Rates) -> tuple[Side, Side]:
    """V:N:M: the inner length shrinks to keep * k; blocks of V rows reload the operand."""
    m, n, k, keep, v = _columns(rows, "m", "n", "k", "keep", "vector")
    flop = 2.0 * m * n * k
    dense, _ = _product(rows, r)
    sparse = [
        _launch(5e-6, len(rows)),
        [[Term("out", 2.0 * m * n / r.hbm, 1.0), Term("operand", 2.0 * m * k / r.hbm, 0.1)]],
        [
            [
                Term("math", keep * flop / r.math, 0.6),
                Term("waves", _waves(m, n, keep * flop, r, 128, 64), 0.3),
                Term("reload", keep * flop / r.math * 128.0 / v, 0.3),
            ]
        ],
    ]
    return dense, sparse


def _spmm(rows: pd.DataFrame, r: Rates) -> tuple[Side, Side]:
    """Sputnik and CLASP: per non-zero work, and operand rows read once per 8 sparse rows (a union)."""
    m, n, k, keep, v = _columns(rows, "m", "n", "k", "keep", "vector")
    flop = 2.0 * m * n * k
    union = 1.0 - (1.0 - keep) ** SHARED_ROWS
    dense, _ = _product(rows, r)
    sparse = [
        _launch(5e-6, len(rows)),
        [
            [
                Term("nonzero", keep * flop / r.vector, 1.0),
                Term("union", union * flop / SHARED_ROWS / v / r.vector, 1.0),
                Term("out", 2.0 * m * n / r.hbm, 1.0),
                Term("row", m * n * np.sqrt(k) * 2.0 / r.vector, 0.1),
            ]
        ],
    ]
    return dense, sparse


def _cats(rows: pd.DataFrame, r: Rates) -> tuple[Side, Side]:
    """Gated MLP at one token, fp32: the gate stays dense, up and down read kept rows."""
    n, k, keep = _columns(rows, "n", "k", "keep")
    one = 4.0 * n * k / r.hbm
    dense = [_launch(5e-6, len(rows)), [[Term("stream", 3.0 * one, 1.2)]]]
    sparse = [_launch(1e-5, len(rows)), [[Term("gate", one, 1.2), Term("kept", 2.0 * keep * one, 1.2)]]]
    return dense, sparse


def _prosparse(rows: pd.DataFrame, r: Rates) -> tuple[Side, Side]:
    """One projection at one token: kept rows gathered, and a scan of all outputs or inputs."""
    n, k, keep = _columns(rows, "n", "k", "keep")
    one = 2.0 * n * k / r.hbm
    dense = [_launch(2e-5, len(rows)), [[Term("stream", one, 1.2)]]]
    return dense, [_launch(4e-5, len(rows)), [[Term("kept", keep * one, 1.4)]]]


def _blocks(rows: pd.DataFrame, r: Rates) -> tuple[Side, Side]:
    """Prefill that attends selected or compressed blocks; every query row pays for its list."""
    b, q, h, keep = _columns(rows, "batch", "q_len", "n_heads", "keep")
    pairs = b * q * (q + 1.0) / 2.0 * h * 4.0 * 128.0 / r.math
    row = b * q * h * 4.0 * 128.0 / r.math
    dense = [_launch(2e-5, len(rows)), [[Term("pairs", pairs, 1.5), Term("row", 128.0 * row, 1.0)]]]
    sparse = [_launch(5e-5, len(rows)), [[Term("pairs", keep * pairs, 4.0), Term("row", 128.0 * row, 1.0)]]]
    return dense, sparse


def _whole_prefill(rows: pd.DataFrame, r: Rates) -> tuple[Side, Side]:
    """Whole Llama-3-8B prefill: products per token, attention per pair; the sparse one fixed per token."""
    (q,) = _columns(rows, "q_len")
    products = 2.0 * 7.5e9 * q / r.math
    pairs = 32.0 * 32.0 * 4.0 * 128.0 * q * q / 2.0 / r.math
    dense = [_launch(0.2, len(rows)), [[Term("products", products, 1.3), Term("pairs", pairs, 1.5)]]]
    sparse = [_launch(1.0, len(rows)), [[Term("products", products, 1.5), Term("pairs", pairs, 0.2)]]]
    return dense, sparse


FAMILIES: Mapping[str, Callable[[pd.DataFrame, Rates], tuple[Side, Side]]] = {
    "2:4": _product,
    "V:N:M": _vnm,
    "Sputnik": _spmm,
    "CLASP": _spmm,
    "CATS": _cats,
    "ProSparse": _prosparse,
    "NSA": _blocks,
    "MInference": _whole_prefill,
}
