"""Columns of a sweep: what they are called, their units, and how points become rows of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.base.errors import UnsupportedError
from simulator.inference import memory
from simulator.inference.evaluate import MAX_RUNNING_BATCH, Points, evaluate
from simulator.inference.group import Group
from simulator.inference.lowering import Lowering
from simulator.inference.status import STATUSES, TIMED, Status
from simulator.inference.step import Bound
from simulator.policies import Policies
from simulator.results.quality import quality_of

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Column:
    """One column: its Arrow type, unit and meaning."""

    kind: str
    unit: str
    meaning: str


COLUMNS: Mapping[str, Column] = {
    "model": Column("text", "", "model name"),
    "device": Column("text", "", "device name"),
    "policy": Column("text", "", "canonical spelling of the sparsity policy"),
    "engine": Column("text", "", "serving engine whose kernels and host side are assumed"),
    "dtype": Column("text", "", "weight format after the policy"),
    "kv_dtype": Column("text", "", "format of the dense KV cache"),
    "tp": Column("whole", "GPUs", "tensor-parallel ranks"),
    "pp": Column("whole", "GPUs", "pipeline stages"),
    "ep": Column("whole", "groups", "expert groups within tp"),
    "batch": Column("whole", "sequences", "static batch"),
    "prompt_tokens": Column("whole", "tokens", "prompt per sequence"),
    "output_tokens": Column("whole", "tokens", "output per sequence"),
    "status": Column("text", "", " | ".join(STATUSES)),
    "reason": Column("text", "", "why a row is not ok, and what would work"),
    "ttft_s": Column("real", "s", "one prefill of the whole batch"),
    "tpot_s": Column("real", "s", "mean decode step over the output"),
    "e2e_s": Column("real", "s", "TTFT + (output - 1) * TPOT"),
    "tokens_per_s": Column("real", "1/s", "output tokens of the batch per second"),
    "tokens_per_s_per_gpu": Column("real", "1/s", "the same per GPU"),
    "ttft_lo_s": Column("real", "s", "5 % quantile of TTFT"),
    "ttft_hi_s": Column("real", "s", "95 % quantile of TTFT"),
    "tpot_lo_s": Column("real", "s", "5 % quantile of TPOT"),
    "tpot_hi_s": Column("real", "s", "95 % quantile of TPOT"),
    "basis": Column("text", "", "CALIBRATED | EXTRAPOLATED | DATASHEET"),
    "bound": Column("text", "", "what takes most of the end-to-end time"),
    "mode": Column("text", "", "how decode steps are launched"),
    "weights_bytes": Column("real", "B", "weights on the fullest GPU"),
    "kv_bytes": Column("real", "B", "KV cache of the batch at prompt + output, per GPU"),
    "other_bytes": Column("real", "B", "activations, graphs, context, communication, per GPU"),
    "total_bytes": Column("real", "B", "all of it on the fullest GPU"),
    "capacity_bytes": Column("real", "B", "what the driver reports per GPU"),
    "max_batch": Column("whole", "sequences", "largest batch that fits"),
    "dense_max_batch": Column("whole", "sequences", "the same of dense; a speed-up above it is against no real run"),
    "ttft_speedup": Column("real", "1", "TTFT of dense over this"),
    "tpot_speedup": Column("real", "1", "TPOT of dense over this"),
    "throughput_speedup_same_batch": Column("real", "1", "tokens/s over dense at this batch"),
    "throughput_speedup_at_max_batch": Column("real", "1", "tokens/s over dense, each at its largest batch"),
    "energy_j_per_token": Column("real", "J", "estimated energy per output token"),
    "usd_per_mtoken": Column("real", "USD", "estimated rent per million output tokens"),
    "quality_perplexity_ratio": Column("real", "1", "perplexity over dense, as the trace measured it"),
    "quality_agreement": Column("real", "1", "share of next tokens equal to dense's"),
    "quality_source": Column("text", "", "how the quality was measured; null = not measured"),
}

_BASES = ("CALIBRATED", "EXTRAPOLATED", "DATASHEET")


@dataclass(frozen=True)
class Block:
    """Rows of one group as flat columns; text columns are (codes, words)."""

    columns: Mapping[str, Any]
    rows: int

    def to_arrow(self) -> pa.Table:
        """Arrow table with dictionary-encoded text."""
        import pyarrow as pa

        arrays = []
        for name, column in COLUMNS.items():
            value = self.columns[name]
            if column.kind == "text":
                codes, words = value
                index = pa.array(np.asarray(codes, np.int32), mask=np.asarray(codes) < 0)
                arrays.append(pa.DictionaryArray.from_arrays(index, pa.array(words, pa.string())))
            elif column.kind == "whole":
                real = np.asarray(value, float)
                missing = ~np.isfinite(real)
                arrays.append(pa.array(np.where(missing, 0, real).astype(np.int64), mask=missing))
            else:
                real = np.asarray(value, float)
                arrays.append(pa.array(real, mask=~np.isfinite(real)))
        return pa.Table.from_arrays(arrays, schema=arrow_schema())

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Block:
        """Inverse of `to_arrow`."""
        columns: dict[str, Any] = {}
        for name, column in COLUMNS.items():
            array = table.column(name).combine_chunks()
            if column.kind == "text":
                codes = array.indices.fill_null(-1).to_numpy()
                columns[name] = (codes, array.dictionary.to_pylist())
            else:
                columns[name] = array.to_numpy(zero_copy_only=False).astype(float)
        return cls(columns, table.num_rows)


def arrow_schema(metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """Schema with the unit and the meaning of every column."""
    import pyarrow as pa

    types = {"text": pa.dictionary(pa.int32(), pa.string()), "whole": pa.int64(), "real": pa.float64()}
    return pa.schema(
        [pa.field(n, types[c.kind], metadata={"unit": c.unit, "meaning": c.meaning}) for n, c in COLUMNS.items()],
        metadata=dict(metadata) if metadata else None,
    )


def rows(
    group: Group, batch: np.ndarray, prompt: np.ndarray, output: np.ndarray, dense: Points | None = None
) -> tuple[Block, Points | None]:
    """Rows of one group, and its points (None where nothing can run).

    `dense` are the points of the same group without policies; None computes them where needed.
    """
    shape = np.broadcast_shapes(batch.shape, prompt.shape, output.shape)
    n = int(np.prod(shape))
    columns: dict[str, Any] = _labels(group, n)
    for name, value in (("batch", batch), ("prompt_tokens", prompt), ("output_tokens", output)):
        columns[name] = np.broadcast_to(value, shape).ravel()
    columns["capacity_bytes"] = np.full(n, group.device.capacity_bytes)
    problem = group.problem
    if problem is not None:
        return _nothing(columns, group, batch, prompt, output, n, problem), None
    points = evaluate(group, batch, prompt, output)
    if not group.policies.members:
        dense = points
    elif dense is None:
        dense = evaluate(group.dense, batch, prompt, output)
    _fill(columns, points, dense, shape)
    return Block(columns, n), points


def _labels(group: Group, n: int) -> dict[str, Any]:
    words = {
        "model": group.model.name,
        "device": group.device.name,
        "policy": group.policies.spelling,
        "engine": group.engine.name,
        "dtype": group.dtype,
        "kv_dtype": group.kv_dtype,
    }
    columns: dict[str, Any] = {k: (np.zeros(n, np.int32), [w]) for k, w in words.items()}
    for name in ("tp", "pp", "ep"):
        columns[name] = np.full(n, getattr(group, name))
    quality = quality_of(group)
    columns["quality_perplexity_ratio"] = np.broadcast_to(quality.perplexity_ratio, n)
    columns["quality_agreement"] = np.broadcast_to(quality.agreement, n)
    known = 0 if quality.source else -1
    columns["quality_source"] = (np.broadcast_to(np.int32(known), n), [quality.source])
    return columns


def _fill(columns: dict[str, Any], points: Points, dense: Points, shape: tuple[int, ...]) -> None:
    status = points.status.ravel()
    timed = np.isin(status, TIMED)
    ok = status == Status.OK

    def flat(value: Any, where: np.ndarray | None = None) -> np.ndarray:
        out = np.broadcast_to(np.asarray(value, float), shape).ravel()
        return out if where is None or where.all() else np.where(where, out, np.nan)

    columns["status"] = (status, list(STATUSES))
    columns["reason"] = _reasons(points, status)
    rate, e2e = points.tokens_per_s, points.e2e_s
    for name, value in {
        "ttft_s": points.ttft_s,
        "tpot_s": points.tpot_s,
        "e2e_s": e2e,
        "ttft_lo_s": points.ttft_lo_s,
        "ttft_hi_s": points.ttft_hi_s,
        "tpot_lo_s": points.tpot_lo_s,
        "tpot_hi_s": points.tpot_hi_s,
        "ttft_speedup": dense.ttft_s / points.ttft_s,
        "tpot_speedup": dense.tpot_s / points.tpot_s,
        "throughput_speedup_same_batch": dense.e2e_s / e2e,
    }.items():
        columns[name] = flat(value, timed)
    for name, value in {
        "tokens_per_s": rate,
        "tokens_per_s_per_gpu": rate / points.group.gpus,
        "energy_j_per_token": points.power_w / rate,
        "usd_per_mtoken": points.usd_per_mtoken,
    }.items():
        columns[name] = flat(value, ok)
    columns["throughput_speedup_at_max_batch"] = flat(_at_max_batch(points, dense), timed)
    n = len(status)
    columns["basis"] = (np.full(n, points.basis.rank), list(_BASES))
    columns["bound"] = (np.where(timed, points.bound.ravel(), -1), list(Bound))
    columns["mode"] = (np.where(timed, 0, -1), [points.decode.mode])
    footprint = points.footprint
    for name in ("weights_bytes", "kv_bytes", "other_bytes", "total_bytes"):
        columns[name] = flat(getattr(footprint, name))
    columns["max_batch"] = flat(points.max_batch)
    columns["dense_max_batch"] = flat(dense.max_batch)


def _at_max_batch(points: Points, dense: Points) -> np.ndarray:
    """Throughput of each at its own largest batch, this over dense [-]."""
    if points is dense:
        return np.where(points.max_batch >= 1, 1.0, np.nan)
    return best_rate(points) / best_rate(dense)


ENDS = ("ttft_lo_s", "ttft_hi_s", "tpot_lo_s", "tpot_hi_s")
"""Columns of a row's two intervals."""


