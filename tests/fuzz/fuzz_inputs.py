"""Valid documents, and what an attacker, an editor or a broken pipe would make of them."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

NUMBERS = (
    "0",
    "-0",
    "-1",
    "1",
    "0.5",
    "1.5",
    "2",
    "3",
    "7",
    "16",
    "128",
    "1024",
    "1e3",
    "1e18",
    "1e308",
    "-1e308",
    "1e309",
    "1e-320",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "Infinity",
    "9007199254740993",
    "18446744073709551616",
    "9" * 400,
    "2147483648",
    "0x10",
    "1_000",
    "1__0",
    "٣",
    "½",
    "1e",
    "--1",
    "true",
    "null",
    "",
)
"""Numbers as text: both ends of every type, no numbers at all, digits that are not ASCII."""
WORDS = (
    "",
    " ",
    "\0",
    "\n",
    "\r\n",
    "\t",
    "\x1b[2J\x1b[31m",
    "\x07",
    "\x7f",
    "\u202eabc",
    "\u2066",
    "\ufeff",
    "\ud800",
    "é",
    "e\u0301",
    "𝟙",
    "😀",
    "ß",
    "İ",
    "%s%n",
    "{0}",
    "${HOME}",
    "`id`",
    "$(id)",
    "'; DROP TABLE x; --",
    "<script>alert(1)",
    "../../../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "/dev/stdin",
    "/proc/self/mem",
    "C:\\x",
    "file:///etc/passwd",
    "~",
    "~root",
    ".",
    "..",
    "con",
    "a" * 300,
    "(" * 60,
    "[" * 60,
    "{" * 60,
    "x" * 5000,
    "__import__('os')",
    "!!python/object:os.system",
    "\x80\x04K\x01.",
    "--help",
    "-",
    "=",
    ",",
    ":",
    ";",
    "+",
    "#",
    '"',
    "'",
    "\\",
    "\\u0000",
    "@",
)
"""Texts that some layer may take for something else: controls, directions, paths, code, brackets."""


@st.composite
def edited(draw: Any, seeds: Sequence[str], tokens: Sequence[str] = (), most: int = 6) -> str:
    """One of `seeds` after up to `most` cuts, copies and replacements; `tokens` are words of its language."""
    text = draw(st.sampled_from(seeds))
    words = st.sampled_from([*tokens, *tokens, *NUMBERS, *WORDS] if tokens else [*NUMBERS, *WORDS])
    for _ in range(draw(st.integers(0, most))):
        how = draw(st.sampled_from(("number", "word", "cut", "copy", "insert", "line", "char")))
        spots = _numbers(text) if how == "number" else _words(text) if how == "word" else []
        if spots:
            start, end = draw(st.sampled_from(spots))
            new = draw(st.sampled_from(NUMBERS) if how == "number" else words)
            text = text[:start] + new + text[end:]
            continue
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from((0, 1, 2, 5, 20, 200))))
        if how == "cut":
            text = text[:start] + text[end:]
        elif how == "copy":
            text = text[:end] + text[start:end] * draw(st.sampled_from((1, 2, 30))) + text[end:]
        elif how == "line":
            lines = text.split("\n")
            at = draw(st.integers(0, len(lines) - 1))
            lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
            text = "\n".join(lines)
        elif how == "char":
            text = text[:start] + draw(st.characters()) + text[start + 1 :]
        else:
            text = text[:start] + draw(words) + text[start:]
    return text


def _numbers(text: str) -> list[tuple[int, int]]:
    return _runs(text, lambda c: c.isdigit() or c == ".")


def _words(text: str) -> list[tuple[int, int]]:
    return _runs(text, lambda c: c.isalnum() or c in "_-.")


def _runs(text: str, inside: Any) -> list[tuple[int, int]]:
    """At most 200 spans of characters that are `inside`."""
    out, start = [], None
    for i, char in enumerate([*text, ""]):
        if char and inside(char):
            start = i if start is None else start
        elif start is not None:
            out.append((start, i))
            start = None
    return out[:: 1 + len(out) // 200]


VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    7,
    64,
    1e-320,
    0.5,
    1e308,
    -1e308,
    math.nan,
    math.inf,
    -math.inf,
    2**31,
    2**53 + 1,
    2**63,
    2**64,
    10**30,
    10**400,
    "",
    "1",
    "nan",
    "x",
    [],
    {},
    [[]],
    [None],
    [0],
    [1e308],
    {"a": 1},
    {"": None},
    [{}],
    {"x": {"y": []}},
)
"""JSON values of every kind; 10**400 is a legal JSON number that no float holds."""
DEEP = "nested far beyond any reader's stack"
json_values = st.one_of(st.sampled_from(VALUES), st.sampled_from(WORDS), st.integers(), st.floats())


@st.composite
def edited_tree(draw: Any, seeds: Sequence[Any], keys: Sequence[str] = (), most: int = 5) -> Any:
    """One of `seeds` (JSON trees) with up to `most` places replaced, dropped, renamed or repeated."""
    tree = json.loads(json.dumps(draw(st.sampled_from(seeds))))
    for _ in range(draw(st.integers(0, most))):
        tree = _edit(draw, tree, keys)
    return tree


def _edit(draw: Any, tree: Any, keys: Sequence[str]) -> Any:
    down = isinstance(tree, dict | list) and tree and draw(st.integers(0, 9)) > 0
    if not down:
        deep = draw(st.integers(0, 30)) == 30
        return DEEP if deep else draw(json_values)
    if isinstance(tree, list):
        at = draw(st.integers(0, len(tree) - 1))
        how = draw(st.sampled_from(("down", "down", "drop", "copy")))
        changed = [_edit(draw, tree[at], keys)] if how == "down" else [] if how == "drop" else [tree[at]] * 2
        return [*tree[:at], *changed, *tree[at + 1 :]]
    key = draw(st.sampled_from(sorted(tree)))
    how = draw(st.sampled_from(("down", "down", "down", "drop", "rename", "add")))
    if how == "down":
        return {**tree, key: _edit(draw, tree[key], keys)}
    if how == "add":
        name = draw(st.sampled_from([*keys, *WORDS]) if keys else st.sampled_from(WORDS))
        return {**tree, name: draw(json_values)}
    rest = {k: v for k, v in tree.items() if k != key}
    return rest if how == "drop" else {**rest, draw(st.sampled_from(WORDS)): tree[key]}


def as_json(tree: Any) -> str:
    """JSON text; NaN and infinity as Python writes them, surrogates escaped."""
    return json.dumps(tree).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000)


@st.composite
def edited_bytes(draw: Any, content: bytes, most: int = 4) -> bytes:
    """`content` with some bytes changed, cut or repeated."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        how = draw(st.sampled_from(("flip", "flip", "cut", "end", "copy")))
        if how == "flip" and data:
            data[at] = draw(st.integers(0, 255))
        elif how == "cut":
            del data[at : at + draw(st.integers(1, 64))]
        elif how == "end":
            del data[at:]
        else:
            data[at:at] = data[at : at + 16]
    return bytes(data)


