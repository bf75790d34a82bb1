"""Which GPU generation the next launch is for: tiles that suit one tensor core spill on another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

DEFAULT = 90
"""Where there is neither a GPU nor a `compiling_for`: the interpreter runs Hopper's tiles."""

_asked: ContextVar[int | None] = ContextVar("compute_capability", default=None)


def compute_capability() -> int:
    """Compute capability times ten of the GPU that tiles are chosen for."""
    asked = _asked.get()
    return _present() if asked is None else asked


@contextmanager
def compiling_for(cc: int) -> Iterator[None]:
    """Choose tiles for `cc`, whatever GPU is here."""
    token = _asked.set(cc)
    try:
        yield
    finally:
        _asked.reset(token)


@cache
def _present() -> int:
    import torch

    if not torch.cuda.is_available():
        return DEFAULT
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor
