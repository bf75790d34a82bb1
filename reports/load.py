"""How long requests take, and how full a fleet is over time."""

from __future__ import annotations

import numpy as np

from reports import charts
from reports.content import Block, Cell, Column, Section, Table, section
from reports.deployments import keeps, labels
from reports.served import Row, Served
from reports.text import DASH, count, ms, num, percent, share
from simulator.base.console import milliseconds, number
from simulator.base.drawing import Line, Lines, Picture

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
    drawn = (distribution(served, m, best) for m in ("ttft", "tpot"))
    blocks: list[Block | None] = [charts.figure(p) for p in drawn if p is not None]
    body = [(Cell(names[id(r)]), *(ms(r[f"{m}_{q}_s"]) for m, qs in LISTED.items() for q in qs)) for r in rows]
    columns = (
        Column("run, times in ms"),
        *(Column(f"{NAMES[m]} {q}", True, NAMES[m]) for m, qs in LISTED.items() for q in qs),
    )
    note = "An overloaded run has no percentiles: they would measure how long the trace is."
    over = any(r["status"] == "OVERLOADED" for r in served.rows)
    table = Table("tab-latency", "Latency percentiles of every run", columns, tuple(body), note if over else "")
    return section("latency", "How long requests take", [*blocks, table])


def distribution(served: Served, metric: str, best: Row | None) -> Picture | None:
    """Time that a share of the requests stays below, run by run, and what is promised."""
    names = labels(served.rows)
    lines: list[Line] = []
    for i in _chosen(served, best):
        row = served.rows[i]
        if row[f"{metric}_p50_s"] is None:
            continue
        if served.requests:
            values = served.requests[i][f"{metric}_s"]
            values = values[np.isfinite(values)]
            lines.append(Line(names[i], SHARES / 100.0, 1e3 * np.quantile(values, SHARES / 100.0)))
        else:
            at = [row[f"{metric}_p{p:.0f}_s"] for p in POINTS]
            lines.append(Line(names[i], np.array(POINTS) / 100.0, 1e3 * np.array(at, dtype=float)))
    if not lines:
        return None
    name = NAMES[metric]
    alt = f"{name} over the share of requests that stay below it; " + "; ".join(
        f"{line.name}: p50 {milliseconds(float(np.interp(0.5, line.x, line.y)) / 1e3)} ms, p99"
        f" {milliseconds(float(np.interp(0.99, line.x, line.y)) / 1e3)} ms"
        for line in lines
    )
    ends = np.array([min(line.x[0] for line in lines), max(line.x[-1] for line in lines)])
    promises = [p for p in served.slo if p.metric == metric]
    lines += [Line(f"promised {p.statistic}", ends, np.full(2, 1e3 * p.limit_s), aside=True) for p in promises]
    shown = best if best is not None else served.rows[_chosen(served, best)[0]]
    statistic = promises[0].statistic if promises else "p99"
    found = shown[f"{metric}_{statistic}_s"]
    if found is None:
        title = f"{name} of every run that keeps up"
    else:
        who = next(n for n, r in zip(names, served.rows, strict=True) if r is shown)
        title = f"{name}: {statistic} of {who} is {milliseconds(found)} ms"
        if promises:
            below = "below" if found < promises[0].limit_s else "above"
            title += f", {below} the promised {milliseconds(promises[0].limit_s)} ms"
    caption = "" if served.requests else "Read at p50, p90, p95 and p99, joined by straight lines."
    if len(served.rows) > MOST_CURVES:
        caption += f" {MOST_CURVES} of {len(served.rows)} runs; the table has all."
    drawn = Lines(
        tuple(lines), "share of requests that stay below", f"{name} [ms]", y_log=True, share=False, x_share=True
    )
    return Picture(metric, name, title, drawn, alt, caption.strip())


def over_time(served: Served, key: str, best: Row | None) -> Picture:
    """Requests that wait ("waiting") or the share of the KV cache in use ("kv_share"), run by run."""
    names, chosen = labels(served.rows), _chosen(served, best)
    is_share = key == "kv_share"
    what = "KV cache in use" if is_share else "requests waiting"
    most = {i: float(np.max(served.loads[i][key], initial=0.0)) for i in chosen}
    said = {i: share(v) if is_share else number(v) for i, v in most.items()}
    lead = next((i for i in chosen if served.rows[i] is best), chosen[0])
    if is_share:
        title = f"The KV cache of {names[lead]} is at most {said[lead]} full"
    else:
        title = f"At most {said[lead]} requests wait at {names[lead]}"
    worst = max(chosen, key=lambda i: most[i])
    title += f", {said[worst]} at {names[worst]}" if worst != lead else ""
    alt = f"{what} over time; largest mean of an interval: " + "; ".join(f"{names[i]} {said[i]}" for i in chosen)
    lines = tuple(Line(names[i], served.loads[i]["time_s"], served.loads[i][key]) for i in chosen)
    drawn = Lines(lines, "time [s]", what, share=is_share)
    return Picture(key.replace("_", "-"), what, title, drawn, alt, "Means of 120 equal intervals.")


def load(served: Served, best: Row | None) -> Section | None:
    """Queue and KV cache over time where the file has them, and what every run does per second."""
    names = labels(served.rows)
    blocks: list[Block | None] = []
    if served.loads:
        blocks += [charts.figure(over_time(served, key, best)) for key in ("waiting", "kv_share")]
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
