"""One writer at a time: a lock that the kernel drops with its process, however that ends."""

from __future__ import annotations

import datetime as dt
import json
import os
import socket
from pathlib import Path

from simulator.base.errors import InputError, reason

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where an open file cannot be removed
    fcntl = None


def taken(handle: int) -> bool:
    """Whether the lock of an open file or folder is ours now; False where a live process has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class WriterLock:
    """The right to write `out`, held as long as the process lives or until `release`.

    The file says who holds it, for a person; what counts is the kernel's lock on it, so neither a dead writer nor
    another process with its old number keeps anybody out.

    Parameters
    ----------
    path : Path
        File of the lock, made where missing.
    out : Path
        What its holder writes, for the error.

    Raises
    ------
    InputError
        A live process holds it: which, on which host, since when; or the place cannot be locked.
    """

    def __init__(self, path: Path, out: Path):
        self.path = path
        while True:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                free = taken(self._handle)
            except OSError as error:
                os.close(self._handle)
                raise InputError(f"cannot lock {path}: {reason(error)}", where="--out") from None
            if not free:
                holder = _holder(os.pread(self._handle, 4096, 0))
                os.close(self._handle)
                raise InputError(
                    f"{holder} is writing {out} (lock {path}); wait for it or choose another name", where="--out"
                )
            if _is_at(self._handle, path):
                break
            # Its last holder removed it in between.
            os.close(self._handle)
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        told = json.dumps({"process": os.getpid(), "host": socket.gethostname(), "started": now})
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, told.encode() + b"\n", 0)

    def release(self) -> None:
        """Let another writer in; may be called again."""
        if self._handle >= 0:
            # Where it was moved away with its folder, another writer may have made one there.
            if _is_at(self._handle, self.path):
                self.path.unlink()
            os.close(self._handle)
            self._handle = -1


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(raw: bytes) -> str:
    try:
        told = json.loads(raw)
        return f"process {told['process']} on {told['host']}, since {told['started']},"
    except (ValueError, TypeError, KeyError):
        return "another process"
