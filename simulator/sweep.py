"""Capacity planning over a grid: ``python -m simulator.sweep``."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator import console
from simulator.dtypes import AUTO
from simulator.errors import EXIT_NOTHING_FEASIBLE, InputError

# `--help` answers before numpy, pydantic and the policies are needed.
if TYPE_CHECKING:
    from simulator.evaluate import Points
    from simulator.grid import Grid
    from simulator.result import Block
    from simulator.scenario import Scenario
    from simulator.summary import Summary

CHUNK_POINTS = 50_000
"""Points of one part: large enough that array work outweighs Python, small enough for the cache."""


@dataclass(frozen=True)
class Chunk:
    """A group and the slice of its batch and prompt axes that make one part."""

    number: int
    scenario: Scenario
    batch: tuple[int, ...]
    prompt: tuple[int, ...]
    output: tuple[int, ...]

    @property
    def points(self) -> int:
        """Rows of the part."""
        return len(self.batch) * len(self.prompt) * len(self.output)


def chunks(grids: Sequence[Grid]) -> Iterator[Chunk]:
    """Parts of all grids in the order of the output rows."""
    number = 0
    for grid in grids:
        n_batch, n_prompt, n_output = grid.sizes
        prompts_at_once = max(1, min(n_prompt, CHUNK_POINTS // n_output))
        batches_at_once = max(1, CHUNK_POINTS // (n_output * n_prompt))
        if batches_at_once > 1:
            prompts_at_once = n_prompt
        for scenario in grid.groups():
            for b in range(0, n_batch, batches_at_once):
                for p in range(0, n_prompt, prompts_at_once):
                    yield Chunk(
                        number,
                        scenario,
                        grid.batch[b : b + batches_at_once],
                        grid.prompt_tokens[p : p + prompts_at_once],
                        grid.output_tokens,
                    )
                    number += 1


class Evaluator:
    """Evaluates chunks one after another, keeping the dense twin of the last ones at hand."""

    def __init__(self) -> None:
        self._dense: tuple[object, Points | None] = (None, None)

    def block(self, chunk: Chunk) -> Block:
        """Rows of one chunk."""
        import numpy as np

        from simulator.evaluate import evaluate
        from simulator.group import group_of
        from simulator.result import rows

        group = group_of(chunk.scenario)
        batch = np.asarray(chunk.batch, float)[:, None, None]
        prompt = np.asarray(chunk.prompt, float)[None, :, None]
        output = np.asarray(chunk.output, float)[None, None, :]
        key = (chunk.scenario.model_copy(update={"policy": "dense"}), chunk.batch, chunk.prompt)
        dense = self._dense[1] if self._dense[0] == key else None
        if dense is None and group.policies.members and group.problem is None:
            dense = evaluate(group.dense, batch, prompt, output)
        block, points = rows(group, batch, prompt, output, dense)
        if not group.policies.members:
            dense = points
        self._dense = (key, dense)
        return block


def sweep(grids: Sequence[Grid]) -> Iterator[Block]:
    """Rows of `grids`, block by block, in memory that does not grow with the grid."""
    evaluator = Evaluator()
    for chunk in chunks(grids):
        yield evaluator.block(chunk)


def plan_of(grids: Sequence[Grid]) -> dict[str, Any]:
    """Everything that decides the rows: axes, settings, and by content profiles, models, fits and engines."""
    from simulator.calibration import fits_digest
    from simulator.engine import engines_digest
    from simulator.group import find_device, find_model
    from simulator.result import SCHEMA_VERSION
    from simulator.trace import read_manifest

    devices = sorted({d for g in grids for d in g.device})
    models = sorted({m for g in grids for m in g.model})
    return {
        "schema": SCHEMA_VERSION,
        "version": version("shadowline"),
        "grids": [g.to_dict() for g in grids],
        "profiles": {d: find_device(d).profile_hash for d in devices},
        "models": {m: _digest(find_model(m)) for m in models},
        "fits": {d: fits_digest(find_device(d).name) for d in devices},
        "engines": engines_digest(),
        "traces": {t: read_manifest(t)[1] for t in sorted({t for g in grids for t in g.trace})},
    }


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]


def write(
    grids: Sequence[Grid], out: Path, *, command: str, resume: bool = False, quiet: bool = False
) -> Summary:
    """Sweep into `out` (Parquet, CSV or JSON by suffix), resumable, and return the answer."""
    from simulator.parts import PartStore
    from simulator.result import SCHEMA_VERSION, Block, arrow_schema
    from simulator.summary import Summary

    plan = plan_of(grids)
    work = list(chunks(grids))
    store = PartStore(out, plan, resume=resume)
    evaluator, summary = Evaluator(), Summary()
    try:
        for chunk in console.progress(work, len(work), "sweep", quiet=quiet):
            if store.has(chunk.number):
                summary.add(Block.from_arrow(store.read(chunk.number)))
                continue
            block = evaluator.block(chunk)
            summary.add(block)
            store.write(chunk.number, block.to_arrow())
        metadata = {
            "shadowline.schema": str(SCHEMA_VERSION),
            "shadowline.command": command,
            "shadowline.plan": json.dumps(plan, sort_keys=True),
            "shadowline.traces": json.dumps(plan["traces"], sort_keys=True),
        }
        store.finish(len(work), arrow_schema(metadata))
    finally:
        store.close()
    return summary


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
Names = Annotated[list[str] | None, typer.Option()]


@app.command()
def command(
    model: Annotated[list[str] | None, typer.Option(help="model names, commas or repeated")] = None,
    device: Annotated[
        list[str] | None, typer.Option(help="device names, commas or repeated")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="'name(key=value)' joined by +, a list [a,b] is an axis; free: every one; repeat the flag"
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help="serving engine: kernels, vllm, ...")] = "vllm",
    dtype: Annotated[str, typer.Option(help="weight formats of the dense model")] = AUTO,
    kv_cache_dtype: Annotated[str, typer.Option(help="KV formats of the dense model")] = AUTO,
    tp: Annotated[str, typer.Option(help="tensor-parallel GPUs, e.g. 1,2,4")] = "1",
    pp: Annotated[str, typer.Option(help="pipeline stages")] = "1",
    ep: Annotated[str, typer.Option(help="expert groups within tp")] = "1",
    batch: Annotated[str, typer.Option("--batch", help="e.g. 1,4,16 or 1:64:x2")] = "1",
    prompt_tokens: Annotated[
        str, typer.Option("--prompt-tokens", "--isl", help="e.g. 512:131072:x4")
    ] = "512",
    output_tokens: Annotated[
        str, typer.Option("--output-tokens", "--osl", help="likewise, e.g. 128,512")
    ] = "128",
    gpu_memory_utilization: Annotated[
        float, typer.Option(help="share of memory the engine may use")
    ] = 0.9,
    block_size: Annotated[int, typer.Option(help="tokens per KV page")] = 16,
    ignore_context_limit: Annotated[
        bool,
        typer.Option("--ignore-context-limit", help="predict beyond the context, as EXTRAPOLATED"),
    ] = False,
    trace: Annotated[
        list[str] | None,
        typer.Option(help="folder of a measured trace of one of the models; repeat the flag"),
    ] = None,
    trace_transfer: Annotated[
        bool, typer.Option("--trace-transfer", help="use a trace of another model, as EXTRAPOLATED")
    ] = False,
    grid: Annotated[
        Path | None, typer.Option(help="TOML file of [[grid]] tables instead of the axes")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="FILE.parquet, .csv or .json")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue an interrupted sweep of OUT")
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json", help='{"rows": [...], "summary": {...}} on stdout')
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress")] = False,
) -> None:
    """Predict a grid of models, devices, policies and loads; the answer first, then the table.

    Exit 0; 2 bad input; 3 when no row is feasible; 130 interrupted.
    """
    from simulator.grid import read_grids

    if grid is not None:
        if model or device or policy or trace:
            raise InputError(
                "--grid holds all axes; drop --model, --device, --policy and --trace",
                where="--grid",
            )
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
        from simulator.summary import show

        show(summary, out)
    if summary.ok == 0:
        console.say("error: no row is feasible; the reason column says what would work")
        raise typer.Exit(EXIT_NOTHING_FEASIBLE)


def _grid(
    model: list[str] | None, device: list[str] | None, policy: list[str] | None, **axes: Any
) -> Grid:
    from simulator.grid import Grid, names, policies, whole_numbers

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
        **{
            k: names([axes.pop(k)], "--" + k.replace("_", "-"))
            for k in ("engine", "dtype", "kv_cache_dtype")
        },
        **sizes,
        **axes,
    )


def _check(grids: Sequence[Grid]) -> None:
    """Resolve every name before the first row, so that a typo costs nothing."""
    from simulator.group import group_of

    for grid in grids:
        for scenario in grid.groups():
            group_of(scenario)


def _repeatable(arguments: Sequence[str]) -> list[str]:
    """Arguments without what must not be in a file that --resume is to reproduce."""
    return [a for a in arguments if a not in ("--resume", "--quiet", "--json")]


def _collect(grids: Sequence[Grid], quiet: bool, kept: list[Block] | None) -> Summary:
    from simulator.summary import Summary

    summary = Summary()
    total = sum(1 for _ in chunks(grids))
    for block in console.progress(sweep(grids), total, "sweep", quiet=quiet):
        summary.add(block)
        if kept is not None:
            kept.append(block)
    return summary


def _json_rows(blocks: Iterable[Block]) -> list[dict[str, Any]]:
    from simulator.summary import row_at

    return [row_at(block, i) for block in blocks for i in range(block.rows)]


if __name__ == "__main__":
    console.main(app)
