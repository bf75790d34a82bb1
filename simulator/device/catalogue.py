"""Devices: datasheet facts with their sources, and the fits measured on them, found by name, alias, driver or path.

A device is one TOML file in `hw_profiles/devices`, in the user's own folder, or anywhere; its fits lie in
`hw_profiles/measured/<name>` and in the user's ``measured/<name>``. What was read is remembered by content: an
edited file answers anew. The types are in `simulator.device.types`, reading in `simulator.device.file`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from simulator.base.checks import require_type
from simulator.base.errors import AmbiguousNameError, InputError, UnknownNameError, fold, reason, suggest
from simulator.base.files import read_limited
from simulator.base.memo import Stamp
from simulator.base.units import exact_quantity
from simulator.device.fits import DEFAULT
from simulator.device.measured import Measured, shipped
from simulator.device.text import inline, table_of, to_document, to_toml, write_document
from simulator.device.types import Clock, Device, Kind, Link, MemoryTier, Peak, Sourced

__all__ = [
    "Clock",
    "Device",
    "Kind",
    "Link",
    "MemoryTier",
    "Peak",
    "Sourced",
    "edited",
    "list_devices",
    "load",
    "measured",
    "resolve",
    "scaled",
    "to_toml",
    "user_data_dir",
]

_MOST_BYTES = 2**20
LOGGER = logging.getLogger("shadowline")


def edited(device: Device, values: Mapping[str, str], source: str = "user-edit") -> Device:
    """Copy of `device` with some numbers replaced, checked like a file.

    Parameters
    ----------
    values : mapping
        Path as in `Device.facts` to text with a unit: ``{"price": "2.1 USD/h"}``.

    Examples
    --------
    >>> from simulator.api import device, edited
    >>> edited(device("l40s"), {"memory.hbm.bandwidth": "1 TB/s"}).hbm_bytes_per_s
    1000000000000.0
    """
    from simulator.device.file import ProfileError, build

    require_type(Device, device=device)
    require_type(Mapping, values=values)
    document = to_document(device)
    old = dict(device.facts())
    for path, text in values.items():
        if path not in old:
            close = suggest(path, old)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(old)}"
            raise InputError(f"{device.name} has no number {path!r}; {hint}")
        table, key = table_of(document, path)
        table[key] = {**inline(old[path]), "value": text, "source": source, "kind": "assumed"}
        table[key]["note"] = f"was {old[path].text} ({old[path].source})"
    written = write_document(document)
    digest = hashlib.sha256(written.encode()).hexdigest()[:12]
    try:
        return replace(build(document, written, device.name, digest), measured=device.measured)
    except ProfileError as error:
        # Lines of the text in between would mean nothing to whoever gave the values.
        problems = [re.sub(r":\d+:", ":", problem, count=1) for problem in error.problems]
        raise InputError("\n".join(problems)) from None


def scaled(
    device: Device,
    *,
    bandwidth: float = 1.0,
    math: float = 1.0,
    link: float = 1.0,
    host: float = 1.0,
    capacity: float = 1.0,
    latency: float = 1.0,
    power: float = 1.0,
    price: float = 1.0,
) -> Device:
    """Copy of `device` with groups of numbers multiplied, for what-ifs and property tests.

    `bandwidth` takes l2 and hbm, `host` the host and ssd tiers, `math` every peak, `link` every
    device link, `capacity` the hbm size, `latency` all memory and link latencies, `power` limit and
    idle.
    """
    factors = {
        "memory.l2.bandwidth": bandwidth,
        "memory.hbm.bandwidth": bandwidth,
        "memory.host.bandwidth": host,
        "memory.ssd.bandwidth": host,
        "memory.hbm.capacity": capacity,
        "marketed_capacity": capacity,
        "power": power,
        "idle_power": power,
        "price": price,
    }
    values: dict[str, str] = {}
    for path, number in device.facts():
        factor = factors.get(path, 1.0)
        if path.startswith(("compute.", "vector.")):
            factor = math
        elif path.startswith("link.") and path.endswith(".bandwidth"):
            factor = link
        elif path.endswith(".latency"):
            factor = latency
        if factor != 1.0:
            values[path] = exact_quantity(number.value * factor, number.unit)
    return edited(device, values, source="scaled") if values else device


def user_data_dir() -> Path:
    """Folder of the user's own devices and measurements, ``$SHADOWLINE_HOME`` if set."""
    home = os.environ.get("SHADOWLINE_HOME")
    if home:
        return Path(home)
    import platformdirs

    return Path(platformdirs.user_data_dir("shadowline", appauthor=False))


def list_devices() -> tuple[str, ...]:
    """Names of all known devices, the user's own included, sorted."""
    return tuple(sorted(_files()))


