"""The simulation against measured serving: clients that each wait for an answer before they ask again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simulator.base import console
from simulator.base.errors import InputError, ShadowlineError
from simulator.device.releases import MARK
from simulator.fitting.judged import read_rows
from simulator.scenario.scenario import Scenario
from simulator.serving.deployment import Deployment
from simulator.serving.fleet import simulate
from simulator.serving.requests import Requests
from simulator.serving.scaleout import compute
from simulator.serving.scheduler import Scheduler

COLUMNS = (
    "source",
    "engine",
    "model",
    "device",
    "n_gpus",
    "tp",
    "quant",
    "batch",
    "input_len",
    "output_len",
    "metric",
    "value",
    "unit",
    "note",
    "flag",
)
"""What `simulator.fitting.e2e_rows` reads of a measured row."""
MOST_REQUESTS = 4000
"""Requests simulated per setup at most, assumed: keeps the hundreds of setups within minutes [-]."""
SCHEDULERS = {"sglang": "prefill-first-chunked"}
"""Families of engines that do not mix prompts and decoding in a step by default; all others do."""
FEWEST = 10
"""Rows below which an engine's percentiles are not given, assumed [-]."""


@dataclass(frozen=True)
class Setup:
    """One measured closed loop.

    Attributes
    ----------
    prompt, output : int
        Longest of them; lengths are drawn from `shortest` of that up to it [tokens].
    rounds : float
        Requests per client [-].
    """

    engine: str
    device: str
    model: str
    dtype: str
    kv_dtype: str
    tp: int
    ep: int
    clients: int
    prompt: int
    output: int
    shortest: float
    rounds: float


def closed_loop(setup: Setup, seed: int = 0) -> tuple[float, float]:
    """Mean TTFT and mean TPOT of `setup`, requests of the first and last round left in as the benchmark does [s]."""
    scenario = Scenario.of(
        model=setup.model,
        device=setup.device,
        engine=setup.engine,
        dtype=setup.dtype,
        kv_cache_dtype=setup.kv_dtype,
        tp=setup.tp,
        ep=setup.ep,
        ignore_context_limit=True,
    )
    seats = 1 << max(setup.clients - 1, 15).bit_length()
    scheduler = Scheduler(SCHEDULERS.get(setup.engine.partition(MARK)[0], "chunked"), min(seats, 4096), 8192)
    deployment = Deployment(scenario, scheduler)
    deployment.check()
    count = max(min(round(setup.clients * setup.rounds), MOST_REQUESTS), 2 * setup.clients)
    rng = np.random.default_rng(seed)
    prompt, output = (
        rng.integers(max(round(setup.shortest * n), 1), n + 1, count) for n in (setup.prompt, setup.output)
    )
    asked = Requests.of(np.zeros(count), prompt, output).closed(min(setup.clients, count), np.zeros(count))
    outcome = simulate(deployment, asked)
    output = outcome.requests.output
    steps = np.maximum(output - 1, 1)
    engine = deployment.group.engine
    frontend = engine.request_s + engine.frontend_s * float(np.mean(prompt))
    took = (outcome.finish_s - outcome.first_s) / steps
    return float(np.mean(outcome.first_s - outcome.requests.arrival_s)) + frontend, float(np.mean(took))


def _task(setup: Setup) -> tuple[float, float] | str:
    try:
        return closed_loop(setup)
    except ShadowlineError as error:
        return error.message


