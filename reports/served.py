"""What ``simulator.serve`` and ``simulator.plan`` wrote, read back and checked."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from simulator.base.errors import InputError, ShadowlineError
from simulator.base.files import read_limited
from simulator.base.parquet import read_parquet
from simulator.serving.output import COLUMNS, RECORDS, SCHEMA_VERSION
from simulator.serving.slo import Promise, parse_slo

Row = Mapping[str, Any]
TEXT = (
    "model",
    "device",
    "policy",
    "kernel",
    "engine",
    "dtype",
    "kv_dtype",
    "scheduler",
    "router",
    "status",
    "steady_why",
    "basis",
    "verdict",
)
FLAGS = ("meets_slo",)
GIVEN = ("tp", "pp", "ep", "replicas", "prefill_replicas", "gpus", "requests", "usd_per_h", "kv_share_mean")
"""Numbers that are never null."""
ABSENT = ("simulated_per_s", "rejected")
"""Columns that a plan leaves out, or files of before they were known."""
LOAD = ("time_s", "waiting", "running", "kv_share", "output_tokens_per_s")
COSTS = ("by_policy", "by_device")
PLAN = ("pareto", "nearest", "rejected", *COSTS, "points", "simulated", "simulations")
LONGEST_S, LARGEST = 1e12, 1e24
"""Bounds of a time [s] and of any number of a row, far beyond what is simulated."""
MOST_BYTES, MOST_ROWS = 2**30, 50_000_000
READS = "give what python -m simulator.serve --out FILE.parquet or --json, or simulator.plan --json, writes"


@dataclass(frozen=True, eq=False)
class Search:
    """What a plan says beside its deployments.

    Attributes
    ----------
    pareto : sequence of rows
        Those no other beats in rent, TTFT p99 and TPOT p99 at once.
    nearest : row, optional
        The nearest miss, where nothing keeps the promises; without percentiles where the closed form refused it.
    rejected : mapping
        Kind of reason to how many candidates, and one of them in words.
    by_policy, by_device : sequence of mapping
        policy, where, usd_per_h, simulated.
    points, simulated, simulations : int
        Candidates, those simulated, and fleets simulated for them [-].
    """

    pareto: Sequence[Row]
    nearest: Row | None
    rejected: Mapping[str, tuple[int, str]]
    by_policy: Sequence[Mapping[str, Any]]
    by_device: Sequence[Mapping[str, Any]]
    points: int
    simulated: int
    simulations: int


@dataclass(frozen=True, eq=False)
class Served:
    """Runs of a fleet, or the deployments of a plan.

    Attributes
    ----------
    rows : sequence of mapping
        As `simulator.serving.output.COLUMNS`.
    settings : mapping
        The command's flags by their parameter's name; empty where the command is not one of ours.
    slo : tuple of Promise
        What `--slo` promised.
    search : Search, optional
        Of a plan.
    requests : sequence of mapping of column to ndarray
        Per run the times of every request [s]; empty for a JSON file.
    loads : sequence of mapping of name to ndarray
        Per run queue, KV share and tokens/s over time; empty for a JSON file.
    """

    path: Path
    digest: str
    command: str
    rows: Sequence[Row]
    settings: Mapping[str, Any] = field(default_factory=dict)
    slo: tuple[Promise, ...] = ()
    search: Search | None = None
    requests: Sequence[Mapping[str, np.ndarray]] = ()
    loads: Sequence[Mapping[str, np.ndarray]] = ()


def is_served(path: Path) -> bool:
    """Whether the file looks like one of serve or plan; what it lacks is said by `read`."""
    try:
        if path.suffix == ".json":
            told = json.loads(read_limited(path, MOST_BYTES))
            return isinstance(told, dict) and "summary" not in told and "command" in told
        import pyarrow.parquet as pq

        return {"admitted_s", "finish_s"} <= set(pq.read_schema(path).names)
    except (OSError, ValueError, RecursionError, ShadowlineError):
        return False


def read(path: Path) -> Served:
    """Rows, and what the file says beside them.

    Raises
    ------
    InputError
        No such file, another format or schema, or no rows.
    """
    where = str(path)
    content = read_limited(path, MOST_BYTES)
    digest = hashlib.sha256(content).hexdigest()
    if content.startswith(b"PAR1"):
        return _parquet(path, digest)
    try:
        told = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is neither Parquet nor JSON ({error}); {READS}", where=where) from None
    if not isinstance(told, dict) or not isinstance(told.get("command"), str):
        raise InputError(f"names no command; {READS}", where=where)
    search = _search(told, where) if "pareto" in told else None
    rows = _rows(told.get("rows"), where)
    if not rows and search is None:
        raise InputError(f"has no rows; {READS}", where=where)
    return _served(path, digest, told["command"], rows, search=search)


def _parquet(path: Path, digest: str) -> Served:
    where = str(path)
    table = read_parquet(path, MOST_ROWS)
    meta = {
        k.decode("utf-8", "replace"): v.decode("utf-8", "replace") for k, v in (table.schema.metadata or {}).items()
    }
    schema = meta.get("shadowline.schema")
    missing = [c for c in RECORDS if table.column_names.count(c) != 1]
    if missing:
        raise InputError(f"lacks the column {missing[0]!r}; {READS}", where=where)
    if schema != str(SCHEMA_VERSION):
        raise InputError(
            f"schema {schema} is unknown; this version reads schema {SCHEMA_VERSION}: serve again", where=where
        )
    if "shadowline.rows" not in meta:
        raise InputError("holds no summary of its runs; serve again with --out", where=where)
    try:
        rows, loads = json.loads(meta["shadowline.rows"]), json.loads(meta["shadowline.load"])
    except (KeyError, ValueError, RecursionError) as error:
        raise InputError(f"its summary cannot be read ({error}); serve again", where=where) from None
    rows = _rows(rows, where)
    for name, kind in (("run", "int"), *((c, "double") for c in ("arrival_s", "ttft_s", "tpot_s", "e2e_s"))):
        column = table[name]
        if not str(column.type).startswith(kind) or (column.null_count and name != "tpot_s"):
            raise InputError(f"column {name!r} is not {kind} throughout; serve again", where=where)
    run = table["run"].to_numpy()
    if not isinstance(loads, list):
        raise InputError("its load over time is no list; serve again", where=where)
    if not rows or len(loads) != len(rows) or sorted(set(run.tolist())) != list(range(len(rows))):
        raise InputError("its requests and its summary do not belong together; serve again", where=where)
    times = {c: table[c].to_numpy().astype(float) for c in ("arrival_s", "ttft_s", "tpot_s", "e2e_s")}
    for name, values in times.items():
        if (np.isnan(values).any() and name != "tpot_s") or (values < 0.0).any() or (values > LONGEST_S).any():
            raise InputError(f"column {name!r} holds what is no time; serve again", where=where)
    return _served(
        path,
        digest,
        meta.get("shadowline.command", ""),
        rows,
        requests=[_steady(row, {c: v[run == i] for c, v in times.items()}) for i, row in enumerate(rows)],
        loads=[_load(told, where) for told in loads],
    )


def _steady(row: Row, times: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Requests of the stationary part, those the row's percentiles are of."""
    start = row["steady_from_s"]
    inside = (times["arrival_s"] >= start) & (times["arrival_s"] <= start + row["steady_s"])
    return {name: values[inside] for name, values in times.items()}


