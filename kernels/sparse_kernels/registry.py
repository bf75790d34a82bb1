"""What a kernel is to every verb: its inputs as data, its naive twin, its launch and the simulator's ops.

One folder per kernel: ``<name>/{__init__,naive,triton}.py`` with ``KERNEL = Kernel(...)`` in its
``__init__``. The folders are found, not listed, so a new kernel is a new folder and nothing else.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import sparse_kernels
from simulator.base.errors import UnknownNameError, fold
from simulator.ops.ops import Op
from simulator.ops.traffic import Operand

Use = Literal["test", "traffic", "compile", "hot", "quick", "full"]
"""What a case is for: correctness, byte counts, compilation, compilation where a spill fails, and timing."""
HOT: tuple[Use, ...] = ("hot", "compile")
FULL: tuple[Use, ...] = ("full",)
QUICK: tuple[Use, ...] = ("quick", "full")
Dtype = Literal["bf16", "fp16", "fp32"]
Way = Literal["read", "write"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape of a kernel.

    Attributes
    ----------
    name : str
        Unique within its kernel; says what is special ("gqa8 odd").
    sizes : mapping of str to int
        By name [-]: batch, tokens, hq, hk, d for attention; m, n, k for products; hidden, neurons for an MLP.
    dtype : {'bf16', 'fp16', 'fp32'}
        Of activations, and of weights and KV where the method does not say otherwise.
    keep : float
        Share kept, 1 - sparsity [-].
    uses : frozenset of Use
    """

    name: str
    sizes: Mapping[str, int]
    uses: frozenset[Use]
    dtype: Dtype = "bf16"
    keep: float = 1.0

    def __getitem__(self, size: str) -> int:
        return self.sizes[size]


def case(name: str, *uses: Use, dtype: Dtype = "bf16", keep: float = 1.0, **sizes: int) -> Case:
    """A `Case` in one line of a table."""
    return Case(name=name, sizes=sizes, uses=frozenset(uses), dtype=dtype, keep=keep)


@dataclass(frozen=True)
class Flow:
    """Operand class that a tensor's reads and its writes count as in the simulator's Traffic.

    They differ where one op writes what another reads: `Elementwise` books both under its own operand.
    None books nothing: split-K partials and counters, which are reported apart as workspace.
    """

    read: Operand | None
    write: Operand | None


WEIGHT = Flow(Operand.WEIGHT, Operand.WEIGHT)
KV = Flow(Operand.KV, Operand.KV)
ACTIVATION = Flow(Operand.ACTIVATION, Operand.ACTIVATION)
INDEX = Flow(Operand.INDEX, Operand.INDEX)
WORKSPACE = Flow(None, None)


@dataclass(frozen=True)
class Tolerance:
    """Largest ``|got - want| <= absolute + relative |want|``, and why no less is possible."""

    relative: float
    absolute: float
    reason: str


@dataclass(frozen=True)
class Explained:
    """Bytes the simulator leaves out on purpose: ``extra_bytes(case, inputs)`` makes the count exact [B]."""

    operand: Operand
    direction: Way
    extra_bytes: Callable[[Case, Mapping[str, Any]], float]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A sparse (or dense baseline) operation, possibly of several launches.

    Attributes
    ----------
    name, family, summary, citation : str
        `family` is "dense", "contextual", "kv", "prefill" or "weights".
    cases : tuple of Case
    inputs : (case, seed, device) -> dict
        Tensors by name, and the plain numbers the kernel takes (``page=16``).
    buffers : (**inputs) -> dict of Tensor
        Everything written but no input: outputs and workspace, uninitialised. Tests poison them with NaN,
        benchmarks allocate them once.
    naive : (**inputs) -> dict of Tensor
        The truth in plain torch, by the name of the tensor it must equal afterwards. Changes no input: what
        the kernel updates in place (a KV cache) is returned as a changed copy.
    triton : (**inputs, **buffers) -> None
        Launches, all through `sparse_kernels.launch.launch`.
    operands : mapping of tensor name to Flow
        Every tensor a launch touches.
    ops : (case, inputs) -> tuple of simulator Op
        What the simulator believes is run: through `sparse_kernels.demand.lowered` where a policy exists, else
        built from `simulator.ops.ops` (the list a gather reads: `demand.index_list`); never from the kernel's tiles.
    tolerance : Tolerance
    dense : str or None
        Name of the dense kernel this one must beat; None for a dense one.
    explained : tuple of Explained
        At most three kernels of all may have any.
    """

    name: str
    family: Literal["dense", "contextual", "kv", "prefill", "weights"]
    summary: str
    citation: str
    cases: tuple[Case, ...]
    inputs: Callable[[Case, int, str], dict[str, Any]]
    buffers: Callable[..., dict[str, Any]]
    naive: Callable[..., dict[str, Any]]
    triton: Callable[..., None]
    operands: Mapping[str, Flow]
    ops: Callable[[Case, Mapping[str, Any]], tuple[Op, ...]]
    tolerance: Tolerance
    dense: str | None = None
    explained: tuple[Explained, ...] = field(default=())

    def cases_for(self, *uses: Use) -> Iterator[Case]:
        """Cases with at least one of `uses`."""
        return (c for c in self.cases if c.uses & set(uses))


@cache
def kernels() -> Mapping[str, Kernel]:
    """All kernels by name: every folder of this package that has a ``KERNEL``."""
    found: dict[str, Kernel] = {}
    for module in pkgutil.iter_modules(sparse_kernels.__path__):
        if module.ispkg:
            member = importlib.import_module(f"sparse_kernels.{module.name}")
            if isinstance(getattr(member, "KERNEL", None), Kernel):
                found[member.KERNEL.name] = member.KERNEL
    return found


def kernel(name: str) -> Kernel:
    """The kernel called `name`; raises `UnknownNameError` with the nearest ones."""
    for known, member in kernels().items():
        if fold(known) == fold(name):
            return member
    raise UnknownNameError("kernel", name, kernels(), where="--op")
