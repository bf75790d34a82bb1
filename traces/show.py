"""Prints and draws a trace: ``python -m traces.show DIR``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulator.base import console

if TYPE_CHECKING:
    from simulator.trace import Trace
    from simulator.trace.tables import Table

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the trace.")],
    plot: Annotated[Path | None, typer.Option(help="Also draw it: a .svg, .png or .pdf file.")] = None,
    dark: Annotated[bool, typer.Option("--dark", help="Draw on a dark ground.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Every layer curve as JSON.")] = False,
) -> None:
    """Print what a trace measured: sparsity by layer, unions, attention mass, KV compression, quality."""
    from simulator.trace import picked, read_trace, tables

    trace = read_trace(folder)
    if plot is not None:
        from traces.figures import draw

        draw(trace, plot, dark=dark)
    if json:
        console.out_json({"rows": _rows(trace), "manifest": trace.manifest.model_dump()})
        return
    console.out(f"{picked.facts(trace)}\n\n{picked.answer(trace)}\n")
    for table in tables.tables(trace):
        _print(table)
    if trace.quality is None:
        console.out("No quality: python -m traces.shadow evaluate --trace DIR adds it.")
    if plot is not None:
        console.say(f"drawn in {plot}")


def _rows(trace: Trace) -> list[dict[str, object]]:
    names = list(trace.curves)
    columns = (trace.curves[n].tolist() for n in names)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _print(table: Table) -> None:
    """A table with its shares in percent."""
    left = sum(c.form == "text" for c in table.columns)
    percent = " [%]" if any(c.form == "share" for c in table.columns) else ""
    body = [[_told(v, c.form) for v, c in zip(row, table.columns, strict=True)] for row in table.rows]
    console.table(table.title + percent, [c.name for c in table.columns], body, left=max(left, 1), note=table.note)


def _told(value: str | float, form: str) -> str:
    if isinstance(value, str):
        return value
    if value != value:
        return "-"
    return f"{100 * value:.1f}" if form == "share" else f"{value:,.0f}" if form == "number" else f"{value:.3f}"


if __name__ == "__main__":
    console.main(app)
