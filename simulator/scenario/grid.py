"""Named axes: inline ranges, grid files, and the product of both."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from simulator.base.dtypes import AUTO
from simulator.base.errors import InputError, suggest
from simulator.base.files import parse_toml, read_limited
from simulator.policies import FREE, expand, free_names
from simulator.scenario.scenario import MAX_BATCH, MAX_TOKENS, Scenario

MAX_AXIS = 100_000
MAX_POINTS = 1_000_000_000
MOST_BYTES = 2**20
"""Size of a grid file [B]."""
MAX_WHOLE = 10**12
"""Above any axis; ranges up to here are exact in floats."""


@dataclass(frozen=True)
class Grid:
    """Values of every axis; the grid is their product.

    Names and formats are text, sizes whole numbers; `policy` holds canonical spellings. Field names are
    those of `Scenario`.
    """

    model: tuple[str, ...]
    device: tuple[str, ...]
    policy: tuple[str, ...] = ("dense",)
    engine: tuple[str, ...] = ("vllm",)
    dtype: tuple[str, ...] = (AUTO,)
    kv_cache_dtype: tuple[str, ...] = (AUTO,)
    tp: tuple[int, ...] = (1,)
    pp: tuple[int, ...] = (1,)
    ep: tuple[int, ...] = (1,)
    batch: tuple[int, ...] = (1,)
    prompt_tokens: tuple[int, ...] = (512,)
    output_tokens: tuple[int, ...] = (128,)
    gpu_memory_utilization: float = 0.9
    block_size: int = 16
    ignore_context_limit: bool = False
    trace: tuple[str, ...] = ()
    trace_transfer: bool = False
    sizes: tuple[int, int, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", (len(self.batch), len(self.prompt_tokens), len(self.output_tokens)))
        for name, most in LARGEST.items():
            if max(getattr(self, name)) > most:
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{max(getattr(self, name))} is above {most}", where=flag)
        if self.trace_transfer and not self.trace:
            raise InputError("there is no trace to transfer; add --trace DIR", where="--trace-transfer")
        if len(self) > MAX_POINTS:
            raise InputError(f"the grid has {len(self):,} points; at most {MAX_POINTS:,}")

    def __len__(self) -> int:
        return math.prod(self.sizes) * math.prod(len(getattr(self, a)) for a in OUTER)

    def groups(self) -> Iterator[Scenario]:
        """One scenario per combination of the outer axes, at the first batch, prompt and output."""
        traces = self.traces()
        for values in itertools.product(*(getattr(self, axis) for axis in OUTER)):
            yield Scenario.of(
                **dict(zip(OUTER, values, strict=True)),
                batch=self.batch[0],
                prompt_tokens=self.prompt_tokens[0],
                output_tokens=self.output_tokens[0],
                gpu_memory_utilization=self.gpu_memory_utilization,
                block_size=self.block_size,
                ignore_context_limit=self.ignore_context_limit,
                trace=traces[values[0]],
                trace_transfer=bool(traces[values[0]]) and self.trace_transfer,
            )

    def traces(self) -> dict[str, str]:
        """Folder of the trace each model takes, "" for none."""
        if not self.trace:
            return dict.fromkeys(self.model, "")
        from simulator.scenario.catalogue import CATALOGUE, pick_trace

        return {m: pick_trace(self.trace, CATALOGUE.model(m), transfer=self.trace_transfer) for m in self.model}

    def to_dict(self) -> dict[str, Any]:
        """Axes and settings, for the file's metadata and its hash."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}


OUTER = ("model", "device", "engine", "dtype", "kv_cache_dtype", "tp", "pp", "ep", "policy")
"""Axes whose values change the ops; the policy varies fastest so that its dense twin is at hand."""
SIZES = ("tp", "pp", "ep", "batch", "prompt_tokens", "output_tokens")
LARGEST = {"batch": MAX_BATCH, "prompt_tokens": MAX_TOKENS, "output_tokens": MAX_TOKENS}
"""Bounds of the axes a `Scenario` of the group does not check, because it holds their first value."""


def whole_numbers(text: str, flag: str) -> tuple[int, ...]:
    """Whole numbers of an inline range.

    ``1,4,16``; ``512:131072:x4`` multiplies; ``64:512:+64`` adds; ``1:9:5`` spaces five points evenly.
    Comma-separated parts may be ranges; duplicates are dropped, order kept.
    """
    out: list[int] = []
    for part in str(text).split(","):
        out += _range(part.strip(), flag)
    if len(out) > MAX_AXIS:
        raise InputError(f"{len(out):,} values; at most {MAX_AXIS:,}", where=flag)
    return tuple(dict.fromkeys(out))


