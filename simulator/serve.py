"""Requests through a deployment, simulated step by step: ``python -m simulator.serve``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from simulator.base import console
from simulator.base.errors import EXIT_NOTHING_FEASIBLE, InputError
from simulator.scenario.fields import LOAD, SCHEDULED, STATIC, flag
from simulator.scenario.options import paths_of, refuse_beside, scenario_options, with_options
from simulator.serving import options

TABLE_ERROR = 0.02
"""Error of the step table above which a run says so [-]."""
JUDGES = ("judge", "workers", "cluster", "json_", "quiet")
"""Parameters that go with --judge."""
OF_DENSE = {"trace": "", "trace_transfer": False, "kernel": "published"}
"""What the dense model has of a trace and of kernels."""
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
@with_options(
    given=scenario_options(
        without=(*LOAD, "images", "quality", *SCHEDULED, *STATIC),
        lists=("device",),
        repeated=("policy",),
        defaults={"model": None, "device": None},
        more={"policy": "repeat the flag for another run"},
    ),
    arriving=options.traffic_options(None, "first N requests; synthetic: how many"),
)
def command(
    context: typer.Context,
    given: dict[str, Any],
    arriving: dict[str, Any],
    *,
    rate_scale: Annotated[
        str, typer.Option(help="factors on the rate, e.g. 0.5,1,2: timestamps are divided, lengths kept")
    ] = "1",
    scheduler: Annotated[
        str, typer.Option(help="chunked, prefill-first, prefill-first-chunked; commas between")
    ] = "chunked",
    max_num_seqs: Annotated[
        int | None, typer.Option(help="sequences running at once; default the engine's own on the device")
    ] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="tokens of one step; default as above")] = None,
    preemption: Annotated[str, typer.Option(help="recompute or swap")] = "recompute",
    replicas: Annotated[
        int, typer.Option(help="data-parallel replicas; with --prefill-replicas those that decode")
    ] = 1,
    prefill_replicas: Annotated[int, typer.Option(help="replicas that only compute prompts (disaggregation)")] = 0,
    kv_transfer: Annotated[str | None, typer.Option(help="rate per GPU of the hand-over, e.g. '50 GB/s'")] = None,
    router: options.Router = "round-robin",
    prefix_cache: options.PrefixCache = False,
    reuse: Annotated[
        str | None, typer.Option(help="chunk-reuse(reused=,recompute=), semantic-cache(hit=,lookup_ms=), ...")
    ] = None,
    slo: options.Slo = None,
    capacity: Annotated[
        bool, typer.Option("--capacity", help="find the highest rate that keeps up; --rate-scale is then a share of it")
    ] = False,
    interval: Annotated[bool, typer.Option("--interval", help="also both ends of the 90 % interval")] = False,
    out: Annotated[Path | None, typer.Option(help="FILE.parquet or .csv with one row per request")] = None,
    timeline: Annotated[Path | None, typer.Option(help="FILE.json for ui.perfetto.dev")] = None,
    load_over_time: Annotated[
        Path | None, typer.Option("--load", help="FILE.json: queue, KV, tokens/s and power over time")
    ] = None,
    judge: Annotated[
        Path | None, typer.Option(help="measured serving rows (e2e.parquet): judge the simulation, nothing else")
    ] = None,
    workers: options.Workers = 1,
    cluster: options.Cluster = None,
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Serve a trace: latency percentiles, goodput, load, energy and cost of a deployment.

    Exit 0; 2 bad input; 3 when every run is overloaded or misses --slo; 130 interrupted.
    """
    if judge is not None:
        from simulator.serving.reality import judge_file, show_judged

        refuse_beside(context, JUDGES, "has no place beside --judge, which serves what was measured")
        found = judge_file(judge, workers=workers, cluster=cluster, quiet=quiet)
        console.out_json(found) if json_ else show_judged(found)
        return
    from simulator.base.files import refuse_overwriting, refuse_unwritable
    from simulator.base.units import parse_quantity
    from simulator.scenario.scenario import Scenario
    from simulator.serving.accepted import say_rejected
    from simulator.serving.deployment import Deployment
    from simulator.serving.output import RECORD_FILES, about, write_json, write_records
    from simulator.serving.reuse import Reuse, apply_reuse
    from simulator.serving.runs import Task, run
    from simulator.serving.scaleout import compute
    from simulator.serving.scheduler import Scheduler
    from simulator.serving.slo import parse_slo
    from simulator.serving.traffic import traffic

    for name in ("model", "device"):
        if given[name] is None:
            raise InputError("is needed, e.g. --model llama-3.1-8b --device h100-sxm", where=flag(name))
    arrived = traffic(**arriving)
    if out is not None and out.suffix not in RECORD_FILES:
        raise InputError(f"{out.name!r} must end in {' or '.join(RECORD_FILES)}", where="--out")
    promises = parse_slo(slo) if slo is not None else ()
    asked = [
        Scenario.of(**given | {"device": d.strip(), "policy": p} | (OF_DENSE if p == "dense" else {}))
        for d in given["device"].split(",")
        for p in given["policy"] or ["dense"]
    ]
    deployments = [
        Deployment(
            scenario,
            Scheduler.of(scenario, s.strip(), max_num_seqs, max_num_batched_tokens, preemption),
            replicas,
            prefill_replicas,
            router,
            prefix_cache,
            None if kv_transfer is None else parse_quantity(kv_transfer, "B/s"),
        )
        for scenario in asked
        for s in scheduler.split(",")
    ]
    if kv_transfer is not None and not prefill_replicas:
        raise InputError("nothing is handed over without --prefill-replicas; drop it", where="--kv-transfer")
    scales = options.factors(rate_scale, "--rate-scale")
    for deployment in deployments:
        deployment.check()
    # What is bad is refused here, not by a worker.
    left = Reuse(arrived) if reuse is None else apply_reuse(arrived, reuse, arriving["seed"])
    if arrived.users and capacity and not promises:
        raise InputError("how many users are served is a matter of promises; give --slo", where="--capacity")
    if arrived.answered and reuse is not None and left.answered:
        raise InputError("users who are answered elsewhere ask again sooner, which is not simulated", where="--reuse")
    if not arrived.users and not isfinite(left.requests.rate) and (capacity or scales != [1.0]):
        raise InputError(
            "all requests arrive at once, there is no rate to change; drop it",
            where="--capacity" if capacity else "--rate-scale",
        )
    outputs = (("--out", out), ("--timeline", timeline), ("--load", load_over_time))
    for where, path in outputs:
        if path is not None:
            refuse_unwritable(path, where)
    refuse_overwriting(outputs, (*paths_of(given), *paths_of(arriving)))
    keep = any(path is not None for path in (out, timeline, load_over_time))
    if keep and timeline is not None and len(deployments) * len(scales) > 1:
        raise InputError("shows one run; give one --rate-scale, --policy, --device", where="--timeline")
    tasks = [
        Task(d, arrived, s, promises, reuse, search=capacity, interval=interval, keep=keep, seed=arriving["seed"])
        for d in deployments
        for s in scales
    ]
    runs = compute(run, tasks, workers=workers, cluster=cluster, label="runs", quiet=quiet)
    line = "python -m simulator.serve " + shlex.join(sys.argv[1:])
    outcomes = [r.outcome for r in runs if r.outcome is not None]
    rows = [r.row for r in runs]
    if out is not None:
        write_records(out, outcomes, about(rows, outcomes, line))
    if timeline is not None:
        from simulator.serving.timeline import timeline as trace_of

        write_json(timeline, trace_of(outcomes[0]), "--timeline")
    if load_over_time is not None:
        from simulator.serving.metrics import over_time

        loads = [{k: v.tolist() for k, v in over_time(o).items()} for o in outcomes]
        write_json(load_over_time, {"command": line, "runs": loads}, "--load")
    for row in rows:
        if row["table_error"] > TABLE_ERROR:
            console.say(
                f"warning: {row['policy']} does not split into terms of its own; steps are {row['table_error']:.0%} off"
                " for one in ten"
            )
    say_rejected(rows[0])
    if json_:
        console.out_json({"rows": rows, "command": line})
    else:
        from simulator.scenario.catalogue import say_notes

        say_notes((given["model"],))
        show(rows, arrived.name, searched=capacity)
    if all(r["status"] == "OVERLOADED" or r["meets_slo"] is False for r in rows):
        raise typer.Exit(EXIT_NOTHING_FEASIBLE)


