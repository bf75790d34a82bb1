"""Fit streaming kernels: one fit per device and library, its kinds as coefficients.

All number formats share the key ``bf16``, for only bytes count. The rows name total bytes; they are
split into reads and writes by the operands of the operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import numpy as np

from simulator.base.errors import UnknownNameError
from simulator.device.fits import Fit
from simulator.device.surface import Surface
from simulator.fitting import judge
from simulator.fitting.smooth import Array, Axis, Recipe, fit_family
from simulator.roofline.elementwise import elementwise_time
from simulator.roofline.hardware import Hardware, hardware

if TYPE_CHECKING:
    import pandas as pd

FAMILY = "elementwise"
KEY = "bf16"
INPUTS = ("op", "rows", "width", "bytes")

OPERATIONS: Mapping[str, tuple[str, float]] = {
    "add": ("add", 2 / 3),
    "mul": ("binary", 2 / 3),
    "div": ("binary", 2 / 3),
    "pow": ("binary", 2 / 3),
    "addu": ("unary", 1 / 2),
    "mulu": ("unary", 1 / 2),
    "divu": ("unary", 1 / 2),
    "powu": ("unary", 1 / 2),
    "tanh": ("unary", 1 / 2),
    "copy": ("unary", 1 / 2),
    "gelu": ("activation", 1 / 2),
    "relu": ("activation", 1 / 2),
    "mlp_act": ("activation", 2 / 3),
    "act_fn": ("activation", 2 / 3),
    "ln": ("norm", 1 / 2),
    "layernorm": ("norm", 1 / 2),
    "input_layernorm": ("norm", 1 / 2),
    "softmax": ("softmax", 1 / 2),
}
"""Operation of the data -> kind, share of the bytes that is read."""

LIBRARIES: Mapping[str, str] = {"NeuSight": "torch", "vidur": "sarathi", "LLMServingSim-v1": "vllm"}
"""Source -> whose kernels it ran: torch eager, Sarathi-Serve (vidur), vLLM layers."""

KINDS = ("add", "activation", "norm", "softmax", "unary", "binary")


def prepare(rows: pd.DataFrame) -> pd.DataFrame:
    """Usable rows, repeats of a shape aggregated; adds `key`, `library`, `kind` and the bytes."""
    rows = judge.usable(rows, FAMILY, INPUTS)
    unknown = set(rows["op"]) - set(OPERATIONS)
    if unknown:
        raise UnknownNameError("elementwise operation", sorted(unknown)[0], OPERATIONS)
    rows = rows.assign(device=rows["device"].astype(str).str.lower())
    out = judge.aggregate(rows, ["device", "source", *INPUTS])
    moved = out["bytes"].to_numpy(float)
    read = moved * np.array([OPERATIONS[o][1] for o in out["op"]])
    library = [LIBRARIES.get(str(s), "torch") for s in out["source"]]
    return out.assign(
        key=KEY,
        dtype=KEY,
        library=library,
        kernel_family=library,
        kind=[OPERATIONS[o][0] for o in out["op"]],
        read_bytes=read,
        write_bytes=moved - read,
    )


def _hardware(device: str) -> Hardware:
    from simulator.device import catalogue as devices

    return hardware(devices.load(device), "fp32")


def log_model(rows: pd.DataFrame, coef: Mapping[str, float], surface: Surface | None) -> Array:
    """Log seconds of rows of any kinds, before the floor."""
    out = np.empty(len(rows))
    read, write = rows["read_bytes"].to_numpy(float), rows["write_bytes"].to_numpy(float)
    for key, at in rows.groupby(["kind", "device"], sort=False).indices.items():
        kind, device = (str(part) for part in cast("tuple[object, ...]", key))
        hw = _hardware(device)
        time = elementwise_time(read[at], write[at], kind=kind, hw=hw, coef=coef, surface=surface)
        out[at] = time.memory_s + time.launch_s
    return np.log(out)


def coords(rows: pd.DataFrame) -> dict[str, Array]:
    """Coordinate of the residual surface."""
    return {"bytes": rows["bytes"].to_numpy(float)}


RECIPE = Recipe(
    family=FAMILY,
    inputs=INPUTS,
    log_model=log_model,
    coords=coords,
    axes=(Axis("bytes", 1.0, 0.1),),
    start={
        "t0_s": 2.0e-6,
        "bw_share": 0.85,
        **{f"passes_{kind}": 1.0 for kind in KINDS},
        **{f"start_{kind}": 1.0 for kind in KINDS},
    },
    spread={
        "t0_s": 1.0,
        "bw_share": 0.3,
        **{f"passes_{kind}": 0.3 for kind in KINDS},
        **{f"start_{kind}": 0.5 for kind in KINDS},
    },
    between_source=0.20,
    between_device=0.15,
    ridge=0.01,
)


def fit(rows: pd.DataFrame, *, date: str | None = None, residuals: bool = True) -> list[Fit]:
    """Fits of every device and library of prepared `rows`, then the pooled ones."""
    return fit_family(RECIPE, rows, date=date, residuals=residuals)
