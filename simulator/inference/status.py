"""Whether a point runs, and if not why."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """What became of a point; arrays hold the numbers, files the words."""

    OK = 0
    DOES_NOT_FIT = 1
    EXCEEDS_CONTEXT = 2
    NOT_APPLICABLE = 3
    UNSUPPORTED_DTYPE = 4

    @property
    def word(self) -> str:
        """As files and pages spell it."""
        return self.name.lower()


STATUSES = tuple(s.word for s in Status)
TIMED = (Status.OK, Status.DOES_NOT_FIT)
"""A point has times where it runs, and where more memory is all it lacks."""
