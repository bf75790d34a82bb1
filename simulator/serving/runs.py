"""One simulation as a task: what `serve` and `plan` send to their workers, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simulator.serving.capacity import capacity
from simulator.serving.deployment import Deployment
from simulator.serving.fleet import Outcome, simulate
from simulator.serving.metrics import statistic, summary, values_of
from simulator.serving.requests import Requests
from simulator.serving.reuse import apply_reuse
from simulator.serving.slo import METRICS, Promise
from simulator.serving.tabulate import check


@dataclass(frozen=True, eq=False)
class Task:
    """A deployment under a load.

    Attributes
    ----------
    requests : Requests
        At the trace's own rate.
    scale : float
        Factor on that rate; with `search` on the capacity that is found.
    search : bool
        Look for the capacity first.
    interval : bool
        Also serve with all steps at either end of their 90 % interval.
    keep : bool
        Return the outcome, not the row alone.
    """

    deployment: Deployment
    requests: Requests
    scale: float = 1.0
    slo: tuple[Promise, ...] = ()
    reuse: str | None = None
    search: bool = False
    interval: bool = False
    keep: bool = False


@dataclass(frozen=True, eq=False)
class Run:
    """Row and, where wanted, the outcome behind it."""

    row: dict[str, Any]
    outcome: Outcome | None


def run(task: Task) -> Run:
    """Simulate one task."""
    requests, delay, answered = task.requests, 0.0, 0
    if task.reuse is not None:
        left = apply_reuse(requests, task.reuse)
        requests, delay, answered = left.requests, left.delay_s, left.answered
    found: float | None = None
    factor = task.scale
    if task.search:
        found, _ = capacity(task.deployment, requests, task.slo)
        factor *= found
    requests = requests.scaled(factor)
    outcome = simulate(task.deployment, requests)
    if delay:
        # The look-up is before the fleet and keeps no one else waiting.
        outcome = replace(outcome, requests=replace(requests, arrival_s=requests.arrival_s - delay))
    row = summary(outcome, task.slo)
    row["rate_scale"] = factor
    row["capacity_per_s"] = None if found is None else found * task.requests.rate
    row["answered_elsewhere"] = answered
    row["table_error"] = _table_error(task.deployment, requests)
    if task.interval:
        row |= _interval(task.deployment, requests, row)
    return Run(row, outcome if task.keep else None)


def _interval(deployment: Deployment, requests: Requests, row: dict[str, Any]) -> dict[str, Any]:
    """Medians and p99 when all steps are at the lower, and at the upper end of their interval."""
    out: dict[str, Any] = {}
    for end in ("lo", "hi"):
        outcome = simulate(deployment, requests, end)
        for metric in METRICS:
            for name in ("p50", "p99"):
                figure = statistic(*values_of(outcome, metric), name)
                out[f"{metric}_{name}_{end}_s"] = None if row["status"] == "OVERLOADED" else figure
    return out


def _table_error(deployment: Deployment, requests: Requests) -> float:
    """Relative error that nine of ten random steps of the table stay below [-]."""
    table = deployment.table(int(np.max(requests.prompt + requests.output)))
    return float(np.quantile(check(deployment.group, table, probes=64), 0.9))
