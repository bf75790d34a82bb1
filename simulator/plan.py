"""The cheapest deployment that keeps its promises: ``python -m simulator.plan``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.base import console
from simulator.base.errors import EXIT_NOTHING_FEASIBLE, InputError
from simulator.scenario.fields import LOAD, SCHEDULED, STATIC, flag
from simulator.scenario.options import paths_of, scenario_options, with_options
from simulator.serving import options

if TYPE_CHECKING:
    from simulator.serving.search import Plan
    from simulator.serving.slo import Promise

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
DEVICES = "a100-sxm-80g,h100-sxm,h200,b200,l40s,h20,mi300x"


@app.command()
@with_options(
    given=scenario_options(
        without=(*LOAD, *SCHEDULED, *STATIC, "block_size", "images", "trace", "trace_transfer"),
        lists=("device", "dtype", "kv_cache_dtype", "tp", "pp", "ep"),
        repeated=("policy",),
        defaults={"model": None, "device": DEVICES, "tp": "1,2,4,8"},
        more={"policy": "a list [a,b] is several, free is every registered one at its defaults; dense is searched too"},
    ),
    arriving=options.traffic_options(
        None, "of a file the first N; of synthetic ones at least N per fleet, more until it is decided"
    ),
)
def command(
    given: dict[str, Any],
    arriving: dict[str, Any],
    *,
    slo: options.Slo = None,
    max_loss: Annotated[
        float | None, typer.Option(help="points: only policies that surely lose at most this, as published or measured")
    ] = None,
    scheduler: Annotated[str, typer.Option(help="commas between")] = "chunked",
    max_num_seqs: Annotated[str, typer.Option(help="sequences running at once")] = "256",
    max_num_batched_tokens: Annotated[str, typer.Option(help="tokens of one step")] = "2048,8192",
    router: options.Router = "least-loaded",
    prefix_cache: options.PrefixCache = False,
    objective: Annotated[str, typer.Option(help="cheapest, fastest or energy")] = "cheapest",
    max_gpus: Annotated[int, typer.Option(help="GPUs of the whole fleet")] = 64,
    workers: options.Workers = 1,
    cluster: options.Cluster = None,
    kubernetes: Annotated[Path | None, typer.Option(help="manifest of the cheapest that can be started, .json")] = None,
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the cheapest (fastest, least energy) deployment that keeps --slo under the traffic.

    Candidates are pruned in closed form and the survivors simulated. Exit 0; 2 bad input; 3 when nothing keeps the
    promises, with the nearest miss.
    """
    from itertools import product
    from time import perf_counter

    from simulator.base.files import refuse_overwriting, refuse_unwritable
    from simulator.scenario.grid import Grid, axis, names, whole_numbers
    from simulator.serving.accepted import say_rejected
    from simulator.serving.planning import plan, policies_of
    from simulator.serving.scheduler import Scheduler
    from simulator.serving.traffic import traffic

    for name, value in (("--model", given["model"]), ("--slo", slo)):
        if value is None:
            raise InputError("is needed, e.g. --model llama-3.1-70b --slo 'ttft:p99<2s;tpot:p99<60ms'", where=name)
    if max_loss is not None and not isfinite(max_loss):
        raise InputError(f"{max_loss} is not a number of points", where="--max-loss")
    if kubernetes is not None:
        if kubernetes.suffix != ".json":
            raise InputError(f"{kubernetes.name!r} must end in .json, which kubectl reads", where="--kubernetes")
        refuse_unwritable(kubernetes, "--kubernetes")
        refuse_overwriting([("--kubernetes", kubernetes)], (*paths_of(given), *paths_of(arriving)))
    arrived = traffic(**arriving)
    began = perf_counter()
    model = given["model"]
    chosen = policies_of(given["policy"] or (), model, max_loss, given["quality"])
    if max_loss is not None and len(chosen) == 1:
        console.say(f"no policy given surely loses at most {max_loss:g} points on {model}; dense alone")
    axes = {k: axis(k, v, flag(k)) for k, v in given.items() if k not in ("model", "policy")}
    grid = Grid(model=(model,), policy=chosen, **axes)
    settings = product(
        names([scheduler], "--scheduler"),
        whole_numbers(max_num_seqs, "--max-num-seqs"),
        whole_numbers(max_num_batched_tokens, "--max-num-batched-tokens"),
    )
    found = plan(
        grid,
        arrived,
        slo or "",
        schedulers=[Scheduler(*s) for s in settings],
        router=router,
        prefix_cache=prefix_cache,
        objective=objective,
        max_gpus=max_gpus,
        workers=workers,
        cluster=cluster,
        quiet=quiet,
    )
    seconds = perf_counter() - began
    line = "python -m simulator.plan " + shlex.join(sys.argv[1:])
    if found.rows:
        say_rejected(found.rows[0])
    if kubernetes is not None:
        _write_manifest(kubernetes, found, slo or "")
    if json_:
        costs = {k: [vars(p) for p in getattr(found, k)] for k in ("by_policy", "by_device")}
        console.out_json({**vars(found), **costs, "seconds": seconds, "command": line})
    else:
        from simulator.scenario.catalogue import say_notes

        say_notes((model,))
        show(found, arrived.name, slo or "", objective, seconds, given["quality"])
    if not found.rows:
        raise typer.Exit(EXIT_NOTHING_FEASIBLE)


