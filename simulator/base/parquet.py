"""Parquet files of somebody else's, read within the budget by what they unpack to, not by what they weigh."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.base.budget import refuse_beyond_budget
from simulator.base.errors import InputError, reason
from simulator.base.files import special

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_WIDTH = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
"""Bytes of a value by physical type [B]."""
_INDEX = 4
"""Of a value that stands in a dictionary [B]."""


def read_parquet(path: Path, most_rows: int) -> pa.Table:
    """Table of a Parquet file, refused before it unpacks beyond the budget.

    A text of 64 kB that a dictionary holds once may stand in every row: text is read as its dictionary, counted, and
    only then written out.

    Raises
    ------
    InputError
        Not Parquet, damaged, more than `most_rows`, or more than `simulator.base.budget` allows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = str(path)
    if special(path):
        raise InputError(f"cannot read: it is {special(path)}, not a file", where=where)
    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            if rows > most_rows:
                raise InputError(f"has {rows:,} rows; at most {most_rows:,}", where=where)
            least = _encoded_bytes(file)
            refuse_beyond_budget(least, where)
        with pq.ParquetFile(path, read_dictionary=_texts(schema)) as file:
            table = file.read()
        refuse_beyond_budget(least + sum(map(_text_bytes, table.columns)), where)
        columns = [
            pa.chunked_array([_plain(chunk, field.type) for chunk in column.chunks], field.type)
            for field, column in zip(schema, table.columns, strict=True)
        ]
        return pa.table(columns, schema=schema)
    except OSError as error:
        raise InputError(f"cannot read: {reason(error)}", where=where) from None
    except (pa.ArrowException, ValueError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"is not Parquet ({why})", where=where) from None


def _texts(schema: pa.Schema) -> list[str]:
    """Columns of text or bytes, to be read as dictionaries."""
    from pyarrow import types

    kinds = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return [field.name for field in schema if any(kind(field.type) for kind in kinds)]


def _encoded_bytes(file: pq.ParquetFile) -> int:
    """Most memory that the columns take whose texts stay dictionaries [B]; of texts in lists, written out."""
    total = 0
    for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
        for i in range(group.num_columns):
            column, kind = group.column(i), file.schema.column(i)
            values, pages = max(column.num_values, 0), max(column.total_uncompressed_size, 0)
            if column.physical_type != "BYTE_ARRAY":
                total += pages + values * (_WIDTH.get(column.physical_type) or kind.length or 0)
            elif kind.max_repetition_level or "." in column.path_in_schema:
                total += pages * values if column.has_dictionary_page else pages
            else:
                total += pages + values * _INDEX
    return total


def _text_bytes(column: pa.ChunkedArray) -> int:
    """What a column read as a dictionary takes written out [B]; nothing for any other."""
    import pyarrow as pa
    from pyarrow import compute

    of: Any = compute  # its functions are made at run time
    total = 0
    for chunk in column.chunks:
        if isinstance(chunk, pa.DictionaryArray):
            lengths = of.binary_length(chunk.dictionary).cast(pa.int64())
            total += of.sum(lengths.take(chunk.indices)).as_py() or 0
    return total


def _plain(chunk: pa.Array, kind: pa.DataType) -> pa.Array:
    return chunk if chunk.type == kind else chunk.dictionary_decode().cast(kind)