def resolve(name: str) -> str:
    """Canonical name for a spelling of it.

    Blind to case, space, ``-`` and ``_``; a device's own name wins over an alias or a driver's
    name string.

    Raises
    ------
    AmbiguousNameError
        When several profiles claim the alias ("a100").
    UnknownNameError
        With the nearest names.
    """
    key = fold(name)
    files = _files()
    if name in files:
        return name
    for known in files:
        if fold(known) == key:
            return known
    spellings = _spellings(tuple((known, _stamp(path)) for known, path in files.items()))
    candidates = spellings.get(key, ())
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise AmbiguousNameError("device", name, candidates)
    raise UnknownNameError("device", name, (*files, *(s for s in spellings if s != fold(s))))


def load(name_or_path: str | Path) -> Device:
    """Device by name, alias, driver name string, or path of a ``.toml``, with the fits measured on it.

    Raises
    ------
    InputError
        ``file:line: what, what to do`` for every problem of a profile at once.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or os.sep in text:
        file, shown = _stamp(Path(text)), text
        return _with(file, shown, *_fit_files(_profile(file, shown).name))
    name = resolve(text)
    path = _files()[name]
    file, shown = _stamp(path), path.name if _package_files().get(name) is path else str(path)
    found = _profile(file, shown).name
    if fold(found) != fold(name):
        raise InputError(f"name is {found!r} but the file is called {name!r}; make them equal", where=str(path))
    return _with(file, shown, *_fit_files(found))


def measured(name: str) -> Measured:
    """Fits that answer for a device called `name`, known or not; ``_default`` has the pooled ones only."""
    return _measured(*_fit_files(name))


def _fit_files(name: str) -> tuple[tuple[Stamp, ...], tuple[Stamp, ...]]:
    """Fit files of the device and pooled ones, the user's first."""
    homes = (os.path.join(user_data_dir(), "measured"), os.path.join(shipped(), "measured"))
    own, pooled = (
        tuple(Stamp.of(path) for home in homes for path in _tomls(os.path.join(home, folder)))
        for folder in (name, DEFAULT)
    )
    return own, pooled


def _tomls(folder: str) -> list[str]:
    """TOML files of a folder, sorted; none where it is not there."""
    try:
        return sorted(entry.path for entry in os.scandir(folder) if entry.name.endswith(".toml"))
    except (FileNotFoundError, NotADirectoryError):
        return []


@lru_cache(maxsize=256)
def _measured(own: tuple[Stamp, ...], pooled: tuple[Stamp, ...]) -> Measured:
    def by_family(files: tuple[Stamp, ...]) -> dict[str, tuple[Stamp, ...]]:
        stems = [Path(s.path).stem for s in files]
        return {stem: tuple(s for s, of in zip(files, stems, strict=True) if of == stem) for stem in stems}

    return Measured(by_family(own), by_family(pooled))


@lru_cache(maxsize=256)
def _profile(file: Stamp, shown: str) -> Device:
    from simulator.device.file import parse_profile

    return parse_profile(read_limited(Path(file.path), _MOST_BYTES), shown)


@lru_cache(maxsize=256)
def _with(file: Stamp, shown: str, own: tuple[Stamp, ...], pooled: tuple[Stamp, ...]) -> Device:
    return replace(_profile(file, shown), measured=_measured(own, pooled))


def _stamp(path: Path) -> Stamp:
    if not os.path.lexists(path):
        raise InputError("no such device file; give a path to a .toml or a name", where=str(path))
    try:
        return Stamp.of(path)
    except OSError as error:
        raise InputError(f"cannot read: {reason(error)}", where=str(path)) from None


@lru_cache(maxsize=1)
def _package_files() -> dict[str, Path]:
    """Shipped profiles by name."""
    return {p.stem: p for p in map(Path, _tomls(os.path.join(shipped(), "devices")))}


def _files() -> dict[str, Path]:
    """Profiles by name; the user's own shadow shipped ones of the same name."""
    mine = {p.stem: p for p in map(Path, _tomls(os.path.join(user_data_dir(), "devices")))}
    return {**_package_files(), **mine} if mine else _package_files()


@lru_cache(maxsize=8)
def _spellings(files: tuple[tuple[str, Stamp], ...]) -> dict[str, tuple[str, ...]]:
    """Folded alias or driver string -> names that claim it."""
    claims: dict[str, set[str]] = {}
    for name, file in files:
        # Only the keys above the first table are parsed: the index of all files must stay fast.
        head = read_limited(Path(file.path), _MOST_BYTES).decode("utf-8", "replace").split("\n[", 1)[0]
        try:
            top = tomllib.loads(head)
        except tomllib.TOMLDecodeError as error:
            # One of the user's own that is broken must not hide the others; asked for itself, it is refused.
            LOGGER.warning("warning: %s: its aliases are left out, not valid TOML: %s", file.path, error)
            continue
        for spelling in (*top.get("aliases", ()), *top.get("matches", ())):
            claims.setdefault(fold(spelling), set()).add(name)
    return {key: tuple(sorted(names)) for key, names in claims.items()}
