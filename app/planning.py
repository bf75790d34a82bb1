"""Choosing among the rows of a static sweep: targets, replicas and rent.

A static batch knows no queue: `simulator.plan` simulates requests as they arrive.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from simulator.base.console import milliseconds, number
from simulator.base.interval import Interval
from simulator.results import verdict
from simulator.results.loss import short
from simulator.results.verdict import Verdict

SHOWN = (
    "device",
    "policy",
    "tp",
    "batch",
    "replicas",
    "usd_per_mtoken",
    "usd_per_h",
    "ttft_ms",
    "tpot_ms",
    "tokens_per_s",
    "verdict",
    "p_win",
    "basis",
    "meets",
)


@dataclass(frozen=True)
class Targets:
    """Limits of TTFT and TPOT [s], and output tokens per second of all replicas together; None asks nothing."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    tokens_per_s: float | None = None

    def __str__(self) -> str:
        parts = [
            f"{name} {milliseconds(value)} ms"
            for name, value in (("TTFT", self.ttft_s), ("TPOT", self.tpot_s))
            if value is not None
        ]
        if self.tokens_per_s is not None:
            parts.append(f"{number(self.tokens_per_s)} tokens/s")
        return " and ".join(parts)


def plan(rows: pd.DataFrame, usd_per_h: Mapping[str, float], targets: Targets) -> pd.DataFrame:
    """Rows that fit, cheapest first, those that meet the targets before the others; a time not known meets none.

    Parameters
    ----------
    usd_per_h : mapping of device to float
        Rent of one GPU [USD/h].

    Returns
    -------
    DataFrame
        The sweep's columns and: gpus, replicas (whole ones that reach `targets.tokens_per_s`), usd_per_h (of all
        replicas), usd_per_mtoken (at these prices), ttft_ms, tpot_ms, miss (largest measured / target, at most 1
        where met), meets, cost (what is minimised: rent per hour with a throughput target, else per token).
    """
    good = rows[rows["status"] == "ok"].copy()
    for name in ("device", "policy", "verdict", "basis", "bound", "reason", "status"):
        good[name] = good[name].astype(object)
    good["gpus"] = good["tp"] * good["pp"]
    price = good["device"].map(dict(usd_per_h)).astype(float) * good["gpus"]
    good["ttft_ms"], good["tpot_ms"] = 1e3 * good["ttft_s"], 1e3 * good["tpot_s"]
    wanted = targets.tokens_per_s
    good["replicas"] = 1 if wanted is None else np.ceil(wanted / good["tokens_per_s"]).astype(int)
    good["usd_per_h"] = price * good["replicas"]
    good["usd_per_mtoken"] = price / 3600.0 / good["tokens_per_s"] * 1e6
    # One output token has no time between tokens, so it keeps any promise about it.
    tpot = good["tpot_s"].where(good["output_tokens"] > 1, 0.0)
    miss = pd.Series(0.0, good.index)
    for times, limit in ((good["ttft_s"], targets.ttft_s), (tpot, targets.tpot_s)):
        if limit is not None:
            miss = np.maximum(miss, times.fillna(np.inf) / limit)
    good["miss"], good["meets"] = miss, miss <= 1.0
    good["cost"] = good["usd_per_mtoken"] if wanted is None else good["usd_per_h"]
    order = ["meets", "cost", "gpus", "tpot_s"]
    return good.sort_values(order, ascending=[False, True, True, True], ignore_index=True)


def best_of(found: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """First row of every combination of `by`, in the plan's order."""
    return found.drop_duplicates(by)


def recommended(found: pd.DataFrame) -> pd.Series:
    """First row that is dense or wins over it; the first of all where dense is not among them."""
    dense = found["policy"] == "dense"
    return (found[dense | (found["verdict"] == Verdict.WINS)] if dense.any() else found).iloc[0]


def against_dense(row: Mapping[Hashable, Any] | pd.Series) -> str:
    """``wins, 1.35x dense (1.20-1.50, P(win) 0.99)`` at the row's batch."""
    name = "throughput_speedup_same_batch"
    return verdict.told(Interval(*(float(row[name + end]) for end in ("", "_lo", "_hi"))))


def named(row: Mapping[Hashable, Any] | pd.Series) -> str:
    """``2 x h100-sxm, teal(keep=0.5), batch 64, loss unknown``."""
    text = f"{int(row['gpus'])} x {row['device']}, {row['policy']}, batch {int(row['batch']):,}"
    if row["policy"] == "dense":
        return text
    points = Interval(*(float(row[f"quality_points_lost{end}"]) for end in ("", "_lo", "_hi")))
    return f"{text}, {short(points, str(row['quality_basis']))}"


def told(row: Mapping[Hashable, Any] | pd.Series) -> str:
    """Times and rate of a deployment."""
    return (
        f"TTFT {milliseconds(row['ttft_s'])} ms, TPOT {milliseconds(row['tpot_s'])} ms,"
        f" {number(row['tokens_per_s'])} tokens/s a replica"
    )
