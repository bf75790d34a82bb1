"""Measured rows of sparse kernels as the simulator's own ops: what is fitted and judged is what a prediction asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from simulator.base.dtypes import Format, get_format
from simulator.device.catalogue import load
from simulator.ops.alone import spmm
from simulator.ops.ops import Attention, Linear
from simulator.roofline.hardware import hardware, math_of
from simulator.roofline.speedup import KernelShape, Rates, rates_of, shape_of

if TYPE_CHECKING:
    import pandas as pd

ROLE = "measured"
GATHERED = {"down-proj": "k", "up-proj": "n"}


def op_of(rows: pd.DataFrame) -> Linear | Attention:
    """Op over prepared `rows` of one pattern, kernel and number format.

    A gated block is one product: gate, up and down have as many elements, and its gate is read whole.
    """
    pattern, library, fmt = str(rows["family"].iloc[0]), str(rows["library"].iloc[0]), _format(rows)
    keep = rows["keep"].to_numpy(float)
    kernel = f"{pattern}/{library}"
    if pattern == "NSA":
        batch, q_len, heads, kv_heads = (rows[c].to_numpy(float) for c in ("batch", "q_len", "n_heads", "n_kv_heads"))
        return Attention(
            role=ROLE,
            phase="prefill",
            batch=batch,
            q_len=q_len,
            kv_len=q_len,
            n_heads=heads,
            n_kv_heads=kv_heads,
            head_dim=128.0,
            v_head_dim=128.0,
            math=fmt.math,
            kv_element_bytes=fmt.act_bytes,
            pair_keep=keep,
            reuse=1.0,
            kernel=kernel,
        )
    m, n, k, vector = (rows[c].to_numpy(float) for c in ("m", "n", "k", "vector"))
    whole = {"role": ROLE, "m": m, "n": n, "k": k, "fmt": fmt, "kernel": kernel}
    if pattern == "CATS":
        return Linear(**{**whole, "n": 3.0 * n}, gathered="n", read_keep=(1.0 + 2.0 * keep) / 3.0, whole=1.0 / 3.0)
    if pattern == "ProSparse":
        axis = "k" if "down" in library else "n"
        return Linear(**whole, gathered=axis, read_keep=keep, flop_keep=keep)
    return spmm(m=m, n=n, k=k, keep=keep, pattern=pattern, kernel=library, vector=vector, dtype=fmt.name)


def _format(rows: pd.DataFrame) -> Format:
    return get_format(str(rows["dtype"].iloc[0]))


def shapes(rows: pd.DataFrame) -> KernelShape:
    """What the kernels of `rows` are asked, shape (rows,) each."""
    columns = np.empty((len(KernelShape._fields), len(rows)))
    for at in rows.groupby(["family", "library", "dtype"], sort=False).indices.values():
        for column, value in zip(columns, shape_of(op_of(rows.iloc[at])), strict=True):
            column[at] = value
    return KernelShape(*columns)


def rates(rows: pd.DataFrame) -> Rates:
    """Datasheet rates of `rows`' devices in their formats, shape (rows,) each."""
    columns = np.empty((len(Rates._fields), len(rows)))
    for key, at in rows.groupby(["device", "dtype"], sort=False).indices.items():
        device, dtype = (str(part) for part in cast("tuple[object, ...]", key))
        profile = load(device)
        found = rates_of(hardware(profile, math_of(profile, get_format(dtype).math)))
        columns[:, at] = np.array(found)[:, None]
    return Rates(*columns)
