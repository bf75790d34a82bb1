"""Checks that several nouns make of their fields."""

from __future__ import annotations

from simulator.base.errors import InputError


def require_positive(owner: object, *names: str) -> None:
    """Refuse any of the named fields of `owner` that is not a whole number of 1 or more."""
    for name in names:
        value = getattr(owner, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{type(owner).__name__}.{name} is {value!r}; it must be a whole number above 0")
