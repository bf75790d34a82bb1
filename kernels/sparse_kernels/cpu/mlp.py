"""Products with chosen neurons: gathered GEMV and MLP (Deja Vu, ShadowLLM), CATS, TEAL, in numpy.

Matrices are (neurons, hidden) float32, the down projection stored transposed, so that a neuron is one run of
4 hidden bytes. BLAS wants contiguous operands, so ``numpy.take`` copies the chosen rows first: the copy is part of
the kernel and of its ops.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.ops.ops import Op
from sparse_kernels.cpu import demand
from sparse_kernels.cpu.kernel import CpuKernel
from sparse_kernels.registry import Case, case

Array = NDArray[Any]


def silu(v: Array) -> Array:
    """v / (1 + exp(-v)), five passes of numpy."""
    return v / (1.0 + np.exp(-v))


def _draw(c: Case, seed: int, *names: str) -> dict[str, Any]:
    """x (hidden,) normal, and uniform matrices (neurons, hidden) of variance 1 / hidden."""
    rng = np.random.default_rng(seed)
    made = {"x": rng.standard_normal(c["hidden"], dtype=np.float32)}
    width = np.float32((12.0 / c["hidden"]) ** 0.5)
    for name in names:
        w = rng.random((c["neurons"], c["hidden"]), dtype=np.float32)
        w -= 0.5
        w *= width
        made[name] = w
    return made


def _index(c: Case, seed: int, of: int) -> Array:
    chosen = np.random.default_rng(seed + 1).permutation(of)[: kept(c, of)]
    return np.sort(chosen)


def kept(c: Case, of: int) -> int:
    """Rows that a budget of `keep` selects among `of`."""
    return round(c.keep * of)


# --- gathered GEMV: y_j = w_j . x for the listed j -------------------------------------------------


def gemv_inputs(c: Case, seed: int) -> dict[str, Any]:
    """w (neurons, hidden), x, sorted index, and the scratch rows."""
    index = _index(c, seed, c["neurons"])
    made = _draw(c, seed, "w")
    return made | {"index": index, "rows": np.empty((len(index), c["hidden"]), np.float32)}


def gathered_gemv(w: Array, x: Array, index: Array, rows: Array) -> Array:
    """y (listed,)."""
    np.take(w, index, axis=0, out=rows, mode="clip")
    return np.dot(rows, x)


def gemv_naive(w: Array, x: Array, index: Array, rows: Array) -> Array:
    """Dense product, then the listed rows of the answer."""
    return (w.astype(np.float64) @ x)[index]


def gemv_dense(w: Array, x: Array, index: Array, rows: Array) -> Array:
    """All rows."""
    return np.dot(w, x)


def gemv_ops(c: Case, inputs: Mapping[str, Any]) -> tuple[Op, ...]:
    """A gather of the kept rows and a product with them."""
    rows = kept(c, c["neurons"])
    return (
        demand.gather("gather", rows, demand.ELEMENT_BYTES * c["hidden"]),
        demand.product("gemv", 1.0, rows, c["hidden"]),
    )


def gemv_dense_ops(c: Case, inputs: Mapping[str, Any]) -> tuple[Op, ...]:
    """The whole product."""
    return (demand.product("gemv", 1.0, c["neurons"], c["hidden"]),)


# --- gathered MLP, ReLU, two matrices: the predictor has named the neurons ---------------------------


def mlp_inputs(c: Case, seed: int) -> dict[str, Any]:
    """x, up, down (neurons, hidden), sorted index, scratch rows."""
    index = _index(c, seed, c["neurons"])
    made = _draw(c, seed, "up", "down")
    return made | {"index": index, "rows": np.empty((len(index), c["hidden"]), np.float32)}


def gathered_mlp(x: Array, up: Array, down: Array, index: Array, rows: Array) -> Array:
    """y (hidden,) = sum over the listed neurons of relu(x . up_j) down_j."""
    np.take(up, index, axis=0, out=rows, mode="clip")
    h = np.maximum(np.dot(rows, x), 0.0)
    np.take(down, index, axis=0, out=rows, mode="clip")
    return np.dot(h, rows)


def mlp_naive(x: Array, up: Array, down: Array, index: Array, rows: Array) -> Array:
    """Dense MLP with every unlisted neuron set to zero."""
    h = np.maximum(up.astype(np.float64) @ x, 0.0)
    listed = np.zeros(len(h), bool)
    listed[index] = True
    return np.where(listed, h, 0.0) @ down.astype(np.float64)


def mlp_dense(x: Array, up: Array, down: Array, index: Array, rows: Array) -> Array:
    """All neurons."""
    return np.dot(np.maximum(np.dot(up, x), 0.0), down)


def _mlp_ops(rows: int, hidden: int) -> tuple[Op, ...]:
    return (
        demand.product("mlp.up", 1.0, rows, hidden),
        demand.stream("mlp.act", demand.ELEMENT_BYTES * rows, demand.ELEMENT_BYTES * rows),
        demand.product("mlp.down", 1.0, hidden, rows),
    )


def mlp_ops(c: Case, inputs: Mapping[str, Any]) -> tuple[Op, ...]:
    """Two gathers around the MLP of the kept neurons."""
    rows = kept(c, c["neurons"])
    gather = demand.gather("mlp.gather", rows, demand.ELEMENT_BYTES * c["hidden"], count=2.0)
    return (gather, *_mlp_ops(rows, c["hidden"]))


def mlp_dense_ops(c: Case, inputs: Mapping[str, Any]) -> tuple[Op, ...]:
    """The whole MLP."""
    return _mlp_ops(c["neurons"], c["hidden"])


# --- CATS: the gate's own value decides, so it is computed in full ----------------------------------


def cats_inputs(c: Case, seed: int) -> dict[str, Any]:
    """x, gate, up, down (neurons, hidden), the threshold that keeps `keep` of these gates, scratch rows."""
    made = _draw(c, seed, "gate", "up", "down")
    size = np.sort(np.abs(silu(made["gate"] @ made["x"])))[::-1]
    last = kept(c, c["neurons"])
    between = (size[last - 1] + size[last]) / 2 if last < len(size) else 0.0
    rows = np.empty((last, c["hidden"]), np.float32)
    return made | {"threshold": float(between), "rows": rows}


def cats_mlp(x: Array, gate: Array, up: Array, down: Array, threshold: float, rows: Array) -> Array:
    """y (hidden,) over the neurons with |SiLU(x . gate_j)| >= threshold."""
    v = silu(np.dot(gate, x))
    index = np.flatnonzero(np.abs(v) >= threshold)
    out = rows[: len(index)]
    np.take(up, index, axis=0, out=out, mode="clip")
    h = v[index] * np.dot(out, x)
    np.take(down, index, axis=0, out=out, mode="clip")
    return np.dot(h, out)


def cats_naive(x: Array, gate: Array, up: Array, down: Array, threshold: float, rows: Array) -> Array:
    """Dense gated MLP with the small gates set to zero."""
    v = silu(gate.astype(np.float64) @ x)
    v = np.where(np.abs(v) >= threshold, v, 0.0)
    return (v * (up.astype(np.float64) @ x)) @ down.astype(np.float64)


def cats_dense(x: Array, gate: Array, up: Array, down: Array, threshold: float, rows: Array) -> Array:
    """All neurons."""
    return np.dot(silu(np.dot(gate, x)) * np.dot(up, x), down)


SILU_PASSES = 4.0
"""numpy calls of `silu`: negate, exp, add, divide."""


def cats_ops(c: Case, inputs: Mapping[str, Any]) -> tuple[Op, ...]:
    """Dense gate, threshold over all neurons, then gathers and products of the kept ones."""
    neurons, hidden = c["neurons"], c["hidden"]
    rows, b = kept(c, neurons), demand.ELEMENT_BYTES
    return (
        demand.product("mlp.gate", 1.0, neurons, hidden),
        demand.stream("mlp.act", b * neurons, b * neurons, count=SILU_PASSES),
        # abs, compare, find the non-zero, take their values, multiply
        demand.stream("mlp.threshold", b * neurons, b * neurons, count=5.0),
        demand.gather("mlp.gather", rows, b * hidden, count=2.0),
        demand.product("mlp.up", 1.0, rows, hidden),
        demand.product("mlp.down", 1.0, hidden, rows),
    )


def cats_dense_ops(c: Case, inputs: Mapping[str, Any]) -> tuple[Op, ...]:
    """The whole gated MLP."""
    neurons, hidden, b = c["neurons"], c["hidden"], demand.ELEMENT_BYTES
    return (
        demand.product("mlp.gate", 1.0, neurons, hidden),
        demand.stream("mlp.act", b * neurons, b * neurons, count=SILU_PASSES),
        demand.product("mlp.up", 1.0, neurons, hidden),
        demand.stream("mlp.mul", 2 * b * neurons, b * neurons, kind="binary"),
        demand.product("mlp.down", 1.0, hidden, neurons),
    )


# --- TEAL: inputs below a threshold are skipped with their columns -----------------------------------


def teal_inputs(c: Case, seed: int) -> dict[str, Any]:
    """x (neurons,), w (neurons, hidden) = the matrix by input columns, threshold, scratch rows."""
    made = _draw(c, seed, "w")
    x = np.random.default_rng(seed + 2).standard_normal(c["neurons"], dtype=np.float32)
    size = np.sort(np.abs(x))[::-1]
    last = kept(c, c["neurons"])
    between = (size[last - 1] + size[last]) / 2 if last < len(size) else 0.0
    rows = np.empty((last, c["hidden"]), np.float32)
    return {"x": x, "w": made["w"], "threshold": float(between), "rows": rows}


def teal_gemv(x: Array, w: Array, threshold: float, rows: Array) -> Array:
    """y (hidden,) = sum of x_i w_i over |x_i| >= threshold."""
    index = np.flatnonzero(np.abs(x) >= threshold)
    out = rows[: len(index)]
    np.take(w, index, axis=0, out=out, mode="clip")
    return np.dot(x[index], out)


def teal_naive(x: Array, w: Array, threshold: float, rows: Array) -> Array:
    """Dense product with the small inputs set to zero."""
    return np.where(np.abs(x) >= threshold, x, 0.0).astype(np.float64) @ w.astype(np.float64)


def teal_dense(x: Array, w: Array, threshold: float, rows: Array) -> Array:
    """All columns."""
    return np.dot(x, w)


def teal_ops(c: Case, inputs: Mapping[str, Any]) -> tuple[Op, ...]:
    """Threshold over the inputs, a gather and a product."""
    rows, b = kept(c, c["neurons"]), demand.ELEMENT_BYTES
    return (
        # abs, compare, find the non-zero, take their values
        demand.stream("threshold", b * c["neurons"], b * c["neurons"], count=4.0),
        demand.gather("gather", rows, b * c["hidden"]),
        demand.product("gemv", 1.0, c["hidden"], rows),
    )


def teal_dense_ops(c: Case, inputs: Mapping[str, Any]) -> tuple[Op, ...]:
    """The whole product."""
    return (demand.product("gemv", 1.0, c["hidden"], c["neurons"]),)


def _cases(*shapes: tuple[int, int], keeps: tuple[float, ...]) -> tuple[Case, ...]:
    """Timed shapes (neurons, hidden) at every `keep`, and three odd ones for correctness."""
    timed = tuple(
        case(f"{n}x{k} keep {keep:g}", "quick", "full", dtype="fp32", keep=keep, neurons=n, hidden=k)
        for n, k in shapes
        for keep in keeps
    )
    large = tuple(
        case(f"11008x4096 keep {keep:g}", "full", dtype="fp32", keep=keep, neurons=11008, hidden=4096)
        for keep in keeps[:2]
    )
    odd = (
        case("odd", "test", dtype="fp32", keep=0.3, neurons=67, hidden=45),
        case("one neuron", "test", dtype="fp32", keep=1 / 31, neurons=31, hidden=17),
        case("all kept", "test", dtype="fp32", keep=1.0, neurons=40, hidden=24),
    )
    return (*timed, *large, *odd)


KERNELS = (
    CpuKernel(
        name="gathered_gemv",
        family="contextual",
        phase="decode",
        summary="rows of a weight matrix named by an index list",
        citation="Deja Vu, arXiv:2310.17157",
        cases=_cases((2816, 1024), (4096, 2048), keeps=(0.1, 0.3, 0.5)),
        inputs=gemv_inputs,
        naive=gemv_naive,
        run=gathered_gemv,
        dense=gemv_dense,
        ops=gemv_ops,
        dense_ops=gemv_dense_ops,
    ),
    CpuKernel(
        name="gathered_mlp",
        family="contextual",
        phase="decode",
        summary="two-matrix ReLU MLP of the neurons a predictor named",
        citation="ShadowLLM, arXiv:2406.16635",
        cases=_cases((2816, 1024), (5504, 2048), keeps=(0.1, 0.25, 0.5)),
        inputs=mlp_inputs,
        naive=mlp_naive,
        run=gathered_mlp,
        dense=mlp_dense,
        ops=mlp_ops,
        dense_ops=mlp_dense_ops,
    ),
    CpuKernel(
        name="cats_mlp",
        family="contextual",
        phase="decode",
        summary="gated MLP whose own gate drops neurons",
        citation="CATS, arXiv:2404.08763",
        cases=_cases((2816, 1024), (5504, 2048), keeps=(0.1, 0.5)),
        inputs=cats_inputs,
        naive=cats_naive,
        run=cats_mlp,
        dense=cats_dense,
        ops=cats_ops,
        dense_ops=cats_dense_ops,
    ),
    CpuKernel(
        name="teal_gemv",
        family="contextual",
        phase="decode",
        summary="columns of inputs below a threshold are skipped",
        citation="TEAL, arXiv:2408.14690",
        cases=_cases((2048, 1024), (4096, 2048), keeps=(0.25, 0.5, 0.75)),
        inputs=teal_inputs,
        naive=teal_naive,
        run=teal_gemv,
        dense=teal_dense,
        ops=teal_ops,
        dense_ops=teal_dense_ops,
    ),
)
