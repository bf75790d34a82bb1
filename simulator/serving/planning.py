"""The cheapest deployment of one model that keeps promises under traffic: candidates from a grid, then the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import isfinite
from typing import Any

from simulator.base.checks import require_type
from simulator.base.errors import InputError, UnknownNameError
from simulator.policies import FREE, expand, free_names
from simulator.results.choices import spellings
from simulator.results.loss_lookup import loss_named
from simulator.results.quality import of_file
from simulator.scenario.catalogue import CATALOGUE
from simulator.scenario.grid import OUTER, SETTINGS, Grid
from simulator.scenario.scenario import Scenario
from simulator.serving.accepted import accepted
from simulator.serving.deployment import Deployment
from simulator.serving.launch import launch_command
from simulator.serving.requests import Requests
from simulator.serving.scheduler import Scheduler
from simulator.serving.search import OBJECTIVES, Plan, search
from simulator.serving.slo import parse_slo

CONTRADICTS = "contradicts a flag that is given"
"""Why a policy is left out before anything is asked of it."""
SCHEDULERS = (Scheduler(max_num_batched_tokens=2048), Scheduler())


def plan(
    grid: Grid,
    traffic: Requests,
    slo: str,
    *,
    schedulers: Sequence[Scheduler] = SCHEDULERS,
    router: str = "least-loaded",
    prefix_cache: bool = False,
    objective: str = "cheapest",
    max_gpus: int = 64,
    workers: int = 1,
    cluster: str | None = None,
    quiet: bool = True,
) -> Plan:
    """Find the cheapest (fastest, least energy) deployment that keeps `slo` under `traffic`.

    Candidates are pruned in closed form and the survivors simulated.

    Parameters
    ----------
    grid : Grid
        One model; devices, policies, formats and parallelism to choose among. Batch and lengths are not used, and
        dense is searched whether it is named or not.
    traffic : Requests
        As `simulator.serving.traffic.traffic` makes them.
    slo : str
        Promises, e.g. ``ttft:p99<2s;tpot:p99<60ms``.
    schedulers : sequence of Scheduler
    router : str
        ``round-robin``, ``least-loaded`` or ``prefix-aware``.
    objective : str
        One of `OBJECTIVES`.
    max_gpus : int
        GPUs of the whole fleet [-].
    workers, cluster
        Local processes, or a Dask scheduler; the answer is the same.

    Raises
    ------
    InputError
        What cannot be read or planned for. A search that finds nothing is a `Plan` without rows.

    Examples
    --------
    >>> from simulator.api import Grid, plan, traffic
    >>> grid = Grid(model=("llama-3.1-8b",), device=("l40s",), policy=("dense", "w4a16"))
    >>> found = plan(grid, traffic(rate=4, prompt_tokens=400, output_tokens=32, count=100), "tpot:p99<40ms")
    >>> [r["meets_slo"] for r in found.rows]
    [True, True, True, True]
    """
    require_type(Grid, grid=grid)
    require_type(Requests, traffic=traffic)
    require_type(str, slo=slo)
    if objective not in OBJECTIVES:
        raise UnknownNameError("objective", objective, OBJECTIVES, where="--objective")
    if max_gpus < 1:
        raise InputError("must be 1 or more", where="--max-gpus")
    if len(grid.model) != 1:
        raise InputError(f"a plan is for one model, not for {len(grid.model)}", where="--model")
    promises = parse_slo(slo)
    if not traffic.users and not isfinite(traffic.rate):
        raise InputError("all requests arrive at once, there is no rate to plan for", where="--requests")
    traffic = accepted(traffic, CATALOGUE.model(grid.model[0]), grid)
    scenarios, refused = _scenarios(replace(grid, policy=tuple(dict.fromkeys(("dense", *grid.policy)))))
    # Schedulers vary fastest: what a scenario was understood as is at hand for all of them.
    candidates = [Deployment(s, k, router=router, prefix_cache=prefix_cache) for s in scenarios for k in schedulers]
    found = search(
        candidates,
        traffic,
        promises,
        objective=objective,
        max_gpus=max_gpus,
        workers=workers,
        cluster=cluster,
        quiet=quiet,
    )
    if refused:
        left_out = len(refused) * len(schedulers)
        kinds = found.rejected | {CONTRADICTS: (left_out, refused[-1])}
        found = replace(found, rejected=kinds, points=found.points + left_out)
    _launch(found, grid, prefix_cache)
    return found


def policies_of(given: Sequence[str], model: str, max_loss: float | None, quality: str = "") -> tuple[str, ...]:
    """Dense and the policies to search for; with `max_loss` [points] those that surely lose no more, `FREE` at every
    setting that was published, or measured in the file `quality`.
    """
    names: list[str] = []
    for text in given:
        if text != FREE:
            names += [p.spelling for p in expand(text)]
        elif max_loss is None:
            names += free_names()
        else:
            measured = of_file(CATALOGUE.quality(quality)) if quality else None
            names += spellings(CATALOGUE.model(model), max_loss, measured)
    if max_loss is not None:
        names = [n for n in names if n == "dense" or loss_named(model, n, quality).at_most(max_loss)]
    return tuple(dict.fromkeys(("dense", *names)))


def _scenarios(grid: Grid) -> tuple[list[Scenario], list[str]]:
    """Scenarios of the grid, and why others contradict themselves."""
    fixed = {k: getattr(grid, k) for k in SETTINGS}
    out: list[Scenario] = []
    refused: list[str] = []
    for pair, *values in product(grid.run_in, *(getattr(grid, k) for k in OUTER[:-2])):
        at = dict(zip((*OUTER[-2:], *OUTER[:-2]), (*pair, *values), strict=True))
        try:
            out.append(Scenario.of(**fixed, **at))
        except InputError as error:
            # A policy may set a format that is also given; what is wrong without one is wrong everywhere.
            if at["policy"] == "dense":
                raise
            refused.append(str(error))
    return out, refused


def _launch(found: Plan, grid: Grid, prefix_cache: bool) -> None:
    """Add the launch command to every row."""
    fixed: dict[str, Any] = {k: getattr(grid, k) for k in SETTINGS}
    for row in found.rows:
        keys = {k: row[k] for k in ("device", "policy", "engine", "tp", "pp", "ep")} | {"kernel": row["given_kernel"]}
        scenario = Scenario.of(
            model=grid.model[0], dtype=row["given_dtype"], kv_cache_dtype=row["given_kv_dtype"], **keys, **fixed
        )
        row["launch"], row["launch_note"] = launch_command(scenario, row, prefix_cache=prefix_cache)
