"""What was measured of one device: its own fits and the pooled ones it may borrow, read when first asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache
from importlib import resources
from pathlib import Path

from simulator.base.files import read_limited
from simulator.base.memo import Stamp
from simulator.device.fit_file import parse
from simulator.device.fits import Fit

_MOST_BYTES = 2**24


Files = Mapping[str, tuple[Stamp, ...]]
"""Fit files by family."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Fits that may answer for one device; equal where the same unchanged files, or equal fits given, would.

    Attributes
    ----------
    own_files, pooled_files : mapping of family to stamps
        Files of the device itself, the user's first, and of its like.
    given : mapping of family to (own, pooled)
        Fits in memory that stand for the files of their family.
    """

    own_files: Files = field(default_factory=dict)
    pooled_files: Files = field(default_factory=dict)
    given: Mapping[str, tuple[tuple[Fit, ...], tuple[Fit, ...]]] = field(default_factory=dict, repr=False)

    def own(self, family: str) -> tuple[Fit, ...]:
        """Fits of the device itself, the user's first; may be empty."""
        return self.given[family][0] if family in self.given else _read(self.own_files.get(family, ()))

    def pooled(self, family: str) -> tuple[Fit, ...]:
        """Fits by kernel generation, by architecture and of all devices; may be empty."""
        return self.given[family][1] if family in self.given else _read(self.pooled_files.get(family, ()))

    def replaced(self, family: str, own: tuple[Fit, ...], pooled: tuple[Fit, ...]) -> Measured:
        """A copy in which these fits stand for all others of `family`."""
        return Measured(self.own_files, self.pooled_files, {**self.given, family: (own, pooled)})

    @property
    def families(self) -> tuple[str, ...]:
        """Families that were measured on the device itself, sorted."""
        return tuple(f for f in sorted({*self.own_files, *self.given}) if self.own(f))

    @cached_property
    def digest(self) -> str:
        """12 hex digits over the contents of everything that may answer."""
        total = hashlib.sha256()
        for files in (self.own_files, self.pooled_files):
            for family in sorted(set(files) - set(self.given)):
                total.update(b"".join(_digest(s) for s in files[family]))
        for family in sorted(self.given):
            total.update(self._given_text[family].encode())
        return total.hexdigest()[:12]

    @cached_property
    def _given_text(self) -> dict[str, str]:
        return {k: "".join(_text(f) for part in v for f in part) for k, v in self.given.items()}

    @cached_property
    def _hash(self) -> int:
        # Of what was seen, not of what the files hold by now: a device loaded before an edit is another.
        files = (tuple(sorted(f.items())) for f in (self.own_files, self.pooled_files))
        return hash((*files, *sorted(self._given_text.items())))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Measured):
            return NotImplemented
        if self is other:
            return True
        same = (self.own_files, self.pooled_files) == (other.own_files, other.pooled_files)
        return same and self._given_text == other._given_text

    def __hash__(self) -> int:
        return self._hash


def _read(files: tuple[Stamp, ...]) -> tuple[Fit, ...]:
    return tuple(f for s in files for f in _fits_of(s))


@cache
def shipped() -> str:
    """Folder of the shipped profiles and fits."""
    with resources.as_file(resources.files("hw_profiles")) as folder:
        return str(folder)


@lru_cache(maxsize=512)
def _fits_of(file: Stamp) -> tuple[Fit, ...]:
    fits = parse(read_limited(Path(file.path), _MOST_BYTES).decode("utf-8", "replace"), file.path)
    return fits if file.path.startswith(shipped() + os.sep) else tuple(replace(f, by_user=True) for f in fits)


@lru_cache(maxsize=512)
def _digest(file: Stamp) -> bytes:
    return hashlib.sha256(read_limited(Path(file.path), _MOST_BYTES)).digest()


def _text(fit: Fit) -> str:
    surface = "" if fit.surface is None else f"{fit.surface.axes}{fit.surface.values.tobytes().hex()}"
    named = (fit.family, fit.device, fit.dtype, fit.library, dict(fit.coefficients), fit.residual, fit.sources)
    return f"{named}{fit.releases}{surface}"
