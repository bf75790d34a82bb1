"""``name(key=value,...)`` on the command line, for everything of the simulation that is not a policy."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from simulator.base.errors import InputError, UnknownNameError

_CALL = re.compile(r"\s*([a-z][a-z0-9_-]*)\s*(?:\((.*)\))?\s*")


def parse_call(text: str, known: Mapping[str, Mapping[str, float | None]], where: str) -> tuple[str, dict[str, float]]:
    """Name and numbers of `text`.

    Parameters
    ----------
    known : mapping
        Names to their parameters and defaults; None marks one that must be given.
    where : str
        The flag, for messages.
    """
    match = _CALL.fullmatch(text.casefold())
    if match is None:
        raise InputError(f"cannot read {text!r}; write name(key=number,...)", where=where)
    name, inside = match[1], match[2] or ""
    if name not in known:
        raise UnknownNameError("name", name, known, where=where)
    values: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in inside.split(","))):
        key, _, number = (s.strip() for s in part.partition("="))
        if key not in known[name]:
            raise UnknownNameError(f"parameter of {name}", key, known[name], where=where)
        if key in values:
            raise InputError(f"{key!r} is given twice", where=where)
        try:
            values[key] = float(number)
        except ValueError:
            values[key] = math.nan
        if not math.isfinite(values[key]):
            raise InputError(f"{part!r}: {number!r} is not a number", where=where)
    for key, default in known[name].items():
        if key not in values:
            if default is None:
                raise InputError(f"{name} needs {key!r}", where=where)
            values[key] = default
    return name, values
