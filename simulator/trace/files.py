"""Traces on disk: written whole or not at all, read only if every byte is the one that was written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError

from simulator.base.errors import InputError, UnknownNameError, reason
from simulator.base.files import read_limited, refuse_special, replaced
from simulator.base.parquet import read_parquet
from simulator.trace.curves import Trace
from simulator.trace.schema import (
    CURVES,
    KIND,
    NEURONS,
    QUALITY,
    SCHEMA_VERSION,
    STATISTICS,
    TABLES,
    FileRecord,
    Manifest,
)

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
LARGEST = 1e18
"""Beyond any statistic or batch; sums and products of such numbers stay finite."""
MOST_MANIFEST_BYTES, MOST_ROWS = 16 * 2**20, 20_000_000
_ENCODINGS = {"value": "BYTE_STREAM_SPLIT", "neuron": "DELTA_BINARY_PACKED"}
"""Of columns without repeats, or in runs: a fifth smaller than with dictionaries."""
Columns = Mapping[str, Any]


def write_trace(
    folder: Path, manifest: Manifest, *, curves: Columns, neurons: Columns, quality: Columns | None = None
) -> Path:
    """Write a trace to `folder`, replacing one that is there.

    Rows are sorted, so equal measurements give equal files. `manifest.files` is filled in here.

    Parameters
    ----------
    curves, neurons, quality : mapping of column name to sequence
        Columns of `TABLES`; all of them, all of one length.

    Raises
    ------
    InputError
        A folder that holds something else, unknown statistics, missing columns, unequal lengths.
    """
    tables = {CURVES: curves, NEURONS: neurons} | ({QUALITY: quality} if quality else {})
    arrow = {name: _table(name, columns) for name, columns in tables.items()}
    _check_names(arrow[CURVES])
    folder = Path(folder)
    refuse_replacing(folder)
    with replaced(folder) as fresh:
        fresh.mkdir()
        files = {name: _write_table(fresh / name, table) for name, table in arrow.items()}
        whole = manifest.model_copy(update={"files": files})
        text = json.dumps(whole.model_dump(by_alias=True), indent=1, sort_keys=True)
        (fresh / MANIFEST).write_text(text + "\n", "utf-8")
    return folder


def refuse_replacing(folder: Path) -> None:
    """Refuse a folder that a trace must not take the place of: only a whole trace, alone in it, may go.

    Raises
    ------
    InputError
        A file, a manifest of another kind, a trace with tables missing, or anything beside its tables.
    """
    refuse_special(folder, "--out")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; a trace is a folder", where="--out")
    names = {entry.name for entry in folder.iterdir()}
    if not names:
        return
    other = "name another folder, or move what is in it"
    try:
        listed = {MANIFEST, *read_manifest(folder)[0].files} if MANIFEST in names else set()
    except InputError as error:
        raise InputError(f"{folder} holds no trace of ours ({error}); {other}", where="--out") from None
    if not listed:
        raise InputError(f"{folder} holds files that are no trace; {other}", where="--out")
    if names != listed:
        beside, missing = sorted(names - listed), sorted(listed - names)
        what = f"also holds {beside[0]!r}" if beside else f"lacks {missing[0]!r} of its trace"
        raise InputError(f"{folder} {what}; {other}", where="--out")


def add_quality(folder: Path, quality: Columns) -> Path:
    """Write the trace in `folder` again with this ``quality.parquet``."""
    trace = read_trace(folder)
    return write_trace(Path(folder), trace.manifest, curves=trace.curves, neurons=trace.neurons, quality=quality)


def read_trace(folder: Path | str) -> Trace:
    """Read a trace and check every table against its manifest.

    Raises
    ------
    InputError
        No trace there, another schema, or a table that is missing, truncated or changed.
    """
    import numpy as np

    folder = Path(folder)
    manifest, digest = read_manifest(folder)
    for name in (CURVES, NEURONS):
        if name not in manifest.files:
            raise InputError(f"does not list {name}; collect it again", where=_at(folder, MANIFEST))
    columns = {name: _read_table(folder / name, record) for name, record in manifest.files.items()}
    curves, n_layers = columns[CURVES], manifest.facts.n_layers
    first, last = int(curves["layer"].min(initial=0)), int(curves["layer"].max(initial=-1))
    for name in ("x", "value"):
        if not (np.abs(curves[name]) <= LARGEST).all():
            raise InputError(
                f"column {name!r} holds what is no number up to {LARGEST:.0e}; collect the trace again",
                where=_at(folder, CURVES),
            )
    if first < 0:
        raise InputError(f"has the layer {first}; collect the trace again", where=_at(folder, CURVES))
    if last >= n_layers:
        raise InputError(
            f"says {n_layers} layers, but {CURVES} goes on to layer {last}; collect the trace again",
            where=_at(folder, MANIFEST),
        )
    return Trace(folder, digest, manifest, columns[CURVES], columns[NEURONS], columns.get(QUALITY))


def read_manifest(folder: Path | str) -> tuple[Manifest, str]:
    """Manifest of a trace and its sha256, tables unread.

    Raises
    ------
    InputError
        As `read_trace`.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    where = str(path)
    if not os.path.lexists(path):
        raise InputError(
            f"is no trace (it has no {MANIFEST}); make one with python -m traces.collect", where=str(folder)
        )
    raw = read_limited(path, MOST_MANIFEST_BYTES)
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"is not JSON ({error})", where=where + line) from None
    if not isinstance(values, dict) or values.get("kind") != KIND:
        raise InputError(f"is not the manifest of a trace (kind {KIND!r})", where=where)
    if values.get("schema") != SCHEMA_VERSION:
        raise InputError(
            f"schema {values.get('schema')!r} is unknown; this version reads schema {SCHEMA_VERSION}:"
            " collect the trace again or use the version that wrote it",
            where=where,
        )
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{key}: {first['msg'].lower()}", where=where) from None
    for name in manifest.files:
        if name not in TABLES:
            raise UnknownNameError("table", name, TABLES, where=where)
    return manifest, hashlib.sha256(raw).hexdigest()


