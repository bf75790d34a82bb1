"""The rows of a sweep, read column by column into compact arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from simulator.base.budget import refuse_beyond_budget
from simulator.base.errors import InputError
from simulator.inference.status import STATUSES, Status
from simulator.policies import IDEAL, in_kernel
from simulator.results.answer import Rows, Words, from_columns, read_column
from simulator.results.columns import COLUMNS, SCHEMA_VERSION, arrow_schema

NAMED = ("model", "device", "policy", "engine", "dtype", "kv_dtype", "status")
SIZES = ("tp", "pp", "ep", "batch", "prompt_tokens", "output_tokens")
TIMES = ("ttft_s", "e2e_s", "tokens_per_s", "tokens_per_s_per_gpu", "ttft_lo_s", "ttft_hi_s")
ZERO = (
    "p_win",
    "ttft_p_win",
    "tpot_p_win",
    "max_batch_p_win",
    "tpot_s",
    "tpot_lo_s",
    "tpot_hi_s",
    "max_batch",
    "dense_max_batch",
    "kv_bytes",
    "other_bytes",
    "usd_per_mtoken",
    "quality_agreement",
    "energy_j_per_token",
)
SIGNED = ("quality_points_lost", "quality_points_lost_lo", "quality_points_lost_hi")
SMALLEST, LARGEST = 1e-18, 1e24
"""Bounds of what stands in a column, far beyond any device; those of `ZERO` may be nothing at all, of `SIGNED` less."""
ROW_BYTES = 300
"""Memory that a row of a report takes [B]."""
BATCH_ROWS = 65_536
"""Rows of the file held beside the compact arrays at a time."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """A sweep's rows and what its file says about itself.

    Attributes
    ----------
    rows : Rows
        Sizes are exact (float64); times, bytes and ratios have float32's seven digits.
    plan : dict
        Grids, profile hashes and versions as the sweep wrote them.
    bounds : int
        Rows of ideal kernels, which are no choice and left out [-].
    """

    path: Path
    rows: Rows
    command: str
    plan: Mapping[str, Any]
    traces: Mapping[str, str]
    bounds: int = 0

    @property
    def n(self) -> int:
        """Rows."""
        return self.rows.n

    def text(self, name: str) -> Words:
        """A column of texts."""
        return getattr(self.rows, name)

    def names(self, name: str) -> list[str]:
        """Words of a text column in the order of their first row."""
        return self.text(name).names()

    @cached_property
    def ok(self) -> np.ndarray:
        """Mask of the rows with status ok."""
        return self.rows.ok

    @cached_property
    def dense(self) -> np.ndarray:
        """Mask of the rows without a policy."""
        return self.rows.policy.is_("dense")

    @cached_property
    def gpus(self) -> np.ndarray:
        """GPUs of a replica."""
        return self.rows.gpus

    def groups(self, *names: str, where: np.ndarray | None = None) -> dict[tuple[str, ...], np.ndarray]:
        """Row numbers by the words of `names`, in the order of their first row."""
        rows = np.arange(self.n) if where is None else np.flatnonzero(where)
        if not len(rows):
            return {}
        key = np.zeros(len(rows), np.int64)
        for name in names:
            key = key * (len(self.text(name).words) + 1) + self.text(name).codes[rows] + 1
        order = np.argsort(key, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(key[order]) != 0])
        parts = [rows[part] for part in np.split(order, starts[1:])]
        parts.sort(key=lambda part: part[0])
        return {tuple(self.text(n)[p[0]] for n in names): p for p in parts}


def medians(values: np.ndarray, *keys: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Distinct combinations of `keys` and the median of `values` in each."""
    order = np.lexsort((values, *reversed(keys)))
    sorted_keys = [k[order] for k in keys]
    v = values[order]
    new = np.zeros(len(v), bool)
    new[:1] = True
    for k in sorted_keys:
        new[1:] |= k[1:] != k[:-1]
    starts = np.flatnonzero(new)
    ends = np.append(starts[1:], len(v))
    low, high = (starts + ends - 1) // 2, (starts + ends) // 2
    return [k[starts] for k in sorted_keys], 0.5 * (v[low] + v[high])


