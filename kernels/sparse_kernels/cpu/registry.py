"""All CPU kernels by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from simulator.base.errors import UnknownNameError, fold
from sparse_kernels.cpu import attention, mlp, weights
from sparse_kernels.cpu.kernel import CpuKernel


@cache
def kernels() -> Mapping[str, CpuKernel]:
    """All CPU kernels by name."""
    members = (*mlp.KERNELS, *weights.KERNELS, *attention.KERNELS)
    return {k.name: k for k in members}


def kernel(name: str) -> CpuKernel:
    """The CPU kernel called `name`; raises `UnknownNameError` with the nearest ones."""
    for known, member in kernels().items():
        if fold(known) == fold(name):
            return member
    raise UnknownNameError("kernel", name, kernels(), where="--op")
