"""Capacity planning over a grid: ``python -m simulator.sweep``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.base import console
from simulator.base.dtypes import AUTO
from simulator.base.errors import EXIT_NOTHING_FEASIBLE, InputError

# `--help` answers before numpy, pydantic and the policies are needed.
if TYPE_CHECKING:
    from simulator.results.result import Block
    from simulator.results.summary import Summary
    from simulator.scenario.grid import Grid

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def command(
    model: Annotated[list[str] | None, typer.Option(help="model names, commas or repeated")] = None,
    device: Annotated[list[str] | None, typer.Option(help="device names, commas or repeated")] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="'name(key=value)' joined by +, a list [a,b] is an axis; free: every one; repeat the flag"),
    ] = None,
    engine: Annotated[str, typer.Option(help="serving engine: kernels, vllm, ...")] = "vllm",
    dtype: Annotated[str, typer.Option(help="weight formats of the dense model")] = AUTO,
    kv_cache_dtype: Annotated[str, typer.Option(help="KV formats of the dense model")] = AUTO,
    tp: Annotated[str, typer.Option(help="tensor-parallel GPUs, e.g. 1,2,4")] = "1",
    pp: Annotated[str, typer.Option(help="pipeline stages")] = "1",
    ep: Annotated[str, typer.Option(help="expert groups within tp")] = "1",
    batch: Annotated[str, typer.Option("--batch", help="e.g. 1,4,16 or 1:64:x2")] = "1",
    prompt_tokens: Annotated[str, typer.Option("--prompt-tokens", "--isl", help="e.g. 512:131072:x4")] = "512",
    output_tokens: Annotated[str, typer.Option("--output-tokens", "--osl", help="likewise, e.g. 128,512")] = "128",
    gpu_memory_utilization: Annotated[float, typer.Option(help="share of memory the engine may use")] = 0.9,
    block_size: Annotated[int, typer.Option(help="tokens per KV page")] = 16,
    ignore_context_limit: Annotated[
        bool, typer.Option("--ignore-context-limit", help="predict beyond the context, as EXTRAPOLATED")
    ] = False,
    trace: Annotated[
        list[str] | None, typer.Option(help="folder of a measured trace of one of the models; repeat the flag")
    ] = None,
    trace_transfer: Annotated[
        bool, typer.Option("--trace-transfer", help="use a trace of another model, as EXTRAPOLATED")
    ] = False,
    grid: Annotated[Path | None, typer.Option(help="TOML file of [[grid]] tables instead of the axes")] = None,
    out: Annotated[Path | None, typer.Option(help="FILE.parquet, .csv or .json")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue an interrupted sweep of OUT")] = False,
    json_: Annotated[bool, typer.Option("--json", help='{"rows": [...], "summary": {...}} on stdout')] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress")] = False,
) -> None:
    """Predict a grid of models, devices, policies and loads; the answer first, then the table.

    Exit 0; 2 bad input; 3 when no row is feasible; 130 interrupted.
    """
    from simulator.results.swept import sweep, write
    from simulator.scenario.grid import read_grids

    if grid is not None:
        if model or device or policy or trace:
            raise InputError("--grid holds all axes; drop --model, --device, --policy and --trace", where="--grid")
        grids = read_grids(grid)
    else:
        grids = [
            _grid(
                model,
                device,
                policy,
                engine=engine,
                dtype=dtype,
                kv_cache_dtype=kv_cache_dtype,
                tp=tp,
                pp=pp,
                ep=ep,
                batch=batch,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                gpu_memory_utilization=gpu_memory_utilization,
                block_size=block_size,
                ignore_context_limit=ignore_context_limit,
                trace=tuple(dict.fromkeys(trace or [])),
                trace_transfer=trace_transfer,
            )
        ]
    if resume and out is None:
        raise InputError("nothing to resume without --out", where="--resume")
    _check(grids)
    kept: list[Block] = []
    if out is not None:
        line = "python -m simulator.sweep " + shlex.join(_repeatable(sys.argv[1:]))
        summary = write(grids, out, command=line, resume=resume, quiet=quiet or json_)
    else:
        summary = _collect(grids, quiet or json_, kept if json_ else None)
    if json_:
        blocks = kept or sweep(grids)
        console.out_json({"rows": _json_rows(blocks), "summary": summary.to_dict()})
    else:
        from simulator.results.summary import show

        show(summary, out)
    if summary.ok == 0:
        console.say("error: no row is feasible; the reason column says what would work")
        raise typer.Exit(EXIT_NOTHING_FEASIBLE)


def _grid(model: list[str] | None, device: list[str] | None, policy: list[str] | None, **axes: Any) -> Grid:
    from simulator.scenario.grid import Grid, names, policies, whole_numbers

    for name, values in (("--model", model), ("--device", device)):
        if not values:
            raise InputError("is needed, e.g. --model llama-2-7b --device h100-sxm", where=name)
    sizes = {
        k: whole_numbers(axes.pop(k), "--" + k.replace("_", "-"))
        for k in ("tp", "pp", "ep", "batch", "prompt_tokens", "output_tokens")
    }
    return Grid(
        model=names(model or [], "--model"),
        device=names(device or [], "--device"),
        policy=policies(policy or ["dense"]),
        **{k: names([axes.pop(k)], "--" + k.replace("_", "-")) for k in ("engine", "dtype", "kv_cache_dtype")},
        **sizes,
        **axes,
    )


def _check(grids: Sequence[Grid]) -> None:
    """Resolve every name before the first row, so that a typo costs nothing."""
    from simulator.inference.group import group_of

    for grid in grids:
        for scenario in grid.groups():
            group_of(scenario)


def _repeatable(arguments: Sequence[str]) -> list[str]:
    """Arguments without what must not be in a file that --resume is to reproduce."""
    return [a for a in arguments if a not in ("--resume", "--quiet", "--json")]


def _collect(grids: Sequence[Grid], quiet: bool, kept: list[Block] | None) -> Summary:
    from simulator.results.summary import Summary
    from simulator.results.swept import chunks, sweep

    summary = Summary()
    total = sum(1 for _ in chunks(grids))
    for block in console.progress(sweep(grids), total, "sweep", quiet=quiet):
        summary.add(block)
        if kept is not None:
            kept.append(block)
    return summary


def _json_rows(blocks: Iterable[Block]) -> list[dict[str, Any]]:
    from simulator.results.summary import row_at

    return [row_at(block, i) for block in blocks for i in range(block.rows)]


if __name__ == "__main__":
    console.main(app)
