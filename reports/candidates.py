"""The deployments to choose from: cost against latency, what sparsity saves, and what comes nearest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from reports import charts
from reports.content import Block, Cell, Column, Figure, Paragraph, Section, Table, section
from reports.deployments import cells_of, columns_of, fleet, keeps, loss
from reports.served import Row, Served
from reports.text import DASH, count, listed, ms, share
from simulator.base.console import milliseconds, number
from simulator.serving.slo import Promise

MOST_GROUPS = 6
"""Policies told apart in a scatter; the others are one group."""


def candidates(served: Served, best: Row | None) -> Section | None:
    """Cost against p99 of every deployment, and all of them as a table."""
    if not served.rows:
        return None
    rows = served.rows
    blocks: list[Block | None] = [_cost(served, m, best) for m in ("ttft", "tpot")]
    if served.search is not None:
        title = "Deployments that keep the promises"
        note = "In the order of the objective."
        if len(served.search.pareto) < len(rows):
            front = listed(dict.fromkeys(map(fleet, served.search.pareto)), 6)
            note += f" No other beats these in rent, TTFT p99 and TPOT p99 at once: {front}."
    else:
        title, note = "Every run", ""
    blocks.append(Table("tab-candidates", title, columns_of(rows), tuple(map(cells_of, rows)), note))
    launches = [r for r in rows if r.get("launch")]
    if launches:
        told = launches[0]["launch"]
        more = f" ({launches[0]['launch_note']})" if launches[0].get("launch_note") else ""
        from reports.content import Code
        from reports.text import wrapped

        text = f"One replica of {fleet(launches[0])}, the first that can be started{more}:"
        blocks += [Paragraph(text), Code(wrapped(told))]
    return section("candidates", "What there is to choose from", blocks)


def _cost(served: Served, metric: str, best: Row | None) -> Figure | None:
    """Rent of a plan's deployments, or cost per token of runs, against a p99."""
    planned = served.search is not None
    key = "usd_per_h" if planned else "usd_per_mtoken"
    name = metric.upper()
    rows = [r for r in served.rows if r[f"{metric}_p99_s"] is not None and r[key] is not None]
    if len(rows) < 2:
        return None
    counts: dict[str, int] = {}
    for r in rows:
        counts[r["policy"]] = counts.get(r["policy"], 0) + 1
    few = sorted(counts, key="dense".__ne__)  # dense always stands apart
    few = few[: MOST_GROUPS if len(few) <= MOST_GROUPS else MOST_GROUPS - 1]
    groups: dict[str, list[tuple[float, float]]] = {}
    for r in rows:
        group = r["policy"] if r["policy"] in few else "other policies"
        groups.setdefault(group, []).append((1e3 * r[f"{metric}_p99_s"], r[key]))
    points = {g: (np.array(v)[:, 0], np.array(v)[:, 1]) for g, v in groups.items()}
    front = _front(sorted(p for v in groups.values() for p in v))
    unit = "rent of the fleet [USD/h]" if planned else "USD per million output tokens"
    svg = charts.scatter(points, f"{name} p99 [ms]", unit, line=(front[:, 0], front[:, 1]), height_in=3.0)
    low, fast = (min(rows, key=lambda r, k=k: r[k]) for k in (key, f"{metric}_p99_s"))
    each = "USD/h" if planned else "USD/Mtoken"
    title = f"{name} p99 of the cheapest is {milliseconds(low[f'{metric}_p99_s'])} ms for {number(low[key])} {each}"
    if fast[f"{metric}_p99_s"] < low[f"{metric}_p99_s"]:
        title += f"; the fastest has {milliseconds(fast[f'{metric}_p99_s'])} ms for {number(fast[key])}"
    alt = f"Cost against {name} p99 of {len(rows)} deployments: " + "; ".join(
        f"{fleet(r)} {milliseconds(r[f'{metric}_p99_s'])} ms, {number(r[key])} {each}" for r in rows[:12]
    )
    return Figure(f"fig-cost-{metric}", title, svg, alt, "Dashed: nothing is both cheaper and faster than this line.")


def _front(points: Sequence[tuple[float, float]]) -> np.ndarray:
    """Staircase under the points, which are ordered by time; shape (n, 2)."""
    steps: list[tuple[float, float]] = []
    for x, y in points:
        if not steps or y < steps[-1][1]:
            if steps:
                steps.append((x, steps[-1][1]))
            steps.append((x, y))
    steps.append((points[-1][0], steps[-1][1]))
    return np.array(steps)


