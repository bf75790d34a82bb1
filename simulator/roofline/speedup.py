"""Speed-up of a sparse kernel over the dense one: what each side spends time on, pattern by pattern.

A time is a sum of stages; a stage is the 4-norm of its resources (they overlap); a resource is a sum
of terms ``coefficient * seconds``: the coefficient is 1 where the resource runs at its datasheet
rate, and in seconds for launches and fixed work. Every term is a physical count over a rate.
`simulator.fitting.sparse` fits the coefficients of both sides, `simulator.roofline.timing` answers with their ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from math import inf
from typing import NamedTuple

from simulator.base.arrays import Array, ceil, clip, exp, floor, log2, maximum, minimum, sqrt
from simulator.device.fits import Fit
from simulator.ops.ops import Attention, Linear, causal_pairs
from simulator.roofline.hardware import Hardware

SHARED_ROWS = 8.0
"""Sparse rows of one thread block that read an operand row once [-]."""
NM24_TILES = ((128.0, 256.0), (128.0, 128.0), (64.0, 128.0), (64.0, 64.0), (32.0, 64.0), (16.0, 64.0))
"""Tiles of 2:4 products, rows (tokens) by columns, the largest first; assumed but for the first [-].

1,024 columns of 4,096 rows cost an RTX 3090 what 768 do.
"""
_LOADS = [1.0 / tm + 1.0 / tn for tm, tn in NM24_TILES]
_TILE_COSTS = [
    (tm, tn, tm * tn * max(loads / _LOADS[0], 1.0)) for (tm, tn), loads in zip(NM24_TILES, _LOADS, strict=True)
]
"""Rows and columns of a tile, and its elements times its loads per element over the largest's [-]."""
MOST_SPLITS = 4.0
"""Splits of the inner loop of a product of few tiles [-]; assumed, as of the dense products."""
NM24_INDEX_BYTES = 0.25
"""Two bits for each value that 2:4 keeps [B]."""


class Term(NamedTuple):
    """`seconds` at coefficient 1, and the coefficient to start from."""

    name: str
    seconds: Array
    start: float


Side = list[list[list[Term]]]
"""Stages of resources of terms."""


class Rates(NamedTuple):
    """Datasheet rates of a device: tensor and vector [flop/s], main memory [B/s], SMs [-]; each broadcasts."""

    math: Array
    vector: Array
    hbm: Array
    sm: Array


class KernelShape(NamedTuple):
    """What a sparse kernel is asked; every field broadcasts.

    Attributes
    ----------
    keep : Array
        Share of the weight, of the neurons or of the (query, key) pairs that is kept [-].
    m, n, k : Array
        Rows (tokens), outputs and inner length of a product [-].
    element_bytes, out_bytes : Array
        Bytes of a weight or activation, and of an output [B].
    vector : Array
        Rows of the weight that share a choice of columns [-].
    whole : Array
        Share of the matrix that is read whole beside the part that is picked from [-].
    matrices : Array
        Matrices of a gated block in the product, of its three [-].
    pairs : Array
        (query, key) pairs of the dense attention over sequences and heads [-].
    rows : Array
        Query rows over sequences and heads [-].
    head_dim : Array
        Width of a head [-].
    """

    keep: Array
    m: Array = 1.0
    n: Array = 1.0
    k: Array = 1.0
    element_bytes: Array = 2.0
    out_bytes: Array = 2.0
    vector: Array = 1.0
    whole: Array = 0.0
    matrices: Array = 1.0
    pairs: Array = 0.0
    rows: Array = 0.0
    head_dim: Array = 128.0


def shape_of(op: Linear | Attention) -> KernelShape:
    """Shape of the sparse kernel of `op`."""
    if isinstance(op, Attention):
        dense = causal_pairs(op.q_len, op.kv_len, op.window)
        heads = op.batch * op.n_heads
        return KernelShape(
            keep=1.0 if op.pair_keep is None else op.pair_keep,
            pairs=heads * dense,
            rows=heads * op.q_len,
            head_dim=(op.head_dim + op.v_head_dim) / 2.0,
        )
    keep = op.flop_keep if op.gathered is None else (op.read_keep - op.whole) / (1.0 - op.whole)
    return KernelShape(
        keep=keep,
        m=op.m,
        n=op.n,
        k=op.k,
        element_bytes=op.fmt.act_bytes,
        out_bytes=op.fmt.out_bytes,
        vector=op.vector,
        whole=op.whole,
        matrices=1.0 / op.whole if op.whole else 1.0,
    )


