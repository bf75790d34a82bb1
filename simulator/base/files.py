"""Files that appear whole or not at all, and files of others that are read only up to a size."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.base.errors import InputError, reason

if TYPE_CHECKING:
    import pyarrow as pa

MOST_KEY_PARTS = 200
"""Parts of a dotted TOML key; `tomllib` needs memory quadratic in them."""
MOST_COLUMN_BYTES = 2**28
BYTES_PER_ROW = 4096
"""A Parquet table may unpack to `MOST_COLUMN_BYTES` and this much a row [B]."""


@contextlib.contextmanager
def replaced(path: Path, where: str = "--out") -> Iterator[Path]:
    """A temporary name beside `path`, which becomes `path` when the block ends well and vanishes when it does not.

    Parameters
    ----------
    path : Path
        Its folder is made where missing.
    where : str
        The flag that named it, for the error.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder of a random name: nobody else can lay a link there first.
        with tempfile.TemporaryDirectory(
            prefix=f".{path.name[:80]}.", suffix=".tmp", dir=path.parent, ignore_cleanup_errors=True
        ) as folder:
            yield Path(folder) / path.name
            os.replace(Path(folder) / path.name, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}", where=where) from None


def read_limited(path: Path, most_bytes: int) -> bytes:
    """Content of `path`, where it has at most `most_bytes` [B]; a device without end is refused as a large file is.

    Raises
    ------
    InputError
        It cannot be read, or is larger.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise InputError(f"cannot read: {why}", where=str(path)) from None
    if len(content) > most_bytes:
        raise InputError(f"is larger than {most_bytes / 2**20:g} MiB", where=str(path))
    return content


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Document of TOML text of somebody else's.

    Raises
    ------
    InputError
        ``where:line`` and what is wrong.
    """
    plain = re.sub(r"\"[^\"\n]*\"|'[^'\n]*'|[A-Za-z0-9_-]+", "k", text)
    if "k." * MOST_KEY_PARTS in re.sub(r"[ \t]+", "", plain):
        raise InputError(f"not valid TOML: a key of more than {MOST_KEY_PARTS} parts", where=f"{where}:1")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = int(match[1]) if match else max(len(text.splitlines()), 1)
        what = re.sub(r" \(at .*\)$", "", str(error))
        raise InputError(f"not valid TOML: {what[:1].lower()}{what[1:]}", where=f"{where}:{line}") from None
    except (ValueError, RecursionError):
        # A number of thousands of digits, or brackets beyond the stack.
        raise InputError("not valid TOML: a number too long or nested too deeply", where=f"{where}:1") from None


def toml_value(value: Any, digits: int | None = None) -> str:
    """TOML text of a string, a number, a truth, or of lists and tables of them; `digits` of a float where given."""
    if isinstance(value, Mapping):
        items = (f"{_toml_key(str(k))} = {toml_value(v, digits)}" for k, v in value.items())
        return "{ " + ", ".join(items) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(v, digits) for v in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        text = repr(value) if digits is None else f"{value:.{digits}g}"
        return text if any(c in text for c in ".en") else text + ".0"
    # JSON strings are TOML basic strings, except that TOML also wants DEL escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)


def read_parquet(path: Path, most_rows: int) -> pa.Table:
    """Table of a Parquet file of somebody else's, refused before it unpacks to more than a table of its rows needs.

    Raises
    ------
    InputError
        Not Parquet, damaged, or more than `most_rows`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            rows = file.metadata.num_rows
            size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
            if rows > most_rows or size > MOST_COLUMN_BYTES + BYTES_PER_ROW * rows:
                told = f"{rows:,} rows of {size / 2**20:,.0f} MiB"
                raise InputError(f"unpacks to {told}; at most {most_rows:,} rows", where=str(path))
            return file.read()
    except OSError as error:
        raise InputError(f"cannot read: {reason(error)}", where=str(path)) from None
    except (pa.ArrowException, ValueError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"is not Parquet ({why})", where=str(path)) from None