def savings(served: Served, best: Row | None) -> Section | None:
    """What each policy costs against dense, with the loss of quality that papers report."""
    found = _policies(served)
    dense = next((p for p in found if p["policy"] == "dense"), None)
    if len(found) < 2 or dense is None:
        return None
    planned = served.search is not None
    unit = "USD/h" if planned else "USD/Mtoken"
    model = served.rows[0]["model"] if served.rows else ""
    body = []
    shown = [p for p in found if p["simulated"] or p["cost"] < dense["cost"]]
    for p in sorted(shown, key=lambda p: (p["cost"], p["policy"])):
        saved = dense["cost"] - p["cost"]
        bound = "" if p["simulated"] else "at least "
        cell = Cell(("" if p["simulated"] else "at most ") + number(saved), saved)
        if p is dense:
            cell = Cell(DASH, 0.0)
        body.append(
            (
                Cell(p["policy"]),
                Cell(p["where"]),
                Cell(bound + number(p["cost"]), p["cost"]),
                cell,
                Cell(share(saved / dense["cost"], "+.0"), saved / dense["cost"], "win" if saved > 0 else "")
                if p["simulated"] and p is not dense
                else Cell(DASH),
                _loss(model, p["policy"]),
            )
        )
    sure = [p for p in found if p["simulated"] and p is not dense]
    text = "No policy beside dense keeps the promises."
    if sure:
        first = best["policy"] if best else ""
        top = min(sure, key=lambda p: (p["cost"], p["policy"] != first))
        saved = dense["cost"] - top["cost"]
        ways = [p for p in sure if p["cost"] < dense["cost"]]
        if saved > 0:
            text = (
                f"{top['policy']} ({loss(model, top['policy']).short}) saves most: {number(saved)} {unit},"
                f" {share(saved / dense['cost'])} of what dense costs"
            )
            text += f"; {len(ways)} of {len(sure)} simulated policies cost less." if len(sure) > 1 else "."
        else:
            more = "as much as" if saved == 0 else f"{number(-saved)} {unit} more than"
            text = f"Nothing: the cheapest, {top['policy']}, costs {more} dense."
    columns = (
        Column("policy", term="policy"),
        Column("deployment"),
        Column(unit, True),
        Column(f"saved {unit}", True),
        Column("share", True),
        Column("loss of quality"),
    )
    note = "Each policy at its cheapest deployment that keeps the promises."
    if not planned:
        note = "Each policy at its cheapest run that keeps the promises, or keeps up."
    if len(shown) < len(found):
        note += f" {len(found) - len(shown)} more policies cost at least what dense costs."
    if any(not p["simulated"] for p in shown):
        note += " At least: not simulated, because even the closed form's fewest replicas cost more than the best."
    table = Table("tab-savings", "What each policy costs against dense", columns, tuple(body), note, 50)
    return section("savings", "What sparsity saves", [Paragraph(text, "lead"), table])


def _policies(served: Served) -> list[Mapping]:
    if served.search is not None:
        return [{**p, "cost": p["usd_per_h"]} for p in served.search.by_policy]
    found: dict[str, Mapping] = {}
    for r in sorted((r for r in served.rows if keeps(r) and r["usd_per_mtoken"]), key=lambda r: r["usd_per_mtoken"]):
        rate = "" if r["rate_per_s"] is None else f" at {number(r['rate_per_s'])}/s"
        where = f"{r['gpus']} x {r['device']}{rate}"
        found.setdefault(
            r["policy"], {"policy": r["policy"], "where": where, "cost": r["usd_per_mtoken"], "simulated": True}
        )
    return list(found.values())


def _loss(model: str, policy: str) -> Cell:
    if policy == "dense":
        return Cell(DASH)
    lost = loss(model, policy)
    return Cell(lost.short, lost.points.mid if lost.known else None, tone="" if lost.known else "quiet")


def nearest_miss(served: Served) -> Section | None:
    """What a plan left out in closed form, and the nearest miss where nothing keeps the promises."""
    search = served.search
    if search is None:
        return None
    blocks: list[Block | None] = []
    near = search.nearest
    if not served.rows:
        blocks.append(Paragraph(_miss(near, served.slo), "lead"))
        if near is not None and "reason" not in near:
            blocks.append(
                Table(
                    "tab-nearest",
                    "The nearest miss",
                    columns_of([near]),
                    (cells_of(near),),
                    "The fleet whose worst statistic exceeds its promise by the smallest factor.",
                )
            )
            blocks.append(_against(near, served.slo))
    if search.rejected:
        body = tuple((Cell(kind), count(n), Cell(words)) for kind, (n, words) in search.rejected.items())
        columns = (Column("reason", wide=1), Column("candidates", True), Column("one of them", wide=2))
        blocks.append(Table("tab-rejected", "Candidates left out in closed form", columns, body))
    if not blocks:
        return None
    title = "The nearest miss" if not served.rows else "What was left out"
    return section("nearest", title, blocks)


def _miss(near: Row | None, slo: Sequence[Promise]) -> str:
    if near is None:
        return "No candidate could be read, so there is no nearest miss."
    if "reason" in near:
        return (
            f"The closed form refuses every candidate; the nearest is {near['policy']} on {near['tp']} x"
            f" {near['device']}: {near['reason']}. A looser promise, more GPUs or a faster device may do."
        )
    missed = [
        f"{p.metric.upper()} {p.statistic} is {milliseconds(v)} ms where {milliseconds(p.limit_s)} ms are promised"
        for p in slo
        if (v := near[f"{p.metric}_{p.statistic}_s"]) is not None and v >= p.limit_s
    ]
    why = listed(missed) if missed else f"it is {near['status']}: its queue only grows"
    return f"{fleet(near)} comes nearest: {why}. More GPUs or a looser promise may do."


def _against(near: Row, slo: Sequence[Promise]) -> Table:
    body = []
    for p in slo:
        found = near[f"{p.metric}_{p.statistic}_s"]
        ratio = None if found is None else found / p.limit_s
        over = ratio is not None and ratio >= 1.0
        body.append(
            (
                Cell(f"{p.metric.upper()} {p.statistic}"),
                ms(p.limit_s),
                ms(found),
                Cell(DASH if ratio is None else f"{ratio:.2f}x", ratio, "lose" if over else ""),
            )
        )
    columns = (Column("promise"), Column("promised ms", True), Column("found ms", True), Column("of the promise", True))
    return Table("tab-miss", "How far it is from each promise", columns, tuple(body))
