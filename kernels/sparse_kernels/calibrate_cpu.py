"""Micro-measurements of a CPU through numpy, and the device profile they make.

Only dense products, copies, passes, plain gathers and dense attention are timed: the sparse kernels that
`sparse_kernels.bench` judges are never part of a fit.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sparse_kernels import machine
from sparse_kernels.cpu.attention import attend
from sparse_kernels.timing import time_cpu

Row = dict[str, Any]
SOURCE = "sparse_kernels.calibrate"
RUNS_OF_BYTES = (32, 64, 128, 256, 512, 1024, 4096, 16384, 65536)


def rows(device: str, *, quick: bool, threads: int) -> Iterator[tuple[str, Row]]:
    """(family, row) one by one in the columns the fits read; a caller may stop after any."""
    timer = _timer(quick, threads)
    for family, row, run in _jobs(device, quick):
        yield family, row | timer(run)
        _arena.reset()


def _timer(quick: bool, threads: int) -> Callable[[Callable[[], object]], Row]:
    budget, most = (0.03, 60) if quick else (0.25, 300)

    def timed(run: Callable[[], object]) -> Row:
        t = time_cpu(run, budget_s=budget, most=most, threads=threads)
        return {"time_s": t.median_s, "p20_s": t.p20_s, "p80_s": t.p80_s, "disturbed": t.disturbed}

    return timed


def _jobs(device: str, quick: bool) -> Iterator[tuple[str, Row, Callable[[], object]]]:
    base = {"source": SOURCE, "device": device, "flag": ""}
    for family, row, run in (*_gemms(quick), *_passes(quick), *_gathers(quick), *_attention(quick)):
        yield family, base | row, run


Job = tuple[str, Row, Callable[[], object]]


class Arena:
    """One block of memory that every job takes its arrays from: fresh pages cost more than the measurement."""

    def __init__(self) -> None:
        self.block = np.ones(0, np.float32)
        self.used = 0

    def reset(self) -> None:
        """Give all arrays back; the next job starts at the beginning."""
        self.used = 0

    def ones(self, *shape: int) -> np.ndarray:
        """Array of `shape`, 64-byte aligned in the block. Values do not change the time of dense arithmetic."""
        size = int(np.prod(shape))
        end = self.used + -(-size // 16) * 16
        if end > len(self.block):
            # Arrays already handed out keep the old block alive.
            self.block = np.ones(max(2 * end, 2**24), np.float32)
        out = self.block[self.used : self.used + size].reshape(shape)
        self.used = end
        return out


_arena = Arena()


def _ones(*shape: int) -> np.ndarray:
    return _arena.ones(*shape)


def _own(*shape: int) -> np.ndarray:
    """Array that several jobs share."""
    return np.ones(shape, np.float32)


def _gemms(quick: bool) -> Iterator[Job]:
    sides = (64, 128, 256, 512, 1024, 2048)
    vectors = [(1, n, k) for n in sides for k in sides]
    vectors += [(1, 4096, 1024), (1, 1024, 4096), (1, 4096, 2048), (1, 2048, 4096), (1, 4096, 4096)]
    wide = (256, 1024) if quick else (256, 512, 1024, 2048)
    rows_of_x = (8, 32, 128) if quick else (4, 8, 16, 64, 256, 1024)
    vectors += [] if quick else [(1, 11008, 4096), (1, 4096, 11008)]
    for m, n, k in (*vectors, *((m, n, k) for m in rows_of_x for n in wide for k in wide)):
        row = {"dtype": "fp32", "m": m, "n": n, "k": k, "kernel": "numpy"}
        # Both storage orders: up projections are stored (n, k), transposed down projections (k, n).
        x, w = _ones(m, k), _ones(n, k)
        yield "gemm", row, lambda x=x, w=w: np.matmul(x, w.T)
        if m == 1:
            x, wt = _ones(m, k), _ones(k, n)
            yield "gemm", row, lambda x=x, wt=wt: np.matmul(x, wt)


def _passes(quick: bool) -> Iterator[Job]:
    octaves = range(12, 26 if quick else 28, 2)
    for power in octaves:
        width = 2**power // 4
        a, b, out = (_own(width) for _ in range(3))
        square = _own(max(width // 1024, 1), min(width, 1024))
        jobs: tuple[tuple[str, int, Callable[[], object]], ...] = (
            ("copy", 2, lambda a=a, out=out: np.copyto(out, a)),
            ("add", 3, lambda a=a, b=b, out=out: np.add(a, b, out=out)),
            ("mul", 3, lambda a=a, b=b, out=out: np.multiply(a, b, out=out)),
            ("relu", 2, lambda a=a, out=out: np.maximum(a, 0.0, out=out)),
            ("ln", 2, lambda s=square: s / np.sqrt(np.mean(s * s, axis=-1, keepdims=True))),
            ("softmax", 2, lambda s=square: _softmax(s)),
        )
        for op, streams, run in jobs:
            row = {"op": op, "rows": len(square), "width": square.shape[1]}
            yield "elementwise", row | {"bytes": 4 * streams * width}, run


def _softmax(s: np.ndarray) -> np.ndarray:
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _gathers(quick: bool) -> Iterator[Job]:
    rng = np.random.default_rng(0)
    for total in (2**20, 2**22) if quick else (2**20, 2**22, 2**24):
        for run_bytes in RUNS_OF_BYTES:
            table = _ones(4 * total // run_bytes, run_bytes // 4)
            index = np.sort(rng.permutation(len(table))[: total // run_bytes])
            out = _ones(len(index), run_bytes // 4)
            row = {"run_bytes": run_bytes, "bytes": total}
            yield "gather", row, lambda t=table, i=index, o=out: np.take(t, i, 0, o, "clip")
    for count in (2**14, 2**18):
        # One element at a time from a vector that the nearest caches hold: what a CSR product does.
        vector, index, out = _ones(4096), rng.integers(0, 4096, count), _ones(count)
        row = {"run_bytes": 4, "bytes": 4 * count}
        yield "element", row, lambda v=vector, i=index, o=out: np.take(v, i, 0, o, "clip")


def _attention(quick: bool) -> Iterator[Job]:
    lengths = (128, 512, 2048, 8192) if quick else (128, 512, 2048, 8192, 32768)
    for kv_heads, group, d in ((1, 1, 64), (1, 4, 128), (4, 1, 128), (8, 1, 64), (2, 4, 64), (2, 4, 128)):
        for tokens in lengths:
            for batch in (1, 4) if tokens <= 2048 else (1,):
                yield _attend("decode", batch, 1, tokens, kv_heads, group, d)
    for kv_heads, group, d in ((1, 1, 64), (4, 1, 64), (4, 1, 128), (2, 4, 128)):
        for tokens in (16, 32, 64, 128, 256, 512) if quick else (16, 32, 64, 128, 256, 512, 1024, 2048):
            yield _attend("prefill", 1, tokens, tokens, kv_heads, group, d)


def _attend(phase: str, batch: int, q_len: int, tokens: int, hk: int, group: int, d: int) -> Job:
    lanes = batch * hk
    row = {
        "dtype": "fp32",
        "kv_dtype": "fp32",
        "phase": phase,
        "batch": batch,
        "q_len": q_len,
        "kv_len": tokens,
        "n_heads": hk * group,
        "n_kv_heads": hk,
        "head_dim": d,
        "window": 0,
        "kernel": "numpy",
    }
    k, v = _ones(lanes, tokens, d), _ones(lanes, tokens, d)
    q = _ones(lanes, group * q_len, d)
    if phase == "decode":
        return "attention", row, lambda: attend(q, k, v)
    # numpy skips no masked half: a causal prompt costs the whole square, and the fit learns that.
    return "attention", row, lambda: attend(q, k, v)


def profile(device: str, measured: dict[str, list[Row]], *, threads: int, date: str) -> dict[str, Any]:
    """Document of the device file: what the system reports and what was measured, each number marked.

    The `hbm` rate is that of the largest matrix-vector product, the `l2` rate (last-level cache) the best of
    all; peaks are the best product and the best pass in a near cache.
    """
    gemm, passes = measured["gemm"], measured["elementwise"]
    vectors = [r for r in gemm if r["m"] == 1]
    largest = max(r["n"] * r["k"] for r in vectors)
    rate = {id(r): 4.0 * r["n"] * r["k"] / r["time_s"] for r in vectors}
    far = max(rate[id(r)] for r in vectors if r["n"] * r["k"] == largest)
    near = max(max(rate.values()), 1.01 * far)
    flop = max(2.0 * r["m"] * r["n"] * r["k"] / r["time_s"] for r in gemm)
    vector = max(r["bytes"] / 12 / r["time_s"] for r in passes if r["op"] == "mul")
    known, clock = machine.caches(), machine.clocks_hz()
    model, memory = machine.cpu_model(), machine.memory_bytes()
    line = known[-1][2] if known else 64
    cache = known[-1][1] if known else 2**21
    top = clock.get("max") or clock.get("now")
    low = clock.get("base") or top

    def number(value: float, unit: str, kind: str, note: str = "", source: str = SOURCE) -> Row:
        from simulator.base.units import exact_quantity

        entry = {"value": exact_quantity(float(value), unit), "source": source, "kind": kind}
        return entry | ({"note": note} if note else {})

    def system(value: float | None, other: float, unit: str, note: str) -> Row:
        """What the system reports, else `other`, marked as assumed."""
        if value is not None:
            return number(value, unit, "measured", source="operating-system")
        return number(other, unit, "assumed", note)

    guess = "the system does not say; edit to yours"
    ram = system(memory, 8 * 2**30, "B", guess)
    tier = {"sector": system(line if known else None, 64, "B", guess)}
    tier["line"] = tier["sector"]
    return {
        "schema": 1,
        "name": device,
        "aliases": [],
        "matches": [model],
        "vendor": machine.vendor(model),
        "arch": f"cpu-{platform.machine().casefold()}",
        "note": f"measured on {date} with numpy on {threads} of {machine.cores()} cores",
        "sm_count": number(threads, "1", "measured", "threads of BLAS; numpy's gathers use one"),
        "marketed_capacity": ram,
        "power": number(15.0 * threads, "W", "assumed", "15 W per core; edit to yours"),
        "idle_power": number(5.0 * threads, "W", "assumed", "5 W per core; edit to yours"),
        "price": number(0.05 * threads, "USD/h", "assumed", "order of magnitude of a rented core; edit to yours")
        | {"date": date},
        "clock": {
            "base": system(low and min(low, top or low), 1e9, "Hz", guess),
            "boost": system(top, 1e9, "Hz", guess),
            "max": system(top, 1e9, "Hz", guess),
        },
        "vector": {"dense": number(vector, "flop/s", "measured", "numpy.multiply in the nearest cache")},
        "compute": {"fp32": {"dense": number(flop, "flop/s", "measured", "best product timed")}},
        "memory": [
            {
                "name": "l2",
                "technology": "last-level-cache",
                "capacity": system(cache if known else None, cache, "B", guess),
                "bandwidth": number(near, "B/s", "measured", "fastest matrix-vector product"),
                "latency": number(30e-9, "s", "assumed", "order of magnitude; unused"),
                **tier,
            },
            {
                "name": "hbm",
                "technology": "main-memory",
                "capacity": ram,
                "bandwidth": number(far, "B/s", "measured", f"product with {4e-6 * largest:.0f} MB of weights"),
                "latency": number(100e-9, "s", "assumed", "order of magnitude; unused"),
                **tier,
            },
        ],
        "link": [
            {
                "name": "none",
                "switched": False,
                "max_ranks": 1,
                "nvls": False,
                "bandwidth": number(1e9, "B/s", "assumed", "one device per machine: never used"),
                "latency": number(2e-6, "s", "assumed", "never used"),
            }
        ],
    }