def show(rows: Sequence[dict[str, Any]], name: str, *, searched: bool = False) -> None:
    """The answer in a sentence, then latencies, then load and cost of every run."""
    from simulator.policies import in_kernel
    from simulator.serving.beside import told_beside

    for row in rows:
        console.out(_sentence(row, name, searched=searched))
    for beside in dict.fromkeys(filter(None, map(told_beside, rows))):
        console.out(beside)
    console.out()
    ms = console.milliseconds
    console.table(
        "Latency in ms: p50 / p90 / p99",
        ["policy", "scheduler", "device", "requests/s", "TTFT", "TPOT", "between tokens", "whole request"],
        [
            [
                in_kernel(r["policy"], r["kernel"]),
                r["scheduler"],
                r["device"],
                console.number(r["rate_per_s"]),
                *(
                    "OVERLOADED"
                    if r["status"] == "OVERLOADED"
                    else " / ".join(ms(r[f"{m}_{q}_s"]) for q in ("p50", "p90", "p99"))
                    for m in ("ttft", "tpot", "itl", "e2e")
                ),
            ]
            for r in rows
        ],
        left=3,
    )
    if "ttft_p99_lo_s" in rows[0]:
        console.table(
            "p99 in ms with all steps at either end of their 90 % interval",
            ["policy", "requests/s", "TTFT", "TPOT"],
            [
                [in_kernel(r["policy"], r["kernel"]), console.number(r["rate_per_s"])]
                + [f"{_end(r, m, 'lo')} - {_end(r, m, 'hi')}" for m in ("ttft", "tpot")]
                for r in rows
            ],
        )
    num = console.number
    console.table(
        "Load and cost",
        [
            "policy",
            "requests/s",
            "status",
            "goodput/s",
            "tokens/s/GPU",
            "KV used",
            "preempted",
            "prefix hits",
            "J/token",
            "$/Mtoken",
            "simulated/s",
        ],
        [
            [
                in_kernel(r["policy"], r["kernel"]),
                num(r["rate_per_s"]),
                r["status"],
                num(r["goodput_per_s"]),
                num(r["output_tokens_per_s_per_gpu"]),
                f"{r['kv_share_mean']:.1%}",
                f"{r['preemptions']}",
                "-" if r["prefix_bound"] is None else f"{r['prefix_hit_rate']:.1%} of {r['prefix_bound']:.1%}",
                num(r["energy_j_per_token"]),
                num(r["usd_per_mtoken"]),
                num(r["simulated_per_s"]),
            ]
            for r in rows
        ],
    )


