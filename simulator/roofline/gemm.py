"""Time of a dense matrix product C[m,n] = A[m,k] B[k,n] on one device.

A library picks, per shape, an output tile and a split of the K loop; the model takes the best of a
small candidate set, so neither full-tile waves nor skinny shapes are special cases.

Per candidate with tile (tm, tn) and split s, in SM-seconds:

    cta   = (k/s) (2 tm tn / (compute r) + tile_load (tm ab + tn wb) S / W) + ramp
    waves = w + quant (ceil(w) - w),   w = batch ceil(m/tm) ceil(n/tn) s / S
    math  = min over (tm, tn, s) of waves' cta + (s > 1)(split + split_io 8 m n / W)

with r the tensor rate per SM, S the SM count, W the bandwidth of main memory, ab and wb the bytes
per activation and weight element. Main memory is read once (`memory`), then

    total = (max(math, memory) + overlap min(math, memory) + launch) exp(surface(m, n, k))

Not modelled: fused epilogues, power throttling over time, clocks below boost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, reduce
from operator import itemgetter
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from simulator.base.arrays import Array, ceil, exp, maximum, minimum, real
from simulator.device.surface import Surface
from simulator.roofline.bandwidth import resident_bytes_per_s
from simulator.roofline.hardware import Hardware

TILES: tuple[tuple[int, int], ...] = ((256, 128), (128, 128), (128, 64), (64, 64), (64, 32), (16, 64))
"""Candidate output tiles (rows of m, columns of n)."""
CPU_TILES: tuple[tuple[int, int], ...] = ((1, 64), (32, 64), (128, 128))
"""The same of a CPU's BLAS (architectures ``cpu-*``): a vector kernel for one row, packed blocks for more; DSP chains
(``fpga-*``) take one row as well.

Rows of blocks are assumed: OpenBLAS needs as long for 2 rows as for 16 on AVX-512, and 4 times one row's time. Apple's
GPUs have no unit that needs 16 rows: one runs in Metal's matrix-vector kernels, blocks of 32 beyond.
"""
SPLITS: tuple[int, ...] = (1, 2, 4)
"""Candidate splits of the K loop."""
SPLIT_BYTES = 8.0
"""fp32 partial sum written and read once [B]."""

DEFAULTS: Mapping[str, float] = MappingProxyType(
    {
        "launch_s": 3.0e-6,
        "compute": 0.85,
        "tile_load": 0.15,
        "ramp_s": 1.0e-6,
        "quant": 0.8,
        "split_s": 1.0e-6,
        "split_io": 0.3,
        "memory": 0.85,
        "overlap": 0.2,
        "act_extra_bytes": 0.0,
    }
)
"""Coefficients of an average data-centre GPU: what a device without measurements starts from."""


class GemmTime(NamedTuple):
    """Terms of one product, all [s]; they broadcast against each other."""

    total_s: Array
    math_s: Array
    memory_s: Array
    launch_s: Array


def gemm_time(
    m: Array,
    n: Array,
    k: Array,
    *,
    weight_bytes_per_element: float,
    act_bytes: float,
    out_bytes: float,
    hw: Hardware,
    coef: Mapping[str, float],
    surface: Surface | None = None,
    weight_read_bytes: Array | None = None,
    flop: Array | None = None,
    batch: Array = 1.0,
) -> GemmTime:
    """Time of `batch` products [m,k] x [k,n].

    Parameters
    ----------
    m, n, k : array_like, broadcastable
        Rows (tokens), outputs and inner length; fractions are allowed (``n * keep``) [-].
    weight_bytes_per_element, act_bytes, out_bytes : float
        Stored bytes per weight, per activation and per output element [B].
    hw : Hardware
        Device numbers for the format's math type.
    coef : mapping
        Coefficients named as in `DEFAULTS`; missing ones are an error.
    surface : Surface, optional
        Log residual of the whole time over (m, n, k); the terms are told without it.
    weight_read_bytes, flop : array_like, optional
        Weight bytes read and operations done, in place of the dense counts [B], [flop].
    batch : array_like
        Independent products of one launch [-].

    Returns
    -------
    GemmTime
        `total_s` is never below `floor_s` of the same arguments.
    """
    m, n, k, batch = real(m), real(n), real(k), real(batch)
    dense_flop = 2.0 * batch * m * n * k
    share = 1.0 if flop is None else flop / maximum(dense_flop, 1e-300)
    weight = batch * n * k * weight_bytes_per_element if weight_read_bytes is None else weight_read_bytes
    out = batch * m * n * out_bytes
    moved = weight + batch * m * k * act_bytes + out
    tiled = _tile_s(m, n, k, batch, weight_bytes_per_element, act_bytes, hw, coef) * share
    rate = coef["memory"] * resident_bytes_per_s(moved, hw)
    memory = moved / rate
    body = maximum(tiled, memory) + coef["overlap"] * minimum(tiled, memory)
    launch = coef["launch_s"] + batch * m * k * coef["act_extra_bytes"] / rate
    total = body + launch
    if surface is not None:
        total = total * exp(surface(m=m, n=n, k=k))
    return GemmTime(maximum(total, floor_s(dense_flop * share, moved, hw)), tiled, memory, launch)


def floor_s(flop: Array, moved_bytes: Array, hw: Hardware) -> Array:
    """No product is faster: peak at maximum clock, and bytes that cannot sit in L2 [s]."""
    least = flop / (hw.math_flop_per_s * hw.max_clock_ratio)
    return maximum(least, (moved_bytes - hw.l2_bytes) / hw.hbm_bytes_per_s)


def _tile_s(
    m: Array,
    n: Array,
    k: Array,
    batch: Array,
    weight_bytes: float,
    act_bytes: float,
    hw: Hardware,
    coef: Mapping[str, float],
) -> Array:
    """Fastest candidate's time on the SMs [s]."""
    terms = (n, k, batch, weight_bytes, act_bytes, hw.sm_count, hw.math_flop_per_s, hw.hbm_bytes_per_s)
    terms += _OF_A_TILE(coef)
    tiles = CPU_TILES if hw.arch.startswith(("cpu-", "fpga-", "apple-")) else TILES
    quant = coef["quant"]
    found: Sequence[Sequence[Array]] = ()
    try:
        stacked, found = _fixed(tiles, terms)
    except TypeError:  # arrays have no hash
        stacked = None
    alone = stacked is not None and not isinstance(m, np.ndarray)
    at_once = not alone and max(map(np.size, (m, n, k, batch))) <= FEW
    if at_once:
        axes = (-1, *(1,) * max(map(np.ndim, (m, *terms))))
        if stacked is None:
            found = [_candidate([x.reshape(axes) for x in _choices(tiles)], terms)]
        else:
            found = [[x.reshape(axes) for x in stacked]]
    elif stacked is None:
        found = [_candidate(c, terms) for c in _choices(tiles).T.tolist()]
    larger, up = (max, math.ceil) if alone else (np.maximum, np.ceil)
    times = [
        ((1.0 - quant) * larger(waves, 1.0) + quant * up(waves)) * wave_s + (split_s + row_s * m)
        for tm, per_row, wave_s, split_s, row_s in found
        for waves in (up(m / tm) * per_row,)
    ]
    if alone:
        return min(times)
    return np.min(times[0], axis=0) if at_once else reduce(np.minimum, times)


