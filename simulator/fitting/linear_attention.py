"""Fit the kernels of linear attention: one fit per device, kernel part, rule, phase and library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.device.fits import Fit
from simulator.device.surface import Surface
from simulator.device.types import Device
from simulator.fitting import demand, judge
from simulator.fitting.smooth import Array, Axis, Recipe, fit_family
from simulator.ops.alone import linear_attention
from simulator.ops.linear_attention import LinearAttention
from simulator.roofline.linear_attention import SCANNED, START, LinearDemand, linear_demand, linear_time
from simulator.roofline.lookup import linear_key

if TYPE_CHECKING:
    import pandas as pd

FAMILY = "linear_attention"
SHAPE = ("batch", "q_len", "k_heads", "v_heads", "k_dim", "v_dim", "channels")
INPUTS = ("kind", "phase", *SHAPE)
"""A shape is held out of the recurrence and the convolution at once."""
NEEDED = ("framework", "kind", "phase", "kernel_source", "kernel", "batch", "seq_len")
FIXED = ("kind", "kernel_part", "phase", "k_dim", "v_dim")
"""Columns of one op."""


def prepare(rows: pd.DataFrame) -> pd.DataFrame:
    """Usable rows with their engine as the source, repeats aggregated; adds `key`, `library` and demand."""
    from simulator.device import catalogue as devices

    rows = judge.usable(rows, FAMILY, NEEDED).copy()
    known = {name: devices.resolve(name) for name in rows["device"].astype(str).unique()}
    mamba = (rows["kind"] == "mamba2").to_numpy()

    def either(mamba2: str, delta: str) -> Array:
        return np.where(
            mamba, rows[mamba2].to_numpy(float, na_value=np.nan), rows[delta].to_numpy(float, na_value=np.nan)
        )

    rows = rows.assign(
        device=rows["device"].astype(str).map(known),
        source=rows["source"].astype(str) + "/" + rows["framework"].astype(str),
        kernel_part=np.where(rows["kernel_source"].astype(str).str.contains("conv1d"), "conv", "scan"),
        library=rows["kernel"].astype(str),
        q_len=rows["seq_len"].to_numpy(float),
        k_heads=either("n_groups", "num_k_heads"),
        v_heads=either("nheads", "num_v_heads"),
        k_dim=either("d_state", "head_k_dim"),
        v_dim=either("head_dim", "head_v_dim"),
    )
    known_width = (rows["framework"] == "trtllm") & (rows["kind"] == "gdn") & (rows["kernel_part"] == "conv")
    keys = rows["k_heads"] * rows["k_dim"]
    # TensorRT-LLM times this convolution on the keys' channels alone: equal times whatever the values' heads.
    rows["channels"] = np.where(known_width, keys, 2.0 * keys + rows["v_heads"] * rows["v_dim"])
    rows = rows[rows[list(SHAPE)].notna().all(axis=1)]
    return with_demand(judge.aggregate(rows, ["device", "source", "library", "kernel_part", *INPUTS]))


def op_of(rows: pd.DataFrame) -> LinearAttention:
    """The op of prepared rows that agree in all that is not a size."""
    first = rows.iloc[0]
    batch, q_len, k_heads, v_heads, channels = (rows[c].to_numpy(float) for c in (*SHAPE[:4], "channels"))
    return linear_attention(
        kind=first["kind"],
        kernel_part=first["kernel_part"],
        phase=first["phase"],
        batch=batch,
        q_len=q_len,
        k_heads=k_heads,
        v_heads=v_heads,
        k_dim=float(first["k_dim"]),
        v_dim=float(first["v_dim"]),
        channels=channels,
    )


def with_demand(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` with `key` and what each asks of its device beside it."""

    def asked(part: pd.DataFrame, device: Device) -> tuple[str, LinearDemand]:
        op = op_of(part)
        return linear_key(op), linear_demand(op, device)

    return demand.beside(rows, FIXED, LinearDemand._fields, asked)


def _counted(rows: pd.DataFrame) -> LinearDemand:
    return LinearDemand(*demand.columns(rows, LinearDemand._fields))


def _total_s(asked: LinearDemand, coef: Mapping[str, float], surface: Surface | None) -> Any:
    return linear_time(asked, coef, surface).total_s


AXES = (Axis("batch", 3.0, 0.3), Axis("q_len", 3.0, 0.3), Axis("heads", 3.0, 0.3))


def _recipe(kernel_part: str) -> Recipe:
    start = {k: v for k, v in START.items() if kernel_part == "scan" or k not in SCANNED}
    return demand.recipe(FAMILY, INPUTS, _counted, _total_s, start, AXES, smallest=12)


def fit(rows: pd.DataFrame, *, date: str | None = None, residuals: bool = True) -> list[Fit]:
    """Fits of every device, key and library of prepared `rows`, then the pooled ones."""
    parts = rows.groupby("kernel_part")
    return [f for name, part in parts for f in fit_family(_recipe(str(name)), part, date=date, residuals=residuals)]


without = demand.without(fit)
