"""Fit dispatch and combine of expert parallelism: one fit per device, direction, format, ranks and kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.device.fits import Fit
from simulator.device.surface import Surface
from simulator.device.types import Device
from simulator.fitting import demand, judge
from simulator.fitting.smooth import Axis, fit_family
from simulator.ops.alone import exchange
from simulator.ops.expert_exchange import ExpertExchange
from simulator.roofline.expert_exchange import START, ExchangeDemand, exchange_demand, exchange_time
from simulator.roofline.lookup import exchange_key

if TYPE_CHECKING:
    import pandas as pd

FAMILY = "alltoall"
SHAPE = ("num_tokens", "hidden_size", "topk", "num_experts", "sms")
INPUTS = ("op", "comm_dtype", "ep_size", *SHAPE)
NEEDED = ("framework", "comm_backend", "kernel", *INPUTS[:-1])
SMS, DEFAULT_SMS = r"-sms(\d+)$", 24.0
"""SMs a kernel is told to copy with, as its name ends, and those of one that is told nothing [-]."""
FIXED = ("op", "comm_dtype", "ep_size", "per_expert")
"""Columns of one op."""
ELEMENT_BYTES: Mapping[tuple[str, str], float] = {
    ("dispatch", "default"): 1.0,
    ("dispatch", "fp8"): 1.0,
    ("dispatch", "nvfp4"): 0.5625,
    ("dispatch", "fp4"): 0.5625,
}
"""Bytes of an element where it is not 2: DeepEP sends 8 bit and brings back 16 (deepseek-ai/DeepEP, README)."""
IN_MILLISECONDS = ("trtllm", "vllm")
"""Engines whose tables count microseconds that the data took for milliseconds.

A low-latency dispatch of one token would last 70 ms; a thousandth meets SGLang's times of the same kernels.
"""


def prepare(rows: pd.DataFrame) -> pd.DataFrame:
    """Usable rows with their engine as the source, repeats aggregated; adds `key`, `library` and demand."""
    from simulator.device import catalogue as devices

    rows = judge.usable(rows, FAMILY, NEEDED).copy()
    known = {name: devices.resolve(name) for name in rows["device"].astype(str).unique()}
    backend, engine = rows["comm_backend"].astype(str), rows["framework"].astype(str)
    rows = rows.assign(
        device=rows["device"].astype(str).map(known),
        source=rows["source"].astype(str) + "/" + engine,
        library=rows["kernel"].astype(str).str.partition(":")[0] + ":" + backend.str.replace(SMS, "", regex=True),
        sms=backend.str.extract(SMS)[0].astype(float).fillna(DEFAULT_SMS),
        per_expert=backend.str.contains(r"(?:^|[-_])ll$|generation"),
        time_s=rows["time_s"].to_numpy(float) * np.where(engine.isin(IN_MILLISECONDS), 1e-3, 1.0),
        comm_dtype=rows["comm_dtype"].astype(str),
        op=rows["op"].astype(str),
    )
    rows = rows[rows["node_num"] == 1] if "node_num" in rows else rows
    return with_demand(judge.aggregate(rows, ["device", "source", "library", "per_expert", *INPUTS]))


def op_of(rows: pd.DataFrame) -> ExpertExchange:
    """The op of prepared rows that agree in all that is not a size."""
    first = rows.iloc[0]
    tokens, hidden, top_k, sms = (rows[c].to_numpy(float) for c in (*SHAPE[:3], "sms"))
    return exchange(
        op=first["op"],
        tokens=tokens,
        hidden=hidden,
        top_k=top_k,
        ranks=int(first["ep_size"]),
        element_bytes=ELEMENT_BYTES.get((first["op"], first["comm_dtype"]), 2.0),
        per_expert=bool(first["per_expert"]),
        sms=sms,
    )


def with_demand(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` with `key` and what each asks of its device beside it."""

    def asked(part: pd.DataFrame, device: Device) -> tuple[str, ExchangeDemand]:
        op = op_of(part)
        return exchange_key(op), exchange_demand(op, device)

    return demand.beside(rows, FIXED, ExchangeDemand._fields, asked)


def _counted(rows: pd.DataFrame) -> ExchangeDemand:
    return ExchangeDemand(*demand.columns(rows, ExchangeDemand._fields))


def _total_s(asked: ExchangeDemand, coef: Mapping[str, float], surface: Surface | None) -> Any:
    return exchange_time(asked, coef, surface).total_s


AXES = (Axis("tokens", 2.0, 0.1), Axis("hidden", 1.0, 0.3), Axis("sms", 1.0, 0.3))
RECIPE = demand.recipe(FAMILY, INPUTS, _counted, _total_s, START, AXES, smallest=20)


def fit(rows: pd.DataFrame, *, date: str | None = None, residuals: bool = True) -> list[Fit]:
    """Fits of every device, key and library of prepared `rows`, then the pooled ones."""
    return fit_family(RECIPE, rows, date=date, residuals=residuals)


without = demand.without(fit)