def _write_manifest(path: Path, found: Plan, slo: str) -> None:
    """The cheapest deployment that has a command, or a line that there is none."""
    from simulator.serving.launch import manifest
    from simulator.serving.output import write_json

    row = next((r for r in found.rows if r["launch"]), None)
    if row is None:
        console.say(f"no manifest is written to {path}: no deployment found can be started")
    else:
        write_json(path, manifest(row, slo), "--kubernetes")


def show(found: Plan, name: str, slo: str, objective: str, seconds: float, quality: str = "") -> None:
    """The answer, the best of every device and policy, the front, and what was left out."""
    from simulator.policies import in_kernel
    from simulator.results.loss_lookup import loss_named
    from simulator.serving.beside import told_beside
    from simulator.serving.slo import parse_slo

    num, ms = console.number, console.milliseconds
    searched = f"{found.points} candidates, {found.simulated} simulated in {found.simulations} fleets, {seconds:.1f} s"
    if not found.rows:
        console.out(f"nothing keeps {slo} for {name} ({searched})")
        console.out(_nearest(found.nearest))
        _rejected(found)
        return
    best = found.rows[0]
    pipeline = "" if best["pp"] == 1 else f" pp={best['pp']}"

    def named(row: dict[str, Any]) -> str:
        policy = row["policy"]
        if policy == "dense":
            return policy
        return f"{in_kernel(policy, row['kernel'])} ({loss_named(row['model'], policy, quality).short})"

    console.out(
        f"{objective} for {name} under {slo}: {best['replicas']} x {best['device']} tp={best['tp']}"
        f"{pipeline} ({best['gpus']} GPUs), {named(best)}, {best['dtype']}:"
        f" {best['usd_per_h']:.2f} USD/h, {num(best['usd_per_mtoken'])} USD/Mtoken,"
        f" TTFT p99 {ms(best['ttft_p99_s'])} ms, TPOT p99 {ms(best['tpot_p99_s'])} ms"
    )
    if best["launch"]:
        console.out(f"launch: {best['launch']}" + (f"  # {best['launch_note']}" if best["launch_note"] else ""))
    else:
        console.out(f"launch: no command, {best['launch_note']}")
        runs = next((r for r in found.rows if r["launch"]), None)
        if runs is not None:
            console.out(
                f"cheapest that can be started: {runs['replicas']} x {runs['device']} tp={runs['tp']}, {named(runs)},"
                f" {runs['usd_per_h']:.2f} USD/h: {runs['launch']}"
            )
    console.out(_how_sure(best, parse_slo(slo)))
    if best["policy"] != "dense":
        console.out(told_beside(best))
    dense = [r for r in found.rows if r["policy"] == "dense"]
    if best["policy"] == "dense" and len(found.by_policy) > 1:
        console.out("no policy saves anything against dense under these promises")
    if best["policy"] != "dense" and dense:
        saved = dense[0]["usd_per_h"] - best["usd_per_h"]
        console.out(
            f"against the best dense deployment ({dense[0]['gpus']} x {dense[0]['device']}, {dense[0]['usd_per_h']:.2f}"
            f" USD/h): saves {saved:.2f} USD/h, {saved / dense[0]['usd_per_h']:.0%}, {saved * 8760:,.0f} USD a year"
        )
    console.out(searched)
    console.out()
    dearer = [f"{p.where} {p.usd_per_h:.2f} USD/h" for p in found.by_device if not p.simulated]
    note = "dearer or not enough by the closed form, so not simulated, at least: " + ", ".join(dearer)
    _table("Best of every device and policy", _firsts(found.rows), quality, note if dearer else "")
    _table("Pareto front of rent, TTFT p99 and TPOT p99", found.pareto, quality)
    if len(found.by_policy) > 1:
        _savings(found, quality)
    _rejected(found)


