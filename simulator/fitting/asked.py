"""Measured rows as the simulator's own ops: what is judged is what a prediction would answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from simulator.base.errors import InputError, ShadowlineError
from simulator.device.catalogue import load
from simulator.device.fits import Fit
from simulator.device.releases import joined
from simulator.device.types import Device
from simulator.fitting.alltoall import FIXED as EXCHANGE_FIXED
from simulator.fitting.alltoall import op_of as _exchange
from simulator.fitting.linear_attention import FIXED as LINEAR_FIXED
from simulator.fitting.linear_attention import op_of as _linear
from simulator.fitting.module import FIXED as MODULE_FIXED
from simulator.fitting.module import op_of as _module
from simulator.ops import alone
from simulator.ops.expert_exchange import ExpertExchange
from simulator.ops.linear_attention import LinearAttention
from simulator.ops.module import AttentionModule
from simulator.ops.ops import Attention, Collective, Elementwise, Linear, Moe
from simulator.roofline.bare import bare
from simulator.roofline.engine import get_engine
from simulator.roofline.timing import time_op

if TYPE_CHECKING:
    import pandas as pd

Asked = Linear | Attention | AttentionModule | LinearAttention | Moe | Collective | Elementwise | ExpertExchange


def _column(rows: pd.DataFrame, name: str) -> np.ndarray:
    return rows[name].to_numpy(float)


def _one(rows: pd.DataFrame, name: str) -> str:
    return str(rows[name].iloc[0])


def _gemm(rows: pd.DataFrame) -> Linear:
    m, n, k, batch = (_column(rows, c) for c in ("m", "n", "k", "batch"))
    return alone.gemm(m=m, n=n, k=k, batch=batch, dtype=_one(rows, "dtype"))


def _attention(rows: pd.DataFrame) -> Attention:
    """One phase, head size and window."""
    batch, q_len, kv_len, heads, kv_heads = (
        _column(rows, c) for c in ("batch", "q_len", "kv_len", "n_heads", "n_kv_heads")
    )
    return alone.attention(
        phase=_one(rows, "phase"),
        batch=batch,
        q_len=q_len,
        kv_len=kv_len,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=float(rows["head_dim"].iloc[0]),
        window=int(rows["window"].iloc[0]),
        kv_dtype=_one(rows, "kv_dtype"),
        dtype=_one(rows, "dtype"),
    )


def _moe(rows: pd.DataFrame) -> Moe:
    tokens, hidden, inter, top_k, experts, tp, ep = (
        _column(rows, c) for c in ("num_tokens", "hidden", "inter", "topk", "n_experts", "moe_tp", "moe_ep")
    )
    return alone.moe(
        tokens=tokens,
        hidden=hidden,
        intermediate=inter,
        top_k=top_k,
        experts=experts,
        tp=tp,
        ep=ep,
        gated=bool(rows["gated"].iloc[0]),
        dtype=_one(rows, "dtype"),
        routing=_one(rows, "distribution"),
    )


def _collective(rows: pd.DataFrame) -> Collective:
    ranks, nodes = int(rows["n_gpus"].iloc[0]), int(rows["n_nodes"].iloc[0])
    return alone.collective(op=_one(rows, "op"), bytes=_column(rows, "bytes"), ranks=ranks, nodes=nodes)


def _elementwise(rows: pd.DataFrame) -> Elementwise:
    read, write = _column(rows, "read_bytes"), _column(rows, "write_bytes")
    return alone.elementwise(kind=_one(rows, "kind"), read_bytes=read, write_bytes=write)


OPS: Mapping[str, tuple[tuple[str, ...], Callable[[pd.DataFrame], Asked]]] = {
    "gemm": (("dtype",), _gemm),
    "attention": (("phase", "dtype", "kv_dtype", "head_dim", "window"), _attention),
    "module": (MODULE_FIXED, _module),
    "linear_attention": (LINEAR_FIXED, _linear),
    "alltoall": (EXCHANGE_FIXED, _exchange),
    "moe": (("dtype", "gated", "distribution"), _moe),
    "collective": (("op", "n_gpus", "n_nodes"), _collective),
    "elementwise": (("kind",), _elementwise),
}
"""Family -> columns that one op holds fixed, and the op of prepared rows that share them."""
FASTEST = 20.0
"""Roofline over measured time beyond which no kernel ran: operands that lie in L2 reach 5 of all rows known [-]."""


def _by_op(family: str, rows: pd.DataFrame) -> Iterator[tuple[str, str, Asked, np.ndarray]]:
    """Device, library (as of its release) and op of the prepared rows that share one, and where these stand."""
    fixed, op_of = OPS[family]
    released = ["release"] if "release" in rows else []
    for key, at in rows.groupby(["device", "library", *released, *fixed], sort=False).indices.items():
        name, library, release = (str(part) for part in (*cast("tuple[object, ...]", key), "")[:3])
        yield name, joined(library, release if released else ""), op_of(rows.iloc[at]), np.asarray(at)


def refuse_implausible(family: str, rows: pd.DataFrame, inputs: Sequence[str]) -> None:
    """Refuse prepared rows that no hardware ran: times in another unit, or of a kernel that did not start.

    Parameters
    ----------
    inputs : sequence of str
        Columns that tell the shape of a row.

    Raises
    ------
    InputError
        A time more than `FASTEST` times below ``max(flop/peak, bytes/bandwidth)``, with the row's shape.
    """
    for name, _, op, at in _by_op(family, rows):
        least_s = np.broadcast_to(bare(op, load(name)).least_s, len(at))
        time_s = rows["time_s"].to_numpy(float)[at]
        worst = int(np.argmax(least_s / time_s))
        if least_s[worst] > FASTEST * time_s[worst]:
            row = rows.iloc[at[worst]]
            shape = ", ".join(f"{c}={row[c]}" for c in inputs if c in row)
            raise InputError(
                f"{time_s[worst]:.3g} s for {shape} is implausible: the datasheet of {name} allows"
                f" {least_s[worst]:.3g} s at best; time_s is in seconds, of a kernel that ran",
                where="--data",
            )


def predicted(family: str, rows: pd.DataFrame, fits: Sequence[Fit] | None) -> tuple[pd.DataFrame, dict[str, int]]:
    """Prepared rows with ``mid_s``, ``lo_s``, ``hi_s``, ``naive_s`` beside them, and counts of those without a fit.

    Every row is an op of its kind, timed by `time_op` with the row's library as the engine's kernel.

    Parameters
    ----------
    fits : sequence of Fit or None
        What devices answer from in place of their own fits of the family; None: those.
    """
    kernels = get_engine("kernels")
    names = ("mid_s", "lo_s", "hi_s", "naive_s")
    columns = {name: np.full(len(rows), np.nan) for name in names}
    basis = np.full(len(rows), "", dtype=object)
    devices: dict[str, Device] = {}
    unpredicted: dict[str, int] = {}
    for name, library, op, at in _by_op(family, rows):
        if name not in devices:
            devices[name] = load(name) if fits is None else load(name).with_fits(family, fits)
        # Between machines the op says how many, and the look-up names the library.
        engine = kernels.calling(family, re.sub(r"_\d+nodes$", "", library))
        try:
            t = time_op(op, devices[name], engine)
        except ShadowlineError as error:
            reason = error.message.split(";")[0]
            unpredicted[reason] = unpredicted.get(reason, 0) + len(at)
            continue
        for column, value in zip(names, (t.total_s, t.lo_s, t.hi_s, bare(op, devices[name]).least_s), strict=True):
            columns[column][at] = value
        basis[at] = str(t.basis)
    return rows.assign(**columns, basis=basis)[np.isfinite(columns["mid_s"])], unpredicted