_OF_A_TILE = itemgetter("compute", "tile_load", "ramp_s", "split_s", "split_io")
FEW = 4096
"""Products up to which all candidates are timed in one array: numpy's calls then cost more than its passes [-]."""


@lru_cache(maxsize=8)
def _choices(tiles: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Rows and columns of a tile, and the split, of every candidate; shape (3, candidates)."""
    return np.array([(*t, s) for t in tiles for s in SPLITS], float).T


@lru_cache(maxsize=4096)
def _fixed(tiles: tuple[tuple[int, int], ...], terms: tuple[Array, ...]) -> tuple[np.ndarray, list[list[float]]]:
    """`_candidate` of every candidate where nothing but m varies: of shape (5, candidates), and as rows."""
    choices = _choices(tiles)
    found = np.stack([np.broadcast_to(x, choices.shape[1:]) for x in _candidate(choices, terms)])
    return found, found.T.tolist()


def _candidate(choice: Iterable[Array], terms: Iterable[Array]) -> tuple[Array, ...]:
    """Rows of a tile, its waves [-], seconds of a wave, and those of the split, fixed and per row of m."""
    tm, tn, split = choice
    n, k, batch, weight_bytes, act_bytes, sm_count, flop_per_s, hbm_bytes_per_s, *coefficients = terms
    compute, tile_load, ramp_s, split_s, split_io = coefficients
    step_s = 2.0 * tm * tn * (sm_count / (compute * flop_per_s))
    step_s = step_s + (tm * act_bytes + tn * weight_bytes) * (tile_load * sm_count / hbm_bytes_per_s)
    waves = ceil(n / tn) * batch / sm_count * split
    splits = split > 1
    return (
        tm,
        waves,
        k * (step_s / split) + ramp_s,
        splits * split_s,
        splits * (split_io * SPLIT_BYTES * batch * n / hbm_bytes_per_s),
    )