def rates_of(hw: Hardware) -> Rates:
    """Rates of a device for products in one format."""
    return Rates(hw.math_flop_per_s, hw.vector_flop_per_s, hw.hbm_bytes_per_s, hw.sm_count)


def names(side: Side) -> dict[str, float]:
    """Coefficients of `side` and where a fit starts."""
    return {t.name: t.start for stage in side for resource in stage for t in resource}


def total_s(side: Side, coef: Mapping[str, float], prefix: str = "") -> Array:
    """Time of `side` [s], its coefficients under `prefix` and their names."""
    total: Array = 0.0
    for stage in side:
        parts = [sum((coef[prefix + t.name] * t.seconds for t in resource), 0.0) for resource in stage]
        total = total + (parts[0] if len(parts) == 1 else norm4(parts))
    return total


def norm4(parts: list[Array]) -> Array:
    """What overlapping resources take together [s]."""
    return sqrt(sqrt(sum(((p * p) * (p * p) for p in parts), 0.0)))


def _launch(start: float) -> list[list[Term]]:
    return [[Term("launch_s", 1.0, start)]]


def _waves(m: Array, n: Array, flop: Array, r: Rates, tall: float, tn: float) -> Array:
    """Seconds of `flop` in whole waves of tiles tall x tn, one tile per SM; few rows take a flatter tile."""
    tm = clip(2.0 ** ceil(log2(m)), 16.0, tall)
    tiles = ceil(m / tm) * ceil(n / tn)
    return ceil(tiles / r.sm) * r.sm * (tm * tn) / (m * n) * flop / r.math


def _least_waves(m: Array, n: Array, flop: Array, r: Rates) -> Array:
    """Seconds of `flop` in waves of the best tile, its inner loop split where the tiles leave SMs idle.

    A smaller tile loads its operands more often than the largest, whose loads the products just hide.
    """
    times = []
    for tm, tn, cost in _TILE_COSTS:
        tiles = ceil(m / tm) * ceil(n / tn)
        split = clip(floor(r.sm / tiles), 1.0, MOST_SPLITS)
        times.append(ceil(tiles * split / r.sm) / split * cost)
    return reduce(minimum, times) * r.sm / (m * n) * flop / r.math


def _dense_product(s: KernelShape, r: Rates, weight_bytes: Array, math: list[Term]) -> Side:
    moved = weight_bytes * s.n * s.k + s.element_bytes * s.m * s.k + s.out_bytes * s.m * s.n
    return [_launch(5e-6), [math, [Term("stream", moved / r.hbm, 1.2)]]]


def _dense(s: KernelShape, r: Rates) -> Side:
    """The vendor's dense product, which chooses among tiles, so that its waves do not show."""
    return _dense_product(s, r, s.element_bytes, [Term("math", 2.0 * s.m * s.n * s.k / r.math, 1.2)])


def _nm24(s: KernelShape, r: Rates) -> tuple[Side, Side]:
    """2:4: half the flop (coefficients of 1 in all: at the dense rate of the datasheet), in part in whole waves."""
    flop = s.m * s.n * s.k
    math = [Term("math", flop / r.math, 0.6), Term("waves", _least_waves(s.m, s.n, flop, r), 0.6)]
    return _dense(s, r), _dense_product(s, r, (s.element_bytes + NM24_INDEX_BYTES) / 2.0, math)


def _vnm(s: KernelShape, r: Rates) -> tuple[Side, Side]:
    """V:N:M: the inner length shrinks to keep * k; blocks of V rows reload the operand."""
    flop = 2.0 * s.m * s.n * s.k
    kept = s.keep * flop / r.math
    out, operand = s.out_bytes * s.m * s.n / r.hbm, s.element_bytes * s.m * s.k / r.hbm
    math = [
        Term("math", kept, 0.6),
        Term("waves", _waves(s.m, s.n, s.keep * flop, r, 128, 64), 0.3),
        Term("reload", kept * 128.0 / s.vector, 0.3),
    ]
    sparse = [_launch(5e-6), [[Term("out", out, 1.0), Term("operand", operand, 0.1)]], [math]]
    return _dense(s, r), sparse


