"""How long requests take, and how full a fleet is over time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from reports import charts
from reports.content import Block, Cell, Column, Figure, Section, Table, section
from reports.deployments import keeps, labels
from reports.served import Row, Served
from reports.text import DASH, count, ms, num, percent, share
from simulator.base.console import milliseconds, number

MOST_CURVES = 6
POINTS = (50.0, 90.0, 95.0, 99.0)
SHARES = np.concatenate([np.linspace(1.0, 99.0, 99), [99.5, 99.9]])
"""Where the distribution of a run's requests is read [%]."""
NAMES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E"}
LISTED = {"ttft": ("p50", "p90", "p99"), "tpot": ("p50", "p90", "p99"), "itl": ("p50", "p99"), "e2e": ("p50", "p99")}


def _chosen(served: Served, best: Row | None) -> list[int]:
    """Rows to draw: the recommended one, the best of every other kind, and then its own at other rates."""
    rows = served.rows

    def kind(row: Row) -> tuple[str, str]:
        return row["policy"], row["device"]

    order = [i for i, r in enumerate(rows) if r is best]
    seen = {kind(r) for r in rows if r is best}
    kept = [i for i, r in enumerate(rows) if keeps(r)]
    if served.search is None:
        kept.sort(key=lambda i: -(rows[i]["rate_per_s"] or 0.0))
    for i in kept:
        if kind(rows[i]) not in seen:
            seen.add(kind(rows[i]))
            order.append(i)
    order += [i for i, r in enumerate(rows) if best is not None and kind(r) == kind(best)]
    order += range(len(rows))
    return sorted(list(dict.fromkeys(order))[:MOST_CURVES])


def latency(served: Served, best: Row | None) -> Section | None:
    """Distributions of the latencies against the promises, and all percentiles."""
    rows = [r for r in served.rows if r["ttft_p50_s"] is not None]
    if not rows:
        return None
    names = dict(zip(map(id, served.rows), labels(served.rows), strict=True))
    blocks: list[Block | None] = [_distribution(served, m, best, names) for m in ("ttft", "tpot")]
    body = [(Cell(names[id(r)]), *(ms(r[f"{m}_{q}_s"]) for m, qs in LISTED.items() for q in qs)) for r in rows]
    columns = (
        Column("run, times in ms"),
        *(Column(f"{NAMES[m]} {q}", True, NAMES[m]) for m, qs in LISTED.items() for q in qs),
    )
    note = "An overloaded run has no percentiles: they would measure how long the trace is."
    over = any(r["status"] == "OVERLOADED" for r in served.rows)
    table = Table("tab-latency", "Latency percentiles of every run", columns, tuple(body), note if over else "")
    return section("latency", "How long requests take", [*blocks, table])


