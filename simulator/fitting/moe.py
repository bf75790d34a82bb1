"""Fit fused MoE layers: one fit per device, number format and kernel library.

Rows hold the routed experts of one rank: permute, both grouped GEMMs, activation, its quantisation
where the format has one, and the weighted sum. No router, no shared expert, no collective.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from simulator.base.dtypes import get_format
from simulator.device.fits import Fit
from simulator.device.surface import Surface
from simulator.fitting import judge
from simulator.fitting.releases import release_of, split
from simulator.fitting.smooth import Array, Axis, Recipe, fit_family
from simulator.roofline.hardware import Hardware, hardware
from simulator.roofline.moe import DEFAULT, Routing, moe_time, route

if TYPE_CHECKING:
    import pandas as pd

FAMILY = "moe"
INPUTS = (*("dtype", "num_tokens", "hidden", "inter", "topk", "n_experts"), *("moe_tp", "moe_ep", "distribution"))

FORMAT_NAMES: Mapping[str, str] = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "int4_wo": "w4a16",
    "w4a16_mxfp4": "w4a16",
    "w4a8_mxfp4_mxfp8": "mxfp4",
}
"""Names of the data for our formats (mxfp4 weights of 4.25 bits stand under w4a16's 4.16)."""

PATTERNS: tuple[tuple[str, str], ...] = (
    (r"torch_flow_nongated|torch_flow_cutlass", "cutlass"),
    (r"torch_flow_triton", "triton"),
    (r"torch_flow", "flow"),
    (r"mxfp4_flashinfer_trtllm|flashinfer_trtllm", "trtllmgen"),
    (r"flashinfer_cutlass", "cutlass"),
    (r"marlin", "marlin"),
    (r"oaitriton", "oaitriton"),
    (r"triton|vllm_fused_moe", "triton"),
    (r"xpu", "xpu"),
)
"""Kernel string -> kind of kernel; the library is `<framework>_<kind>`."""

NONGATED: frozenset[tuple[int, int]] = frozenset({(2688, 1856), (4096, 2688), (2048, 5120), (8192, 5120), (1024, 2688)})
"""(hidden, inter) of Nemotron-3: squared ReLU, two matrices. The data names no activation."""


def library_of(kernel: str) -> str:
    """Library of a kernel string such as ``vllm-0.24.0:vllm_fp8moe_triton_tritonexperts``."""
    framework, _, name = kernel.partition(":")
    for pattern, kind in PATTERNS:
        if re.search(pattern, name):
            return f"{framework.split('-')[0]}_{kind}"
    return "other"


def prepare(rows: pd.DataFrame) -> pd.DataFrame:
    """Usable rows, repeats aggregated; adds `key` (format), `library`, `gated`, the rank's load."""
    rows = judge.usable(rows, FAMILY, ("kernel", *INPUTS))
    named = rows["dtype"].astype(str).replace(dict(FORMAT_NAMES))
    library = rows["kernel"].astype(str).map(library_of)
    mx = rows["dtype"].astype(str).eq("w4a16_mxfp4")
    rows = rows.assign(
        device=rows["device"].astype(str).str.lower(),
        dtype=named,
        library=library.where(~mx, library.str.replace("_", "_mx_", n=1)),
    )
    rows = rows.assign(release=rows["kernel"].astype(str).map(release_of))
    out = judge.aggregate(rows, ["device", "source", "library", "release", *INPUTS])
    two = [(h, i) in NONGATED for h, i in zip(out["hidden"], out["inter"], strict=True)]
    out = with_load(out)
    pairs = list(zip(out["device"], out["dtype"], strict=True))
    known = {pair: _hardware(*pair) for pair in set(pairs)}
    every = [known[pair] for pair in pairs]
    return out.assign(
        key=out["dtype"],
        kernel_family=out["library"],
        gated=~np.array(two),
        peak=[h.math_flop_per_s for h in every],
        hbm=[h.hbm_bytes_per_s for h in every],
        l2=[h.l2_bytes for h in every],
    )


def with_load(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` with what the busiest rank has to do beside them: experts hit (`active`) and pairs (`rows`)."""
    active, pairs = np.empty(len(rows)), np.empty(len(rows))
    for name, at in rows.groupby("distribution").indices.items():
        part = rows.iloc[at]
        tokens, k, experts, ep = (part[c].to_numpy(float) for c in ("num_tokens", "topk", "n_experts", "moe_ep"))
        load = route(tokens, k, experts, ep=ep, distribution=str(name))
        active[at], pairs[at] = load.active, load.rows
    return rows.assign(active=active, rows=pairs)


def _hardware(device: str, dtype: str) -> Hardware:
    from simulator.device import catalogue as devices

    return hardware(devices.load(device), dtype)


def _time(rows: pd.DataFrame, coef: Mapping[str, float], surface: Surface | None):
    """`MoeTime` of rows of one format; the devices may differ."""
    fmt = get_format(str(rows["dtype"].iloc[0]))
    hw = replace(
        _hardware(str(rows["device"].iloc[0]), fmt.name),
        math_flop_per_s=rows["peak"].to_numpy(float),
        hbm_bytes_per_s=rows["hbm"].to_numpy(float),
        l2_bytes=rows["l2"].to_numpy(float),
    )
    shape = (rows[c].to_numpy(float) for c in ("num_tokens", "hidden", "inter", "topk", "n_experts"))
    return moe_time(
        *shape,
        tp=rows["moe_tp"].to_numpy(float),
        ep=rows["moe_ep"].to_numpy(float),
        weight_bytes_per_element=fmt.weight_bytes,
        act_bytes=fmt.act_bytes,
        gated=rows["gated"].to_numpy(bool),
        hw=hw,
        coef=coef,
        surface=surface,
        load=Routing(rows["active"].to_numpy(float), rows["rows"].to_numpy(float)),
    )


def log_model(rows: pd.DataFrame, coef: Mapping[str, float], surface: Surface | None) -> Array:
    """Log seconds of rows of one format."""
    return np.log(_time(rows, coef, surface).total_s)


def coords(rows: pd.DataFrame) -> dict[str, Array]:
    """Coordinates of the residual surface."""
    tokens, experts, ep, inter, tp = (
        rows[c].to_numpy(float) for c in ("num_tokens", "n_experts", "moe_ep", "inter", "moe_tp")
    )
    return {"tokens": tokens, "experts": experts / ep, "width": inter / tp}


RECIPE = Recipe(
    family=FAMILY,
    inputs=INPUTS,
    log_model=log_model,
    coords=coords,
    axes=(Axis("tokens", 1.5, 0.3), Axis("experts", 2.0, 0.3), Axis("width", 2.0, 0.3)),
    start=DEFAULT,
    spread={
        "t0_s": 1.0,
        "math_share": 0.5,
        "bw_share": 0.3,
        "tile_fill": 1.0,
        "tile_rows": 0.5,
        "narrow": 1.0,
        "act_passes": 1.0,
        "pair_passes": 2.0,
        "unaligned": 0.7,
    },
    between_source=0.10,
    between_device=0.15,
    ridge=0.01,
    huber=0.15,
    refit=False,
    solve_rows=1500,
)


def fit(rows: pd.DataFrame, *, date: str | None = None, residuals: bool = True) -> list[Fit]:
    """Fits of every device, format and library of prepared `rows`, then the pooled ones."""
    return fit_family(RECIPE, split(rows, INPUTS, ("key",)), date=date, residuals=residuals)
