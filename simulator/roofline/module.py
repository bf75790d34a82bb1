"""Time of an attention module as an engine runs it: stages of overlapping resources, and what its kernels start.

    t = exp(surface) * (launch + search + norm4(weights, products) + norm4(kv, pairs) + norm4(index, index_math))

Every resource is a physical count over a datasheet rate, times a fitted number: 1 where it runs at that rate.

    launch      launch_s of the module's kernels, more for formats whose activations are quantised on the way (quant_s)
                and for a cache of 8 bits (kv8_s); select_s where a choice is made; chunk_s of every few sequences
    products    of the projections, by width of their format (products, products8, products4), and `token` passes over
                hidden states and queries, beside the bytes of the weights
    pairs       products with the entries attended; query heads of a KV head padded to `HEAD_TILE` (pad_heads), short
                contexts to the most a query may attend (pad_tokens); beside them depth_s of each entry in turn
    kv          bytes of the entries attended, and in a prompt those every query gathers for itself (gather) and all
                cached ones that are copied first (copy)
    index       keys of the context; index_math: products with them, in a prompt for whole tiles of queries (tile);
                beside them walk_s of each entry in turn
    search      scores written, read and searched (score), a fixed search of every query's row (row_s), more where a
                choice is made (pick_s)

What some engine does besides stands with its name: `HOST_TERMS`, `SHORT_TERMS`, `EDGE_TERMS`, `CHUNK_TERMS`,
`REFERENCE_TERMS`. Each is read from the residuals of its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from simulator.base.arrays import Array, ceil, exp, maximum, sqrt, where
from simulator.base.dtypes import DType, Format
from simulator.ops.module import PIECES, ModuleDemand

if TYPE_CHECKING:
    from simulator.device.surface import Surface
    from simulator.device.types import Device

COEFFICIENTS: Mapping[str, Mapping[str, float]] = {
    "projections": {"quant_s": 1e-5, "weights": 1.5, "products": 1.5, "products8": 1.5, "products4": 1.5, "token": 2.0},
    "attention": {"kv8_s": 2e-6, "kv": 1.3, "pairs": 1.5, "pad_heads": 0.3, "pad_tokens": 0.1, "depth_s": 1e-9},
    "index": {"index": 1.3, "index_math": 1.5, "row_s": 2e-9, "walk_s": 1e-10},
    "select": {"walk_s": 1e-10, "score": 2.0, "row_s": 2e-9, "select_s": 1e-5, "pick_s": 2e-9},
}
"""Coefficients of each piece of a module and where a fit of them starts; ``launch_s`` belongs to all."""
LAUNCH_S = {True: 4e-5, False: 6e-6}
"""Start of ``launch_s`` of a module with projections, and of one kernel of it [s]."""
PROMPT: Mapping[str, Mapping[str, float]] = {"attention": {"gather": 0.3, "copy": 0.3}, "index": {"tile": 0.1}}
"""Coefficients that only a prompt has which gathers, or scores, by piece."""
LARGE_MEMORY = 160e9
"""Bytes of GPU memory from which SGLang captures graphs of 512 sequences, and 256 below: as its rows jump [B]."""
HEAD_TILE = 64.0
"""Query heads a tensor-core tile of sparse attention holds; fewer run padded [-]."""


HOST: Mapping[str, frozenset[tuple[str, str]]] = {
    "sglang": frozenset({("dsa", "decode"), ("dsa", "prefill"), ("msa", "decode"), ("msa", "prefill")})
    | {("mla-dense", "prefill")},
    "trtllm": frozenset({("msa", "prefill")}),
}
"""Modules whose kernels an engine submits one by one, in prompts and beyond the largest CUDA graph."""
HOST_TERMS = {"host_s": 5e-4, "host_quant_s": 3e-4}
"""Submission of the kernels, and of those that quantise; the GPU works beside it."""
SHORT_TERMS = {"short_host_s": 5e-4, "short_host_quant_s": 3e-4, "short_pairs": 0.5, "far_s": 4e-4, "far_row_s": 2e-5}
"""SGLang's DSA: prompts attended densely (`ops.module.SHORT_TOKENS`) are submitted faster, far contexts slower."""
FAR = 131072.0
"""Context beyond which SGLang's sparse prompt is submitted slower [-]: 131,200 is, 65,600 not."""
CHUNK_TERMS = {"chunk_s": 5e-6}
"""A start for every `CHUNK` sequences."""
CHUNK = 4.0
"""Sequences of a prompt that vLLM's kernels for compressed caches take at once [-]: rows rise by a start each."""
EDGE_TERMS = {"edge_s": 1e-4, "edge_row_s": 2e-7}
"""A slower choice, by call and by row."""
EDGE = (1280.0, 2304.0)
"""Entries between which TensorRT-LLM's choice in decode takes another path: 1,536 and 2,049 do, 1,025 and 2,561 not."""
REFERENCE_TERMS = {"whole": 5.0, "split": 5.0}
"""MSA of TensorRT-LLM without kernels for it: every query copies keys and values of its whole context; `split` where
there are several KV heads.
"""