def read(path: Path) -> Sweep:
    """Rows of the Parquet file that ``simulator.sweep`` wrote.

    Raises
    ------
    InputError
        No such file, another format or schema, or no rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = str(path)
    if not path.is_file():
        raise InputError("no such file; write one with python -m simulator.sweep --out FILE.parquet", where=where)
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError, ValueError):
        raise InputError(
            "is no Parquet file; a report reads what python -m simulator.sweep --out FILE.parquet writes", where=where
        ) from None
    metadata = {
        k.decode("utf-8", "replace"): v.decode("utf-8", "replace")
        for k, v in (file.schema_arrow.metadata or {}).items()
    }
    refuse_beyond_budget(ROW_BYTES * file.metadata.num_rows, where)
    schema = metadata.get("shadowline.schema")
    if schema is None:
        raise InputError("is no sweep (it lacks the metadata shadowline.schema)", where=where)
    if schema != str(SCHEMA_VERSION):
        raise InputError(
            f"schema {schema} is unknown; this version reads schema {SCHEMA_VERSION}: sweep again", where=where
        )
    for field in arrow_schema():
        if file.schema_arrow.names.count(field.name) != 1:
            raise InputError(f"lacks the column {field.name!r}; sweep again", where=where)
        if file.schema_arrow.field(field.name).type != field.type:
            raise InputError(f"column {field.name!r} is not {field.type}; sweep again", where=where)
    if not file.metadata.num_rows:
        raise InputError("has no rows; give the sweep at least one model, device and load", where=where)
    try:
        columns = _columns(file)
    except (pa.ArrowException, OSError) as error:
        why = str(error).splitlines()[0]
        raise InputError(f"is damaged ({why}); sweep again", where=where) from None
    problem = _problem(columns)
    if problem:
        raise InputError(f"{problem}; sweep again", where=where)
    try:
        plan = json.loads(metadata.get("shadowline.plan", "{}"))
        traces = json.loads(metadata.get("shadowline.traces", "{}"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"its plan is not JSON ({error}); sweep again", where=where) from None
    if not _is_plan(plan) or not isinstance(traces, dict):
        raise InputError("its plan is not as a sweep writes it; sweep again", where=where)
    rows = from_columns(columns)
    bound = rows.kernel.is_(IDEAL)
    if bound.all():
        raise InputError("holds bounds alone, which nobody can run; sweep again without --kernel ideal", where=where)
    if bound.any():
        rows = rows.take(np.flatnonzero(~bound))
    rows = replace(rows, policy=_in_kernels(rows.policy, rows.kernel, rows.speculate))
    return Sweep(path, rows, metadata.get("shadowline.command", ""), plan, traces, int(bound.sum()))


def _in_kernels(policy: Words, *beside: Words) -> Words:
    """Policies with their kernel, where that is not the one they mean, and with who drafts."""
    found, codes = np.unique(np.stack([policy.codes, *(w.codes for w in beside)]), axis=1, return_inverse=True)
    texts = ([w.words[int(c)] if c >= 0 else "" for w, c in zip(beside, of, strict=True)] for _, *of in found.T)
    names = [in_kernel(policy.words[int(p)], *of) for p, of in zip(found[0], texts, strict=True)]
    return Words(codes.ravel().astype(np.int32), names)


def _problem(columns: Mapping[str, Any]) -> str:
    """What no sweep would have written; empty where all is well."""
    if set(columns["status"].words) - set(STATUSES):
        return "has a status that is none"
    for name in NAMED:
        if (columns[name].codes < 0).any():
            return f"has rows without {name}"
    ok = columns["status"].is_(Status.OK.word)
    for name, values in columns.items():
        if isinstance(values, Words):
            continue
        # NaN is null, which only sizes and the times of a good row may not be.
        needed = np.ones(len(ok), bool) if name in SIZES else ok if name in TIMES else ok & False
        least = -LARGEST if name in SIGNED else 0.0 if name in ZERO else SMALLEST
        with np.errstate(invalid="ignore"):
            if (np.isnan(values) & needed).any() or (values < least).any() or (values > LARGEST).any():
                return f"column {name!r} holds what no sweep writes"
    return ""


def _is_plan(plan: Any) -> bool:
    """Whether the plan has the shape that reports look into."""
    if not isinstance(plan, dict) or not isinstance(plan.get("grids", []), list):
        return False
    tables = (plan.get(k, {}) for k in ("profiles", "models", "fits", "traces"))
    return all(isinstance(t, dict) for t in (*plan.get("grids", []), *tables)) and all(
        isinstance(g.get("gpu_memory_utilization"), float | int | None) for g in plan.get("grids", [])
    )


def _columns(file: Any) -> dict[str, Words | np.ndarray]:
    """Columns of the file, whose times, bytes and ratios are held as float32."""
    parts: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for batch in file.iter_batches(BATCH_ROWS, columns=list(COLUMNS)):
        for name, column in COLUMNS.items():
            values = read_column(batch.column(name))
            # What float32 cannot hold is infinite, and refused as such.
            with np.errstate(over="ignore"):
                parts[name].append(np.asarray(values, np.float32) if column.kind == "real" else values)
    return {n: Words.joined(p) if COLUMNS[n].kind == "text" else np.concatenate(p) for n, p in parts.items()}
