"""Published against predicted, row by row: ``python -m simulator.claims``."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.base import console

if TYPE_CHECKING:
    from simulator.claims.judge import Judged

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def command(
    data: Annotated[Path | None, typer.Option(help="further rows: TOML like ours, CSV or Parquet")] = None,
    paper: Annotated[str | None, typer.Option(help="rows of one paper only")] = None,
    all_: Annotated[bool, typer.Option("--all", help="every judged row, not only the misses")] = False,
    docs: Annotated[
        Path | None, typer.Option(help="rewrite the tables of claims.md and systems.md in this folder")
    ] = None,
    spread: Annotated[
        Path | None, typer.Option(help="write the log error of speed-ups by family of policy, learned from these rows")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help='{"rows": [...], "summary": {...}} on stdout')] = False,
) -> None:
    """Predict every published figure whose setup is complete, and say where and why we miss.

    Eligible: model, device, batch and prompt or context are stated, read at the primary source. Every paper weighs the
    same; rows used for calibration are counted apart; no row leaves the statistic because it misses.
    """
    from simulator.base.errors import InputError, UnknownNameError
    from simulator.claims.judge import judge
    from simulator.claims.rows import committed, read_file
    from simulator.claims.statistics import summary

    papers = committed()
    if data is not None:
        more = read_file(data)
        known = {c.claim_id for p in papers for c in p.claims}
        for claim in (c for p in more for c in p.claims):
            if claim.claim_id in known:
                raise InputError(f"claim {claim.claim_id!r} is already among ours", where=str(data))
        papers = (*papers, *more)
    if paper is not None:
        wanted = [p for p in papers if p.paper.casefold() == paper.casefold()]
        if not wanted:
            raise UnknownNameError("paper", paper, [p.paper for p in papers], where="--paper")
        papers = tuple(wanted)
    rows = judge(papers)
    total = summary(rows)
    if docs is not None:
        from simulator.claims.tables import write

        if data is not None or paper is not None:
            raise InputError("the tables hold all committed rows; leave out --data and --paper", where="--docs")
        systems = {k: v for paper in papers for k, v in paper.systems.items()}
        for path in write(docs, rows, total, systems):
            console.say(f"wrote {path}")
        return
    if spread is not None:
        from datetime import UTC, datetime

        from simulator.claims.spread import learned
        from simulator.claims.spread import write as write_spread

        write_spread(spread, learned(rows), datetime.now(UTC).date().isoformat())
        console.say(f"wrote {spread}")
        return
    if json_:
        console.out_json({"rows": [r.to_dict() for r in rows], "summary": total})
        return
    _show(rows, total, every=all_ or paper is not None)


def _show(rows: list[Judged], total: dict[str, Any], *, every: bool) -> None:
    from simulator.claims.statistics import GROUPS, told
    from simulator.results.verdict import as_times

    shown = [r for r in rows if r.status == "judged" and (every or not r.within)]
    console.table(
        "published against predicted" + ("" if every else ": rows off by more than 20 %"),
        ["claim", "paper", "kind", "metric", "published", "predicted", "low", "high", "ratio", "why"],
        [
            [
                r.claim_id + (" c" if r.used_for_calibration else ""),
                r.paper,
                r.kind,
                r.metric,
                _si(r.published),
                _si(r.predicted),
                _si(r.lo),
                _si(r.hi),
                f"{r.ratio:.2f}" + ("" if r.inside else " out"),
                shorten((r.wrong and f"disputed: {r.wrong}") or r.reason, 72, placeholder=" ..."),
            ]
            for r in shown
        ],
        left=4,
        note="c: used for calibration; out: outside our 90 % interval; --json has the whole reason",
    )
    papers = sorted(total["papers"].items(), key=lambda kv: -kv[1]["rows"])
    heads = ["rows", "geo. mean", "within 20 %", "median APE", "inside 90 %", "speed-ups", "rank corr."]
    console.table(
        "by paper, calibration rows apart",
        ["paper", *heads, "not predicted", "not eligible", "incomplete"],
        [
            [name, *_cells(f), *(str(f[k]) for k in ("not_predicted", "not_eligible", "incomplete"))]
            for name, f in papers
        ],
    )
    _reasons("not predicted", rows)
    _reasons("not eligible", rows)
    console.table(
        f"{total['eligible']} eligible rows of {total['eligible_papers']} papers, each paper weighing the same",
        ["", "papers", *heads],
        [[label, str(total[k]["papers"]), *_cells(total[k])] for k, label in GROUPS.items()],
        note="targets: geometric mean 0.9-1.1, 75 % within 20 %, rank correlation 0.9, balanced accuracy 80 %",
    )
    console.table(
        "wins and losses against the paper's own baseline",
        ["", "speed-ups", "inside 90 %", "wins", "called", "losses", "called", "balanced", "decided", "rightly"],
        [[GROUPS[k], *_called(total[k]["called"])] for k in GROUPS if total[k]["rows"]]
        + [[f or "no family", *_called(found)] for f, found in total["families"].items()],
        note="shares with papers weighing the same; called: the mid prediction is on the published side of dense",
    )
    console.table(
        "published losses that are not called",
        ["paper", "rows", "published", "predicted", "why"],
        [
            [m["paper"], str(m["rows"]), as_times(m["published"]), as_times(m["predicted"]), m["reason"]]
            for m in total["losses_missed"]
        ],
        note="geometric means of the rows' speed-ups",
    )
    for key in ("all", "other_papers"):
        if total[key]["rows"] and (text := told(total[key]["called"])):
            console.out(f"{GROUPS[key]}: {text}")
    misses = ", ".join(f"{n['rows']} {c} ({n['papers']} papers)" for c, n in total["misses"].items() if n["rows"])
    console.out(f"misses: {misses or 'none'}; disputed figures among the judged: {total['wrong']}")


def _reasons(status: str, rows: list[Judged]) -> None:
    from collections import Counter

    count = Counter(r.reason for r in rows if r.status == status)
    if count:
        console.table(f"{status}: why", ["reason", "rows"], [[k, str(n)] for k, n in count.most_common()])


def _cells(f: dict[str, Any]) -> list[str]:
    if not f["rows"]:
        return ["0"] + ["-"] * 6
    rank = f["rank_correlation"]
    return [
        str(f["rows"]),
        f"{f['geometric_mean']:.3f}",
        f"{f['within_20']:.0%}",
        f"{f['median_ape']:.0%}",
        f"{f['inside']:.0%}",
        str(f["speedups"]),
        "-" if rank is None else f"{rank:.2f}",
    ]


def _called(found: dict[str, Any]) -> list[str]:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.0%}"

    of = found["papers"]
    return [
        str(found["wins"] + found["losses"] + found["even"]),
        share(of["inside"]),
        str(found["wins"]),
        share(of["wins_called"]),
        str(found["losses"]),
        *(share(of[k]) for k in ("losses_called", "balanced_accuracy", "decided", "decided_right")),
    ]


def _si(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    console.main(app)
