"""Files that appear whole or not at all, and files of others that are read only up to a size."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shutil
import stat
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from simulator.base.errors import InputError, reason
from simulator.base.lock import taken

MOST_KEY_PARTS = 200
"""Parts of a dotted TOML key; `tomllib` needs memory quadratic in them."""


@contextlib.contextmanager
def replaced(path: Path, where: str = "--out") -> Iterator[Path]:
    """A temporary name beside `path`, which becomes `path` when the block ends well and vanishes when it does not.

    What the block left is on the disk before it appears. A folder takes the place of a folder; the caller has made
    sure that the one there may go. Copies that killed runs left for the same `path` are removed.

    Parameters
    ----------
    path : Path
        Its folder is made where missing.
    where : str
        The flag that named it, for the error.

    Raises
    ------
    InputError
        The file cannot be written, or is no file: a device, a pipe.
    """
    refuse_special(path, where)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clean(path)
        with _aside(path) as folder:
            fresh = folder / path.name
            yield fresh
            _sync(fresh)
            if fresh.is_dir() and path.is_dir():
                # Whoever finds `_OLD` knows that what lies beside it is whole.
                path.rename(folder / _OLD)
            os.replace(fresh, path)
            _sync_one(path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}", where=where) from None


_OLD = ".old"


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A locked folder beside `path`; its random name keeps anybody from laying a link there first."""
    while True:
        prefix = f".{path.name[:80]}."
        with (
            tempfile.TemporaryDirectory(
                prefix=prefix, suffix=".tmp", dir=path.parent, ignore_cleanup_errors=True
            ) as name,
            _held(Path(name)) as ours,
        ):
            if ours:
                yield Path(name)
                return


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Whether the lock of a folder that is still there is ours while the block runs."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        yield taken(handle) and folder.exists()
    finally:
        os.close(handle)


def _clean(path: Path) -> None:
    """Remove what killed runs left for `path`; where one was between the renames of a folder, end them."""
    for left in path.parent.glob(f".{glob.escape(path.name[:80])}.????????.tmp"):
        with _held(left) as dead:
            if not dead or not {e.name for e in left.iterdir()} <= {path.name, _OLD}:
                continue
            if (left / _OLD).is_dir() and (left / path.name).is_dir() and not path.exists():
                (left / path.name).rename(path)
            shutil.rmtree(left, ignore_errors=True)


def _sync(path: Path) -> None:
    """Put a file, or a folder and all in it, on the disk."""
    if path.is_dir():
        for inside in path.iterdir():
            _sync(inside)
    _sync_one(path)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def refuse_special(path: Path, where: str) -> None:
    """Refuse what is no file and no folder: a device, a pipe, a socket, or a path without a name.

    Raises
    ------
    InputError
        As above; a path that is not there is none of them.
    """
    if path.name in ("", ".."):
        raise InputError(f"{str(path)!r} has no name of its own; give one", where=where)
    kind = special(path)
    if kind:
        raise InputError(f"{path} is {kind}, not a file", where=where)


def special(path: Path) -> str:
    """What a device, a pipe or a socket is called; "" for files, folders and what is not there."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return ""
    kinds = {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "")


def refuse_unwritable(path: Path, flag: str) -> None:
    """Say now that the file `path` cannot be written, not when everything is computed; nothing stays behind.

    Raises
    ------
    InputError
        A folder, a device, a folder above it that cannot be written to.
    """
    refuse_special(path, flag)
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder", where=flag)
    there = next(p for p in path.absolute().parents if p.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}", where=flag) from None


def refuse_foreign(folder: Path, ours: str, where: str = "--out") -> None:
    """Refuse a folder of a run's own state that holds what no such run writes.

    Parameters
    ----------
    ours : str
        Regular expression of the names that a run leaves in it.

    Raises
    ------
    InputError
        Naming what is not ours.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise InputError(f"{folder} is in the way: it is no folder of ours; move it, or name another file", where=where)
    other = sorted(e.name for e in os.scandir(folder) if not re.fullmatch(ours, e.name))
    if other:
        raise InputError(f"{folder} holds {other[0]!r}, which is not ours; move it, or name another file", where=where)


