"""The cheapest deployment that keeps its promises: ``python -m simulator.plan``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.base import console
from simulator.base.dtypes import AUTO
from simulator.base.errors import EXIT_NOTHING_FEASIBLE, InputError, UnknownNameError
from simulator.serving import options

if TYPE_CHECKING:
    from simulator.serving.deployment import Deployment
    from simulator.serving.search import Plan
    from simulator.serving.slo import Promise

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
DEVICES = "a100-sxm-80g,h100-sxm,h200,b200,l40s,h20,mi300x"
CONTRADICTS = "contradicts a flag that is given"
"""Why a policy is left out before anything is asked of it."""


@app.command()
def command(
    model: options.Model = None,
    slo: options.Slo = None,
    device: Annotated[str, typer.Option(help="device names, commas between")] = DEVICES,
    requests: options.RequestsFile = None,
    rate: options.Rate = None,
    arrivals: options.Arrivals = "poisson",
    prompt_tokens: options.Prompt = None,
    output_tokens: options.Output = None,
    count: Annotated[int, typer.Option(help="requests simulated per fleet")] = 5000,
    seed: options.Seed = 0,
    skip_invalid: options.SkipInvalid = False,
    policy: Annotated[
        list[str] | None, typer.Option(help="policies beside dense, or free: every registered one at its defaults")
    ] = None,
    max_loss: Annotated[
        float | None, typer.Option(help="points: only policies whose published quality of the model loses at most this")
    ] = None,
    engine: options.Engine = "vllm",
    dtype: Annotated[str, typer.Option(help="weight formats, commas between")] = AUTO,
    kv_cache_dtype: Annotated[str, typer.Option(help="KV formats, commas between")] = AUTO,
    tp: Annotated[str, typer.Option(help="tensor-parallel GPUs")] = "1,2,4,8",
    pp: Annotated[str, typer.Option(help="pipeline stages")] = "1",
    ep: Annotated[str, typer.Option(help="expert groups within tp")] = "1",
    scheduler: Annotated[str, typer.Option(help="commas between")] = "chunked",
    max_num_seqs: Annotated[str, typer.Option(help="sequences running at once")] = "256",
    max_num_batched_tokens: Annotated[str, typer.Option(help="tokens of one step")] = "2048,8192",
    router: options.Router = "least-loaded",
    prefix_cache: options.PrefixCache = False,
    gpu_memory_utilization: options.Utilization = 0.9,
    ignore_context_limit: options.IgnoreContext = False,
    objective: Annotated[str, typer.Option(help="cheapest, fastest or energy")] = "cheapest",
    max_gpus: Annotated[int, typer.Option(help="GPUs of the whole fleet")] = 64,
    workers: options.Workers = 1,
    cluster: options.Cluster = None,
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the cheapest (fastest, least energy) deployment that keeps --slo under the traffic.

    Candidates are pruned in closed form and the survivors simulated. Exit 0; 2 bad input; 3 when nothing keeps the
    promises, with the nearest miss.
    """
    from time import perf_counter

    from simulator.serving.search import OBJECTIVES, search
    from simulator.serving.slo import parse_slo

    for name, value in (("--model", model), ("--slo", slo)):
        if value is None:
            raise InputError("is needed, e.g. --model llama-3.1-70b --slo 'ttft:p99<2s;tpot:p99<60ms'", where=name)
    if objective not in OBJECTIVES:
        raise UnknownNameError("objective", objective, OBJECTIVES, where="--objective")
    if max_gpus < 1:
        raise InputError("must be 1 or more", where="--max-gpus")
    if max_loss is not None and not isfinite(max_loss):
        raise InputError(f"{max_loss} is not a number of points", where="--max-loss")
    promises = parse_slo(slo or "")
    arrived = options.load(
        requests,
        rate=rate,
        count=count,
        arrivals=arrivals,
        prompt=prompt_tokens,
        output=output_tokens,
        seed=seed,
        skip_invalid=skip_invalid,
    )
    if not isfinite(arrived.rate):
        raise InputError("all requests arrive at once, there is no rate to plan for", where="--requests")
    axes = {
        "device": device,
        "dtype": dtype,
        "kv_cache_dtype": kv_cache_dtype,
        "tp": tp,
        "pp": pp,
        "ep": ep,
        "scheduler": scheduler,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
    }
    fixed = {
        "model": model,
        "engine": engine,
        "gpu_memory_utilization": gpu_memory_utilization,
        "ignore_context_limit": ignore_context_limit,
    }
    began = perf_counter()
    chosen = _policies(policy or [], model or "", max_loss)
    if max_loss is not None and len(chosen) == 1:
        console.say(f"no policy given has a published loss of at most {max_loss:g} points on {model}; dense alone")
    candidates, refused = _candidates(axes, fixed, chosen, router, prefix_cache)
    found = search(
        candidates,
        arrived,
        promises,
        objective=objective,
        max_gpus=max_gpus,
        workers=workers,
        cluster=cluster,
        quiet=quiet,
    )
    if refused:
        kinds = found.rejected | {CONTRADICTS: (len(refused), refused[-1])}
        found = replace(found, rejected=kinds, points=found.points + len(refused))
    seconds = perf_counter() - began
    _launch(found, fixed, prefix_cache)
    line = "python -m simulator.plan " + shlex.join(sys.argv[1:])
    if json_:
        costs = {k: [vars(p) for p in getattr(found, k)] for k in ("by_policy", "by_device")}
        console.out_json({**vars(found), **costs, "seconds": seconds, "command": line})
    else:
        show(found, arrived.name, slo or "", objective, seconds)
    if not found.rows:
        raise typer.Exit(EXIT_NOTHING_FEASIBLE)


