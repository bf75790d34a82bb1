"""Recorded against predicted bytes of every kernel: ``python -m sparse_kernels.traffic [--op NAME] [--json]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from simulator.base import console
from simulator.base.errors import InputError
from sparse_kernels import markdown as tables
from sparse_kernels.markdown import replace_section

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def command(
    op: Annotated[list[str] | None, typer.Option(help="kernels to run; default all")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="file whose table between <!-- traffic --> comments is replaced")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help='{"rows": [...]} on stdout')] = False,
) -> None:
    """Record every address the kernels touch in Triton's interpreter and compare with the simulator's Traffic.

    Exit status 1 where a row disagrees: useful bytes must be equal, sectors equal for aligned shapes and within
    5 % otherwise.
    """
    from sparse_kernels import interpreter

    if op and markdown is not None:
        raise InputError("the table holds all kernels; leave out --op", where="--markdown")
    interpreter.switch_on()
    from sparse_kernels.compare import MOST_EXPLAINED, check, explained_kernels
    from sparse_kernels.registry import kernel, kernels

    chosen = [kernel(name) for name in op] if op else list(kernels().values())
    mute = [k.name for k in chosen if op and next(k.cases_for("traffic"), None) is None]
    if mute:
        raise InputError(f"{mute[0]} is a library's kernel; it has no addresses to record", where="--op")
    checks = [check(k, c) for k in chosen for c in k.cases_for("traffic")]
    rows = [r for c in checks for r in c.rows]
    if markdown is not None:
        replace_section(markdown, "traffic", tables.traffic([r.as_dict() for r in rows]))
    few = len(explained_kernels()) <= MOST_EXPLAINED
    if json_:
        console.out_json({"rows": [r.as_dict() for r in rows], "cases": [c.as_dict() for c in checks]})
    else:
        _show(rows, checks)
    wrong = [r for r in rows if not r.agrees]
    for row in wrong:
        console.say(f"error: {row.sentence}")
    if not few:
        console.say(f"error: more than {MOST_EXPLAINED} kernels carry an explanation")
    if wrong or not few:
        raise typer.Exit(1)


def _show(rows: Sequence[Any], checks: Sequence[Any]) -> None:
    console.table(
        f"{len(rows)} operands of {len({r.op for r in rows})} kernels: useful bytes predicted and recorded",
        [
            "kernel",
            "case",
            "operand",
            "predicted B",
            "recorded B",
            "requested / recorded",
            "sectors",
            "predicted",
            "lines",
            "",
        ],
        [
            [
                r.op,
                r.case,
                f"{r.operand} {r.direction}",
                f"{r.predicted_bytes:,.0f}",
                f"{r.recorded_bytes:,.0f}",
                f"{r.requested_bytes / max(r.recorded_bytes, 1):.2f}",
                f"{r.sectors:,}",
                f"{r.predicted_sectors:,}",
                f"{r.lines:,}",
                ("explained" if r.explained else "ok") if r.agrees else "WRONG",
            ]
            for r in rows
        ],
        left=3,
        note="a sector is 32 B, a line 128 B; requested counts repeats, which caches serve",
    )
    console.table(
        "Beside them",
        ["kernel", "case", "launches", "useful flop", "tl.dot flop", "workspace B"],
        [
            [c.op, c.case, f"{c.launches}", f"{c.predicted_flop:,.0f}", f"{c.dot_flop:,}", f"{c.workspace_bytes:,}"]
            for c in checks
        ],
        left=2,
        note="workspace is split-K partials, written and read back; tl.dot pads query rows to 16",
    )


if __name__ == "__main__":
    console.main(app)
