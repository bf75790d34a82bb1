"""Request files: Azure, BurstGPT and own tables, Mooncake's JSON lines."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simulator.base.errors import InputError, reason, suggest
from simulator.base.parquet import read_parquet
from simulator.serving.requests import MAX_REQUESTS, Requests


@dataclass(frozen=True)
class Layout:
    """Columns of one kind of table: time, prompt tokens, output tokens."""

    name: str
    columns: tuple[str, str, str]


LAYOUTS = (
    Layout("Azure", ("TIMESTAMP", "ContextTokens", "GeneratedTokens")),
    Layout("BurstGPT", ("Timestamp", "Request tokens", "Response tokens")),
    Layout("own", ("arrival_s", "prompt_tokens", "output_tokens")),
)
JSON_KEYS = ("timestamp", "input_length", "output_length")
FORMATS = "; ".join(f"{k.name}: {', '.join(k.columns)}" for k in LAYOUTS)


def read_requests(path: str | Path, *, skip_invalid: bool = False) -> Requests:
    """Requests of a file, its kind told from its suffix and columns.

    Parameters
    ----------
    path : path
        ``.csv`` (Azure, BurstGPT or ``arrival_s,prompt_tokens,output_tokens``), ``.parquet`` with these columns,
        or ``.jsonl`` with ``timestamp`` in ms, ``input_length``, ``output_length`` and perhaps ``hash_ids``.
    skip_invalid : bool
        Leave out rows of zero tokens (BurstGPT keeps failed requests so) instead of refusing the file.

    Raises
    ------
    InputError
        ``file:line`` and what is wrong.
    """
    path = Path(path)
    readers = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    if path.suffix not in readers:
        raise InputError("must end in .csv, .jsonl or .parquet", where=str(path))
    if path.exists() and not path.is_file():
        raise InputError("is not a file", where=str(path))
    try:
        return readers[path.suffix](path, skip_invalid)
    except OSError as error:
        raise InputError(f"cannot read: {reason(error)}", where=str(path)) from None
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text", where=str(path)) from None


def _csv(path: Path, skip: bool) -> Requests:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        header = [c.strip() for c in next(_rows(rows, path), [])]
        layout = _layout(header, path)
        places = [header.index(c) for c in layout.columns]
        lines, texts = [], []
        for row in _rows(rows, path):
            if not row:
                continue
            if len(row) <= max(places):
                raise InputError(f"has {len(row)} columns, the header {len(header)}", where=f"{path}:{rows.line_num}")
            lines.append(rows.line_num)
            texts.append([row[p] for p in places])
            _not_too_many(lines, path)
    number = np.asarray(lines, np.int64)
    if not texts:
        raise InputError("holds no request", where=str(path))
    times, prompt, output = zip(*texts, strict=True)
    arrival = (
        _dates(times, number, path) if layout.name == "Azure" else _numbers(times, number, path, layout.columns[0])
    )
    return _checked(
        path,
        number,
        arrival,
        _numbers(prompt, number, path, layout.columns[1]),
        _numbers(output, number, path, layout.columns[2]),
        skip=skip,
    )


def _rows(rows: Any, path: Path) -> Iterator[list[str]]:
    try:
        yield from rows
    except csv.Error as error:
        raise InputError(f"is not CSV: {error}", where=f"{path}:{rows.line_num}") from None


def _parquet(path: Path, skip: bool) -> Requests:
    import pyarrow as pa

    table = read_parquet(path, MAX_REQUESTS)
    layout = _layout(table.column_names, path)
    columns = []
    for name in layout.columns:
        if table.column_names.count(name) > 1:
            raise InputError(f"has the column {name!r} twice", where=str(path))
        column, scale = table.column(name), 1.0
        try:
            if pa.types.is_timestamp(column.type):
                column, scale = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64()), 1e-6
            columns.append(column.cast(pa.float64(), safe=False).to_numpy() * scale)
        except pa.ArrowException:
            raise InputError(f"column {name!r} is not numeric", where=str(path)) from None
    if len(columns[0]) == 0:
        raise InputError("holds no request", where=str(path))
    return _checked(path, np.arange(1, len(columns[0]) + 1), *columns, skip=skip)


def _jsonl(path: Path, skip: bool) -> Requests:
    lines: list[int] = []
    rows: list[tuple[float, float, float]] = []
    ids: list[tuple[int, ...]] = []
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(text)
                values = [float(row[k]) for k in JSON_KEYS]
                # Only full blocks can be shared.
                full = int(values[1]) // MOONCAKE_TOKENS
                blocks = tuple(int(b) for b in row.get("hash_ids", ()))[:full]
            except json.JSONDecodeError as error:
                raise InputError(f"is not JSON: {error.msg}", where=where) from None
            except RecursionError:
                raise InputError("is nested too deeply", where=where) from None
            except KeyError as error:
                raise InputError(
                    f"has no {error.args[0]!r}; a line needs {', '.join(JSON_KEYS)}", where=where
                ) from None
            except (TypeError, ValueError, OverflowError, AttributeError):
                raise InputError(
                    f"needs numbers under {', '.join(JSON_KEYS)} and a list hash_ids", where=where
                ) from None
            lines.append(number)
            _not_too_many(lines, path)
            rows.append((values[0] / 1e3, values[1], values[2]))
            ids.append(blocks)
    if not rows:
        raise InputError("holds no request", where=str(path))
    arrival, prompt, output = np.array(rows).T
    return _checked(path, np.asarray(lines), arrival, prompt, output, skip=skip, ids=tuple(ids) if any(ids) else ())


def _not_too_many(lines: Sequence[int], path: Path) -> None:
    if len(lines) > MAX_REQUESTS:
        raise InputError(f"holds more than {MAX_REQUESTS:,} requests", where=str(path))


MOONCAKE_TOKENS = 512
"""Tokens per entry of ``hash_ids`` (README of the trace) [-]."""


def _layout(header: Sequence[str], path: Path) -> Layout:
    for layout in LAYOUTS:
        if all(c in header for c in layout.columns):
            return layout
    wanted = [c for k in LAYOUTS for c in k.columns]
    near = next(
        (f"{c!r} looks like {s[0]!r}; " for c in header if c not in wanted for s in [suggest(c, wanted)] if s), ""
    )
    raise InputError(f"{near}the columns must be one of {FORMATS}", where=str(path))


def _numbers(texts: Sequence[str], lines: np.ndarray, path: Path, column: str) -> np.ndarray:
    try:
        return np.array(texts, float)
    except ValueError:
        for text, line in zip(texts, lines, strict=True):
            try:
                float(text)
            except ValueError:
                raise InputError(f"{column} {text!r} is not a number", where=f"{path}:{line}") from None
        raise


def _dates(texts: Sequence[str], lines: np.ndarray, path: Path) -> np.ndarray:
    """Seconds since the first of ISO timestamps."""
    with warnings.catch_warnings():
        # A zone is taken off, which is what differences need; numpy warns that it keeps none.
        warnings.simplefilter("ignore", UserWarning)
        try:
            times = np.array(texts, "datetime64[ns]")
        except ValueError:
            for text, line in zip(texts, lines, strict=True):
                try:
                    np.datetime64(text, "ns")
                except ValueError:
                    raise InputError(
                        f"TIMESTAMP {text!r} is not a date like 2023-11-16 18:17:03.98", where=f"{path}:{line}"
                    ) from None
            raise
    since = (times - times[0]) / np.timedelta64(1, "s")
    # Before the first is out of order, which is said as such, not as negative.
    return since - min(float(since.min()), 0.0)


def _checked(
    path: Path,
    lines: np.ndarray,
    arrival: np.ndarray,
    prompt: np.ndarray,
    output: np.ndarray,
    *,
    skip: bool,
    ids: tuple[tuple[int, ...], ...] = (),
) -> Requests:
    if skip:
        keep = np.flatnonzero((prompt >= 1) & (output >= 1))
        arrival, prompt, output, lines = arrival[keep], prompt[keep], output[keep], lines[keep]
        ids = tuple(ids[i] for i in keep) if ids else ()
    return Requests.of(arrival, prompt, output, ids=ids, id_tokens=MOONCAKE_TOKENS, name=str(path), lines=lines)
