"""Engines as text: a table of one's own, and the shipped file with figures found anew."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from simulator.base.files import toml_value
from simulator.roofline.engine import Engine

DIGITS = 3
"""Significant digits of a figure [-]."""
MEASURED = ("spread_decode", "spread_prefill", "spread_queue", "archs", "releases", "pace", "n", "date", "host")
"""What a fit says beside its figures."""


def _heading(name: str) -> str:
    plain = name.replace("-", "").replace("_", "").isalnum()
    return f"[{name}]" if plain else f"[{toml_value(name)}]"


def to_toml(engines: Mapping[str, Engine]) -> str:
    """Text of a file of engines: what differs from an engine's defaults."""
    out = ["# What serving engines add to their kernels; times in seconds. n = measured setups (0: assumed).", ""]
    for name, engine in engines.items():
        out.append(_heading(name))
        values = {f.name: getattr(engine, f.name) for f in fields(engine) if f.name != "name"}
        plain = {f.name: f.default for f in fields(engine)}
        told = {k: v for k, v in values.items() if v != plain[k] and v != {}}
        # Tables go last.
        lines = sorted(told.items(), key=lambda item: isinstance(item[1], dict))
        out += [*(f"{k} = {toml_value(v, DIGITS)}" for k, v in lines), ""]
    return "\n".join(out)


def rewritten(text: str, figures: Mapping[str, Mapping[str, Any]]) -> str:
    """`text` of a file of engines with `figures` by engine and name; comments, order and all else stay as they are.

    A figure without a line goes above the first line of `MEASURED`, or to the end of the engine's.
    """
    out: list[str] = []
    for block in re.split(r"(?m)^(?=\[)", text):
        name = re.match(r'\["?([^"\]]+)', block)
        values = figures.get(name[1], {}) if name else {}
        out.append(_patched(block, values))
    return "".join(out)


def _patched(block: str, values: Mapping[str, Any]) -> str:
    lines, left = block.split("\n"), dict(values)
    for i, line in enumerate(lines):
        key = line.partition("=")[0].strip()
        if key in left:
            lines[i] = f"{key} = {toml_value(left.pop(key), DIGITS)}"
    keys = [line.partition("=")[0].strip() for line in lines]
    end = max((i for i, key in enumerate(keys) if key and not key.startswith("#")), default=0) + 1
    at = next((i for i, key in enumerate(keys) if key in (*MEASURED, "kernels")), end)
    lines[at:at] = [f"{key} = {toml_value(value, DIGITS)}" for key, value in left.items()]
    return "\n".join(lines)