def _end(row: dict[str, Any], metric: str, end: str) -> str:
    """p99 at one end of the interval in ms; a tail without number is one without an end."""
    figure = row[f"{metric}_p99_{end}_s"]
    return "OVERLOADED" if figure is None else console.milliseconds(figure)


def _load(row: dict[str, Any], name: str) -> str:
    """What arrives: a rate, or what users and an offline batch are answered at."""
    if row["users"] is not None or row["rate_per_s"] is None:
        return f"{name}: {row['requests_per_s']:.3g} requests/s answered"
    return f"{row['rate_per_s']:.3g} requests/s of {name}"


def _sentence(row: dict[str, Any], name: str, *, searched: bool) -> str:
    fleet = f"{row['gpus']} x {row['device']}"
    if row["replicas"] + row["prefill_replicas"] > 1:
        split = f"{row['prefill_replicas']} prefill + " if row["prefill_replicas"] else ""
        fleet += f" ({split}{row['replicas']} replicas of tp={row['tp']})"
    formats = f"{row['policy']}, {row['dtype']} with KV in {row['kv_dtype']}"
    text = f"{row['model']} on {fleet}, {formats}, {_load(row, name)}: {row['status']}"
    if row["capacity_users"] is not None:
        text += f"; capacity {row['capacity_users']:,} users"
    elif row["capacity_per_s"] is not None:
        text += f"; capacity {row['capacity_per_s']:.3g} requests/s"
    if row["answered_elsewhere"]:
        text += f"; {row['answered_elsewhere']} requests never reached it"
    if row["status"] == "OVERLOADED":
        return text + ": the queue only grows, so percentiles would measure the trace's length"
    if row["capacity_per_s"] is None and row["meets_slo"] is False and searched:
        least = "not one user is kept them" if row["users"] else "no rate keeps the promises, this is the lowest tried"
        return f"{text}; {least}"
    if row["meets_slo"] is not None:
        text += "; keeps the promises" if row["meets_slo"] else "; misses the promises"
    return text


if __name__ == "__main__":
    console.main(app)