def _spmm(s: KernelShape, r: Rates) -> tuple[Side, Side]:
    """Sputnik and CLASP: per non-zero work, and operand rows read once per 8 sparse rows (a union)."""
    flop = 2.0 * s.m * s.n * s.k
    union = 1.0 - (1.0 - s.keep) ** SHARED_ROWS
    work = [
        Term("nonzero", s.keep * flop / r.vector, 1.0),
        Term("union", union * flop / SHARED_ROWS / s.vector / r.vector, 1.0),
        Term("out", s.out_bytes * s.m * s.n / r.hbm, 1.0),
        Term("row", s.m * s.n * sqrt(s.k) * 2.0 / r.vector, 0.1),
    ]
    return _dense(s, r), [_launch(5e-6), [work]]


def _cats(s: KernelShape, r: Rates) -> tuple[Side, Side]:
    """Gated MLP at one token: the gate stays dense, up and down read kept rows; a product starts its share."""
    read = s.element_bytes * s.n * s.k / r.hbm
    start = s.matrices / 3.0
    picked = s.keep * (1.0 - s.whole) * read
    dense = [[[Term("launch_s", start, 5e-6)]], [[Term("stream", read, 1.2)]]]
    sparse = [[[Term("launch_s", start, 1e-5)]], [[Term("gate", s.whole * read, 1.2), Term("kept", picked, 1.2)]]]
    return dense, sparse


def _prosparse(s: KernelShape, r: Rates) -> tuple[Side, Side]:
    """One projection at one token: kept rows gathered, and a scan of all outputs or inputs."""
    one = s.element_bytes * s.n * s.k / r.hbm
    dense = [_launch(2e-5), [[Term("stream", one, 1.2)]]]
    return dense, [_launch(4e-5), [[Term("kept", s.keep * one, 1.4)]]]


def _blocks(s: KernelShape, r: Rates) -> tuple[Side, Side]:
    """Prefill that attends selected or compressed blocks; every query row pays for its list."""
    width = 4.0 * s.head_dim / r.math
    pairs, row = s.pairs * width, 128.0 * s.rows * width
    dense = [_launch(2e-5), [[Term("pairs", pairs, 1.5), Term("row", row, 1.0)]]]
    sparse = [_launch(5e-5), [[Term("pairs", s.keep * pairs, 4.0), Term("row", row, 1.0)]]]
    return dense, sparse


FAMILIES: Mapping[str, Callable[[KernelShape, Rates], tuple[Side, Side]]] = {
    "2:4": _nm24,
    "V:N:M": _vnm,
    "Sputnik": _spmm,
    "CLASP": _spmm,
    "CATS": _cats,
    "ProSparse": _prosparse,
    "NSA": _blocks,
}
"""Pattern -> time of the dense and of the sparse kernel."""
SURFACE_AXES = ("keep", "n", "k")


def most(pattern: str, shape: KernelShape) -> Array:
    """Speed-up no kernel of `pattern` has over an equally good dense one: half the flop, or the weights left [-].

    CATS's row at keep=1 is 3 % faster than PyTorch's three products: what is gained there is not sparsity.
    """
    if pattern == "2:4":
        return 2.0
    return 1.0 / maximum(shape.whole + (1.0 - shape.whole) * shape.keep, 1e-9) if pattern == "CATS" else inf


def speedup(pattern: str, shape: KernelShape, rates: Rates, fit: Fit) -> Array:
    """Dense over sparse time of a kernel of `pattern` by `fit` [-]."""
    dense, sparse = (
        total_s(side, fit.coefficients, prefix)
        for side, prefix in zip(FAMILIES[pattern](shape, rates), ("dense_", "sparse_"), strict=True)
    )
    gain = dense / sparse
    if fit.surface is not None:
        gain = gain * exp(fit.surface(keep=shape.keep, n=shape.n, k=shape.k))
    return minimum(gain, most(pattern, shape))