def _range(part: str, flag: str) -> list[int]:
    bounds = part.split(":")
    if len(bounds) == 1:
        return [_whole(part, flag)]
    if len(bounds) != 3:
        raise InputError(f"cannot read {part!r}; write 1,4,16 or first:last:x2 or first:last:+64", where=flag)
    first, last = _whole(bounds[0], flag), _whole(bounds[1], flag)
    if last < first:
        raise InputError(f"{part!r} runs backwards; the first value must be the smaller", where=flag)
    how = bounds[2]
    if how.startswith("x"):
        factor = _number(how[1:], part, flag)
        if factor <= 1.0:
            raise InputError(f"{part!r}: the factor must be above 1", where=flag)
        count = int(math.log(last / first) / math.log(factor) + 1e-9) + 1
        if count > MAX_AXIS:
            raise InputError(f"{part!r} has too many values; at most {MAX_AXIS:,}", where=flag)
        values = [round(first * factor**i) for i in range(count)]
    elif how.startswith("+"):
        step = _whole(how[1:], flag)
        if (last - first) // step >= MAX_AXIS:
            raise InputError(f"{part!r} has too many values; at most {MAX_AXIS:,}", where=flag)
        values = list(range(first, last + 1, step))
    else:
        count = _whole(how, flag)
        if count > MAX_AXIS:
            raise InputError(f"{part!r} has too many values; at most {MAX_AXIS:,}", where=flag)
        if count < 2 and last > first:
            raise InputError(
                f"{part!r} is a range of one value; write {first}:{last}:+{count} for steps of {count}", where=flag
            )
        span = max(count - 1, 1)
        values = [round(first + (last - first) * i / span) for i in range(count)]
    return list(dict.fromkeys(values))


def _whole(text: str, flag: str) -> int:
    try:
        value = float(text) if "e" in text.lower() else int(text)
        whole = int(value)
    except (ValueError, OverflowError):
        raise InputError(f"{text!r} is not a whole number", where=flag) from None
    if value != whole:
        raise InputError(f"{text!r} is not a whole number", where=flag)
    if whole < 1:
        raise InputError(f"{text} must be 1 or more", where=flag)
    if whole > MAX_WHOLE:
        raise InputError(f"{text} is above {MAX_WHOLE:,}", where=flag)
    return whole


def _number(text: str, part: str, flag: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"cannot read {part!r}; write first:last:x2", where=flag)
    return value


def names(values: Sequence[str], flag: str) -> tuple[str, ...]:
    """Names from a repeated flag whose values may hold commas."""
    out = [n.strip() for value in values for n in str(value).split(",")]
    if not out or not all(out):
        raise InputError("an empty name", where=flag)
    return tuple(dict.fromkeys(out))


def policies(values: Sequence[str]) -> tuple[str, ...]:
    """Canonical spellings of repeated ``--policy``, lists and `FREE` expanded, duplicates dropped."""
    texts = [t for v in values for t in (("dense", *free_names()) if v.strip() == FREE else (v,))]
    found = [p.spelling for text in texts for p in expand(text)]
    return tuple(dict.fromkeys(found))


def read_grids(path: Path) -> list[Grid]:
    """Grids of a TOML file: one ``[[grid]]`` table each, keys as the flags.

    Raises
    ------
    InputError
        ``file:line`` for bad TOML, unknown keys with a suggestion.
    """
    try:
        text = read_limited(path, MOST_BYTES).decode("utf-8")
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text", where=str(path)) from None
    document = parse_toml(text, str(path))
    tables = document.get("grid")
    if not isinstance(tables, list) or not tables or set(document) != {"grid"}:
        raise InputError("needs one or more [[grid]] tables and nothing else", where=str(path))
    return [_table(table, str(path)) for table in tables]


def _table(table: dict[str, Any], where: str) -> Grid:
    known = {f.name for f in fields(Grid) if f.init}
    values: dict[str, Any] = {}
    for raw, value in table.items():
        key = raw.replace("-", "_")
        if key not in known:
            near = suggest(key, known)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            raise InputError(f"unknown key {raw!r}; {hint}", where=where)
        items = value if isinstance(value, list) else [value]
        if key in SIZES:
            values[key] = whole_numbers(",".join(str(v) for v in items), f"{where}: {raw}")
        elif key == "policy":
            try:
                values[key] = policies([str(v) for v in items])
            except InputError as error:
                raise InputError(error.message, where=f"{where}: {raw}") from None
        elif key in OUTER or key == "trace":
            values[key] = names([str(v) for v in items], f"{where}: {raw}")
        else:
            values[key] = value
    for key in ("model", "device"):
        if key not in values:
            raise InputError(f"a [[grid]] needs {key!r}", where=where)
    return Grid(**values)
