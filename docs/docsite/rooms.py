"""The rooms of the simulator: what each is and sees, and the reference of its modules, from the code itself."""

import re

from docsite.graph import contract, graph, imports, purpose, source
from docsite.markdown import table

ROOMS = (
    *("base", "ops", "model", "device", "trace", "policies"),
    *("roofline", "scenario", "inference", "results", "serving"),
)
"""Rooms in the reference, lowest first: the others, fitting and claims, are read by verbs alone."""


def overview() -> str:
    """One row per room, highest first; the files at the top are one."""
    lines, seen, rows = contract(), imports(2), []
    for number, names in enumerate(lines, start=1):
        below = [name for line in lines[number:] for name in line]
        rooms = [name for name in names if modules(name)]
        files = [f"`{name}`" for name in names if name not in rooms]
        if files:
            rows.append([str(number), " ".join(files), "The verbs: files.", "", "every room"])
        for name in rooms:
            sees = [other for other in below if seen[f"simulator.{name}", f"simulator.{other}"]]
            rows.append([str(number), f"`{name}/`", purpose(name), str(len(modules(name))), ", ".join(sees) or "-"])
    return table(["line", "room", "what it is", "modules", "sees"], rows)


def modules(room: str) -> list[str]:
    """Modules of a room below ``simulator``, by name; [] for a file."""
    start = f"simulator.{room}."
    return sorted(m.removeprefix("simulator.") for m in graph().modules if m.startswith(start))


def reference(room: str) -> str:
    """Modules of a room, but for verbs and for the policies, which have pages of their own."""
    told = [
        m
        for m in modules(room)
        if not m.endswith("__main__") and not re.search(r"^@POLICIES\.register\(", source(m), re.MULTILINE)
    ]
    return "\n".join(f"## `simulator.{m}`\n\n```{{eval-rst}}\n.. automodule:: simulator.{m}\n```\n" for m in told)
