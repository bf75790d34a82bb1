"""The rows of a sweep, read column by column into compact arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.base.errors import InputError
from simulator.inference.status import STATUSES
from simulator.results.result import ENDS, SCHEMA_VERSION, arrow_schema, rate_interval

if TYPE_CHECKING:
    import pyarrow as pa

TEXT = (
    "model",
    "device",
    "policy",
    "engine",
    "dtype",
    "kv_dtype",
    "status",
    "reason",
    "basis",
    "bound",
    "quality_source",
)
WHOLE = ("tp", "pp", "ep", "batch", "prompt_tokens", "output_tokens", "max_batch")
REAL = (
    "ttft_s",
    "tpot_s",
    "ttft_lo_s",
    "ttft_hi_s",
    "tpot_lo_s",
    "tpot_hi_s",
    "tokens_per_s_per_gpu",
    "weights_bytes",
    "kv_bytes",
    "other_bytes",
    "total_bytes",
    "capacity_bytes",
    "throughput_speedup_same_batch",
    "throughput_speedup_at_max_batch",
    "energy_j_per_token",
    "usd_per_mtoken",
    "quality_perplexity_ratio",
    "quality_agreement",
)
NAMED = ("model", "device", "policy", "engine", "dtype", "kv_dtype", "status")
SIZES = ("tp", "pp", "ep", "batch", "prompt_tokens", "output_tokens")
TIMES = ("ttft_s", "tokens_per_s_per_gpu", "ttft_lo_s", "ttft_hi_s")
ZERO = (
    "tpot_s",
    "tpot_lo_s",
    "tpot_hi_s",
    "max_batch",
    "kv_bytes",
    "other_bytes",
    "usd_per_mtoken",
    "quality_agreement",
    "energy_j_per_token",
)
SMALLEST, LARGEST = 1e-18, 1e24
"""Bounds of what stands in a column, far beyond any device; those of `ZERO` may be nothing at all."""
MOST_ROWS = 100_000_000
"""Rows of a report, about 0.2 kB of memory each."""
BATCH_ROWS = 65_536
"""Rows of the file held beside the compact arrays at a time."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """A sweep's rows and what its file says about itself.

    Attributes
    ----------
    codes : dict of column to ndarray of int32, shape (n,)
        Text columns as indices into `words`; -1 where null.
    numbers : dict of column to ndarray of float32 or float64, shape (n,)
        Sizes are exact (float64); times, bytes and ratios have float32's seven digits.
    plan : dict
        Grids, profile hashes and versions as the sweep wrote them.
    """

    path: Path
    codes: Mapping[str, np.ndarray]
    words: Mapping[str, list[str]]
    numbers: Mapping[str, np.ndarray]
    command: str
    plan: Mapping[str, Any]
    traces: Mapping[str, str]

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.codes["status"])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.codes[name] if name in self.codes else self.numbers[name]

    def text(self, name: str, row: int) -> str:
        """A text of one row; empty where null."""
        code = int(self.codes[name][row])
        return self.words[name][code] if code >= 0 else ""

    def number(self, name: str, row: int) -> float:
        """A number of one row; NaN where null."""
        return float(self.numbers[name][row])

    def names(self, name: str) -> list[str]:
        """Words of a text column in the order of their first row."""
        seen, first = np.unique(self.codes[name], return_index=True)
        return [self.words[name][c] for c in seen[np.argsort(first)] if c >= 0]

    def is_(self, name: str, word: str) -> np.ndarray:
        """Mask of the rows whose `name` is `word`."""
        words = self.words[name]
        return self.codes[name] == (words.index(word) if word in words else -2)

    @cached_property
    def ok(self) -> np.ndarray:
        """Mask of the rows with status ok."""
        return self.is_("status", "ok")

    @cached_property
    def dense(self) -> np.ndarray:
        """Mask of the rows without a policy."""
        return self.is_("policy", "dense")

    @cached_property
    def gpus(self) -> np.ndarray:
        """GPUs of a replica."""
        return self["tp"] * self["pp"]

    def rate_interval(self, row: int) -> tuple[float, float, float]:
        """tokens/s per GPU with its 90 % interval, both ends of TTFT and TPOT taken together."""
        names = ("batch", "output_tokens", *ENDS)
        lo, hi = rate_interval({name: self.number(name, row) for name in names})
        gpus = float(self.gpus[row])
        return self.number("tokens_per_s_per_gpu", row), lo / gpus, hi / gpus

    def groups(self, *names: str, where: np.ndarray | None = None) -> dict[tuple[str, ...], np.ndarray]:
        """Row numbers by the words of `names`, in the order of their first row."""
        rows = np.arange(self.n) if where is None else np.flatnonzero(where)
        if not len(rows):
            return {}
        key = np.zeros(len(rows), np.int64)
        for name in names:
            key = key * (len(self.words[name]) + 1) + self.codes[name][rows] + 1
        order = np.argsort(key, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(key[order]) != 0])
        parts = [rows[part] for part in np.split(order, starts[1:])]
        parts.sort(key=lambda part: part[0])
        return {tuple(self.text(n, p[0]) for n in names): p for p in parts}


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
    if file.metadata.num_rows > MOST_ROWS:
        raise InputError(f"has {file.metadata.num_rows:,} rows; a report holds at most {MOST_ROWS:,}", where=where)
    schema = metadata.get("shadowline.schema")
    if schema is None:
        raise InputError("is no sweep (it lacks the metadata shadowline.schema)", where=where)
    if schema != str(SCHEMA_VERSION):
        raise InputError(
            f"schema {schema} is unknown; this version reads schema {SCHEMA_VERSION}: sweep again", where=where
        )
    for field in arrow_schema():
        if field.name not in (*TEXT, *WHOLE, *REAL):
            continue
        if file.schema_arrow.names.count(field.name) != 1:
            raise InputError(f"lacks the column {field.name!r}; sweep again", where=where)
        if file.schema_arrow.field(field.name).type != field.type:
            raise InputError(f"column {field.name!r} is not {field.type}; sweep again", where=where)
    if not file.metadata.num_rows:
        raise InputError("has no rows; give the sweep at least one model, device and load", where=where)
    try:
        codes, words, numbers = _columns(file)
    except (pa.ArrowException, OSError) as error:
        why = str(error).splitlines()[0]
        raise InputError(f"is damaged ({why}); sweep again", where=where) from None
    problem = _problem(codes, words, numbers)
    if problem:
        raise InputError(f"{problem}; sweep again", where=where)
    try:
        plan = json.loads(metadata.get("shadowline.plan", "{}"))
        traces = json.loads(metadata.get("shadowline.traces", "{}"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"its plan is not JSON ({error}); sweep again", where=where) from None
    if not _is_plan(plan) or not isinstance(traces, dict):
        raise InputError("its plan is not as a sweep writes it; sweep again", where=where)
    return Sweep(path, codes, words, numbers, metadata.get("shadowline.command", ""), plan, traces)


def _problem(codes: Mapping[str, np.ndarray], words: Mapping[str, list[str]], numbers: Mapping[str, np.ndarray]) -> str:
    """What no sweep would have written; empty where all is well."""
    if set(words["status"]) - set(STATUSES):
        return "has a status that is none"
    for name in NAMED:
        if (codes[name] < 0).any():
            return f"has rows without {name}"
    ok = codes["status"] == (words["status"].index("ok") if "ok" in words["status"] else -2)
    for name, values in numbers.items():
        # NaN is null, which only sizes and the times of a good row may not be.
        needed = np.ones(len(ok), bool) if name in SIZES else ok if name in TIMES else ok & False
        least = 0.0 if name in ZERO else SMALLEST
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
        isinstance(g.get("gpu_memory_utilization", 0.9), float | int) for g in plan.get("grids", [])
    )


def _columns(file: Any) -> tuple[dict[str, np.ndarray], dict[str, list[str]], dict[str, np.ndarray]]:
    n = file.metadata.num_rows
    codes = {c: np.empty(n, np.int32) for c in TEXT}
    index: dict[str, dict[str, int]] = {c: {} for c in TEXT}
    numbers: dict[str, np.ndarray] = {c: np.empty(n, np.float64) for c in WHOLE}
    numbers |= {c: np.empty(n, np.float32) for c in REAL}
    start = 0
    for batch in file.iter_batches(BATCH_ROWS, columns=[*TEXT, *WHOLE, *REAL]):
        here = slice(start, start + batch.num_rows)
        for name in TEXT:
            codes[name][here] = _codes(batch.column(name), index[name])
        for name, out in numbers.items():
            # The null of a number is NaN; what float32 cannot hold is infinite, and refused as such.
            with np.errstate(over="ignore"):
                out[here] = batch.column(name).to_numpy(zero_copy_only=False)
        start += batch.num_rows
    return codes, {c: list(known) for c, known in index.items()}, numbers


def _codes(column: pa.Array, known: dict[str, int]) -> np.ndarray:
    """Indices of a text column into all words seen so far."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    own = np.array(
        [-1 if w is None else known.setdefault(w, len(known)) for w in column.dictionary.to_pylist()] + [-1], np.int32
    )
    return own[column.indices.fill_null(len(own) - 1).to_numpy()]
