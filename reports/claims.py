"""The report of published claims: what papers say, what we predict from their setups, and why we miss."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports import charts, provenance
from reports.content import (
    Block,
    Bullets,
    Cell,
    Code,
    Column,
    Figure,
    Paragraph,
    Report,
    Section,
    Subheading,
    Table,
    section,
)
from reports.published import claims_blocks
from reports.text import DASH, count, listed, num, percent, plural, share
from simulator.base.errors import InputError
from simulator.base.files import read_limited

if TYPE_CHECKING:
    from simulator.claims.judge import Judged

MOST_BYTES = 64 * 2**20
SMALLEST, LARGEST = 1e-18, 1e24
"""Bounds of a figure in SI units, far beyond any published one."""


def compose(path: Path | None) -> Report:
    """The report of ``python -m simulator.claims --json`` in `path`, or of the committed claims judged now."""
    rows, total = _judged_now() if path is None else _read(path)
    judged = [r for r in rows if r.status == "judged"]
    if not judged:
        raise InputError("holds no judged claim, so there is nothing to report", where=str(path or "claims"))
    sections = [
        _first_page(rows, total, path),
        section("papers", "Paper by paper", claims_blocks(judged, total)),
        _misses(total),
        _left_out(rows, total),
        provenance.versions([("claims", path.name if path else "as committed, judged for this report")]),
    ]
    report = Report(
        "Do we reproduce what papers publish?",
        f"{plural(len(judged), 'published figure')} of {plural(len({r.paper for r in judged}), 'paper')}",
        tuple(sections),
    )
    return provenance.with_glossary(report, "versions")


def _judged_now() -> tuple[list[Judged], dict[str, Any]]:
    from simulator.claims.judge import judge
    from simulator.claims.rows import committed
    from simulator.claims.statistics import summary

    rows = judge(committed())
    return rows, summary(rows)


def _read(path: Path) -> tuple[list[Judged], dict[str, Any]]:
    from pydantic import TypeAdapter, ValidationError

    from simulator.claims.judge import Judged
    from simulator.claims.statistics import summary

    where = str(path)
    made_by = "give what python -m simulator.claims --json prints"
    try:
        told = json.loads(read_limited(path, MOST_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON ({error}); {made_by}", where=where) from None
    if not isinstance(told, dict) or not {"rows", "summary"} <= set(told):
        raise InputError(f"lacks rows or summary; {made_by}", where=where)
    names = {"id": "claim_id"}
    derived = ("ratio", "inside")
    try:
        rows = TypeAdapter(list[Judged]).validate_python(
            [{names.get(k, k): v for k, v in r.items() if k not in derived} for r in told["rows"]]
        )
    except (TypeError, AttributeError, ValidationError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise InputError(f"is of another version ({why}); {made_by}", where=where) from None
    for r in rows:
        figures = (r.published, r.predicted, r.lo, r.hi)
        if r.status == "judged" and not all(v is None or SMALLEST < v < LARGEST for v in figures):
            raise InputError(f"{r.claim_id} has figures that are none; {made_by}", where=where)
        if r.status == "judged" and None in figures[:2]:
            raise InputError(f"{r.claim_id} lacks a figure; {made_by}", where=where)
    if not _alike(told["summary"], summary(rows)):
        raise InputError(f"its summary is of another version; {made_by}", where=where)
    return rows, told["summary"]


def _alike(told: Any, made: Any) -> bool:
    """Whether both have the same keys, and numbers where the other has them."""
    if isinstance(made, dict):
        return isinstance(told, dict) and told.keys() == made.keys() and all(_alike(told[k], made[k]) for k in made)
    if isinstance(made, list):
        return isinstance(told, list) and len(told) == len(made) and all(map(_alike, told, made))
    if made is None or (isinstance(made, float) and math.isnan(made)):
        return told is None or _finite(told)
    return type(told) is type(made) if isinstance(made, str) else _finite(told)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < LARGEST


def _first_page(rows: Sequence[Judged], total: Mapping[str, Any], path: Path | None) -> Section:
    from simulator.claims.statistics import told

    f, targets = total["all"], total["targets"]
    files = "-o report.html -o report.pdf"
    command = f"python -m reports.build --kind claims {files}"
    if path is not None:
        command = f"python -m simulator.claims --json > {path.name}\npython -m reports.build {path.name} {files}"
    blocks: list[Block] = [
        Paragraph(
            "When a paper states its model, device, batch and length, do we predict the figure it reports, without"
            " having seen it?"
        ),
        Paragraph(_answer(f, targets, total["wrong"]), "lead"),
        *([Paragraph(f"Against the papers' own baselines it {words}.")] if (words := told(f["called"])) else []),
        _verdict(total),
        Subheading("Assumptions"),
        Bullets(
            (
                "A row counts where model, device, batch and prompt or context are stated at the primary source; no row"
                " leaves the statistic because it misses.",
                "Every paper weighs the same, however many figures it prints; rows that a fit has seen are counted"
                " apart.",
                f"{total['counts']['incomplete']:,} further published figures lack a part of their setup and are not"
                " judged.",
                "A published figure has an error of its own; where it contradicts itself it is named as disputed but"
                " still counted.",
            )
        ),
        Subheading("The exact command"),
        Code(command),
    ]
    return section("answer", "The question and the answer", blocks)


def _answer(f: Mapping[str, Any], targets: Mapping[str, Any], wrong: int) -> str:
    low, high = targets["geometric_mean"]
    mean = f["geometric_mean"]
    bias = "right on average" if low <= mean <= high else "too low on average" if mean < low else "too high on average"
    rank = f["rank_correlation"]
    order = f", and speed-ups are ordered as published (rank correlation {rank:.2f})" if rank is not None else ""
    return (
        f"{bias.capitalize()}: the geometric mean of predicted over published is {mean:.2f} over {f['rows']:,}"
        " figures of"
        f" {plural(f['papers'], 'paper')}{order}. {share(f['within_20'])} are within 20 % and {share(f['inside'])}"
        f" inside the 90 % interval, where {share(targets['within_20'])} and 90 % are asked for"
        + (f"; {wrong} published figures contradict themselves." if wrong else ".")
    )


def _verdict(total: Mapping[str, Any]) -> Table:
    from simulator.claims.statistics import GROUPS

    rows = []
    for key, name in GROUPS.items():
        f = total[key]
        if f["rows"]:
            rank = f["rank_correlation"]
            rows.append(
                (
                    Cell(name),
                    count(f["rows"]),
                    count(f["papers"]),
                    num(f["geometric_mean"]),
                    percent(f["within_20"]),
                    percent(f["median_ape"]),
                    percent(f["inside"]),
                    num(rank, 2) if rank is not None else Cell(DASH),
                )
            )
    t = total["targets"]
    low, high = t["geometric_mean"]
    target = (
        Cell("asked for", tone="quiet"),
        Cell(""),
        Cell(""),
        Cell(f"{low:g}{DASH}{high:g}"),
        Cell(share(t["within_20"])),
        Cell(""),
        Cell("90%"),
        Cell(f"{t['rank_correlation']:g}"),
    )
    columns = (
        Column("rows of"),
        Column("rows", True),
        Column("papers", True),
        Column("geometric mean", True, "geometric mean"),
        Column("within 20 %", True),
        Column("median APE", True, "APE"),
        Column("in 90 % interval", True, "90 % interval"),
        Column("rank corr.", True, "rank correlation"),
    )
    return Table("tab-verdict", "Predicted against published", columns, (*rows, target))


def _misses(total: Mapping[str, Any]) -> Section:
    found = {k: v for k, v in total["misses"].items() if v["rows"]}
    order = sorted(found, key=lambda k: -found[k]["rows"])
    if not order:
        return section("misses", "Why we miss", [Paragraph("No row is off by more than 20 %.")])
    import numpy as np

    n = sum(v["rows"] for v in found.values())
    title = f"{order[0].capitalize()} explains {share(found[order[0]]['rows'] / n)} of the {n:,} misses"
    svg = charts.stacked(
        order, {"rows": np.array([float(found[k]["rows"]) for k in order])}, "rows off by more than 20 %"
    )
    alt = "; ".join(f"{k}: {v['rows']} rows of {plural(v['papers'], 'paper')}" for k, v in found.items())
    return section("misses", "Why we miss", [Figure("fig-misses", title, svg, alt, alt + ".")])


def _left_out(rows: Sequence[Judged], total: Mapping[str, Any]) -> Section:
    """Rows without a prediction, by reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for r in rows:
        if r.status != "judged":
            found.setdefault((r.status, r.reason.removeprefix("incomplete: ")), []).append(r.paper)
    body = tuple(
        (Cell(status), Cell(reason), count(len(papers)), Cell(listed(dict.fromkeys(papers), 4)))
        for (status, reason), papers in sorted(found.items(), key=lambda kv: (-len(kv[1]), kv[0]))
    )
    c = total["counts"]
    text = Paragraph(
        f"Of {sum(c.values()):,} collected figures {c['judged']:,} are judged, {c['not predicted']:,} could not be"
        f" predicted, {c['not eligible']:,} are not eligible and {c['incomplete']:,} do not state enough."
    )
    columns = (Column("status"), Column("reason", wide=3), Column("rows", True), Column("papers", wide=2))
    table = Table("tab-left-out", "Published figures that are not judged, and why", columns, body, shown=30)
    return section("left-out", "What is not judged", [text, table])