def _how_sure(best: dict[str, Any], promises: Sequence[Promise]) -> str:
    """The promised p99 with all steps at either end of their interval, and which promises the slow end breaks."""
    ms = console.milliseconds
    ends = ", ".join(
        f"{m.upper()} p99 {ms(best[f'{m}_p99_lo_s'])} - "
        + ("OVERLOADED" if best[f"{m}_p99_hi_s"] is None else f"{ms(best[f'{m}_p99_hi_s'])} ms")
        for m in ("ttft", "tpot")
    )
    broken = [
        p.text
        for p in promises
        if (key := f"{p.metric}_{p.statistic}_hi_s") in best and (best[key] is None or best[key] >= p.limit_s)
    ]
    sure = f" keeps the promises with probability {best['p_slo']:.2f};"
    run = f" {best['requests']:,} requests, {best['steady_requests']:,} of them in the stationary part"
    run += f", decide it with {best['p_slo_run']:.2f}" if not best["settled_why"] else f": {best['settled_why']}"
    text = f"how sure: {best['basis'].lower()};{sure}{run}; with all steps at either end of their 90 % interval {ends}"
    text += f"; the slow end breaks {' and '.join(broken)}" if broken else "; both ends keep the promises"
    if broken:
        more = (
            f"{best['sure_gpus']} GPUs keep them"
            if best["sure_gpus"]
            else "no number of GPUs within --max-gpus keeps them"
        )
        text += f", {more} there (probability 0.95)"
    return text + ". Rent is the profiles' list price, an assumption"


def _savings(found: Plan, quality: str) -> None:
    """What each policy costs, simulated where it could win, else at least; with its loss of quality."""
    from simulator.results.loss import UNIT
    from simulator.results.loss_lookup import loss_named

    model = found.rows[0]["model"]
    dense = next((p.usd_per_h for p in found.by_policy if p.policy == "dense"), None)
    body = []
    for p in sorted(found.by_policy, key=lambda p: p.usd_per_h):
        saved = "-" if dense is None else f"{'' if p.simulated else 'at most '}{dense - p.usd_per_h:,.2f}"
        body.append(
            [
                p.policy,
                p.where,
                f"{'' if p.simulated else '>= '}{p.usd_per_h:.2f}",
                saved,
                "-" if p.policy == "dense" else loss_named(model, p.policy, quality).short,
            ]
        )
    console.table(
        "What each policy saves",
        ["policy", "deployment", "USD/h", "saved USD/h", "loss"],
        body,
        left=2,
        note=">=: the closed form's fewest replicas; they cost more than the best, or no cheaper fleet keeps the"
        f" promises; --max-loss keeps those that surely lose no more; {UNIT}",
    )


def _table(title: str, rows: Sequence[dict[str, Any]], quality: str, note: str = "") -> None:
    from simulator.policies import in_kernel
    from simulator.results.loss_lookup import loss_named

    num, ms = console.number, console.milliseconds
    console.table(
        title,
        [
            "policy",
            "loss",
            "device",
            "dtype",
            "tp",
            "replicas",
            "GPUs",
            "batched tokens",
            "USD/h",
            "USD/Mtoken",
            "TTFT p50 / p99 ms",
            "TPOT p50 / p99 ms",
            "J/token",
            "KV used",
        ],
        [
            [
                in_kernel(r["policy"], r["kernel"]),
                "-" if r["policy"] == "dense" else loss_named(r["model"], r["policy"], quality).short,
                r["device"],
                r["dtype"],
                f"{r['tp']}",
                f"{r['replicas']}",
                f"{r['gpus']}",
                f"{r['max_num_batched_tokens']}",
                f"{r['usd_per_h']:.2f}",
                num(r["usd_per_mtoken"]),
                f"{ms(r['ttft_p50_s'])} / {ms(r['ttft_p99_s'])}",
                f"{ms(r['tpot_p50_s'])} / {ms(r['tpot_p99_s'])}",
                num(r["energy_j_per_token"]),
                f"{r['kv_share_mean']:.0%}",
            ]
            for r in rows[:20]
        ],
        left=4,
        note=note,
    )


def _firsts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        seen.setdefault((row["device"], row["policy"]), row)
    return list(seen.values())


def _nearest(row: dict[str, Any] | None) -> str:
    if row is None:
        return "no candidate could be read"
    if "reason" in row:
        return f"nearest miss: {row['device']} tp={row['tp']}, {row['policy']}: {row['reason']}"
    ms = console.milliseconds
    return (
        f"nearest miss: {row['gpus']} x {row['device']} tp={row['tp']}, {row['policy']}: {row['status']}, TTFT p99"
        f" {ms(row['ttft_p99_s'])} ms, TPOT p99 {ms(row['tpot_p99_s'])} ms; try a larger --max-gpus"
    )


def _rejected(found: Plan) -> None:
    if found.rejected:
        console.table(
            "Left out in closed form",
            ["reason", "one of them", "candidates"],
            [[kind, words, f"{n}"] for kind, (n, words) in found.rejected.items()],
            left=2,
        )


if __name__ == "__main__":
    console.main(app)
