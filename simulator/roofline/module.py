"""Time of an attention module as an engine runs it: stages of overlapping resources, and what its kernels start.

    t = exp(surface) * (launch + search + norm4(weights, products) + norm4(kv, pairs) + norm4(index, index_math))

Every resource is a physical count over a datasheet rate, times a fitted number: 1 where it runs at that rate.

    launch      launch_s of the module's kernels, more for formats whose activations are quantised on the way (quant_s)
                and for a cache of 8 bits (kv8_s); select_s where a choice is made
    products    of the projections, and `token` passes over hidden states and queries, beside the bytes of the weights
    pairs       products with the entries attended; query heads padded to `HEAD_TILE` (pad_heads), short contexts to the
                most a query may attend (pad_tokens)
    kv          bytes of the entries attended, and in a prompt those every query gathers for itself (gather) and all
                cached ones that are copied first (copy)
    index       keys of the context; index_math: products with them, in a prompt for whole tiles of queries (tile)
    search      scores written, read and searched (score), and a fixed search of every query's row (row_s)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from simulator.base.arrays import Array, exp, maximum, sqrt
from simulator.base.dtypes import DType, Format
from simulator.ops.module import PIECES, ModuleDemand

if TYPE_CHECKING:
    from simulator.device.surface import Surface
    from simulator.device.types import Device

COEFFICIENTS: Mapping[str, Mapping[str, float]] = {
    "projections": {"quant_s": 1e-5, "weights": 1.5, "products": 1.5, "token": 2.0},
    "attention": {"kv8_s": 2e-6, "kv": 1.3, "pairs": 1.5, "pad_heads": 0.3, "pad_tokens": 0.1},
    "index": {"index": 1.3, "index_math": 1.5, "row_s": 2e-9},
    "select": {"score": 2.0, "row_s": 2e-9, "select_s": 1e-5},
}
"""Coefficients of each piece of a module and where a fit of them starts; ``launch_s`` belongs to all."""
LAUNCH_S = {True: 4e-5, False: 6e-6}
"""Start of ``launch_s`` of a module with projections, and of one kernel of it [s]."""
PROMPT: Mapping[str, Mapping[str, float]] = {"attention": {"gather": 0.3, "copy": 0.3}, "index": {"tile": 0.1}}
"""Coefficients that only a prompt has which gathers, or scores, by piece."""
HEAD_TILE = 64.0
"""Query heads a tensor-core tile of sparse attention holds; fewer run padded [-]."""


def start(kind: str, phase: str) -> dict[str, float]:
    """Coefficients of a module or kernel of one phase, as a fit starts."""
    pieces = PIECES[kind]
    out = {"launch_s": LAUNCH_S["projections" in pieces]}
    for piece, terms in COEFFICIENTS.items():
        out |= terms if piece in pieces else {}
    if "projections" not in pieces:
        out["row_s"] = COEFFICIENTS["index"]["row_s"]
    if phase == "prefill" and kind not in ("mla-dense", "hca", "hca-attention"):
        for piece, terms in PROMPT.items():
            out |= terms if piece in pieces else {}
    return out


class ModuleRates(NamedTuple):
    """Datasheet rates that a module meets; every field broadcasts.

    Attributes
    ----------
    products, attention, indexer, half : Array
        Of the projections' format, of queries and keys, of the indexer's, and of 16 bit [flop/s].
    hbm_bytes_per_s, l2_bytes : Array
        Memory bandwidth [B/s] and last-level cache [B].
    max_clock_ratio : Array
        Maximum over boost clock [-].
    """

    products: Array
    attention: Array
    indexer: Array
    half: Array
    hbm_bytes_per_s: Array
    l2_bytes: Array
    max_clock_ratio: Array


def module_rates(device: Device, fmt: Format, math: DType) -> ModuleRates:
    """Rates of `device`; a format its tensor cores lack runs at the next wider one they have."""

    def rate(*formats: DType) -> float:
        return device.peak_flop_per_s(next((f for f in formats if device.has(f)), DType.FP16))

    half = rate(DType.BF16)
    return ModuleRates(
        products=rate(fmt.math, DType.FP8, DType.BF16),
        attention=rate(math, DType.BF16),
        indexer=rate(DType.FP8, DType.BF16),
        half=half,
        hbm_bytes_per_s=device.hbm_bytes_per_s,
        l2_bytes=float(device.l2_bytes),
        max_clock_ratio=device.clock_hz.max / device.clock_hz.boost,
    )


def as_dense(coef: Mapping[str, float]) -> Mapping[str, float]:
    """Coefficients of a dense module for one that chooses its tokens: index keys and scores stream as the cache does,
    products with keys run as the others do, and nothing is searched, gathered or copied.
    """
    return {**coef, "index": coef["kv"], "score": coef["kv"], "index_math": coef["pairs"]}


@dataclass(frozen=True, slots=True)
class ModuleTime:
    """Terms of a module [s]; they broadcast against each other."""

    total_s: Array
    math_s: Array
    memory_s: Array
    launch_s: Array


def module_time(
    d: ModuleDemand, rates: ModuleRates, coef: Mapping[str, float], surface: Surface | None = None
) -> ModuleTime:
    """Time of a module of demand `d` on a device with `rates`.

    Parameters
    ----------
    coef : mapping
        Fitted numbers by the names of `start`; a piece the module lacks demands nothing and needs none.
    surface : Surface, optional
        Log residual over ``tokens`` (new ones of the step) and ``context`` (of a sequence).
    """
    hbm = rates.hbm_bytes_per_s

    def c(name: str) -> float:
        return coef.get(name, 0.0)

    launch = c("launch_s") + c("quant_s") * d.quantised + c("kv8_s") * d.kv8 + c("select_s") * d.chosen
    weights = c("weights") * d.weight_bytes / hbm
    products = c("products") * (d.projection_flop / rates.products + d.absorbed_flop / rates.half)
    products = products + c("token") * d.hidden_bytes / hbm
    padded = maximum(HEAD_TILE / d.heads, 1.0)
    pairs = (c("pairs") + c("pad_heads") * padded) * d.attention_flop + c("pad_tokens") * padded * d.whole_flop
    pairs = pairs / rates.attention
    kv = (c("kv") * d.kv_bytes + c("gather") * d.gather_bytes + c("copy") * d.cached_bytes) / hbm
    keys = c("index") * d.index_bytes / hbm
    scored = (c("index_math") * d.index_flop + c("tile") * d.tile_flop) / rates.indexer
    search = c("score") * 8.0 * d.scores / hbm + c("row_s") * d.rows
    total = launch + search + _norm4(weights, products) + _norm4(kv, pairs) + _norm4(keys, scored)
    if surface is not None:
        total = total * exp(surface(tokens=d.tokens, context=d.context))
    return ModuleTime(maximum(total, _floor(d, rates)), products + pairs + scored, weights + kv + keys + search, launch)


def _norm4(a: Array, b: Array) -> Array:
    """What overlapping resources take together."""
    a2, b2 = a * a, b * b
    return sqrt(sqrt(a2 * a2 + b2 * b2))


def _floor(d: ModuleDemand, rates: ModuleRates) -> Array:
    """Least time [s]: useful flop at the maximum clock, or weights, cache and keys beyond L2 at full bandwidth."""
    flop_s = d.projection_flop / rates.products + d.absorbed_flop / rates.half
    flop_s = flop_s + d.attention_flop / rates.attention + d.index_flop / rates.indexer
    read = d.weight_bytes + d.kv_bytes + d.index_bytes
    return maximum(flop_s / rates.max_clock_ratio, maximum(read - rates.l2_bytes, 0.0) / rates.hbm_bytes_per_s)
