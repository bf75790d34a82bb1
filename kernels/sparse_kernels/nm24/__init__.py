"""2:4 weights through torch's own library path (cuSPARSELt or CUTLASS): the well-kept baseline of weight sparsity.

The library packs metadata in an order of its own and multiplies on sparse tensor cores, which Triton cannot reach: so
there is nothing to record or to compile, and it is judged and timed on a GPU only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.ops.ops import Op
from sparse_kernels import demand
from sparse_kernels.nm24 import library, naive
from sparse_kernels.registry import ACTIVATION, FULL, QUICK, WEIGHT, Case, Kernel, Tolerance, case
from sparse_kernels.tensors import Draw


def inputs(case: Case, seed: int, device: str) -> dict[str, Any]:
    """The dense weight; the library packs it in `library.buffers`, a copy for every set of operands."""
    draw = Draw(seed, device)
    return {
        "x": draw.normal(case["m"], case["k"], dtype=case.dtype),
        "weight": draw.normal(case["n"], case["k"], dtype=case.dtype, scale=case["k"] ** -0.5),
    }


def ops(case: Case, _: Mapping[str, Any]) -> tuple[Op, ...]:
    """The policy's product, whose sizes stand for an MLP's first matrix."""
    sizes = {"batch": case["m"], "hidden": case["k"], "neurons": case["n"]}
    like = Case(name=case.name, sizes=sizes, uses=case.uses, dtype=case.dtype)
    return demand.lowered("nm24", demand.layer(like, gated=False), demand.decode(like), ["mlp.up"])


KERNEL = Kernel(
    name="nm24",
    family="weights",
    summary="2:4 weights on sparse tensor cores, by torch's library",
    citation="Mishra et al. 2021, arXiv:2104.08378; torch.sparse.to_sparse_semi_structured",
    cases=tuple(
        case(f"{m} x {n} x {k}", *uses, m=m, n=n, k=k, keep=0.5)
        for m, n, k, uses in ((16, 11008, 4096, QUICK), (64, 28672, 7168, FULL), (2048, 11008, 4096, FULL))
    ),
    inputs=inputs,
    buffers=library.buffers,
    naive=lambda x, weight: {"y": naive.nm24(x, weight)},
    triton=library.nm24,
    operands={"x": ACTIVATION, "weight": WEIGHT, "y": ACTIVATION},
    ops=ops,
    tolerance=Tolerance(
        2**-7, 2**-7, "outputs of order one rounded to 16 bits (bf16: 2^-8), by a library that sums as it likes"
    ),
    dense="skinny_gemm",
)
