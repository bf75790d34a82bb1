"""One simulation as a task: what `serve` and `plan` send to their workers, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.base.checks import require_type
from simulator.scenario.scenario import Scenario
from simulator.serving.accepted import accepted
from simulator.serving.capacity import capacity, capacity_users
from simulator.serving.deployment import Deployment
from simulator.serving.fleet import Outcome, simulate
from simulator.serving.metrics import miss, statistic, status, summary, values_of
from simulator.serving.requests import Requests
from simulator.serving.reuse import apply_reuse
from simulator.serving.scheduler import Scheduler
from simulator.serving.slo import METRICS, STATISTICS, Promise, parse_slo
from simulator.serving.steady import with_model
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
    seed : int
        Of what `reuse` draws.
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
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Run:
    """Row and, where wanted, the outcome behind it."""

    row: dict[str, Any]
    outcome: Outcome | None


def run(task: Task) -> Run:
    """Simulate one task."""
    requests = accepted(task.requests, task.deployment.group.model, task.deployment.scenario)
    answered = 0
    if task.reuse is not None:
        left = apply_reuse(requests, task.reuse, task.seed)
        requests, answered = left.requests, left.answered
    arriving = task.requests if answered else requests
    found, factor = None, task.scale
    if task.search:
        search = capacity_users if requests.users else capacity
        found, least = search(task.deployment, requests, task.slo)
        # Without a capacity there is no share of it: the lowest rate tried says what is missing.
        tried = least.requests.users / requests.users if requests.users else least.requests.rate / requests.rate
        factor = tried if found is None else found * task.scale
    requests = requests.scaled(factor)
    outcome = simulate(task.deployment, requests)
    row = summary(outcome, task.slo)
    if task.search and found is None:
        row["meets_slo"] = False
    open_loop = not requests.users and arriving.rate < float("inf")
    if open_loop:
        row["rate_per_s"] = factor * arriving.rate
    row["rate_scale"] = factor
    row["capacity_per_s"] = found * arriving.rate if found is not None and open_loop else None
    row["capacity_users"] = round(found * task.requests.users) if found is not None and requests.users else None
    row["answered_elsewhere"] = answered
    row["table_error"] = _table_error(task.deployment, requests)
    if task.interval:
        row |= interval(task.deployment, requests, task.slo, miss(outcome, task.slo))
    return Run(row, outcome if task.keep else None)


def serve(
    scenario: Scenario,
    traffic: Requests,
    *,
    slo: str = "",
    scheduler: Scheduler | None = None,
    replicas: int = 1,
    prefill_replicas: int = 0,
    router: str = "round-robin",
    prefix_cache: bool = False,
    transfer_bytes_per_s: float | None = None,
    rate_scale: float = 1.0,
    reuse: str | None = None,
    capacity: bool = False,
    interval: bool = False,
    seed: int = 0,
) -> Run:
    """Serve `traffic` with a deployment, step by step.

    Parameters
    ----------
    scenario : Scenario
        What one replica is; its batch and lengths are not used.
    traffic : Requests
        As `simulator.serving.traffic.traffic` makes them.
    slo : str
        Promises, e.g. ``ttft:p99<2s;tpot:p99<60ms``; the row's ``meets_slo`` says whether they are kept.
    scheduler : Scheduler, optional
        Chunked prefill, 256 sequences, 8192 tokens by default.
    replicas, prefill_replicas, router, prefix_cache, transfer_bytes_per_s
        As in `Deployment`.
    rate_scale : float
        Factor on the rate of `traffic`; with `capacity` on the capacity that is found [-].
    reuse : str, optional
        What need not be computed, e.g. ``semantic-cache(hit=0.3,lookup_ms=5)``.
    capacity : bool
        Look for the highest rate that keeps up first.
    interval : bool
        Also serve with all steps at either end of their 90 % interval.

    Returns
    -------
    Run
        ``row``: latency percentiles, goodput, load, energy and cost; ``outcome``: every request.

    Raises
    ------
    UnsupportedError
        What cannot run, with what would work.

    Examples
    --------
    >>> from simulator.api import Scenario, serve, traffic
    >>> arriving = traffic(rate=4, prompt_tokens=512, output_tokens=64, count=200)
    >>> served = serve(Scenario(model="llama-3.1-8b", device="h100-sxm"), arriving, slo="ttft:p99<1s")
    >>> served.row["status"], served.row["meets_slo"], served.row["requests"]
    ('STABLE', True, 200)
    """
    require_type(Scenario, scenario=scenario)
    require_type(Requests, traffic=traffic)
    require_type(str, slo=slo)
    deployment = Deployment(
        scenario,
        scheduler or Scheduler.of(scenario),
        replicas,
        prefill_replicas,
        router,
        prefix_cache,
        transfer_bytes_per_s,
    )
    deployment.check()
    promises = parse_slo(slo) if slo else ()
    return run(Task(deployment, traffic, rate_scale, promises, reuse, capacity, interval, keep=True, seed=seed))


def interval(deployment: Deployment, requests: Requests, slo: Sequence[Promise], missed: float) -> dict[str, Any]:
    """All statistics when all steps are at the lower, and at the upper end of their interval; None at an end that
    is overloaded. With `slo` also the probability that the promises hold, steps anywhere in their interval; `missed`
    is `miss` of the run with steps in its middle.
    """
    out: dict[str, Any] = {}
    ratios = {}
    for end in ("lo", "hi"):
        outcome = simulate(deployment, requests, end)
        ratios[end] = miss(outcome, slo)
        overloaded = status(outcome) == "OVERLOADED"
        for metric in METRICS:
            for name in STATISTICS:
                figure = statistic(*values_of(outcome, metric), name)
                out[f"{metric}_{name}_{end}_s"] = None if overloaded else figure
    if slo:
        out["p_slo"] = with_model([ratios["lo"], missed, ratios["hi"]])
    return out


def _table_error(deployment: Deployment, requests: Requests) -> float:
    """Relative error that nine of ten random steps of the table stay below [-]."""
    table = deployment.table(int(np.max(requests.prompt + requests.output)))
    return float(np.quantile(check(deployment.group, table, probes=64), 0.9))
