"""Time of one attention kernel: prefill, chunk on a long context, decode, absorbed MLA decode.

    t = exp(surface) * (launch + io + chain + hypot(max4(math, kv), tiles))     never below the floor

    math   flop / (peak * math_eff), the rows of a query tile padded to `row_tile`
    kv     KV bytes read, `page_tokens` more per sequence, / (bandwidth * kv_eff)
    io     bytes of Q, O and the new tokens' KV write / (bandwidth * io_eff)
    tiles  thread blocks per SM * tile_s: set-up, softmax and epilogue of a block
    chain  tokens one block walks in a row (at most `split_tokens` where KV is split) * token_s
    max4   (a^4 + b^4)^(1/4): tensor math and KV stream overlap inside a block
    dim    math_eff falls as (128/d)^dim_low below and (d/128)^dim_high above a head size of 128
    alone  decode kernels that do not pack every query group: groups above `group_max` (TensorRT-LLM's
           fallback), and with `packs_all` 0 (FlashAttention-2) a window or a group of 1, run one block
           per query head at `alone_eff` of the peak and, in the second case, without split-K
    window a kernel may skip only part of the tokens outside a sliding window: `window_leak`
    L2     a benchmark that repeats one KV buffer reads it from L2 while it fits (`l2_share`), `l2_gain`
           times faster; a model step does not (`reuse=0`, the default)

Contains: the KV-cache write of the new tokens (aiconfigurator times it with the kernel), the split-K
reduction (in `launch` and `chain`). Does not contain: RoPE, projections, quantisation of Q.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from simulator.base.arrays import Array, ceil, exp, maximum, minimum, some, sqrt, where
from simulator.base.errors import InputError
from simulator.ops.pairs import causal_pairs
from simulator.roofline.bandwidth import resident_bytes_per_s

if TYPE_CHECKING:
    from simulator.device.surface import Surface
    from simulator.roofline.hardware import Hardware

PHASES = ("prefill", "decode", "decode-mla")
MLA_LATENT = 512

COEFFICIENTS = (
    "launch_s",
    "math_eff",
    "kv_eff",
    "io_eff",
    "tile_s",
    "token_s",
    "split_tokens",
    "page_tokens",
    "window_leak",
    "l2_gain",
    "l2_share",
    "dim_low",
    "dim_high",
    "alone_eff",
    "row_tile",
    "group_max",
    "packs_all",
)
AXES = ("lanes", "tokens", "group", "head_dim")
"""Surface coordinates: batch * KV heads; sqrt(q_len * tokens) of a chunk, tokens of a decode;
query heads per KV head; head size."""


@dataclass(frozen=True, slots=True)
class AttentionTime:
    """Seconds of one attention kernel.

    Attributes
    ----------
    total_s : Array
        Time of the kernel [s], floor and surface applied.
    math_s, memory_s, launch_s : Array
        Tensor math, bytes moved (KV, Q, O, KV write), everything else [s], without surface.
    """

    total_s: Array
    math_s: Array
    memory_s: Array
    launch_s: Array


def context_tokens(q_len: Array, kv_len: Array, window: Array = 0) -> Array:
    """KV tokens that are read at least once [-]: all, or the window behind the first query."""
    if isinstance(window, int | float) and not window:
        return kv_len
    reach = where(window > 0, window + q_len - 1.0, inf)
    return minimum(kv_len, reach)


def attention_time(
    *,
    phase: str,
    batch: Array,
    q_len: Array,
    kv_len: Array,
    n_heads: Array,
    n_kv_heads: Array,
    head_dim: Array,
    window: Array = 0,
    kv_bytes_per_element: Array,
    act_bytes: Array,
    hw: Hardware,
    coef: Mapping[str, float],
    surface: Surface | None = None,
    kv_read_bytes: Array | None = None,
    flop: Array | None = None,
    io_bytes: Array | None = None,
    reuse: float = 0.0,
) -> AttentionTime:
    """Time of one layer's attention over arrays that broadcast.

    Parameters
    ----------
    phase : {"prefill", "decode", "decode-mla"}
        Absorbed MLA decode reads (512 + 64) latent elements per token once for all heads.
    batch, q_len, kv_len : array_like
        Sequences, new tokens per sequence, context including the new tokens. A KV policy passes
        the tokens attended as `kv_len`.
    n_heads, n_kv_heads, head_dim : array_like
        Heads per GPU; `head_dim` of MLA is 576.
    window : array_like
        Sliding window in tokens, 0 = none.
    kv_bytes_per_element, act_bytes : array_like
        Bytes per stored KV element and per activation element [B].
    hw : Hardware
        Peaks of the device for the dtype of the product.
    coef : mapping
        `COEFFICIENTS`, see the module text.
    surface : Surface, optional
        Log residual over `AXES`.
    kv_read_bytes, flop, io_bytes : array_like, optional
        Override the KV bytes read [B], the useful flop [flop], and the bytes of Q, O and new K and V [B].
    reuse : float
        1 where the same KV was read just before (kernel benchmarks), 0 in a model step.
    """
    if phase not in PHASES:
        raise InputError(f"attention phase {phase!r} is not one of {', '.join(PHASES)}")
    mla = phase == "decode-mla"
    prefill = phase == "prefill"
    value_dim = MLA_LATENT if mla else head_dim
    token_bytes = (head_dim if mla else 2.0 * head_dim) * kv_bytes_per_element
    tokens = context_tokens(q_len, kv_len, window)
    read_tokens = tokens + coef["page_tokens"]
    pairs = causal_pairs(q_len, kv_len, window)
    walked = pairs
    if not isinstance(window, int | float) or window:
        read_tokens = read_tokens + coef["window_leak"] * (kv_len - tokens)
        walked = pairs + coef["window_leak"] * (causal_pairs(q_len, kv_len) - pairs)
    peak, bandwidth = hw.math_flop_per_s, hw.hbm_bytes_per_s
    lanes = batch * n_kv_heads

    group = n_heads / n_kv_heads
    rows = q_len if prefill else group * q_len
    tile = coef["row_tile"]
    efficiency = coef["math_eff"] * (1.0 if mla else head_size_factor(head_dim, coef))
    chain_tokens, alone_tokens = minimum(tokens, coef["split_tokens"]), 0.0
    # A decode tile holds the query heads of one KV head for all new tokens, a prefill tile rows of one query head.
    tiles = ceil(rows / tile)
    blocks = (batch * n_heads if prefill else lanes) * tiles
    rate = efficiency * rows / (tiles * tile)
    if not prefill and (coef["packs_all"] == 0.0 or some(group > coef["group_max"])):
        wide = group > coef["group_max"]
        plain = (coef["packs_all"] == 0.0) & ((group <= 1.0) | (window > 0))
        alone = wide | (plain & (group > 1.0))
        blocks = where(alone, batch * n_heads, blocks)
        rate = where(alone, coef["alone_eff"], rate)
        chain_tokens, alone_tokens = (where(plain, 0.0, chain_tokens), where(plain, tokens, 0.0))
    pair_flop = 2.0 * n_heads * (head_dim + value_dim)
    # Products of the small axes first: only the last multiplication is full size.
    padding = walked / pairs / (peak * rate)
    floor_rate = peak * hw.max_clock_ratio
    kv_scale = read_tokens / tokens / (bandwidth * coef["kv_eff"])
    if flop is None:
        math_s = batch * (pair_flop * pairs * padding)
        floor_math_s = batch * (pair_flop * pairs / floor_rate)
    else:
        math_s, floor_math_s = flop * padding, flop * (1.0 / floor_rate)
    kv_bytes = lanes * (token_bytes * tokens) if kv_read_bytes is None else kv_read_bytes
    if hw.cached is not None:
        # A measured cache curve says what a repeated buffer gains, and the floor counts bytes beyond L2.
        kv_scale = kv_scale * (bandwidth / resident_bytes_per_s(kv_bytes, hw))
    kv_s = kv_bytes * kv_scale
    new_bytes = io_bytes
    if new_bytes is None:
        row_bytes = n_heads * (head_dim + value_dim) * act_bytes + n_kv_heads * token_bytes
        new_bytes = batch * (q_len * row_bytes)
    io_s = new_bytes / (bandwidth * coef["io_eff"])
    if reuse and hw.cached is None:
        x = (kv_bytes + new_bytes) * (1.0 / (hw.l2_bytes * coef["l2_share"]))
        x = x * x
        x = x * x
        saved = 1.0 - (reuse * (1.0 - 1.0 / coef["l2_gain"])) / (1.0 + x * x)
        kv_s = kv_s * saved
        io_s = io_s * saved if prefill else io_s
    token_s = coef["token_s"] * head_dim / 128.0
    chain_s = chain_tokens * token_s
    tiles_s = blocks * (coef["tile_s"] / hw.sm_count)
    fixed_s = coef["launch_s"] + chain_s
    # A block that walks all tokens alone streams meanwhile: its chain overlaps the rest.
    beside = tiles_s * tiles_s + (alone_tokens * token_s) ** 2
    math2, kv2 = math_s * math_s, kv_s * kv_s
    work_s = sqrt(sqrt(math2 * math2 + kv2 * kv2) + beside)
    total_s = work_s + (io_s + fixed_s)
    if surface is not None:
        coords = {
            "lanes": lanes,
            "tokens": sqrt(q_len * tokens) if prefill else tokens,
            "group": group,
            "head_dim": head_dim,
        }
        total_s = total_s * exp(surface(**coords))
    # New K, V and O may stay in L2; the cached tokens come from memory unless just read.
    again = 1.0 if hw.cached is not None else reuse
    cached = kv_bytes * ((1.0 - again) * maximum(tokens - q_len, 0.0) / tokens)
    floor_bytes = maximum(kv_bytes + (new_bytes - hw.l2_bytes), cached)
    floor_s = maximum(floor_math_s, floor_bytes * (1.0 / bandwidth))
    return AttentionTime(maximum(total_s, floor_s), math_s, kv_s + io_s, fixed_s + tiles_s)


def head_size_factor(head_dim: Array, coef: Mapping[str, float]) -> Array:
    """Tensor efficiency of a head size over that of 128 [-]."""
    low = (minimum(head_dim, 128.0) / 128.0) ** coef["dim_low"]
    return low * (128.0 / maximum(head_dim, 128.0)) ** coef["dim_high"]
