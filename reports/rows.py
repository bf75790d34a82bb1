"""The rows of a sweep, read column by column into compact arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.errors import InputError
from simulator.result import SCHEMA_VERSION

if TYPE_CHECKING:
    import pyarrow as pa

TEXT = ("model", "device", "policy", "engine", "dtype", "kv_dtype", "status", "reason", "basis", "bound",
        "quality_source")  # fmt: skip
WHOLE = ("tp", "pp", "ep", "batch", "prompt_tokens", "output_tokens", "max_batch")
REAL = ("ttft_s", "tpot_s", "ttft_lo_s", "ttft_hi_s", "tpot_lo_s", "tpot_hi_s", "tokens_per_s_per_gpu", "weights_bytes",
        "kv_bytes", "other_bytes", "total_bytes", "capacity_bytes", "throughput_speedup_same_batch",
        "throughput_speedup_at_max_batch", "energy_j_per_token", "usd_per_mtoken", "quality_perplexity_ratio",
        "quality_agreement")  # fmt: skip
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
        batch, output = self.number("batch", row), self.number("output_tokens", row)
        steps = output - 1.0

        def rate(ttft: str, tpot: str) -> float:
            decode = steps * self.number(tpot, row) if steps > 0 else 0.0
            return batch * output / (self.number(ttft, row) + decode) / float(self.gpus[row])

        return (
            self.number("tokens_per_s_per_gpu", row),
            rate("ttft_hi_s", "tpot_hi_s"),
            rate("ttft_lo_s", "tpot_lo_s"),
        )

    def groups(
        self, *names: str, where: np.ndarray | None = None
    ) -> dict[tuple[str, ...], np.ndarray]:
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
        raise InputError(
            "no such file; write one with python -m simulator.sweep --out FILE.parquet", where=where
        )
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError):
        raise InputError(
            "is no Parquet file; a report reads what python -m simulator.sweep --out FILE.parquet writes",
            where=where,
        ) from None
    metadata = {k.decode(): v.decode() for k, v in (file.schema_arrow.metadata or {}).items()}
    schema = metadata.get("shadowline.schema")
    if schema is None:
        raise InputError("is no sweep (it lacks the metadata shadowline.schema)", where=where)
    if schema != str(SCHEMA_VERSION):
        raise InputError(
            f"schema {schema} is unknown; this version reads schema {SCHEMA_VERSION}: sweep again",
            where=where,
        )
    missing = [c for c in (*TEXT, *WHOLE, *REAL) if c not in file.schema_arrow.names]
    if missing:
        raise InputError(f"lacks the column {missing[0]!r}; sweep again", where=where)
    if not file.metadata.num_rows:
        raise InputError(
            "has no rows; give the sweep at least one model, device and load", where=where
        )
    codes, words, numbers = _columns(file)
    try:
        plan = json.loads(metadata.get("shadowline.plan", "{}"))
        traces = json.loads(metadata.get("shadowline.traces", "{}"))
    except json.JSONDecodeError as error:
        raise InputError(f"its plan is not JSON ({error}); sweep again", where=where) from None
    return Sweep(path, codes, words, numbers, metadata.get("shadowline.command", ""), plan, traces)


def _columns(
    file: Any,
) -> tuple[dict[str, np.ndarray], dict[str, list[str]], dict[str, np.ndarray]]:
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
            # The null of a number is NaN.
            out[here] = batch.column(name).to_numpy(zero_copy_only=False)
        start += batch.num_rows
    return codes, {c: list(known) for c, known in index.items()}, numbers


def _codes(column: pa.Array, known: dict[str, int]) -> np.ndarray:
    """Indices of a text column into all words seen so far."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    own = np.array(
        [
            -1 if w is None else known.setdefault(w, len(known))
            for w in column.dictionary.to_pylist()
        ]
        + [-1],
        np.int32,
    )
    return own[column.indices.fill_null(len(own) - 1).to_numpy()]