def _served(path: Path, digest: str, command: str, rows: Sequence[Row], **more: Any) -> Served:
    flags = settings(command)
    try:
        slo = parse_slo(flags["slo"]) if flags.get("slo") else ()
    except ShadowlineError as error:
        raise InputError(f"its command's --slo: {error.message}", where=str(path)) from None
    return Served(path, digest, command, rows, flags, slo, **more)


def settings(command: str) -> dict[str, Any]:
    """Flags of a serve or plan command by their parameter's name, with defaults; the command is only read."""
    import typer

    from simulator import plan, serve

    try:
        words = shlex.split(command)
    except ValueError:
        return {}
    verbs = {"simulator.serve": serve.app, "simulator.plan": plan.app}
    at = next((i for i, w in enumerate(words) if w in verbs), None)
    if at is None:
        return {}
    parser = typer.main.get_command(verbs[words[at]])
    return dict(parser.make_context(words[at], words[at + 1 :], resilient_parsing=True).params)


def _load(told: Any, where: str) -> dict[str, np.ndarray]:
    try:
        found = {k: np.array(told[k], dtype=float) for k in LOAD}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"its load over time cannot be read ({error}); serve again", where=where) from None
    if not all(np.isfinite(v).all() and (np.abs(v) < LARGEST).all() for v in found.values()):
        raise InputError("its load over time holds what is no number; serve again", where=where)
    if len({v.shape for v in found.values()}) != 1 or found["time_s"].ndim != 1:
        raise InputError("its load over time has columns of unequal length; serve again", where=where)
    return found


def _search(told: Mapping[str, Any], where: str) -> Search:
    missing = [k for k in PLAN if k not in told]
    if missing:
        raise InputError(f"lacks {missing[0]!r}; {READS}", where=where)
    nearest = told["nearest"]
    if nearest is not None and (not isinstance(nearest, dict) or "reason" not in nearest):
        nearest = _rows([nearest], where)[0]
    try:
        rejected = {str(k): (int(n), str(words)) for k, (n, words) in told["rejected"].items()}
        costs = [
            [
                {
                    "policy": str(p["policy"]),
                    "where": str(p["where"]),
                    "usd_per_h": float(p["usd_per_h"]),
                    "simulated": bool(p["simulated"]),
                }
                for p in told[kind]
            ]
            for kind in COSTS
        ]
        counts = [int(told[k]) for k in ("points", "simulated", "simulations")]
        if nearest is not None and "reason" in nearest:
            nearest = {
                **{k: str(nearest[k]) for k in ("model", "device", "policy", "dtype", "reason")},
                "tp": int(nearest["tp"]),
            }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"is of another version ({error!r}); plan again", where=where) from None
    return Search(_rows(told["pareto"], where), nearest, rejected, costs[0], costs[1], *counts)


def _rows(told: Any, where: str) -> list[dict[str, Any]]:
    """Rows whose columns are all there and of their kind."""
    if not isinstance(told, list):
        raise InputError(f"lacks its rows; {READS}", where=where)
    for i, row in enumerate(told):
        if not isinstance(row, dict):
            raise InputError(f"row {i + 1} is no object; {READS}", where=where)
        for name in COLUMNS:
            if name in ABSENT and name not in row:
                continue
            if name not in row:
                raise InputError(f"row {i + 1} lacks {name!r}; {READS}", where=where)
            value = row[name]
            kind = "a text" if name in TEXT else "true or false" if name in FLAGS else "a number"
            good = {
                "a text": isinstance(value, str),
                "true or false": value is None or isinstance(value, bool),
                "a number": (name not in GIVEN if value is None else _finite(value)),
            }
            if not good[kind]:
                raise InputError(f"row {i + 1}: {name} is not {kind}", where=where)
        for name in (k for k in row if k.endswith(("_lo_s", "_hi_s"))):
            if not (row[name] is None or _finite(row[name])):
                raise InputError(f"row {i + 1}: {name} is not a number", where=where)
    return told


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
