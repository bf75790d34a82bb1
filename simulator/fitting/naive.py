"""The bare roofline, as a yardstick: max(flop / peak, bytes / bandwidth) with nothing fitted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from simulator.base.dtypes import KV_FORMATS, get_format
from simulator.base.errors import UnsupportedError
from simulator.ops.ops import causal_pairs

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray


def naive_s(family: str, rows: pd.DataFrame) -> Array:
    """Bare roofline time of prepared rows [s]; NaN where the profile has no rate for them."""
    flop, moved, dtype = _DEMAND[family](rows)
    peak, bandwidth, link = _rates(rows["device"].astype(str).to_numpy(), dtype)
    if family == "collective":
        return moved / link
    return np.maximum(flop / peak, moved / bandwidth)


def _rates(devices: Array, dtypes: Array) -> tuple[Array, Array, Array]:
    from simulator.device.catalogue import load

    found: dict[tuple[str, str], tuple[float, float, float]] = {}
    for pair in set(zip(devices, dtypes, strict=True)):
        device = load(pair[0])
        try:
            peak = device.peak_flop_per_s(get_format(pair[1]).math)
        except UnsupportedError:
            peak = np.nan
        link = device.links[0].bandwidth_bytes_per_s if device.links else np.nan
        found[pair] = (peak, device.hbm_bytes_per_s, link)
    table = np.array([found[p] for p in zip(devices, dtypes, strict=True)], float).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]


def _gemm(rows: pd.DataFrame) -> tuple[Array, Array, Array]:
    b, m, n, k = (rows[c].to_numpy(float) for c in ("batch", "m", "n", "k"))
    dtype = rows["dtype"].astype(str).to_numpy()
    weight = np.array([get_format(d).weight_bytes for d in dtype])
    act = np.array([get_format(d).act_bytes for d in dtype])
    out = np.array([4.0 if d in ("fp32", "tf32") else 2.0 for d in dtype])
    return 2 * b * m * n * k, b * (n * k * weight + m * k * act + m * n * out), dtype


def _attention(rows: pd.DataFrame) -> tuple[Array, Array, Array]:
    b, q, s, h, hk, d = (
        rows[c].to_numpy(float) for c in ("batch", "q_len", "kv_len", "n_heads", "n_kv_heads", "head_dim")
    )
    kv = np.array([KV_FORMATS[x] for x in rows["kv_dtype"].astype(str)])
    window = rows["window"].to_numpy(float)
    pairs = np.array([float(causal_pairs(i, j, int(w) or None)) for i, j, w in zip(q, s, window, strict=True)])
    read = np.where(window > 0, np.minimum(s, window + q - 1), s)
    moved = b * (2 * q * h * d * 2 + read * hk * 2 * d * kv)
    return 4 * b * h * d * pairs, moved, rows["dtype"].astype(str).to_numpy()


def _collective(rows: pd.DataFrame) -> tuple[Array, Array, Array]:
    n, size = rows["n_gpus"].to_numpy(float), rows["bytes"].to_numpy(float)
    op = rows["op"].astype(str).to_numpy()
    factor = np.where(op == "all_reduce", 2 * (n - 1) / n, np.where(op == "send_recv", 1.0, (n - 1) / n))
    return np.zeros(len(rows)), size * factor, np.full(len(rows), "fp16")


def _moe(rows: pd.DataFrame) -> tuple[Array, Array, Array]:
    t, h, i, k, e, tp, ep = (
        rows[c].to_numpy(float) for c in ("num_tokens", "hidden", "inter", "topk", "n_experts", "moe_tp", "moe_ep")
    )
    dtype = rows["dtype"].astype(str).to_numpy()
    weight = np.array([get_format(d).weight_bytes for d in dtype])
    per_expert = 3 * h * i / tp
    active = e / ep * -np.expm1(t * np.log1p(-np.minimum(k / e, 1 - 1e-12)))
    return 2 * t * k / ep * per_expert, active * per_expert * weight, dtype


def _elementwise(rows: pd.DataFrame) -> tuple[Array, Array, Array]:
    moved = rows["read_bytes"].to_numpy(float) + rows["write_bytes"].to_numpy(float)
    return np.zeros(len(rows)), moved, np.full(len(rows), "fp32")


_DEMAND = {"gemm": _gemm, "attention": _attention, "collective": _collective, "moe": _moe, "elementwise": _elementwise}