def _policies(given: Sequence[str], model: str, max_loss: float | None) -> list[str]:
    """Dense and the policies to search; with `max_loss` those of known and small enough loss, `free` at every setting
    that was published for the model.
    """
    from simulator.policies import FREE, expand, free_names
    from simulator.results.published_quality import load_series, published
    from simulator.scenario.catalogue import CATALOGUE

    names: list[str] = []
    for text in given:
        if text != FREE:
            names += [p.spelling for p in expand(text)]
        elif max_loss is None:
            names += free_names()
        else:
            series = [s for s in load_series() if s.model == CATALOGUE.model(model).name]
            names += [p.spelling for s in series if s.unit == "points" for p in s.settings(max_loss)]
    names = [n for n in dict.fromkeys(names) if n != "dense"]
    if max_loss is not None:
        names = [
            n
            for n in names
            if (known := [s.loss(q) for s, q in published(model, n) if s.unit == "points"])
            and max(known) <= max_loss + 1e-9
        ]
    return ["dense", *names]


def _candidates(
    axes: dict[str, str], fixed: dict[str, Any], policies: Sequence[str], router: str, prefix: bool
) -> tuple[list[Deployment], list[str]]:
    """Deployments of one replica, the product of the axes; and why others contradict themselves, one line each."""
    from itertools import product

    from simulator.scenario.grid import names, whole_numbers
    from simulator.scenario.scenario import Scenario
    from simulator.serving.deployment import Deployment
    from simulator.serving.scheduler import Scheduler

    whole = ("tp", "pp", "ep", "max_num_seqs", "max_num_batched_tokens")
    values = {
        key: whole_numbers(text, _flag(key)) if key in whole else names([text], _flag(key))
        for key, text in axes.items()
    }
    settings = [
        Scheduler(str(name), int(seqs), int(tokens))
        for name, seqs, tokens in product(
            *(values.pop(k) for k in ("scheduler", "max_num_seqs", "max_num_batched_tokens"))
        )
    ]
    deployments: list[Deployment] = []
    refused: list[str] = []
    # Schedulers vary fastest: what a scenario was understood as is at hand for all of them.
    for policy in policies:
        for combination in product(*values.values()):
            at = dict(zip(values, combination, strict=True))
            try:
                scenario = Scenario.of(**fixed, **at, policy=policy)
            except InputError as error:
                # A policy may set a format that is also given; what is wrong without one is wrong everywhere.
                if policy == "dense":
                    raise
                refused += [str(error)] * len(settings)
                continue
            deployments += [Deployment(scenario, s, router=router, prefix_cache=prefix) for s in settings]
    return deployments, refused


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _launch(found: Plan, fixed: dict[str, Any], prefix_cache: bool) -> None:
    """Add the launch command to every row."""
    from simulator.scenario.scenario import Scenario
    from simulator.serving.launch import launch_command

    for row in found.rows:
        keys = ("device", "policy", "tp", "pp", "ep")
        scenario = Scenario.of(
            **fixed, **{k: row[k] for k in keys}, dtype=row["given_dtype"], kv_cache_dtype=row["given_kv_dtype"]
        )
        row["launch"], row["launch_note"] = launch_command(scenario, row, prefix_cache=prefix_cache)


def show(found: Plan, name: str, slo: str, objective: str, seconds: float) -> None:
    """The answer, the best of every device and policy, the front, and what was left out."""
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
    console.out(
        f"{objective} for {name} under {slo}: {best['replicas']} x {best['device']} tp={best['tp']}"
        f"{pipeline} ({best['gpus']} GPUs), {best['policy']}, {best['dtype']}:"
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
                f"cheapest that vLLM starts: {runs['replicas']} x {runs['device']} tp={runs['tp']}, {runs['policy']},"
                f" {runs['usd_per_h']:.2f} USD/h: {runs['launch']}"
            )
    console.out(_how_sure(best, parse_slo(slo)))
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
    _table("Best of every device and policy", _firsts(found.rows), note if dearer else "")
    _table("Pareto front of rent, TTFT p99 and TPOT p99", found.pareto)
    if len(found.by_policy) > 1:
        _savings(found)
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
    text = f"how sure: {best['basis'].lower()}; with all steps at either end of their 90 % interval {ends}"
    text += f"; the slow end breaks {' and '.join(broken)}" if broken else "; both ends keep the promises"
    return text + ". Rent is the profiles' list price, an assumption"


def _savings(found: Plan) -> None:
    """What each policy costs, simulated where it could win, else at least; with its published loss of quality."""
    from simulator.results.published_quality import published

    model = found.rows[0]["model"]
    dense = next((p.usd_per_h for p in found.by_policy if p.policy == "dense"), None)
    body = []
    for p in sorted(found.by_policy, key=lambda p: p.usd_per_h):
        known = [s.loss(q) for s, q in published(model, p.policy) if s.unit == "points"]
        saved = "-" if dense is None else f"{'' if p.simulated else 'at most '}{dense - p.usd_per_h:,.2f}"
        body.append(
            [
                p.policy,
                p.where,
                f"{'' if p.simulated else '>= '}{p.usd_per_h:.2f}",
                saved,
                f"{max(known):+.1f} points" if known else "-" if p.policy == "dense" else "not published",
            ]
        )
    console.table(
        "What each policy saves",
        ["policy", "deployment", "USD/h", "saved USD/h", "published loss on this model"],
        body,
        left=2,
        note=">=: the closed form's fewest replicas; they cost more than the best, or no cheaper fleet keeps the"
        " promises; --max-loss keeps those whose loss is published",
    )


def _table(title: str, rows: Sequence[dict[str, Any]], note: str = "") -> None:
    num, ms = console.number, console.milliseconds
    console.table(
        title,
        [
            "policy",
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
                r["policy"],
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
        left=3,
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
