"""The one door to the device: every kernel launches here, so that others can watch.

`captured` notes launches: `sparse_kernels.compile` compiles exactly what would run, and the number of launches
is counted, not declared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sparse_kernels import interpreter


def cdiv(n: int, block: int) -> int:
    """Blocks of `block` that cover `n`."""
    return -(-n // block)


def power_of_2(n: int) -> int:
    """The least power of two that is at least `n`."""
    return 1 << max(n - 1, 0).bit_length()


_captures: list[tuple[list[Launch], bool]] = []


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes
    ----------
    kernel : triton.JITFunction
    grid : tuple of int
    arguments : mapping of str to Any
        By the kernel's parameter names: tensors, numbers, and constexpr values.
    num_warps, num_stages : int
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    num_warps: int
    num_stages: int

    @property
    def name(self) -> str:
        """Name of the kernel function."""
        return self.kernel.fn.__name__

    @property
    def constants(self) -> dict[str, Any]:
        """Arguments the kernel declares ``tl.constexpr``."""
        notes = self.kernel.fn.__annotations__
        return {k: v for k, v in self.arguments.items() if "constexpr" in str(notes.get(k, ""))}


def launch(kernel: Any, grid: tuple[int, ...], *, num_warps: int = 4, num_stages: int = 3, **arguments: Any) -> None:
    """Run ``kernel[grid](**arguments)``, or only note it where `captured` says so.

    An empty grid launches nothing, as an empty selection asks for nothing.
    """
    if not all(grid):
        return
    run = True
    for found, runs in _captures:
        found.append(Launch(kernel, grid, arguments, num_warps, num_stages))
        run = run and runs
    if run:
        interpreter.mend()
        kernel[grid](**arguments, num_warps=num_warps, num_stages=num_stages)


@contextmanager
def captured(*, run: bool = False) -> Iterator[list[Launch]]:
    """Collect the launches of the block, and run them only with `run`."""
    found: list[Launch] = []
    _captures.append((found, run))
    try:
        yield found
    finally:
        _captures.pop()
