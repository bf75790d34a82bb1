"""One registry for everything that can be added from outside: decorator first, entry points second."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from simulator.base.errors import UnknownNameError, fold

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Names to members, in order of registration.

    Parameters
    ----------
    kind : str
        What a member is called in messages ("policy").
    group : str
        Entry-point group that outside packages use; our own members take the same path.
    """

    def __init__(self, kind: str, group: str):
        self.kind, self.group = kind, group
        self._members: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that adds a member under `name`; a second one of that name is an error."""

        def add(member: T) -> T:
            if fold(name) in {fold(n) for n in self._members}:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._members[name] = member
            return member

        return add

    def _load(self) -> dict[str, T]:
        if not self._loaded:
            from importlib.metadata import entry_points

            self._loaded = True
            for point in entry_points(group=self.group):
                point.load()
        return self._members

    def __getitem__(self, name: str) -> T:
        members = self._load()
        for known, member in members.items():
            if fold(known) == fold(name):
                return member
        raise UnknownNameError(self.kind, name, members)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and fold(name) in {fold(n) for n in self._load()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._load())

    def __len__(self) -> int:
        return len(self._load())
