"""What the installed project requires, by its own metadata: the core and the optional parts (extras)."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple

PROJECT = "shadowline"


class Requirement(NamedTuple):
    """A library asked for on this system: its name, the least version ("" = any), the extra ("" = core)."""

    name: str
    least: str
    extra: str


def requirements() -> Iterator[Requirement]:
    """Libraries of the core and of every extra; an extra that includes another one is not followed.

    Raises
    ------
    importlib.metadata.PackageNotFoundError
        Where the project is imported without being installed.
    """
    for line in metadata.requires(PROJECT) or ():
        spec, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        system = re.search(r"platform_system == ['\"](\w+)['\"]", marker)
        name = re.split(r"[\[<>=!~ ]", spec.strip(), maxsplit=1)[0]
        if name == PROJECT or (system and system[1] != platform.system()):
            continue
        least = re.search(r">=([\d.]+)", spec)
        yield Requirement(name, least[1] if least else "", extra[1] if extra else "")


def install_for(module: str) -> str | None:
    """What to run where `module` cannot be imported; None for one that no extra brings."""
    top = module.partition(".")[0].casefold() or "?"
    try:
        # Some are imported by less than their name: vl-convert-python is vl_convert.
        extras = [r.extra for r in requirements() if r.extra and r.name.casefold().replace("-", "_").startswith(top)]
    except metadata.PackageNotFoundError:
        return None
    return f"pip install '{PROJECT}[{extras[0]}]'" if extras else None
