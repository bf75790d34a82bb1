"""Time of one attention kernel: prefill, chunk on a long context, decode, absorbed MLA decode.

    t = exp(surface) * (launch + (math (+) kv) + io + tiles + chain)        never below the floor

math   padded flop / (peak * math_eff); rows of a KV head's query group are padded to `row_tile`
kv     KV bytes read / (bandwidth * kv_eff)
io     bytes of Q, O and the new tokens' KV write / (bandwidth * io_eff)
tiles  thread blocks per SM * tile_s: set-up, softmax and epilogue of a block
chain  tokens one block must walk in a row (at most `split_tokens` where KV is split) * token_s
(+)    smooth maximum: the two overlap inside a block

Contains: the KV-cache write of the new tokens (aiconfigurator times it with the kernel), the split-K
reduction (in `chain` and `launch`). Does not contain: RoPE, projections, quantisation of Q.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.errors import InputError

if TYPE_CHECKING:
    from simulator.calibration import Surface
    from simulator.roofline.hardware import Hardware

Array = Any
"""float or ndarray; everything broadcasts."""

PHASES = ("prefill", "decode", "decode-mla")
MLA_LATENT = 512
MLA_ROPE = 64

DEFAULT_COEF: dict[str, dict[str, float]] = {
    "prefill": {
        "launch_s": 8e-6, "math_eff": 0.62, "kv_eff": 0.8, "io_eff": 0.35, "tile_s": 1.0e-6,
        "token_s": 2.0e-9, "split_tokens": 1e9, "row_tile": 128.0,
    },
    "decode": {
        "launch_s": 7e-6, "math_eff": 0.35, "kv_eff": 0.85, "io_eff": 0.35, "tile_s": 1.0e-6,
        "token_s": 4.0e-9, "split_tokens": 1024.0, "row_tile": 16.0,
    },
    "decode-mla": {
        "launch_s": 12e-6, "math_eff": 0.60, "kv_eff": 0.85, "io_eff": 0.5, "tile_s": 1.0e-6,
        "token_s": 4.0e-9, "split_tokens": 1024.0, "row_tile": 64.0,
    },
}
"""Used where nothing is calibrated (basis DATASHEET): medians over the measured kernels."""


@dataclass(frozen=True, slots=True)
class AttentionTime:
    """Seconds of one attention kernel.

    Attributes
    ----------
    total_s : ndarray
        Time of the kernel [s], floor and surface applied.
    math_s, memory_s, launch_s : ndarray
        Tensor math, bytes moved (KV, Q, O, KV write), everything else [s], without surface.
    """

    total_s: np.ndarray
    math_s: np.ndarray
    memory_s: np.ndarray
    launch_s: np.ndarray


def causal_pairs(q_len: Array, kv_len: Array, window: Array = 0) -> Array:
    """Query-key pairs of one head [-]: query at position p sees min(p, window) tokens.

    The chunk is the last `q_len` of `kv_len` tokens; ``window`` 0 means no window.
    """
    before = kv_len - q_len
    if np.ndim(window) == 0 and window == 0:
        return q_len * (before + kv_len + 1.0) * 0.5
    reach = np.where(np.asarray(window) > 0, window, np.inf)
    ramp_end = np.minimum(np.maximum(reach, before), kv_len)
    full = np.where(kv_len > ramp_end, (kv_len - ramp_end) * np.minimum(reach, kv_len), 0.0)
    return (ramp_end - before) * (before + ramp_end + 1.0) * 0.5 + full


def context_tokens(q_len: Array, kv_len: Array, window: Array = 0) -> Array:
    """KV tokens that are read at least once [-]: all, or the window behind the first query."""
    if np.ndim(window) == 0 and window == 0:
        return kv_len
    reach = np.where(np.asarray(window) > 0, window + q_len - 1.0, np.inf)
    return np.minimum(kv_len, reach)


def ceil_to(x: Array, tile: float) -> Array:
    """x rounded up to a multiple of `tile`."""
    return np.ceil(x / tile) * tile


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
    kv_bytes_per_element: float,
    act_bytes: float,
    hw: Hardware,
    coef: Mapping[str, float],
    surface: Surface | None = None,
    kv_read_bytes: Array | None = None,
    flop: Array | None = None,
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
    kv_bytes_per_element, act_bytes : float
        Bytes per stored KV element and per activation element [B].
    hw : Hardware
        Peaks of the device for the dtype of the product.
    coef : mapping
        Keys of `DEFAULT_COEF`, see the module text.
    surface : Surface, optional
        Log residual over (lanes, tokens, group, head_dim), see `surface_coords`.
    kv_read_bytes, flop : array_like, optional
        Override the KV bytes read [B] and the useful flop [flop].
    """
    if phase not in PHASES:
        raise InputError(f"attention phase {phase!r} is not one of {', '.join(PHASES)}")
    mla = phase == "decode-mla"
    group = n_heads / n_kv_heads
    value_dim = MLA_LATENT if mla else head_dim
    token_bytes = (head_dim if mla else 2.0 * head_dim) * kv_bytes_per_element
    tokens = context_tokens(q_len, kv_len, window)
    heads = batch * n_kv_heads
    peak = hw.math_flop_per_s
    bandwidth = hw.hbm_bytes_per_s

    rows = group * q_len
    row_tiles = np.ceil(rows / coef["row_tile"])
    pad = row_tiles * coef["row_tile"] / rows
    pair_flop = 2.0 * n_heads * (head_dim + value_dim)
    useful = batch * (pair_flop * causal_pairs(q_len, kv_len, window)) if flop is None else flop
    kv_bytes = heads * (token_bytes * tokens) if kv_read_bytes is None else kv_read_bytes
    new_bytes = batch * (
        n_heads * q_len * (head_dim + value_dim) * act_bytes + n_kv_heads * q_len * token_bytes
    )

    math_s = useful * (pad / (peak * coef["math_eff"]))
    kv_s = kv_bytes * (1.0 / (bandwidth * coef["kv_eff"]))
    io_s = new_bytes * (1.0 / (bandwidth * coef["io_eff"]))
    tiles_s = heads * row_tiles * (coef["tile_s"] / hw.sm_count)
    chain_s = np.minimum(tokens, coef["split_tokens"]) * (coef["token_s"] * head_dim / 128.0)
    overhead_s = coef["launch_s"] + tiles_s + chain_s
    memory_s = kv_s + io_s
    total_s = smooth_max(math_s, kv_s) + (io_s + overhead_s)
    if surface is not None:
        total_s = total_s * np.exp(
            surface(**surface_coords(batch, q_len, tokens, n_heads, n_kv_heads, head_dim))
        )
    floor_s = np.maximum(
        useful * (1.0 / peak), (kv_bytes + (new_bytes - hw.l2_bytes)) * (1.0 / bandwidth)
    )
    return AttentionTime(np.maximum(total_s, floor_s), math_s, memory_s, overhead_s)


def smooth_max(a: Array, b: Array) -> Array:
    """(a^4 + b^4)^(1/4): the larger one, 19 % more where both are equal."""
    a2, b2 = a * a, b * b
    return np.sqrt(np.sqrt(a2 * a2 + b2 * b2))


def surface_coords(
    batch: Array, q_len: Array, tokens: Array, n_heads: Array, n_kv_heads: Array, head_dim: Array
) -> dict[str, Array]:
    """log2 coordinates of the residual surface; each keeps the shape of its own inputs."""
    return {
        "lanes": np.log2(batch * n_kv_heads),
        "tokens": np.log2(tokens),
        "group": np.log2(n_heads / n_kv_heads),
        "head_dim": np.log2(head_dim),
    }