def _distribution(served: Served, metric: str, best: Row | None, names: Mapping[int, str]) -> Figure | None:
    """Time that a share of the requests stays below."""
    groups: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for i in _chosen(served, best):
        row = served.rows[i]
        if row[f"{metric}_p50_s"] is None:
            continue
        if served.requests:
            values = served.requests[i][f"{metric}_s"]
            values = values[np.isfinite(values)]
            groups[names[id(row)]] = (SHARES, 1e3 * np.quantile(values, SHARES / 100.0))
        else:
            at = [row[f"{metric}_p{p:.0f}_s"] for p in POINTS]
            groups[names[id(row)]] = (np.array(POINTS), 1e3 * np.array(at, dtype=float))
    if not groups:
        return None
    name = NAMES[metric]
    ends = np.array([min(x[0] for x, _ in groups.values()), max(x[-1] for x, _ in groups.values())])
    for p in served.slo:
        if p.metric == metric:
            groups[f"promised {p.statistic}"] = (ends, np.full(2, 1e3 * p.limit_s))
    promise = next((p for p in served.slo if p.metric == metric), None)
    shown = best if best is not None else served.rows[_chosen(served, best)[0]]
    statistic = promise.statistic if promise else "p99"
    found = shown[f"{metric}_{statistic}_s"]
    who = names[id(shown)]
    if found is None:
        title = f"{name} of every run that keeps up"
    else:
        title = f"{name}: {statistic} of {who} is {milliseconds(found)} ms"
        if promise:
            below = "below" if found < promise.limit_s else "above"
            title += f", {below} the promised {milliseconds(promise.limit_s)} ms"
    alt = f"{name} over the share of requests that stay below it; " + "; ".join(
        f"{n}: p50 {milliseconds(float(np.interp(50.0, x, y)) / 1e3)} ms, p99"
        f" {milliseconds(float(np.interp(99.0, x, y)) / 1e3)} ms"
        for n, (x, y) in groups.items()
        if not n.startswith("promised")
    )
    svg = charts.lines(groups, "share of requests that stay below [%]", f"{name} [ms]", log_y=True, percent=False)
    caption = "" if served.requests else "Read at p50, p90, p95 and p99, joined by straight lines."
    if len(served.rows) > MOST_CURVES:
        caption += f" {MOST_CURVES} of {len(served.rows)} runs; the table has all."
    return Figure(f"fig-{metric}", title, svg, alt, caption.strip())


def load(served: Served, best: Row | None) -> Section | None:
    """Queue and KV cache over time where the file has them, and what every run does per second."""
    names = labels(served.rows)
    blocks: list[Block | None] = []
    if served.loads:
        chosen = _chosen(served, best)
        lead = next((i for i in chosen if served.rows[i] is best), chosen[0])
        for key, what, share_ in (("waiting", "requests waiting", False), ("kv_share", "KV cache in use", True)):
            groups = {names[i]: (served.loads[i]["time_s"], served.loads[i][key]) for i in chosen}
            peak = float(np.max(groups[names[lead]][1], initial=0.0))
            said = share(peak) if share_ else number(peak)
            title = (
                f"The KV cache of {names[lead]} is at most {said} full"
                if share_
                else f"At most {said} requests wait at {names[lead]}"
            )
            worst = max(chosen, key=lambda i: float(np.max(served.loads[i][key], initial=0.0)))
            if worst != lead:
                top = float(np.max(served.loads[worst][key]))
                title += f", {share(top) if share_ else number(top)} at {names[worst]}"
            alt = f"{what} over time; largest mean of an interval: " + "; ".join(
                f"{n} {share(float(np.max(y))) if share_ else number(float(np.max(y)))}" for n, (_, y) in groups.items()
            )
            svg = charts.lines(groups, "time [s]", what, percent=share_)
            blocks.append(Figure(f"fig-{key.replace('_', '-')}", title, svg, alt, "Means of 120 equal intervals."))
    columns = (
        Column("run", wide=1),
        Column("status"),
        Column("requests/s", True),
        Column("goodput/s", True, "goodput"),
        Column("tokens/s/GPU", True, "tokens/s/GPU"),
        Column("KV used", True, "KV cache"),
        Column("preempted", True),
        Column("prefix hits", True),
        Column("J/token", True),
        Column("USD/Mtoken", True),
    )
    body = tuple(
        (
            Cell(n),
            Cell(r["status"].lower(), tone="lose" if r["status"] == "OVERLOADED" else ""),
            num(r["rate_per_s"]),
            num(r["goodput_per_s"]),
            num(r["output_tokens_per_s_per_gpu"]),
            percent(r["kv_share_mean"]),
            count(r["preemptions"]),
            percent(r["prefix_hit_rate"]) if r["prefix_bound"] is not None else Cell(DASH),
            num(r["energy_j_per_token"]),
            num(r["usd_per_mtoken"]),
        )
        for n, r in zip(names, served.rows, strict=True)
    )
    if body:
        blocks.append(Table("tab-load", "Load and cost of every run", columns, body))
    return section("load", "How full it is", blocks) if blocks else None