@contextlib.contextmanager
def scratch(folder: Path, name: str) -> Iterator[Path]:
    """An empty folder in `folder` for what is needed while the block runs; those of killed runs are removed."""
    path = folder / name
    _clean(path)
    with _aside(path) as aside:
        (aside / name).mkdir()
        yield aside / name


def refuse_overwriting(outputs: Iterable[tuple[str, Path | None]], inputs: Iterable[tuple[str, Path | None]]) -> None:
    """Refuse an output that is an input of the same run, or another output of it.

    Parameters
    ----------
    outputs, inputs : iterable of (flag, path or None)
        Names that are no paths may stand among the inputs: what is not there cannot be overwritten.

    Raises
    ------
    InputError
        Naming both flags.
    """
    seen = [(flag, path, "reads") for flag, path in inputs if path is not None]
    for flag, path in outputs:
        if path is None:
            continue
        for other, known, verb in seen:
            if _same(path, known) or (verb == "reads" and _inside(path, known)):
                raise InputError(f"{path} is what {other} {verb}; choose another name", where=flag)
        seen.append((flag, path, "writes"))


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return os.path.realpath(one) == os.path.realpath(other)


def _inside(path: Path, folder: Path) -> bool:
    """Whether `path` is a file that is there, in the folder `folder`."""
    return path.is_file() and folder.is_dir() and Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents


def read_limited(path: Path, most_bytes: int) -> bytes:
    """Content of `path`, where it is a file of at most `most_bytes` [B].

    Raises
    ------
    InputError
        It cannot be read, is larger, or is a device, a pipe or a socket.
    """
    if special(path):
        raise InputError(f"cannot read: it is {special(path)}, not a file", where=str(path))
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise InputError(f"cannot read: {why}", where=str(path)) from None
    if len(content) > most_bytes:
        raise InputError(f"is larger than {most_bytes / 2**20:g} MiB", where=str(path))
    return content


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Document of TOML text of somebody else's.

    Raises
    ------
    InputError
        ``where:line`` and what is wrong.
    """
    plain = re.sub(r"\"[^\"\n]*\"|'[^'\n]*'|[A-Za-z0-9_-]+", "k", text)
    if "k." * MOST_KEY_PARTS in re.sub(r"[ \t]+", "", plain):
        raise InputError(f"not valid TOML: a key of more than {MOST_KEY_PARTS} parts", where=f"{where}:1")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = int(match[1]) if match else max(len(text.splitlines()), 1)
        what = re.sub(r" \(at .*\)$", "", str(error))
        raise InputError(f"not valid TOML: {what[:1].lower()}{what[1:]}", where=f"{where}:{line}") from None
    except (ValueError, RecursionError):
        # A number of thousands of digits, or brackets beyond the stack.
        raise InputError("not valid TOML: a number too long or nested too deeply", where=f"{where}:1") from None


def toml_value(value: Any, digits: int | None = None, *, tight: bool = False) -> str:
    """TOML text of a string, a number, a truth, or of lists and tables of them; `digits` of a float where given, no
    blanks between items where `tight`.
    """
    comma = "," if tight else ", "
    if isinstance(value, Mapping):
        equals, blank = ("=", "") if tight else (" = ", " ")
        items = (f"{_toml_key(str(k))}{equals}{toml_value(v, digits, tight=tight)}" for k, v in value.items())
        return f"{{{blank}{comma.join(items)}{blank}}}"
    if isinstance(value, list | tuple):
        return "[" + comma.join(toml_value(v, digits, tight=tight) for v in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        text = repr(value) if digits is None else f"{value:.{digits}g}"
        return text if any(c in text for c in ".en") else text + ".0"
    # JSON strings are TOML basic strings, except that TOML also wants DEL escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)
