"""How much memory a file of somebody else's may take: one budget for every reader, ``SHADOWLINE_MEMORY``."""

from __future__ import annotations

import os

from simulator.base.errors import InputError
from simulator.base.units import format_bytes, parse_quantity

VARIABLE = "SHADOWLINE_MEMORY"
DEFAULT_BYTES = 2e9


def budget_bytes() -> float:
    """Memory that what is read of one file may take [B]; 2 GB, or what the environment says.

    Raises
    ------
    InputError
        ``SHADOWLINE_MEMORY`` is no size above nothing.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return DEFAULT_BYTES
    try:
        found = parse_quantity(text, "B")
    except InputError as error:
        raise InputError(error.message, where=VARIABLE) from None
    if found <= 0.0:
        raise InputError(f"is {text!r}; it must be above nothing, e.g. 8GB", where=VARIABLE)
    return found


def refuse_beyond_budget(needed_bytes: float, where: str) -> None:
    """Refuse, before it is taken, more memory than the budget.

    Raises
    ------
    InputError
        With what is needed, and how to allow it.
    """
    allowed = budget_bytes()
    if needed_bytes > allowed:
        raise InputError(
            f"unpacks to {format_bytes(needed_bytes)}, more than the {format_bytes(allowed)} that a file may take;"
            f" set {VARIABLE} to allow more",
            where=where,
        )
