"""Checks that several nouns make of their fields."""

from __future__ import annotations

from textwrap import shorten

from simulator.base.errors import InputError

MOST_SAID = 60
"""Characters of a value that an error repeats."""


def require_positive(owner: object, *names: str) -> None:
    """Refuse any of the named fields of `owner` that is not a whole number of 1 or more."""
    for name in names:
        value = getattr(owner, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{type(owner).__name__}.{name} is {value!r}; it must be a whole number above 0")


def require_type(kind: type | tuple[type, ...], **named: object) -> None:
    """Refuse any of the named arguments that is no `kind`: what a caller in Python got wrong is one line too.

    Raises
    ------
    InputError
        With the name, what it is and what it must be.
    """
    for name, value in named.items():
        if not isinstance(value, kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            wanted = " or ".join("text" if k is str else k.__name__ for k in kinds)
            told = shorten(repr(value), MOST_SAID, placeholder="...") or "..."
            raise InputError(f"is {told}, of type {type(value).__name__}; it must be of type {wanted}", where=name)
