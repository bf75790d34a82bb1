"""What a CPU kernel is: like `sparse_kernels.registry.Kernel`, on numpy arrays and one call instead of launches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from simulator.ops.ops import Op
from sparse_kernels.registry import Case, Tolerance, Use

FP32 = Tolerance(2e-5, 2e-4, "float32 sums of up to 12,000 unit-variance terms in another order: sqrt(n) eps sd")


@dataclass(frozen=True, kw_only=True)
class CpuKernel:
    """A sparse (or dense baseline) operation in numpy or SciPy.

    Attributes
    ----------
    name, family, summary, citation : str
    phase : str
        "decode" (few rows) or "prefill".
    cases : tuple of Case
    inputs : (case, seed) -> dict
        Arrays by name, and the scratch arrays the kernel writes into (allocated once, as an engine would).
    naive : (**inputs) -> array
        The truth: dense arithmetic on the whole operand with the unselected part zeroed, in float64.
    run : (**inputs) -> array
        What is timed.
    dense : (**inputs) -> array
        The dense operation that the sparse one replaces, timed beside it.
    ops, dense_ops : (case, inputs) -> tuple of simulator Op
        Every call really made: a gather that copies is a copy.
    tolerance : Tolerance
    """

    name: str
    family: str
    summary: str
    citation: str
    phase: str
    cases: tuple[Case, ...]
    inputs: Callable[[Case, int], dict[str, Any]]
    naive: Callable[..., Any]
    run: Callable[..., Any]
    dense: Callable[..., Any]
    ops: Callable[[Case, Mapping[str, Any]], tuple[Op, ...]]
    dense_ops: Callable[[Case, Mapping[str, Any]], tuple[Op, ...]]
    tolerance: Tolerance = FP32

    def cases_for(self, *uses: Use) -> Iterator[Case]:
        """Cases with at least one of `uses`."""
        return (c for c in self.cases if c.uses & set(uses))
