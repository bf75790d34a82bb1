"""A grid answered block by block: in memory, or into a file that survives an interruption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.base import console
from simulator.base.checks import require_type

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from simulator.inference.evaluate import Points
    from simulator.results.answer import Rows
    from simulator.results.summary import Summary
    from simulator.scenario.grid import Grid
    from simulator.scenario.scenario import Scenario

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

    def rows(self, chunk: Chunk) -> Rows:
        """Rows of one chunk."""
        import numpy as np

        from simulator.inference.evaluate import evaluate
        from simulator.inference.group import group_of
        from simulator.results.rows import rows

        group = group_of(chunk.scenario)
        batch = np.asarray(chunk.batch, float)[:, None, None]
        prompt = np.asarray(chunk.prompt, float)[None, :, None]
        output = np.asarray(chunk.output, float)[None, None, :]
        key = (chunk.scenario.dense, chunk.batch, chunk.prompt)
        dense = self._dense[1] if self._dense[0] == key else None
        if dense is None and not group.is_dense and group.problem is None:
            dense = evaluate(group.dense, batch, prompt, output)
        found, points = rows(group, batch, prompt, output, dense)
        if group.is_dense:
            dense = points
        self._dense = (key, dense)
        return found


def blocks(grids: Sequence[Grid]) -> Iterator[Rows]:
    """Rows of `grids`, block by block, in memory that does not grow with the grid."""
    evaluator = Evaluator()
    for chunk in chunks(grids):
        yield evaluator.rows(chunk)


@dataclass(frozen=True, eq=False)
class Swept:
    """Rows of a sweep in the order of its grids, and what they say together."""

    blocks: tuple[Rows, ...]
    summary: Summary

    def to_arrow(self) -> pa.Table:
        """Arrow table with the columns of a sweep's file."""
        import pyarrow as pa

        return pa.concat_tables([b.to_arrow() for b in self.blocks])

    def to_pandas(self) -> pd.DataFrame:
        """Data frame with the columns of a sweep's file."""
        return self.to_arrow().to_pandas()


def sweep(*grids: Grid) -> Swept:
    """Predict every scenario of `grids`, in memory; `write` is for what does not fit there.

    Raises
    ------
    InputError
        Unknown names, values out of range. A scenario that cannot run is a row whose status says why.

    Examples
    --------
    >>> from simulator.api import Grid, sweep
    >>> grid = Grid(model=("opt-125m",), device=("l40s",), policy=("dense", "w4a16"), batch=(1, 8, 64))
    >>> table = sweep(grid).to_pandas()
    >>> len(table), set(table["status"])
    (6, {'ok'})
    """
    from simulator.results.summary import Summary
    from simulator.scenario.grid import Grid

    for grid in grids:
        require_type(Grid, grid=grid)
    summary, found = Summary(), tuple(blocks(grids))
    for block in found:
        summary.add(block)
    return Swept(found, summary)


def plan_of(grids: Sequence[Grid]) -> dict[str, Any]:
    """Everything that decides the rows: axes, settings, and by content profiles, models, fits and engines."""
    from simulator.inference.paired import spreads
    from simulator.results.columns import SCHEMA_VERSION
    from simulator.roofline.engine import engines_digest
    from simulator.scenario.catalogue import CATALOGUE
    from simulator.trace import read_manifest

    devices = sorted({d for g in grids for d in g.device})
    models = sorted({m for g in grids for m in g.model})
    return {
        "schema": SCHEMA_VERSION,
        "version": version("shadowline"),
        "grids": [g.to_dict() for g in grids],
        "profiles": {d: CATALOGUE.device(d).profile_hash for d in devices},
        "models": {m: _digest(CATALOGUE.model(m)) for m in models},
        "fits": {d: CATALOGUE.device(d).measured.digest for d in devices},
        "engines": engines_digest(),
        "speedups": _digest(spreads()),
        "traces": {t: read_manifest(t)[1] for t in sorted({t for g in grids for t in g.trace})},
    }


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]


def write(grids: Sequence[Grid], out: Path, *, command: str, resume: bool = False, quiet: bool = False) -> Summary:
    """Sweep into `out` (Parquet, CSV or JSON by suffix), resumable, and return the answer."""
    from simulator.base.parts import PartStore
    from simulator.results.answer import from_arrow
    from simulator.results.columns import SCHEMA_VERSION, arrow_schema
    from simulator.results.summary import Summary

    plan = plan_of(grids)
    work = list(chunks(grids))
    store = PartStore(out, plan, resume=resume)
    evaluator, summary = Evaluator(), Summary()
    try:
        for chunk in console.progress(work, len(work), "sweep", quiet=quiet):
            if store.has(chunk.number):
                summary.add(from_arrow(store.read(chunk.number)))
                continue
            found = evaluator.rows(chunk)
            summary.add(found)
            store.write(chunk.number, found.to_arrow())
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