def _at(folder: Path, name: str) -> str:
    return str(folder / name)


def _schema(name: str) -> pa.Schema:
    import pyarrow as pa

    types = {
        "int16": pa.int16(),
        "int32": pa.int32(),
        "int64": pa.int64(),
        "float64": pa.float64(),
        "string": pa.dictionary(pa.int32(), pa.string()),
    }
    return pa.schema([pa.field(c, types[t]) for c, t in TABLES[name].items()])


def _table(name: str, columns: Columns) -> pa.Table:
    import pyarrow as pa

    wanted = TABLES[name]
    for column in columns:
        if column not in wanted:
            raise UnknownNameError(f"column of {name}", column, wanted)
    missing = [c for c in wanted if c not in columns]
    if missing:
        raise InputError(f"{name} lacks the column {missing[0]!r}")
    lengths = {len(columns[c]) for c in wanted}
    if len(lengths) != 1:
        raise InputError(f"{name}: columns have lengths {sorted(lengths)}; they must be equal")
    arrays = []
    for field in _schema(name):
        if pa.types.is_dictionary(field.type):
            plain = pa.array(list(columns[field.name]), pa.string())
            arrays.append(plain)
        else:
            arrays.append(pa.array(columns[field.name], field.type))
    table = pa.table(arrays, names=list(wanted))
    keys: Sequence[tuple[str, str]] = [(c, "ascending") for c in wanted if c not in ("value", "n", "frequency")]
    return table.sort_by(list(keys)).cast(_schema(name)).combine_chunks()


def _check_names(curves: pa.Table) -> None:
    pairs = curves.select(["tensor", "statistic"]).group_by(["tensor", "statistic"]).aggregate([])
    for row in pairs.to_pylist():
        statistic = row["statistic"]
        if statistic not in STATISTICS:
            raise UnknownNameError("statistic", statistic, STATISTICS, where=CURVES)
        if row["tensor"] not in STATISTICS[statistic].tensors:
            raise UnknownNameError(f"tensor of {statistic}", row["tensor"], STATISTICS[statistic].tensors, where=CURVES)


def _write_table(path: Path, table: pa.Table) -> FileRecord:
    import pyarrow.parquet as pq

    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=19,
        # pyarrow's stubs know the switch only, not the list of columns.
        use_dictionary=cast("Any", [name for name in table.column_names if name not in _ENCODINGS]),
        column_encoding={name: way for name, way in _ENCODINGS.items() if name in table.column_names},
    )
    return FileRecord(sha256=_digest(path), rows=table.num_rows)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_table(path: Path, record: FileRecord) -> Columns:
    import pyarrow as pa

    where = str(path)
    again = "restore it or collect the trace again"
    try:
        digest = _digest(path)
    except OSError as error:
        raise InputError(f"cannot read: {reason(error)}; {again}", where=where) from None
    if digest != record.sha256:
        raise InputError(f"was truncated or changed since it was written; {again}", where=where)
    if record.rows > MOST_ROWS:
        raise InputError(f"has {record.rows:,} rows; at most {MOST_ROWS:,}", where=where)
    try:
        table = read_parquet(path, MOST_ROWS)
    except InputError as error:
        raise InputError(f"{error.message}; {again}", where=where) from None
    if table.schema.names != list(TABLES[path.name]) or table.num_rows != record.rows:
        raise InputError(f"does not have the rows and columns of its manifest; {again}", where=where)
    for field in _schema(path.name):
        column = table.column(field.name)
        kind = (pa.types.is_dictionary(field.type) and pa.string()) or field.type
        if column.type not in (field.type, kind) or column.null_count:
            raise InputError(f"column {field.name!r} is not {kind} throughout; {again}", where=where)
    return {
        c: table.column(c).to_pandas().to_numpy() if t == "string" else table.column(c).to_numpy()
        for c, t in TABLES[path.name].items()
    }
