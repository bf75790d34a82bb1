"""Published figures beside what we predict from their setups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from reports import charts
from reports.content import Block, Cell, Column, Figure, Paragraph, Section, Table, section
from reports.text import DASH, count, listed, num, percent, plural, share
from simulator.base.console import number
from simulator.base.errors import ShadowlineError

if TYPE_CHECKING:
    from simulator.claims.judge import Judged


def touched_claims(policies: Iterable[str]) -> Section | None:
    """Published figures about the policies of this report, predicted from their own setups."""
    from simulator.claims.judge import judge
    from simulator.claims.rows import committed
    from simulator.claims.statistics import summary
    from simulator.policies import POLICIES, parse, without_kernel

    names = {m.name for p in policies for m in parse(without_kernel(p)).members}
    names = {n for n in names if n in POLICIES}
    if not names:
        return None
    papers = []
    for paper in committed():
        touching = tuple(c for c in paper.claims if _members(c.scenario) & names)
        if touching:
            papers.append(replace(paper, claims=touching, incomplete={}))
    rows = [r for r in judge(papers) if r.status == "judged"]
    if not rows:
        text = f"No published figure about {listed(sorted(names))} has a setup complete enough to be predicted."
        return section("claims", "Published claims about these policies", [Paragraph(text)])
    return section("claims", "Published claims about these policies", claims_blocks(rows, summary(rows)))


def claims_blocks(rows: Sequence[Judged], total: Mapping[str, Any]) -> list[Block]:
    """Figure and tables of judged rows and their summary."""
    seen = [r.paper for r in rows if r.used_for_calibration]
    counts = {p: seen.count(p) for p in dict.fromkeys(seen)}
    return [claims_figure(rows, total), claims_by_paper(total["papers"], counts), claims_table(rows)]


def _members(scenario: Mapping[str, Any]) -> set[str]:
    from simulator.policies import parse

    try:
        return {m.name for m in parse(str(scenario.get("policy", "dense"))).members}
    except ShadowlineError:
        return set()


def claims_figure(rows: Sequence[Judged], total: Mapping[str, Any]) -> Figure:
    """Predicted over published, one dot per paper with the range of its rows."""
    free = [r for r in rows if not r.used_for_calibration]
    f = total["all"]
    if not free:
        free, f = list(rows), total["used_for_calibration"]
    ratios = {p: np.array([r.ratio for r in free if r.paper == p], float) for p in sorted({r.paper for r in free})}
    middles = {p: float(np.exp(np.mean(np.log(r)))) for p, r in ratios.items()}
    order = sorted(ratios, key=lambda p: middles[p])
    mid = np.array([middles[p] for p in order])
    lo, hi = (np.array([np.quantile(ratios[p], q) for p in order]) for q in (0.05, 0.95))
    names = [f"{p} ({len(ratios[p])})" for p in order]
    title = (
        f"Predicted over published: geometric mean {f['geometric_mean']:.2f} over {plural(f['papers'], 'paper')},"
        f" {share(f['within_20'])} of the rows within 20 %"
    )
    svg = charts.intervals(
        names,
        {"paper": (mid, np.minimum(lo, mid), np.maximum(hi, mid))},
        "predicted over published [-]",
        log=True,
        at_one=1.0,
        around_one=0.2,
    )
    caption = (
        "Dot: geometric mean of a paper's rows (their number in brackets); bar: 5 % to 95 % of them; shaded: within"
        " 20 %. Every paper weighs the same in the title."
    )
    if f is total["all"]:
        caption += " Rows used for calibration are left out."
    alt = "; ".join(f"{p}: {m:.2f}" for p, m in zip(names, mid, strict=True))
    return Figure("fig-claims", title, svg, alt, caption)


def claims_by_paper(papers: Mapping[str, Mapping[str, Any]], counts: Mapping[str, int]) -> Table:
    """Figures of each paper, most rows first; `counts` has the rows used for calibration."""
    out = []
    for paper, f in sorted(papers.items(), key=lambda kv: (-kv[1]["rows"], kv[0])):
        if not f["rows"] and not counts.get(paper):
            continue
        cells = (
            (
                num(f["geometric_mean"]),
                percent(f["within_20"]),
                percent(f["median_ape"]),
                percent(f["inside"]),
                Cell(DASH, np.nan) if f["rank_correlation"] is None else num(f["rank_correlation"], 2),
            )
            if f["rows"]
            else (Cell(DASH, np.nan),) * 5
        )
        out.append((Cell(paper), count(f["rows"]), *cells, count(counts.get(paper, 0))))
    columns = (
        Column("paper", wide=1),
        Column("rows", True),
        Column("geometric mean", True, "geometric mean"),
        Column("within 20 %", True),
        Column("median APE", True, "APE"),
        Column("in 90 % interval", True, "90 % interval"),
        Column("rank corr.", True, "rank correlation"),
        Column("for calibration", True),
    )
    return Table(
        "tab-claims-papers",
        "Published against predicted, by paper",
        columns,
        tuple(out),
        note="For calibration: further rows that a fit has seen; they are in none of the other figures.",
    )


def claims_table(rows: Sequence[Judged], per_paper: int = 3) -> Table:
    """Every row with its reason; the `per_paper` furthest off of each paper first, and these are printed."""
    order = sorted(rows, key=lambda r: -abs(np.log(r.ratio or 1.0)))
    rank: dict[str, int] = {}
    places = []
    for r in order:
        rank[r.paper] = rank.get(r.paper, 0) + 1
        places.append(rank[r.paper] > per_paper)
    order = [r for _, r in sorted(zip(places, order, strict=True), key=lambda p: p[0])]
    columns = (
        Column("claim"),
        Column("paper", wide=3),
        Column("metric"),
        Column("published", True),
        Column("predicted", True),
        Column("90 % interval", True, "90 % interval"),
        Column("ratio", True),
        Column("inside"),
        Column("why it misses", wide=7),
    )
    return Table(
        "tab-claims",
        f"The {per_paper} rows of each paper that are furthest off",
        columns,
        tuple(_claim(r) for r in order),
        shown=len(places) - sum(places),
        note="Times in ms, memory in GB. Inside: the published figure lies in our 90 % interval.",
    )


def _claim(r: Judged) -> tuple[Cell, ...]:
    from simulator.claims.metrics import base

    of_time = base(r.metric).endswith("_s") and base(r.metric) == r.metric
    scale = 1e3 if of_time and "per_s" not in r.metric else 1e-9 if r.metric.endswith("_bytes") else 1.0
    shown = [Cell(DASH, np.nan) if v is None else Cell(number(scale * v), v) for v in (r.published, r.predicted)]
    interval = DASH if r.lo is None or r.hi is None else f"{number(scale * r.lo)}{DASH}{number(scale * r.hi)}"
    name = (
        r.metric.replace("_per_s", "/s").removesuffix("_s").replace("_s_", "_").replace("_bytes", "").replace("_", " ")
    )
    why = f"published figure disputed: {r.wrong}. " if r.wrong else ""
    return (
        Cell(r.claim_id),
        Cell(r.paper),
        Cell(name),
        *shown,
        Cell(interval, r.lo),
        Cell(f"{r.ratio:.2f}", r.ratio),
        Cell("yes" if r.inside else "no", int(bool(r.inside))),
        Cell(why + (r.reason or "within 20 %")),
    )
