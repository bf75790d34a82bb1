"""Named axes: inline ranges, grid files, and the product of both."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral
from pathlib import Path
from typing import Any

from simulator.base.errors import InputError, suggest
from simulator.base.files import parse_toml, read_limited
from simulator.model.formats import apart
from simulator.policies import FREE, PUBLISHED, expand, free_names
from simulator.scenario.fields import FIELDS, LOAD, flag
from simulator.scenario.scenario import Scenario
from simulator.scenario.speculation import speculation

MAX_AXIS = 100_000
MAX_POINTS = 1_000_000_000
MOST_BYTES = 2**20
"""Size of a grid file [B]."""
MAX_WHOLE = 10**12
"""Above any axis; ranges up to here are exact in floats."""


def _one(name: str) -> tuple[Any, ...]:
    return (FIELDS[name].default,)


@dataclass(frozen=True)
class Grid:
    """Values of every axis; the grid is their product.

    Names and formats are text, sizes whole numbers; `policy` holds canonical spellings. Field names are
    those of `Scenario`.
    """

    model: tuple[str, ...]
    device: tuple[str, ...]
    policy: tuple[str, ...] = _one("policy")
    kernel: tuple[str, ...] = _one("kernel")
    speculate: tuple[str, ...] = _one("speculate")
    engine: tuple[str, ...] = _one("engine")
    dtype: tuple[str, ...] = _one("dtype")
    kv_cache_dtype: tuple[str, ...] = _one("kv_cache_dtype")
    tp: tuple[int, ...] = _one("tp")
    pp: tuple[int, ...] = _one("pp")
    ep: tuple[int, ...] = _one("ep")
    dp_attention: tuple[int, ...] = _one("dp_attention")
    batch: tuple[int, ...] = _one("batch")
    prompt_tokens: tuple[int, ...] = _one("prompt_tokens")
    output_tokens: tuple[int, ...] = _one("output_tokens")
    gpu_memory_utilization: float | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    block_size: int = FIELDS["block_size"].default
    ignore_context_limit: bool = False
    images: int = 0
    moe_a2a_backend: str = FIELDS["moe_a2a_backend"].default
    text_only: bool = False
    trace: tuple[str, ...] = ()
    trace_transfer: bool = False
    quality: str = ""
    sizes: tuple[int, int, int] = field(init=False)

    def __post_init__(self) -> None:
        for name in (*OUTER, *LOAD, "trace"):
            value = getattr(self, name)
            # A name alone is one value, not its letters.
            values = (value,) if isinstance(value, str | int) else tuple(value)
            if not values and name != "trace":
                raise InputError("has no value; give one or more", where=flag(name))
            object.__setattr__(self, name, values)
        object.__setattr__(self, "sizes", (len(self.batch), len(self.prompt_tokens), len(self.output_tokens)))
        # The scenario of a group holds, and checks, only their first value.
        for name in LOAD:
            most = FIELDS[name].about.bounds["le"]
            values = tuple(_given(value, flag(name)) for value in getattr(self, name))
            if max(values) > most:
                raise InputError(f"{max(values)} is above {most}", where=flag(name))
            object.__setattr__(self, name, values)
        if self.trace_transfer and not self.trace:
            raise InputError("there is no trace to transfer; add --trace DIR", where="--trace-transfer")
        if len(self) > MAX_POINTS:
            raise InputError(f"the grid has {len(self):,} points; at most {MAX_POINTS:,}")

    def __len__(self) -> int:
        axes = math.prod(len(getattr(self, a)) for a in OUTER[:-2])
        return math.prod(self.sizes) * axes * len(self.run_in)

    @property
    def run_in(self) -> tuple[tuple[str, str], ...]:
        """Every policy in every kernel; dense, which takes none, once."""
        pairs = itertools.product(self.policy, self.kernel)
        return tuple(dict.fromkeys((p, PUBLISHED if p == "dense" else k) for p, k in pairs))

    def groups(self) -> Iterator[Scenario]:
        """One scenario per combination of the outer axes, at the first batch, prompt and output."""
        traces, qualities = self.traces(), self.qualities()
        for *values, pair in itertools.product(*(getattr(self, axis) for axis in OUTER[:-2]), self.run_in):
            yield Scenario.of(
                **dict(zip(OUTER, (*values, *pair), strict=True)),
                **{k: getattr(self, k)[0] for k in LOAD},
                **{k: getattr(self, k) for k in SETTINGS},
                trace=traces[values[0]],
                trace_transfer=bool(traces[values[0]]) and self.trace_transfer,
                quality=qualities[values[0]],
            )

    def traces(self) -> dict[str, str]:
        """Folder of the trace each model takes, "" for none."""
        if not self.trace:
            return dict.fromkeys(self.model, "")
        from simulator.scenario.catalogue import CATALOGUE, pick_trace

        return {m: pick_trace(self.trace, CATALOGUE.model(m), transfer=self.trace_transfer) for m in self.model}

    def qualities(self) -> dict[str, str]:
        """File of measured quality of each model, "" for those it was not measured on.

        Raises
        ------
        InputError
            It was measured on none of them.
        """
        if not self.quality:
            return dict.fromkeys(self.model, "")
        from simulator.scenario.catalogue import CATALOGUE, fits

        found = CATALOGUE.quality(self.quality)
        mine = [m for m in self.model if fits(found, CATALOGUE.model(m))]
        if not mine:
            raise InputError(f"{self.quality} was measured on {found.model}, which is not asked", where="--quality")
        return {m: self.quality if m in mine else "" for m in self.model}

    def to_dict(self) -> dict[str, Any]:
        """Axes and settings, for the file's metadata and its hash."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}


