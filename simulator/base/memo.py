"""What was made of files, made again where a file has changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from importlib.resources.abc import Traversable
from pathlib import Path
from threading import Lock
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Stamp(NamedTuple):
    """A file as it was when it was seen, or the names in a folder; what changed since has another stamp."""

    path: str
    mtime_ns: int = 0
    size: int = 0
    inode: int = 0

    @classmethod
    def of(cls, path: Path | str) -> Stamp:
        """Stamp of an existing file or folder."""
        found = os.stat(path)
        return cls(str(path), found.st_mtime_ns, found.st_size, found.st_ino)


def stamp(path: Path | Traversable) -> Stamp:
    """`Stamp.of`; a path that is not there, and one inside an archive, is told by its name alone."""
    try:
        return Stamp.of(path) if isinstance(path, Path) else Stamp(str(path))
    except (OSError, ValueError):
        return Stamp(str(path))


def stamp_of_files(folder: Path) -> tuple[Stamp, ...]:
    """`stamp` of a folder and of all that lies directly in it."""
    try:
        inside = sorted(entry.path for entry in os.scandir(folder))
    except OSError:
        inside = []
    return (stamp(folder), *(stamp(Path(path)) for path in inside))


class Memo(Generic[T]):
    """Values by key, each with the stamp of what it was made of; the oldest are forgotten beyond `most`."""

    def __init__(self, most: int):
        self.most = most
        self._kept: dict[Hashable, tuple[Hashable, T]] = {}
        self._lock = Lock()

    def __call__(self, key: Hashable, of: Hashable, make: Callable[[], T]) -> T:
        """The value of `key` if it was made of what has the stamp `of`, else that of `make`."""
        kept = self._kept.get(key)
        if kept is not None and kept[0] == of:
            return kept[1]
        value = make()
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = (of, value)
            while len(self._kept) > self.most:
                del self._kept[next(iter(self._kept))]
        return value
