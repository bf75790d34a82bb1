"""Capacity planning over a grid: ``python -m simulator.sweep``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.base import console
from simulator.base.errors import EXIT_NOTHING_FEASIBLE, InputError
from simulator.scenario.fields import LOAD
from simulator.scenario.options import paths_of, refuse_beside, scenario_options, with_options

# `--help` answers before numpy, pydantic and the policies are needed.
if TYPE_CHECKING:
    from simulator.results.answer import Rows
    from simulator.results.summary import Summary
    from simulator.scenario.grid import Grid

OF_A_GRID = ("grid", "out", "resume", "json_", "quiet")
"""Parameters that go with --grid."""
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
@with_options(
    given=scenario_options(
        repeated=("model", "device", "policy", "speculate", "trace"),
        lists=("kernel", "engine", "dtype", "kv_cache_dtype", "tp", "pp", "ep", *LOAD),
        more={
            "model": "or repeat the flag",
            "device": "or repeat the flag",
            "speculate": "repeat the flag for more, '' for none",
            "policy": "a list [a,b] is an axis, free every one; repeat the flag for more",
        },
    )
)
def command(
    context: typer.Context,
    given: dict[str, Any],
    *,
    grid: Annotated[Path | None, typer.Option(help="TOML file of [[grid]] tables instead of the axes")] = None,
    out: Annotated[Path | None, typer.Option(help="FILE.parquet, .csv or .json")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue an interrupted sweep of OUT")] = False,
    json_: Annotated[bool, typer.Option("--json", help='{"rows": [...], "summary": {...}} on stdout')] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress")] = False,
) -> None:
    """Predict a grid of models, devices, policies and loads; the answer first, then the table.

    Exit 0; 2 bad input; 3 when no row is feasible; 130 interrupted.
    """
    from simulator.results.swept import blocks, write
    from simulator.scenario.grid import grid_of, read_grids

    if grid is not None:
        refuse_beside(context, OF_A_GRID, "--grid holds all axes; drop it")
        grids = read_grids(grid)
    else:
        grids = [grid_of(given)]
    if resume and out is None:
        raise InputError("nothing to resume without --out", where="--resume")
    _check(grids)
    kept: list[Rows] = []
    if out is not None:
        from simulator.base.files import refuse_overwriting

        refuse_overwriting([("--out", out)], [("--grid", grid), *paths_of(given)])
        line = "python -m simulator.sweep " + shlex.join(_repeatable(sys.argv[1:]))
        summary = write(grids, out, command=line, resume=resume, quiet=quiet or json_)
    else:
        summary = _collect(grids, quiet or json_, kept if json_ else None)
    if json_:
        console.out_json({"rows": _json_rows(kept or blocks(grids)), "summary": summary.to_dict()})
    else:
        from simulator.results.summary import show
        from simulator.scenario.catalogue import say_notes

        say_notes(model for grid in grids for model in grid.model)

        show(summary, out)
    if summary.ok == 0:
        console.say("error: no row is feasible; the reason column says what would work")
        raise typer.Exit(EXIT_NOTHING_FEASIBLE)


def _check(grids: Sequence[Grid]) -> None:
    """Resolve every name before the first row, so that a typo costs nothing."""
    from simulator.inference.group import group_of

    for grid in grids:
        for scenario in grid.groups():
            group_of(scenario)


def _repeatable(arguments: Sequence[str]) -> list[str]:
    """Arguments without what must not be in a file that --resume is to reproduce."""
    return [a for a in arguments if a not in ("--resume", "--quiet", "--json")]


def _collect(grids: Sequence[Grid], quiet: bool, kept: list[Rows] | None) -> Summary:
    from simulator.results.summary import Summary
    from simulator.results.swept import blocks, chunks

    summary = Summary()
    total = sum(1 for _ in chunks(grids))
    for block in console.progress(blocks(grids), total, "sweep", quiet=quiet):
        summary.add(block)
        if kept is not None:
            kept.append(block)
    return summary


def _json_rows(blocks: Iterable[Rows]) -> list[dict[str, Any]]:
    return [rows.at(i).to_dict() for rows in blocks for i in range(rows.n)]


if __name__ == "__main__":
    console.main(app)
