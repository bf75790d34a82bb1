"""Fit collectives: one fit per device, operation and communication library.

Rows carry the whole call: launch, barrier and transfer. CUDA-graph and eager timings of one kernel
are different libraries, and so are one, two and four nodes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from simulator.device.fits import Fit
from simulator.device.surface import Surface
from simulator.fitting import judge
from simulator.fitting.smooth import Array, Axis, Recipe, fit_family
from simulator.roofline.collective import DEFAULT, collective_time
from simulator.roofline.hardware import Hardware, hardware

if TYPE_CHECKING:
    import pandas as pd

FAMILY = "collective"
INPUTS = ("op", "n_gpus", "n_nodes", "bytes")

PATTERNS: tuple[tuple[str, str], ...] = (
    (r"NCCL \(torch\.distributed\)", "nccl_torch"),
    (r"nccl-tests", "nccl_tests"),
    (r"oneCCL", "oneccl"),
    (r":TRTLLM$", "trtllm"),
    (r":NCCL$", "nccl"),
    # Up to ten times faster than the other versions on L40S: presumably another (peer-to-peer) host.
    (r"sglang-0\.5\.12:.*_graph$", "sglang_p2p_graph"),
    (r"sglang-0\.5\.12:.*_eager$", "sglang_p2p_eager"),
    (r"sglang-0\.5\.([0-9]|10):.*_graph$", "sglang_old_graph"),
    (r"sglang-0\.5\.([0-9]|10):.*_eager$", "sglang_old_eager"),
    (r"sglang-.*_graph$", "sglang_graph"),
    (r"sglang-.*_eager$", "sglang_eager"),
    (r"vllm-0\.1[0-8]\..*_graph$", "vllm_old_graph"),
    (r"vllm-0\.1[0-8]\..*_eager$", "vllm_old_eager"),
    (r"vllm-.*_graph$", "vllm_graph"),
    (r"vllm-.*_eager$", "vllm_eager"),
)
"""Kernel string -> library, first match; times step at vLLM 0.19 and SGLang 0.5.12."""


def library_of(kernel: str, n_nodes: int = 1) -> str:
    """Library a kernel string belongs to; several nodes are a library of their own."""
    for pattern, name in PATTERNS:
        if re.search(pattern, kernel):
            return name if n_nodes == 1 else f"{name}_{n_nodes}nodes"
    return "other"


def prepare(rows: pd.DataFrame) -> pd.DataFrame:
    """Usable rows, repeats (versions of a library, number formats) aggregated to their median.

    Adds `key` (the operation), `library`, `kernel_family`, `repeats` and `spread`.
    """
    rows = judge.usable(rows, FAMILY, ("kernel", *INPUTS))
    library = [library_of(str(k), int(n)) for k, n in zip(rows["kernel"], rows["n_nodes"], strict=True)]
    rows = rows.assign(device=rows["device"].astype(str).str.lower(), library=library)
    out = judge.aggregate(rows, ["device", "source", "library", *INPUTS])
    link = [
        _link_bytes_per_s(d, int(n) if nodes == 1 else 1)
        for d, n, nodes in zip(out["device"], out["n_gpus"], out["n_nodes"], strict=True)
    ]
    return out.assign(key=out["op"], kernel_family=out["library"], dtype="any", link_bytes_per_s=link)


def _hardware(device: str) -> Hardware:
    from simulator.device import catalogue as devices

    found = devices.load(device)
    return hardware(found, next(d for d in ("bf16", "fp16", "fp32") if found.has(d)))


def _link_bytes_per_s(device: str, n_ranks: int) -> float:
    """One-way rate of the link a group of `n_ranks` runs over, as `roofline.timing` takes it [B/s].

    A pair behind a bridge and four cards over PCIe are different links; between nodes the fastest
    link stands, and the fit's share carries the network.
    """
    from simulator.device import catalogue as devices

    found = devices.load(device)
    share = found.link_for(n_ranks).bandwidth_bytes_per_s / found.link.bandwidth_bytes_per_s
    return _hardware(device).link_bytes_per_s * share


def _link(rows: pd.DataFrame) -> Hardware:
    """Hardware whose link rate is an array, one value per row (groups mix devices when pooled)."""
    rate = rows["link_bytes_per_s"].to_numpy(float)
    return replace(_hardware(str(rows["device"].iloc[0])), link_bytes_per_s=rate)


def log_model(rows: pd.DataFrame, coef: Mapping[str, float], surface: Surface | None) -> Array:
    """Log seconds of rows of one operation."""
    time = collective_time(
        str(rows["op"].iloc[0]),
        rows["bytes"].to_numpy(float),
        rows["n_gpus"].to_numpy(float),
        hw=_link(rows),
        coef=coef,
        surface=surface,
    )
    return np.log(time.latency_s + time.link_s)


def coords(rows: pd.DataFrame) -> dict[str, Array]:
    """Coordinates of the residual surface."""
    return {"bytes": rows["bytes"].to_numpy(float), "ranks": rows["n_gpus"].to_numpy(float)}


RECIPE = Recipe(
    family=FAMILY,
    inputs=INPUTS,
    log_model=log_model,
    coords=coords,
    axes=(Axis("bytes", 1.0, 0.1), Axis("ranks", 1.0, 0.003)),
    start=DEFAULT,
    spread={"t0_s": 2.0, "hop_s": 2.0, "fill_s": 2.0, "link_share": 2.0, "share_slope": 1.0},
    between_source=0.30,
    between_device=0.30,
    signed=("share_slope",),
    smallest=6,
    class_rows=100,
)


def fit(rows: pd.DataFrame, *, date: str | None = None, residuals: bool = True) -> list[Fit]:
    """Fits of every device, operation and library of prepared `rows`, then the pooled ones."""
    return fit_family(RECIPE, rows, date=date, residuals=residuals)