OUTER = (
    *("model", "device", "engine", "dtype", "kv_cache_dtype"),
    *("tp", "pp", "ep", "dp_attention", "speculate", "policy", "kernel"),
)
"""Axes whose values change the ops; policy and kernel vary fastest so that their dense twin is at hand."""
SIZES = ("tp", "pp", "ep", "dp_attention", "batch", "prompt_tokens", "output_tokens")
ENGINE = ("gpu_memory_utilization", "max_num_seqs", "max_num_batched_tokens", "max_model_len")
"""What an engine is started with; None: its own default."""
SETTINGS = (*ENGINE, "block_size", "ignore_context_limit", "images", "text_only", "moe_a2a_backend")
"""Fields of one value."""


def whole_numbers(text: str, where: str) -> tuple[int, ...]:
    """Whole numbers of an inline range.

    ``1,4,16``; ``512:131072:x4`` multiplies; ``64:512:+64`` adds; ``1:9:5`` spaces five points evenly.
    Comma-separated parts may be ranges; duplicates are dropped, order kept.
    """
    out: list[int] = []
    for part in str(text).split(","):
        out += _range(part.strip(), where)
    if len(out) > MAX_AXIS:
        raise InputError(f"{len(out):,} values; at most {MAX_AXIS:,}", where=where)
    return tuple(dict.fromkeys(out))


def _range(part: str, where: str) -> list[int]:
    bounds = part.split(":")
    if len(bounds) == 1:
        return [_whole(part, where)]
    if len(bounds) != 3:
        raise InputError(f"cannot read {part!r}; write 1,4,16 or first:last:x2 or first:last:+64", where=where)
    first, last = _whole(bounds[0], where), _whole(bounds[1], where)
    if last < first:
        raise InputError(f"{part!r} runs backwards; the first value must be the smaller", where=where)
    how = bounds[2]
    if how.startswith("x"):
        factor = _number(how[1:], part, where)
        if factor <= 1.0:
            raise InputError(f"{part!r}: the factor must be above 1", where=where)
        count = int(math.log(last / first) / math.log(factor) + 1e-9) + 1
        if count > MAX_AXIS:
            raise InputError(f"{part!r} has too many values; at most {MAX_AXIS:,}", where=where)
        values = [round(first * factor**i) for i in range(count)]
    elif how.startswith("+"):
        step = _whole(how[1:], where)
        if (last - first) // step >= MAX_AXIS:
            raise InputError(f"{part!r} has too many values; at most {MAX_AXIS:,}", where=where)
        values = list(range(first, last + 1, step))
    else:
        count = _whole(how, where)
        if count > MAX_AXIS:
            raise InputError(f"{part!r} has too many values; at most {MAX_AXIS:,}", where=where)
        if count < 2 and last > first:
            raise InputError(
                f"{part!r} is a range of one value; write {first}:{last}:+{count} for steps of {count}", where=where
            )
        span = max(count - 1, 1)
        values = [round(first + (last - first) * i / span) for i in range(count)]
    return list(dict.fromkeys(values))


def _given(value: Any, where: str) -> int:
    """A whole number of 1 or more that Python was given, numpy's own kinds among them."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{value!r} is not a whole number", where=where)
    if (whole := int(value)) < 1:
        raise InputError(f"{whole} must be 1 or more", where=where)
    return whole


def _whole(text: str, where: str) -> int:
    try:
        value = float(text) if "e" in text.lower() else int(text)
        whole = int(value)
    except (ValueError, OverflowError):
        raise InputError(f"{text!r} is not a whole number", where=where) from None
    if value != whole:
        raise InputError(f"{text!r} is not a whole number", where=where)
    if whole < 1:
        raise InputError(f"{text} must be 1 or more", where=where)
    if whole > MAX_WHOLE:
        raise InputError(f"{text} is above {MAX_WHOLE:,}", where=where)
    return whole


def _number(text: str, part: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"cannot read {part!r}; write first:last:x2", where=where)
    return value


def names(values: Sequence[str], where: str) -> tuple[str, ...]:
    """Names from a repeated flag whose values may hold commas."""
    return tuple(dict.fromkeys(_split(values, where)))


def _split(values: Sequence[str], where: str) -> list[str]:
    out = [n.strip() for value in values for n in str(value).split(",")]
    if not out or not all(out):
        raise InputError("an empty name", where=where)
    return out


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
        values[key] = axis(key, value, f"{where}: {raw}")
    for key in ("model", "device"):
        if key not in values:
            raise InputError(f"a [[grid]] needs {key!r}", where=where)
    return Grid(**values)


def axis(name: str, value: Any, where: str) -> Any:
    """Values of the axis `name` as a person writes them: one or a list, names with commas, numbers as ranges."""
    if name in SETTINGS or name in ("trace_transfer", "quality"):
        return value
    items = [str(v) for v in (value if isinstance(value, list) else [value])]
    if name in SIZES:
        return whole_numbers(",".join(items), where)
    if name == "dtype":
        return apart(_split(items, where))
    if name == "speculate":
        return tuple(dict.fromkeys(str(speculation(i) or "") for i in items))
    if name != "policy":
        return names(items, where)
    try:
        return policies(items)
    except InputError as error:
        raise InputError(error.message, where=where) from None


def grid_of(given: Mapping[str, Any]) -> Grid:
    """Grid of the flags of a verb."""
    for name in ("model", "device"):
        if not given[name]:
            raise InputError("is needed, e.g. --model llama-2-7b --device h100-sxm", where=flag(name))
    # A folder's name may hold a comma.
    trace = tuple(dict.fromkeys(given["trace"] or ()))
    return Grid(**{k: axis(k, v, flag(k)) for k, v in given.items() if k != "trace" and v is not None}, trace=trace)
