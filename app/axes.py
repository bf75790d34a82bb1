"""Axes of a sweep as the page offers them: their values as text, and the grid they make with the scenario."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields

from simulator.api import Grid, InputError, Scenario
from simulator.scenario.catalogue import CATALOGUE
from simulator.scenario.fields import flag
from simulator.scenario.grid import SETTINGS, policies, whole_numbers

SPARSITY = "sparsity"
LIMIT = 20_000
"""Rows of one sweep on a page; the command line has no such limit."""
RANGES = {
    "batch": "1:256:x2",
    "prompt_tokens": "128:32768:x2",
    "output_tokens": "16:1024:x2",
    "tp": "1,2,4,8",
    SPARSITY: "10:90:+10",
}
"""Numeric axes and the values they start with, as on the command line; sparsity in percent."""
NAMED = ("device", "policy", "model")
LABELS = {
    "batch": "batch [sequences]",
    "prompt_tokens": "prompt [tokens]",
    "output_tokens": "output [tokens]",
    "tp": "tensor-parallel GPUs",
    SPARSITY: "sparsity [%]",
    "device": "device",
    "policy": "policy",
    "model": "model",
}


@dataclass(frozen=True)
class Axis:
    """One free axis and its values."""

    name: str
    values: tuple[str | int, ...]

    @property
    def label(self) -> str:
        """Title with unit."""
        return LABELS[self.name]

    @property
    def column(self) -> str:
        """Column of the sweep that tells its values apart."""
        return "policy" if self.name == SPARSITY else self.name

    @property
    def numeric(self) -> bool:
        """Whether its values have an order."""
        return self.name in RANGES


def start(name: str, scenario: Scenario) -> str:
    """Values a numeric axis starts with; prompts end where the model's context does."""
    if name != "prompt_tokens":
        return RANGES[name]
    longest = CATALOGUE.model(scenario.model).max_context - scenario.output_tokens
    stops = [2**i for i in range(7, 16) if 2**i <= longest]
    return f"{stops[0]}:{stops[-1]}:x2" if len(stops) > 1 else str(max(longest, 1))


def sparsities(scenario: Scenario, percent: tuple[int, ...]) -> dict[str, int]:
    """Spelling of the scenario's policy at each sparsity -> that sparsity [%].

    Raises
    ------
    InputError
        No policy of the scenario has a share to keep.
    """
    members = scenario.policies.members
    for i, member in enumerate(members):
        if "keep" not in type(member).model_fields:
            continue
        out = {}
        for p in percent:
            if p >= 100:
                raise InputError(f"sparsity {p} % leaves nothing; at most 99")
            changed = {**member.model_dump(), "keep": round(1.0 - p / 100.0, 4)}
            other = [*members[:i], type(member)(**changed), *members[i + 1 :]]
            out["+".join(m.spelling for m in other)] = p
        return out
    raise InputError("this axis needs a policy with a share to keep, e.g. teal(keep=0.5); choose one in the sidebar")


def read(name: str, text: str, scenario: Scenario) -> tuple[Axis, dict[str, int]]:
    """Axis of `text`, and for sparsity its spellings."""
    if name == SPARSITY:
        found = sparsities(scenario, whole_numbers(text, "sparsity"))
        return Axis(name, tuple(found)), found
    if name in RANGES:
        return Axis(name, whole_numbers(text, LABELS[name])), {}
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"the {name} axis is empty; choose one or more")
    return Axis(name, policies(lines) if name == "policy" else tuple(dict.fromkeys(lines))), {}


def grid(scenario: Scenario, axes: Mapping[str, tuple[str | int, ...]]) -> Grid:
    """Grid with `axes` (column to values), all else as in the scenario.

    Raises
    ------
    InputError
        More than `LIMIT` points.
    """
    known = {f.name for f in fields(Grid) if f.init}
    single = (*SETTINGS, "trace_transfer", "quality")
    values = {k: v if k in single else (v,) for k, v in scenario.model_dump().items() if k in known}
    values["trace"] = (scenario.trace,) if scenario.trace else ()
    found = Grid(**{**values, **axes})
    if len(found) > LIMIT:
        raise InputError(f"{len(found):,} points; at most {LIMIT:,} here, any number on the command line")
    return found


def command(found: Grid, out: str = "sweep.parquet") -> str:
    """Command line of the same sweep."""
    words = ["python", "-m", "simulator.sweep"]
    default = {f.name: f.default for f in fields(Grid)}
    for name in (f.name for f in fields(Grid) if f.init):
        value = getattr(found, name)
        if value == default[name]:
            continue
        if value is True:
            words.append(flag(name))
        elif name in ("policy", "trace"):
            words += [w for v in value for w in (flag(name), v)]
        else:
            words += [flag(name), ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return shlex.join([*words, "--out", out])


def snippet(found: Grid) -> str:
    """Python of the same sweep."""
    default = {f.name: f.default for f in fields(Grid)}
    told = {f.name: getattr(found, f.name) for f in fields(Grid) if f.init}
    lines = ",\n    ".join(f"{k}={v!r}" for k, v in told.items() if v != default[k])
    return f"from simulator.api import Grid, sweep\n\ngrid = Grid(\n    {lines},\n)\nprint(sweep(grid).to_pandas())"
