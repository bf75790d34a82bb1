"""Write device profiles: `Device` to the TOML layout that `simulator.device.file` reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.base.files import toml_value
from simulator.device.types import Device, Sourced

SCHEMA = 1


def to_document(device: Device) -> dict[str, Any]:
    """Plain dictionary in the layout of the file."""
    head: dict[str, Any] = {"schema": SCHEMA, "name": device.name}
    head["aliases"], head["matches"] = list(device.aliases), list(device.matches)
    head["vendor"], head["arch"] = device.vendor, device.arch
    if device.compute_capability is not None:
        head["compute_capability"] = device.compute_capability
    if device.note:
        head["note"] = device.note
    document: dict[str, Any] = {
        **head,
        "clock": {},
        "vector": {},
        "compute": {},
        "memory": [{"name": t.name, "technology": t.technology} for t in device.memory],
        "link": [
            {"name": k.name, "switched": k.switched, "max_ranks": k.max_ranks, "nvls": k.nvls} for k in device.links
        ],
    }
    for path, number in device.facts():
        table, key = table_of(document, path)
        table[key] = inline(number)
    for path, peak in device.peak_tables():
        if peak.at != "boost":
            table_of(document, f"{path}.at")[0]["at"] = peak.at
    return document


def to_toml(device: Device) -> str:
    """Profile text of `device`, which `parse_profile` reads back to the same numbers."""
    return write_document(to_document(device))


def write_document(document: Mapping[str, Any]) -> str:
    """TOML text of a profile dictionary: scalars first, one number per line, tables after."""
    tables = ("clock", "vector", "compute", "memory", "link")
    lines = [_entry(key, value) for key, value in document.items() if key not in tables]
    for name in tables:
        value = document[name]
        if name == "compute":
            for dtype, table in value.items():
                lines += ["", f"[compute.{dtype}]", *(_entry(k, v) for k, v in table.items())]
        elif isinstance(value, list):
            for table in value:
                lines += ["", f"[[{name}]]", *(_entry(k, v) for k, v in table.items())]
        else:
            lines += ["", f"[{name}]", *(_entry(k, v) for k, v in value.items())]
    return "\n".join(lines) + "\n"


def inline(number: Sourced) -> dict[str, str]:
    """Inline table of one number."""
    table = {"value": number.text, "source": number.source, "kind": number.kind}
    if number.note:
        table["note"] = number.note
    if number.date:
        table["date"] = number.date
    return table


def table_of(document: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The (sub)table that holds the last key of `path`."""
    *parents, key = path.split(".")
    table: Any = document
    for part in parents:
        if isinstance(table, list):
            table = table[int(part)] if part.isdigit() else next(t for t in table if t["name"] == part)
        else:
            table = table.setdefault(part, {})
    return table, key


def _entry(key: str, value: Any) -> str:
    return f"{key} = {toml_value(value)}"
