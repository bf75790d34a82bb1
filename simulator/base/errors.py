"""Errors a person can act on: what happened, where, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_OK = 0
EXIT_BAD_INPUT = 2
EXIT_NOTHING_FEASIBLE = 3
EXIT_INTERRUPTED = 130


class ShadowlineError(Exception):
    """An expected ending: printed as one line, never as a traceback.

    Parameters
    ----------
    message : str
        What is wrong and what to do, in one line.
    where : str, optional
        ``file:line`` or the flag the value came from; printed in front.
    """

    exit_code = EXIT_BAD_INPUT

    def __init__(self, message: str, *, where: str | None = None):
        self.message = message
        self.where = where
        super().__init__(f"{where}: {message}" if where else message)


class InputError(ShadowlineError):
    """A value, file or flag that cannot be used as given."""


class UnknownNameError(InputError):
    """A name nobody registered; carries the nearest known ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, where: str | None = None):
        known = sorted(set(known))
        close = suggest(name, known)
        if close:
            hint = f"did you mean {' or '.join(repr(c) for c in close)}?"
        elif len(known) <= 12:
            hint = f"known: {', '.join(known)}"
        else:
            hint = f"{len(known)} are known, e.g. {', '.join(known[:5])}"
        super().__init__(f"unknown {kind} {name!r}; {hint}", where=where)
        self.suggestions = close


class AmbiguousNameError(InputError):
    """An alias that fits several entries."""

    def __init__(self, kind: str, name: str, candidates: Iterable[str], *, where: str | None = None):
        listed = ", ".join(sorted(candidates))
        super().__init__(f"{kind} {name!r} is ambiguous; write one of: {listed}", where=where)


class UnsupportedError(ShadowlineError):
    """The device or model has no number for what was asked; nothing is invented in its place."""


class NothingFeasibleError(ShadowlineError):
    """Every row of the answer is infeasible."""

    exit_code = EXIT_NOTHING_FEASIBLE


def reason(error: OSError) -> str:
    """What the system says of a failed read or write; libraries raise it without an error number too."""
    return error.strerror or (str(error) or type(error).__name__).splitlines()[0]


def suggest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """Known names nearest to `name`, blind to case, space, ``-`` and ``_``."""
    by_key: dict[str, str] = {}
    for candidate in known:
        by_key.setdefault(fold(candidate), candidate)
    hits = difflib.get_close_matches(fold(name), by_key, n=n, cutoff=0.6)
    return [by_key[hit] for hit in hits]


def fold(name: str) -> str:
    """Look-up key of a name: lower case without space, ``-`` and ``_``."""
    return name.casefold().replace(" ", "").replace("-", "").replace("_", "")