CELLS: tuple[tuple[str, Sequence[Any]], ...] = (
    ("float64", (math.nan, math.inf, -math.inf, 1e308, -1.0, 0.0, 5e-324, 0.5)),
    ("int64", (-(2**63), 2**63 - 1, -1, 0)),
    ("string", ("", "x", "nan", "\x1b[31m", "\u202e", "../..", "1e400")),
    ("binary", (b"", b"\xff\x00", b"\x80\x04K\x01.")),
    ("bool", (True, False)),
    ("null", (None,)),
    ("list<int64>", ([], [1, None])),
    ("timestamp", (0, 2**62)),
    ("decimal", ("1e30",)),
)
"""What a column may hold instead of what its reader expects."""


@st.composite
def edited_table(draw: Any, table: Any, metadata: Any = None, most: int = 4) -> bytes:
    """Parquet bytes of `table` with columns of other types, values, names, rows or metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for _ in range(draw(st.integers(0, most))):
        how = draw(st.sampled_from(("cell", "cell", "cell", "type", "null", "drop", "rename", "rows", "again", "meta")))
        at = draw(st.integers(0, max(table.num_columns - 1, 0)))
        if how == "rows":
            n = draw(st.sampled_from((0, 1, table.num_rows)))
            table = table.slice(0, n)
        elif how == "meta" and metadata is not None:
            told = {k.decode("utf-8", "replace"): v for k, v in (table.schema.metadata or {}).items()}
            table = table.replace_schema_metadata(draw(metadata(told)))
        elif not table.num_columns:
            continue
        elif how == "drop":
            table = table.remove_column(at)
        elif how == "rename":
            new = draw(st.sampled_from([w for w in WORDS if w.isprintable() or w == "\x07"]))
            table = table.rename_columns([new if i == at else c for i, c in enumerate(table.column_names)])
        elif how == "again":
            table = table.append_column(table.column_names[at], table.column(at))
        elif how == "cell" and table.num_rows:
            table = _with_cell(draw, table, at)
        else:
            name, values = draw(st.sampled_from(CELLS))
            value = None if how == "null" else draw(st.sampled_from(values))
            column = pa.array([value] * table.num_rows, _type(name))
            table = table.set_column(at, table.column_names[at], column)
    out = io.BytesIO()
    try:
        pq.write_table(table, out, compression="zstd")
    except pa.ArrowException:  # two columns of one name in metadata and the like: nobody can write that
        return b"PAR1"
    return draw(edited_bytes(out.getvalue())) if draw(st.integers(0, 9)) == 9 else out.getvalue()


def _with_cell(draw: Any, table: Any, at: int) -> Any:
    """`table` with one value of its own type changed."""
    import pyarrow as pa

    column = table.column(at)
    plain = column.combine_chunks()
    if pa.types.is_dictionary(plain.type):
        plain = plain.dictionary_decode()
    values = plain.to_pylist()
    kind = "float64" if pa.types.is_floating(plain.type) else "int64" if pa.types.is_integer(plain.type) else "string"
    choices = next(v for n, v in CELLS if n == kind)
    values[draw(st.integers(0, len(values) - 1))] = draw(st.sampled_from([*choices, None]))
    try:
        changed = pa.array(values, plain.type)
    except (pa.ArrowException, OverflowError, TypeError):
        return table
    return table.set_column(at, table.column_names[at], changed)


def _type(name: str) -> Any:
    import pyarrow as pa

    return {
        "float64": pa.float64(),
        "int64": pa.int64(),
        "string": pa.string(),
        "binary": pa.binary(),
        "bool": pa.bool_(),
        "null": pa.null(),
        "list<int64>": pa.list_(pa.int64()),
        "timestamp": pa.timestamp("ns"),
        "decimal": pa.string(),
    }[name]