OWN_TERMS = frozenset({*HOST_TERMS, *SHORT_TERMS, *CHUNK_TERMS, *EDGE_TERMS, *REFERENCE_TERMS})
"""Coefficients of what one engine does: none of them answers for another engine's module."""


def start(kind: str, phase: str, library: str = "") -> dict[str, float]:
    """Coefficients of a module or kernel of one phase, as a fit starts; what some engine does besides, by `library`."""
    engine = library.partition("-")[0]
    pieces = PIECES[kind]
    out = {"launch_s": LAUNCH_S["projections" in pieces]}
    for piece, terms in COEFFICIENTS.items():
        out |= terms if piece in pieces else {}
    if "projections" not in pieces:
        out["row_s"] = COEFFICIENTS["index"]["row_s"]
    if phase == "prefill" and kind not in ("mla-dense", "hca", "hca-attention"):
        for piece, terms in PROMPT.items():
            out |= terms if piece in pieces else {}
    if (kind, phase) in HOST.get(engine, ()):
        out |= HOST_TERMS
    if (engine, kind, phase) == ("sglang", "dsa", "prefill"):
        out |= SHORT_TERMS
    if engine == "vllm" and phase == "prefill" and kind in ("csa", "hca", "hca-attention"):
        out |= CHUNK_TERMS
    if engine == "trtllm" and phase == "decode" and kind in ("csa", "dsa"):
        out |= EDGE_TERMS
    if kind == "msa" and library.endswith(":default"):
        out |= REFERENCE_TERMS
    return out


class ModuleRates(NamedTuple):
    """Datasheet rates that a module meets; every field broadcasts.

    Attributes
    ----------
    products, attention, indexer, half : Array
        Of the projections' format, of queries and keys, of the indexer's, and of 16 bit [flop/s].
    hbm_bytes_per_s, l2_bytes : Array
        Memory bandwidth [B/s] and last-level cache [B].
    captured : Array
        Sequences of the largest CUDA graph captured on a card of this memory [-].
    max_clock_ratio : Array
        Maximum over boost clock [-].
    """

    products: Array
    attention: Array
    indexer: Array
    half: Array
    hbm_bytes_per_s: Array
    l2_bytes: Array
    captured: Array
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
        captured=512.0 if device.capacity_bytes >= LARGE_MEMORY else 256.0,
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
    scaled = c("products") * (1.0 - d.quantised) + c("products8") * (d.quantised - d.four) + c("products4") * d.four
    products = scaled * d.projection_flop / rates.products + c("products") * d.absorbed_flop / rates.half
    products = products + c("token") * d.hidden_bytes / hbm
    padded = maximum(HEAD_TILE / d.group, 1.0)
    pairs = (c("pairs") + c("pad_heads") * padded) * d.attention_flop + c("pad_tokens") * padded * d.whole_flop
    pairs = pairs / rates.attention
    kv = (c("kv") * d.kv_bytes + c("gather") * d.gather_bytes + c("copy") * d.cached_bytes) / hbm
    keys = c("index") * d.index_bytes / hbm
    scored = (c("index_math") * d.index_flop + c("tile") * d.tile_flop) / rates.indexer
    search = c("score") * 8.0 * d.scores / hbm + (c("row_s") + c("pick_s") * d.chosen) * d.rows
    attend = _norm4(_norm4(kv, pairs), c("depth_s") * d.depth)
    launch = launch + c("chunk_s") * ceil(d.sequences / CHUNK)
    score = _norm4(_norm4(keys, scored), c("walk_s") * d.entries)
    total = launch + search + _norm4(weights, products) + attend + score
    total = total + (c("whole") * d.whole_bytes + c("split") * d.split_bytes) / hbm
    if "edge_s" in coef:
        at_edge = where((d.entries > EDGE[0]) & (d.entries <= EDGE[1]), d.chosen, 0.0)
        total = total + at_edge * (c("edge_s") + c("edge_row_s") * d.rows)
    if "host_s" in coef:
        alone = maximum(d.prompt, where(d.tokens > rates.captured, 1.0, 0.0))
        far = where(d.context > FAR, c("far_s") + c("far_row_s") * d.sequences, 0.0)
        total = _norm4(total, alone * (c("host_s") + c("host_quant_s") * d.quantised + far))
    if "short_pairs" in coef:
        rebuilt = c("products") * d.absorbed_flop * (d.context / d.queries) / rates.half
        short = c("launch_s") + _norm4(weights, scaled * d.projection_flop / rates.products + rebuilt)
        short = short + c("short_pairs") * d.attention_flop / rates.attention
        short = _norm4(short, c("short_host_s") + c("short_host_quant_s") * d.quantised)
        total = where(d.short > 0.0, short, total)
    if surface is not None:
        total = total * exp(surface(**{name: getattr(d, name) for name in surface.names}))
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