def rate_interval(row: Mapping[str, Any]) -> tuple[float, float]:
    """Tokens per second where TTFT and TPOT both lie at the upper, and at the lower end of their intervals [1/s].

    Parameters
    ----------
    row : mapping
        ``batch``, ``output_tokens`` and `ENDS` [s]; TPOT is not read where one token is put out.
    """
    tokens, steps = row["batch"] * row["output_tokens"], row["output_tokens"] - 1

    def rate(end: str) -> float:
        return tokens / (row[f"ttft_{end}_s"] + (steps * row[f"tpot_{end}_s"] if steps else 0.0))

    return rate("hi"), rate("lo")


@lru_cache(maxsize=4)
def best_rate(points: Points) -> np.ndarray:
    """Tokens per second at the largest batch that fits, at most `MAX_RUNNING_BATCH` [1/s]."""
    p, o = np.broadcast_arrays(points.prompt, points.output)
    shape = np.broadcast_shapes(p.shape, np.shape(points.batch))
    largest = points.max_batch
    if p.shape != shape:
        # The batch axis does not change the largest batch: one evaluation serves all of it.
        largest = largest[tuple(slice(0, 1) if a == 1 else slice(None) for a in p.shape)]
    pairs = np.stack([largest.ravel(), p.ravel(), o.ravel()])
    unique, back = np.unique(pairs, axis=1, return_inverse=True)
    batch = np.clip(unique[0], 1.0, MAX_RUNNING_BATCH)
    at = evaluate(points.group, batch, unique[1], unique[2])
    rate = np.where(unique[0] >= 1.0, at.tokens_per_s, np.nan)
    return rate[back.ravel()].reshape(p.shape)