def judge_file(path: Path, *, workers: int = 1, cluster: str | None = None, quiet: bool = False) -> dict[str, Any]:
    """Figures per engine and metric over the closed-loop rows of an e2e file.

    The engines' host side and communication were fitted to rows like these with the closed form of
    `simulator.inference.closed_loop`; nothing here is fitted. Its figures stand beside.
    """
    import pandas as pd

    from simulator.fitting.e2e_rows import prepare
    from simulator.fitting.e2e_steps import predict
    from simulator.roofline.engine import load_engines

    try:
        raw = read_rows(path)
    except InputError as error:
        raise InputError(f"cannot read: {error}", where="--judge") from None
    missing = [c for c in COLUMNS if c not in raw]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}; needs {', '.join(COLUMNS)}", where="--judge")
    rows, reasons = prepare(raw)
    excluded = Counter(reasons)
    table = rows[(rows["loop"] == "closed") & rows["metric"].isin(("ttft", "tpot"))].reset_index(drop=True)
    if apart := int((table["dp"] > 1).sum()):
        excluded["attention data parallel, which no scheduler of requests follows"] += apart
        table = table[table["dp"] == 1].reset_index(drop=True)
    if table.empty:
        raise InputError(f"{path} holds no row with a concurrency and a complete setup", where="--judge")
    engines = load_engines()
    measured = predict(table, engines).to_dict("records")
    setups = [
        Setup(
            engines[r["engine"]].as_of(r["release"]).name if r["release"] else r["engine"],
            r["device"],
            r["model"],
            r["dtype"],
            r["kv_dtype"],
            int(r["tp"]),
            int(r["ep"]),
            int(r["batch"]),
            _longest(r["prompt"], r["shortest"]),
            _longest(r["output"], r["shortest"]),
            r["shortest"],
            r["rounds"],
        )
        for r in measured
    ]
    unique = sorted(set(setups), key=lambda s: (s.engine, s.device, s.model, s.dtype, s.tp, s.ep, s.clients))
    found = dict(
        zip(unique, compute(_task, unique, workers=workers, cluster=cluster, label="setups", quiet=quiet), strict=True)
    )
    judged = []
    for setup, row in zip(setups, measured, strict=True):
        result = found[setup]
        if isinstance(result, str):
            excluded[result] += 1
            continue
        ours = result[0 if row["metric"] == "ttft" else 1]
        judged.append(
            {
                **vars(setup),
                "engine": row["engine"],
                "metric": row["metric"],
                "measured_s": row["time_s"],
                "simulated_s": ours,
                "closed_form_s": row["mid_s"],
            }
        )
    both = pd.DataFrame(judged)
    groups: list[tuple[Any, Any, Any]] = [("all", m, g) for m, g in both.groupby("metric")]
    groups += [(*keys, g) for keys, g in both.groupby(["engine", "metric"])]  # type: ignore[misc]
    return {
        "rows": [{"engine": e, "metric": m, **_figures(g)} for e, m, g in groups],
        "points": judged,
        "excluded": dict(excluded.most_common()),
    }


def _longest(mean: float, shortest: float) -> int:
    """Longest of lengths drawn evenly from `shortest` of it up to it, from their mean."""
    return round(2.0 * mean / (1.0 + shortest))


def _figures(group: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"n": len(group)}
    if len(group) < FEWEST:
        return out
    for name in ("simulated", "closed_form"):
        ratio = group[f"{name}_s"].to_numpy(float) / group["measured_s"].to_numpy(float)
        good = np.isfinite(ratio)
        ape = np.abs(ratio[good] - 1.0)
        out |= {
            f"{name}_median_ape": float(np.median(ape)),
            f"{name}_p90_ape": float(np.quantile(ape, 0.9)),
            f"{name}_bias": float(np.median(ratio[good]) - 1.0),
        }
    return out


def show_judged(found: dict[str, Any]) -> None:
    """Print the figures per engine."""

    def share(row: dict[str, Any], key: str) -> str:
        return f"{row[key]:.1%}" if key in row else "-"

    console.table(
        "Closed-loop serving, simulated against measured; the closed form beside",
        ["engine", "metric", "rows", "median APE", "p90 APE", "bias", "closed form: median", "p90"],
        [
            [
                r["engine"],
                r["metric"],
                f"{r['n']}",
                share(r, "simulated_median_ape"),
                share(r, "simulated_p90_ape"),
                share(r, "simulated_bias"),
                share(r, "closed_form_median_ape"),
                share(r, "closed_form_p90_ape"),
            ]
            for r in found["rows"]
        ],
        left=2,
        note="left out: " + "; ".join(f"{n} {reason}" for reason, n in list(found["excluded"].items())[:6]),
    )
