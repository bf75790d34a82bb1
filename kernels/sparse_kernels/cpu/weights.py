"""Compressed weight matrices on a CPU: CSR through SciPy, int8 expanded to float32 before BLAS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.ops.ops import Expand, Linear, Op
from sparse_kernels.cpu import demand
from sparse_kernels.cpu.kernel import CpuKernel
from sparse_kernels.registry import Case, case

Array = NDArray[Any]
CSR_BYTES = 8.0
"""float32 value and int32 column per stored element [B]."""


def csr_inputs(c: Case, seed: int) -> dict[str, Any]:
    """dense (n, k), the same as CSR, and x (k, m); k vectors are kept 1-D for m = 1."""
    import scipy.sparse

    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((c["n"], c["k"]), dtype=np.float32)
    # The same count in every row, as row-wise magnitude pruning leaves (Wanda).
    stored = round(c.keep * c["k"])
    smallest = np.argpartition(np.abs(dense), c["k"] - stored, axis=1)[:, : c["k"] - stored]
    np.put_along_axis(dense, smallest, 0.0, axis=1)
    x = rng.standard_normal((c["k"], c["m"]), dtype=np.float32)
    return {"dense": dense, "csr": scipy.sparse.csr_array(dense), "x": x[:, 0].copy() if c["m"] == 1 else x}


def csr_product(dense: Array, csr: Any, x: Array) -> Array:
    """y = W x with W in CSR."""
    return csr @ x


def csr_naive(dense: Array, csr: Any, x: Array) -> Array:
    """The pruned matrix multiplied in full."""
    return dense.astype(np.float64) @ x


def csr_dense(dense: Array, csr: Any, x: Array) -> Array:
    """BLAS on the dense matrix, zeros and all."""
    return np.dot(dense, x)


def csr_ops(c: Case, inputs: Mapping[str, Any]) -> tuple[Op, ...]:
    """Stored elements streamed once; each fetches m elements of x by its column."""
    n, k, m = c["n"], c["k"], c["m"]
    stored = n * round(c.keep * k)
    whole: Linear = demand.product("csr", m, n, k)
    bytes_per_weight = (CSR_BYTES * stored + 4.0 * (n + 1)) / (n * k)
    return (
        replace(
            whole,
            bytes_per_weight=bytes_per_weight,
            flop_keep=stored / (n * k),
            expand=Expand(elements=0.0, nonzeros=float(stored * m)),
        ),
    )


def csr_dense_ops(c: Case, inputs: Mapping[str, Any]) -> tuple[Op, ...]:
    """The whole product."""
    return (demand.product("gemm", c["m"], c["n"], c["k"]),)


def int8_inputs(c: Case, seed: int) -> dict[str, Any]:
    """q (n, k) int8 with one scale per row, the float32 matrix it stands for, x (k,), scratch."""
    rng = np.random.default_rng(seed)
    q = rng.integers(-127, 128, (c["n"], c["k"]), dtype=np.int8)
    scale = rng.uniform(0.5, 1.5, c["n"]).astype(np.float32) / np.float32(127 * c["k"] ** 0.5)
    return {
        "q": q,
        "scale": scale,
        "x": rng.standard_normal(c["k"], dtype=np.float32),
        "w": q.astype(np.float32) * scale[:, None],
        "scratch": np.empty((c["n"], c["k"]), np.float32),
    }


def int8_gemv(q: Array, scale: Array, x: Array, w: Array, scratch: Array) -> Array:
    """y = scale (q x): numpy has no mixed product, so q is expanded first."""
    np.copyto(scratch, q)
    return np.dot(scratch, x) * scale


def int8_naive(q: Array, scale: Array, x: Array, w: Array, scratch: Array) -> Array:
    """In float64."""
    return (q.astype(np.float64) @ x) * scale


def int8_dense(q: Array, scale: Array, x: Array, w: Array, scratch: Array) -> Array:
    """The float32 matrix."""
    return np.dot(w, x)


def int8_ops(c: Case, inputs: Mapping[str, Any]) -> tuple[Op, ...]:
    """An expanding pass, then the float32 product."""
    elements = float(c["n"] * c["k"])
    return (
        demand.stream("expand", elements, demand.ELEMENT_BYTES * elements),
        demand.product("gemv", 1.0, c["n"], c["k"]),
    )


def _csr_cases(m: int, keeps: tuple[float, ...]) -> tuple[Case, ...]:
    timed = tuple(
        case(f"{n}x{k} m {m} keep {keep:g}", "quick", "full", dtype="fp32", keep=keep, m=m, n=n, k=k)
        for n, k in ((1024, 1024), (2816, 1024))
        for keep in keeps
    )
    odd = (
        case("odd", "test", dtype="fp32", keep=0.3, m=m, n=67, k=45),
        case("one each", "test", dtype="fp32", keep=1 / 33, m=m, n=5, k=33),
        case("all kept", "test", dtype="fp32", keep=1.0, m=m, n=20, k=24),
    )
    return (*timed, *odd)


KERNELS = (
    CpuKernel(
        name="csr_matvec",
        family="weights",
        phase="decode",
        summary="unstructured sparse matrix times vector",
        citation="SciPy csr_array",
        cases=_csr_cases(1, (0.05, 0.1, 0.3)),
        inputs=csr_inputs,
        naive=csr_naive,
        run=csr_product,
        dense=csr_dense,
        ops=csr_ops,
        dense_ops=csr_dense_ops,
    ),
    CpuKernel(
        name="csr_matmat",
        family="weights",
        phase="decode",
        summary="unstructured sparse matrix times 8 vectors",
        citation="SciPy csr_array",
        cases=_csr_cases(8, (0.05, 0.1)),
        inputs=csr_inputs,
        naive=csr_naive,
        run=csr_product,
        dense=csr_dense,
        ops=csr_ops,
        dense_ops=csr_dense_ops,
    ),
    CpuKernel(
        name="int8_gemv",
        family="weights",
        phase="decode",
        summary="int8 weights expanded to float32, then BLAS",
        citation="numpy; LLM.int8 layout",
        cases=(
            case("1024x1024", "quick", "full", dtype="fp32", n=1024, k=1024),
            case("2816x1024", "quick", "full", dtype="fp32", n=2816, k=1024),
            case("odd", "test", dtype="fp32", n=67, k=45),
        ),
        inputs=int8_inputs,
        naive=int8_naive,
        run=int8_gemv,
        dense=int8_dense,
        ops=int8_ops,
        dense_ops=lambda c, inputs: (demand.product("gemv", 1.0, c["n"], c["k"]),),
    ),
)
