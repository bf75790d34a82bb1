"""Read device profiles: TOML text to `Device`, with errors that name file and line."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, StrictStr, ValidationError, model_validator
from pydantic_core import core_schema

from simulator.base.dtypes import DType
from simulator.base.errors import InputError, suggest
from simulator.base.files import parse_toml
from simulator.base.units import exact_quantity, example, parse_quantity
from simulator.device.text import SCHEMA
from simulator.device.types import Clock, ClockName, Device, Kind, Link, MemoryTier, Peak, Sourced


class ProfileError(InputError):
    """A profile that cannot be used; one ``file:line: ...`` line per problem."""

    def __init__(self, problems: list[str]):
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Number(_Strict):
    value: StrictStr
    source: Annotated[StrictStr, Field(min_length=1)]
    kind: Kind
    note: StrictStr = ""
    date: Annotated[StrictStr, Field(pattern=r"^(\d{4}-\d{2}-\d{2})?$")] = ""


@dataclass(frozen=True)
class _Quantity:
    """Field marker: an inline table whose value is in `unit` and within [low, high]."""

    unit: str
    low: float
    high: float
    dated: bool = False

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        number = handler.generate_schema(_Number)
        parsed = core_schema.no_info_after_validator_function(self._convert, number)
        return core_schema.no_info_before_validator_function(self._shape, parsed)

    def _shape(self, raw: object) -> object:
        """Refuse bare numbers, saying how to write them."""
        if not isinstance(raw, dict):
            sample = f'{{ value = "{example(self.unit)}", source = "...", kind = "..." }}'
            raise ValueError(f"needs {sample}")
        if isinstance(raw.get("value"), (int, float)):
            raise ValueError(f'value needs quotes and a unit, e.g. value = "{example(self.unit)}"')
        return raw

    def _convert(self, number: _Number) -> Sourced:
        """SI value of the text, if it is within the range."""
        try:
            value = parse_quantity(number.value, self.unit)
        except InputError as error:
            raise ValueError(error.message) from None
        if not self.low <= value <= self.high:
            low, high = (exact_quantity(bound, self.unit) for bound in (self.low, self.high))
            raise ValueError(f"{number.value!r} is out of range; expected {low} to {high}")
        if self.dated and not number.date:
            raise ValueError('a price needs date = "YYYY-MM-DD"')
        return Sourced(value, self.unit, number.source, number.kind, number.note, number.date)


# Ranges catch slips of a prefix or a lost digit, not unusual hardware.
_Count = Annotated[Sourced, _Quantity("1", 1, 1e7)]
_Hertz = Annotated[Sourced, _Quantity("Hz", 1e6, 1e11)]
_Flop = Annotated[Sourced, _Quantity("flop/s", 1e6, 1e21)]
_Rate = Annotated[Sourced, _Quantity("B/s", 1e4, 1e18)]
_Bytes = Annotated[Sourced, _Quantity("B", 1, 1e18)]
_Seconds = Annotated[Sourced, _Quantity("s", 1e-12, 10.0)]
_Watts = Annotated[Sourced, _Quantity("W", 1e-3, 1e6)]
_IdleWatts = Annotated[Sourced, _Quantity("W", 0, 1e6)]
_Price = Annotated[Sourced, _Quantity("USD/h", 0, 1e6, dated=True)]


class _ClockTable(_Strict):
    base: _Hertz
    boost: _Hertz
    max: _Hertz

    @model_validator(mode="after")
    def _ordered(self) -> _ClockTable:
        if not self.base.value <= self.boost.value <= self.max.value:
            raise ValueError("clocks must rise: base <= boost <= max")
        return self


class _PeakTable(_Strict):
    dense: _Flop
    sparse24: _Flop | None = None
    fp16_accumulate: _Flop | None = None
    at: ClockName = "boost"

    @model_validator(mode="after")
    def _ordered(self) -> _PeakTable:
        if self.sparse24 and self.sparse24.value < self.dense.value:
            raise ValueError("the 2:4 sparse24 peak is below dense")
        return self


class _TierTable(_Strict):
    name: Annotated[StrictStr, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    technology: StrictStr
    capacity: _Bytes
    bandwidth: _Rate
    latency: _Seconds
    sector: _Bytes
    line: _Bytes


class _LinkTable(_Strict):
    name: Annotated[StrictStr, Field(min_length=1)]
    bandwidth: _Rate
    latency: _Seconds
    switched: bool
    max_ranks: Annotated[int, Field(ge=1, le=100_000, strict=True)]
    nvls: bool


class _Profile(_Strict):
    schema_: Annotated[Literal[1], Field(alias="schema")]
    name: Annotated[StrictStr, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    aliases: tuple[StrictStr, ...] = ()
    matches: tuple[StrictStr, ...] = ()
    vendor: Annotated[StrictStr, Field(min_length=1)]
    arch: Annotated[StrictStr, Field(min_length=1)]
    compute_capability: Annotated[StrictStr, Field(pattern=r"^\d+\.\d+$")] | None = None
    note: StrictStr = ""
    sm_count: _Count
    marketed_capacity: _Bytes
    power: _Watts
    idle_power: _IdleWatts
    price: _Price
    clock: _ClockTable
    vector: _PeakTable
    compute: Annotated[dict[DType, _PeakTable], Field(min_length=1)]
    memory: Annotated[tuple[_TierTable, ...], Field(min_length=1)]
    link: Annotated[tuple[_LinkTable, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> _Profile:
        names = [tier.name for tier in self.memory]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"memory tier {twice[0]!r} appears twice")
        if "hbm" not in names:
            raise ValueError('the [[memory]] table named "hbm" (main memory of any technology) is missing')
        if self.idle_power.value > self.power.value:
            raise ValueError("idle_power is above power")
        return self


def parse_profile(data: bytes, filename: str) -> Device:
    """Device described by TOML bytes.

    Parameters
    ----------
    data : bytes
        Content of the file; its SHA-256 is the profile hash.
    filename : str
        For messages.

    Raises
    ------
    ProfileError
        Every problem, each as ``file:line: what, what to do``.
    """
    return _parse(data, filename)


@lru_cache(maxsize=256)
def _parse(data: bytes, filename: str) -> Device:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ProfileError([f"{filename}:{line}: not UTF-8; save the file as UTF-8"]) from None
    try:
        document = parse_toml(text, filename)
    except InputError as error:
        raise ProfileError([str(error)]) from None
    return build(document, text, filename, hashlib.sha256(data).hexdigest()[:12])


def build(document: dict[str, Any], text: str, filename: str, profile_hash: str) -> Device:
    """Device from the parsed document; `text` is only searched for line numbers."""
    try:
        profile = _Profile.model_validate(document)
    except ValidationError as error:
        lines = [_problem(e, text, filename) for e in error.errors(include_url=False)]
        raise ProfileError(sorted(set(lines), key=_line_of)) from None
    return Device(
        name=profile.name,
        aliases=profile.aliases,
        matches=profile.matches,
        vendor=profile.vendor,
        arch=profile.arch,
        compute_capability=profile.compute_capability,
        note=profile.note,
        sm_count_source=profile.sm_count,
        clock=Clock(profile.clock.base, profile.clock.boost, profile.clock.max),
        peaks={dtype: _peak(table) for dtype, table in profile.compute.items()},
        vector=_peak(profile.vector),
        memory=tuple(MemoryTier(**dict(tier)) for tier in profile.memory),
        links=tuple(Link(**dict(link)) for link in profile.link),
        marketed_capacity=profile.marketed_capacity,
        power=profile.power,
        idle_power=profile.idle_power,
        price=profile.price,
        profile_hash=profile_hash,
    )


def _peak(table: _PeakTable) -> Peak:
    return Peak(table.dense, table.sparse24, table.fp16_accumulate, table.at)


_MODELS: dict[str, type[BaseModel]] = {
    "clock": _ClockTable,
    "vector": _PeakTable,
    "memory": _TierTable,
    "link": _LinkTable,
}


def _problem(error: Any, text: str, filename: str) -> str:
    """One ``file:line: ...`` line for a pydantic error."""
    loc = [part for part in error["loc"] if part not in ("[key]", "_Number")]
    where = f"{filename}:{_line(text, loc)}"
    names = [str(p) for p in loc if not isinstance(p, int)]
    key = names[-1] if names else ""
    path = ".".join(names)
    kind = error["type"]
    if kind == "extra_forbidden":
        close = suggest(key, _keys(names[:-1]), n=1)
        known = ", ".join(_keys(names[:-1]))
        return f"{where}: unknown key {key!r}, " + (f"did you mean {close[0]!r}?" if close else f"known: {known}")
    if kind == "missing":
        table = ".".join(names[:-1]) or "the profile"
        return f"{where}: key {key!r} is missing from {table}; add it"
    message = str(error["msg"]).removeprefix("Value error, ")
    if names[:1] == ["compute"] and kind == "enum":
        message = f"unknown dtype {key!r}; known: {', '.join(DType)}"
        path = ""
    elif kind == "literal_error" and key == "schema":
        message = f"this version reads schema {SCHEMA}, got {error['input']!r}"
    elif kind.startswith(("string", "literal", "int", "bool")):
        message = f"got {error['input']!r}; {message[:1].lower()}{message[1:]}"
    return f"{where}: {path}: {message}" if path else f"{where}: {message}"


def _keys(parents: list[str]) -> list[str]:
    """Keys the schema knows inside a table."""
    if not parents:
        model: type[BaseModel] = _Profile
    elif parents[0] == "compute":
        if len(parents) == 1:
            return [str(d) for d in DType]
        model = _PeakTable if len(parents) == 2 else _Number
    else:
        model = _MODELS[parents[0]] if len(parents) == 1 and parents[0] in _MODELS else _Number
    return [field.alias or name for name, field in model.model_fields.items()]


def _line(text: str, loc: list[Any]) -> int:
    """Line of the longest prefix of `loc` that the text spells out."""
    best, best_length = 1, 0
    table: list[Any] = []
    counts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        array = re.match(r"\s*\[\[\s*([^\]]+?)\s*\]\]", line)
        header = array or re.match(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?$", line)
        if header:
            table = [part.strip().strip("\"'") for part in header[1].split(".")]
            if array:
                counts[header[1]] = counts.get(header[1], -1) + 1
                table.append(counts[header[1]])
            path = table
        else:
            key = re.match(r"\s*([A-Za-z0-9_.\-\"']+)\s*=", line)
            if not key:
                continue
            path = [*table, *(part.strip("\"'") for part in key[1].split("."))]
        wanted = [str(p) for p in loc[: len(path)]]
        if wanted == [str(p) for p in path] and len(path) > best_length:
            best, best_length = number, len(path)
    return best


def _line_of(problem: str) -> tuple[int, str]:
    match = re.search(r":(\d+): ", problem)
    return (int(match[1]) if match else 0, problem)
