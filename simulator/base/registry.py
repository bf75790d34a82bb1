"""One registry for everything that can be added from outside: decorator first, entry points second."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from textwrap import shorten
from threading import RLock
from types import ModuleType
from typing import Generic, TypeVar

from simulator.base.checks import require_type
from simulator.base.console import visible
from simulator.base.errors import UnknownNameError, fold
from simulator.base.extras import PROJECT

T = TypeVar("T")
MOST_SAID = 300
"""Characters of what a plug-in raised."""
LOGGER = logging.getLogger("shadowline")
"""One warning per plug-in that failed; without a handler of the caller's, Python prints it on stderr."""


@dataclass(frozen=True)
class PlugIn:
    """An entry point of another package, and why nothing of it is used ("" where it loaded)."""

    name: str
    package: str
    kind: str
    failure: str = ""

    def __str__(self) -> str:
        return f"{self.package} does not load: {self.failure}"


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
        self._plug_ins: list[PlugIn] = []
        self._began = self._ended = False
        self._lock = RLock()

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that adds a member under `name`; a second one of that name is an error."""

        def add(member: T) -> T:
            if fold(name) in {fold(n) for n in self._members}:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._members[name] = member
            return member

        return add

    def plug_ins(self) -> tuple[PlugIn, ...]:
        """Entry points of other packages, those that failed included."""
        self._load()
        return tuple(self._plug_ins)

    def _load(self) -> dict[str, T]:
        if self._ended:
            return self._members
        with self._lock:
            if not self._began:
                self._began = True
                points = [(p.dist.name if p.dist else "", p) for p in metadata.entry_points(group=self.group)]
                # Ours first, whatever the order of sys.path: a name that is taken is the other's mistake.
                for package, point in sorted(points, key=lambda pair: pair[0] != PROJECT):
                    if package == PROJECT:
                        point.load()
                    else:
                        self._plug_in(package or "unknown package", point)
                self._ended = True
        return self._members

    def _plug_in(self, package: str, point: metadata.EntryPoint) -> None:
        """Load one entry point of somebody else's: all its members, or none and a warning of one line."""
        before, failure = dict(self._members), ""
        try:
            loaded = point.load()
            if not isinstance(loaded, ModuleType) and loaded not in self._members.values():
                failure = f"{point.value} is neither a module nor a registered {self.kind}"
        # Whatever happens while somebody else's module is imported, the rest goes on.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            failure = shorten(visible(f"{type(error).__name__}: {error}"), MOST_SAID)
        found = PlugIn(point.name, package, self.kind, failure)
        self._plug_ins.append(found)
        if failure:
            self._members.clear()
            self._members.update(before)
            LOGGER.warning("warning: %s; mend it or uninstall %s", found, package)

    def _own(self, name: str) -> None:
        """Load our module of that very name alone: a plain dense prediction needs none of the others."""
        for point in metadata.entry_points(group=self.group, name=name):
            if point.dist is not None and point.dist.name == PROJECT:
                point.load()

    def __getitem__(self, name: str) -> T:
        require_type(str, **{self.kind: name})
        if not self._began:
            self._own(name)
        members = self._members if name in self._members else self._load()
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