def _reasons(points: Points, status: np.ndarray) -> tuple[np.ndarray, list[str]]:
    codes = np.full(len(status), -1, np.int32)
    words: list[str] = []
    trace = points.group.trace
    if trace is not None and points.group.transferred:
        words.append(f"curves of {trace.manifest.model}, layers mapped by relative depth (--trace-transfer)")
        codes[status == Status.OK] = 0
    long = status == Status.EXCEEDS_CONTEXT
    if long.any():
        words.append(points.group.too_long)
        codes[long] = len(words) - 1
    short = status == Status.DOES_NOT_FIT
    if short.any():
        gib = np.ceil(np.broadcast_to(points.short_bytes, points.status.shape).ravel()[short] / 2**29) / 2
        largest = points.max_batch.ravel()[short]
        beside = np.broadcast_to(points.short_off_bytes > 0.0, points.status.shape).ravel()[short]
        unique, back = np.unique(np.stack([gib, largest, beside]), axis=1, return_inverse=True)
        start = len(words)
        gpus = "more GPUs (tp), " if points.group.device.links else ""
        for g, b, off in unique.T:
            place = f" of {points.group.lowering.home} memory" if off else ""
            works = (
                f"batch {int(b)} fits"
                if b >= 1
                else f"not even batch 1 fits: try {gpus}a shorter prompt or a smaller dtype"
            )
            words.append(f"short by {g:g} GiB{place} per GPU; {works}")
        codes[short] = start + back.ravel()
    return codes, words


def _nothing(
    columns: dict[str, Any],
    group: Group,
    batch: np.ndarray,
    prompt: np.ndarray,
    output: np.ndarray,
    n: int,
    problem: tuple[Status, str],
) -> Block:
    """Rows of a group that cannot run: memory where the cut allows it, no times."""
    status, reason = problem
    for name, column in COLUMNS.items():
        if name not in columns:
            columns[name] = (np.full(n, -1), []) if column.kind == "text" else np.full(n, np.nan)
    columns["status"] = (np.full(n, status), list(STATUSES))
    columns["reason"] = (np.zeros(n, np.int32), [reason])
    columns["basis"] = (np.full(n, -1), list(_BASES))
    dense = Lowering(group.model, Policies(), group.fmt, group.lowering.kv_element_bytes, group.tp, group.ep)
    if dense.why_not() is None:
        try:
            print_ = memory.footprint(dense, batch, prompt, output, pp=group.pp, block_tokens=group.block_tokens)
        except UnsupportedError:
            return Block(columns, n)
        shape = np.broadcast_shapes(batch.shape, prompt.shape, output.shape)
        for name in ("weights_bytes", "kv_bytes", "other_bytes", "total_bytes"):
            columns[name] = np.broadcast_to(getattr(print_, name), shape).ravel()
    return Block(columns, n)
