"""Micro-measurements of a GPU through torch: copies, gathers, products, attention, launches, PCIe.

As on a CPU, nothing sparse is timed but plain gathers. Operands rotate so that they come from main memory, as a
model's weights do, except where 128 sets of them fit in L2; copies that fit there are also timed from it. Launches,
PCIe and copies from L2 are kept for the record: no fit reads them yet.
"""

from __future__ import annotations

import datetime as dt
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.base import console
from simulator.base.errors import InputError
from simulator.device.catalogue import Device
from sparse_kernels.bench_cuda import answers, this_device
from sparse_kernels.calibrate_cpu import RUNS_OF_BYTES, SOURCE
from sparse_kernels.warm import first_line

if TYPE_CHECKING:
    from simulator.device.fits import Fit

Row = dict[str, Any]
Run = Callable[[], object]
Make = Callable[[], tuple[Run, int]]
LIMIT_S = {False: 280.0, True: 100.0}
"""Seconds of measurement, full and quick; what is left over then is not measured, and said."""
WHERE = "cuda"
"""Torch's device; tests have none."""
PCIE_CHUNKS = tuple(2**p for p in range(12, 29, 2))


def calibrate_cuda(out: Path, *, quick: bool) -> tuple[str, list[Fit], list[Path]]:
    """Measure this GPU and install its fits under `out`; device name, fits and files."""
    from sparse_kernels import machine, overlay

    device = this_device()
    date = dt.date.today().isoformat()
    console.say(f"measuring {device.name}: {machine.nvidia_smi() or 'no nvidia-smi'}")
    measured = measure(device, out / "rows" / device.name, quick=quick)
    fits, paths = overlay.make(device.name, measured, out, date=date)
    return device.name, fits, paths


def measure(device: Device, folder: Path, *, quick: bool) -> dict[str, list[Row]]:
    """Rows by family, kept in `folder` as they come: a lent GPU is taken away without a word.

    A shape that cannot be run is left out and said.
    """
    from sparse_kernels import overlay

    base = {"source": SOURCE, "device": device.name, "flag": ""}
    measured: dict[str, list[Row]] = defaultdict(list)
    end = time.monotonic() + LIMIT_S[quick]
    late, before = 0, ""
    try:
        for family, row, timed in _rows(device, quick):
            if time.monotonic() > end:
                late += 1
                continue
            if family != before:
                overlay.keep_rows(measured, folder)
                before = family
            try:
                measured[family].append(base | row | timed())
            except RuntimeError as error:
                console.say(f"left out {family} {row}: {first_line(error)}")
                if not answers():
                    raise InputError(
                        f"the GPU answers this process no more; what was measured lies in {folder}", where="--device"
                    ) from None
    finally:
        overlay.keep_rows(measured, folder)
    if late:
        console.say(f"{late} shapes were left out: the time for measuring was used up")
    return measured


Job = tuple[str, Row, Callable[[], Row]]


def _rows(device: Device, quick: bool) -> Iterator[Job]:
    """Jobs in an order in which every family has its main shapes early."""
    yield from _launches()
    yield from _pcie()
    yield from _gathers(device)
    yield from _passes(device, quick)
    # The two long ones in turn, so that neither is left out where time is short.
    turns = itertools.zip_longest(_gemms(device, quick), _attention(device, quick))
    yield from (job for turn in turns for job in turn if job is not None)


def _timed(device: Device, make: Make, touched: float, *, hot: bool = False) -> Callable[[], Row]:
    def run() -> Row:
        import torch

        from sparse_kernels import timing_cuda

        # What an earlier shape left in torch's cache is free, too.
        torch.cuda.empty_cache()
        first, occupied = make()
        free = torch.cuda.mem_get_info()[0] + occupied
        l2 = device.l2_bytes
        count = 1 if hot else timing_cuda.sets_for(touched, occupied, l2, free)
        runs = [first, *(make()[0] for _ in range(count - 1))]
        return timing_cuda.time_runs(runs, 0.05, flush=None if hot else timing_cuda.flusher(l2)).row()

    return run


def _tensor(*shape: int, dtype: Any = None) -> Any:
    import torch

    return torch.randn(*shape, device=WHERE).to(dtype or torch.bfloat16)


def _size(*tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _gemms(device: Device, quick: bool) -> Iterator[Job]:
    from torch.nn import functional as F

    rows = (1, 16, 128, 2048) if quick else (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048, 8192)
    sides = (
        (1024, 4096),
        (4096, 4096),
        (4096, 11008),
        (11008, 4096),
        (6144, 4096),
        (4096, 14336),
        (28672, 4096),
        (8192, 8192),
        (7168, 28672),
        (512, 2048),
        (2048, 512),
        (32000, 4096),
    )
    for m in rows:
        for n, k in sides[:6] if quick else sides:

            def make(m: int = m, n: int = n, k: int = k) -> tuple[Run, int]:
                x, w = _tensor(m, k), _tensor(n, k)
                return lambda: F.linear(x, w), _size(x, w)

            row = {"dtype": "bf16", "m": m, "n": n, "k": k, "kernel": "torch"}
            yield "gemm", row, _timed(device, make, 2.0 * (m * k + n * k + m * n))


def _passes(device: Device, quick: bool) -> Iterator[Job]:
    import torch
    from torch.nn import functional as F

    for power in range(14, 29, 4 if quick else 2):
        width = 2**power // 2
        shape = max(width // 4096, 1), min(width, 4096)
        calls: tuple[tuple[str, int, Callable[..., object]], ...] = (
            ("copy", 2, lambda a, b, o: o.copy_(a)),
            ("add", 3, lambda a, b, o: torch.add(a, b, out=o)),
            ("mul", 3, lambda a, b, o: torch.mul(a, b, out=o)),
            ("relu", 2, lambda a, b, o: torch.clamp(a, min=0.0, out=o)),
            ("gelu", 2, lambda a, b, o: F.gelu(a)),
            ("softmax", 2, lambda a, b, o: torch.softmax(a, -1)),
            ("layernorm", 2, lambda a, b, o: F.layer_norm(a, (a.shape[-1],))),
        )
        for op, streams, call in calls:

            def make(call: Any = call, shape: Any = shape) -> tuple[Run, int]:
                a, b, o = _tensor(*shape), _tensor(*shape), _tensor(*shape)
                return lambda: call(a, b, o), _size(a, b, o)

            row = {"op": op, "rows": shape[0], "width": shape[1], "bytes": 2 * streams * width}
            yield "elementwise", row, _timed(device, make, 2.0 * streams * width)
            if op == "copy" and 2.0 * streams * width <= device.l2_bytes:
                row = {"bytes": 2 * streams * width, "residency": "L2"}
                yield "copy", row, _timed(device, make, 2.0 * streams * width, hot=True)


def _gathers(device: Device) -> Iterator[Job]:
    import torch

    for total in (2**22, 2**25):
        for run_bytes in RUNS_OF_BYTES:

            def make(total: int = total, run_bytes: int = run_bytes) -> tuple[Run, int]:
                table = _tensor(4 * total // run_bytes, run_bytes // 2)
                index = torch.randperm(len(table), device=WHERE)[: total // run_bytes].sort().values.int()
                out = torch.empty((len(index), run_bytes // 2), dtype=table.dtype, device=WHERE)
                return lambda: torch.index_select(table, 0, index, out=out), _size(table, out)

            row = {"run_bytes": run_bytes, "bytes": total}
            yield "gather", row, _timed(device, make, 2.0 * total)


def _attention(device: Device, quick: bool) -> Iterator[Job]:
    from torch.nn import functional as F

    heads = [(32, 32, 128), (32, 8, 128)]
    heads += [] if quick else [(16, 16, 64), (64, 8, 128), (8, 1, 128)]
    decode = [(b, s) for b in (1, 4, 16, 64) for s in (512, 2048, 8192, 32768) if b * s <= 2**19]
    prefill = [(b, s) for b in (1, 4) for s in (128, 512, 2048, 8192, 16384) if b * s <= 2**15]
    for hq, hk, d in heads:
        for phase, shapes in (("decode", decode), ("prefill", prefill)):
            for batch, tokens in shapes:
                q_len = 1 if phase == "decode" else tokens

                def make(
                    hq: int = hq, hk: int = hk, d: int = d, b: int = batch, s: int = tokens, q_len: int = q_len
                ) -> tuple[Run, int]:
                    # Heads of a group are rows of one product in decode, the layout that torch runs fastest.
                    shape = (b, hk, hq // hk, d) if q_len == 1 else (b, hq, q_len, d)
                    q, k, v = _tensor(*shape), _tensor(b, hk, s, d), _tensor(b, hk, s, d)
                    if q_len == 1:
                        return lambda: F.scaled_dot_product_attention(q, k, v), _size(q, k, v)
                    return (
                        lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=hq != hk),
                        _size(q, k, v),
                    )

                row = {
                    "dtype": "bf16",
                    "kv_dtype": "bf16",
                    "phase": phase,
                    "batch": batch,
                    "q_len": q_len,
                    "kv_len": tokens,
                    "n_heads": hq,
                    "n_kv_heads": hk,
                    "head_dim": d,
                    "window": 0,
                    "kernel": "sdpa",
                }
                touched = 4.0 * batch * tokens * hk * d
                yield "attention", row, _timed(device, make, touched)


def _launches() -> Iterator[Job]:
    """The cheapest kernel there is, one by one and inside a graph."""

    def graph() -> Row:
        import torch

        from sparse_kernels import timing_cuda

        x = torch.zeros(32, device=WHERE)
        return timing_cuda.time_runs([x.zero_], 0.1).row()

    def eager() -> Row:
        import torch

        from sparse_kernels.timing import summary

        x = torch.zeros(32, device=WHERE)
        samples = []
        for _ in range(20):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(500):
                x.zero_()
            torch.cuda.synchronize()
            samples.append((time.perf_counter() - start) / 500)
        return summary(samples).row()

    yield "launch", {"mode": "graph"}, graph
    yield "launch", {"mode": "eager"}, eager


def _pcie() -> Iterator[Job]:
    for direction in ("host to device", "device to host"):
        for chunk in PCIE_CHUNKS:

            def run(chunk: int = chunk, direction: str = direction) -> Row:
                import torch

                from sparse_kernels.timing import summary
                from sparse_kernels.timing_cuda import events

                host = torch.empty(chunk, dtype=torch.int8, pin_memory=True)
                there = torch.empty(chunk, dtype=torch.int8, device=WHERE)
                a, b = (there, host) if direction == "host to device" else (host, there)
                events(lambda: a.copy_(b, non_blocking=True), 3)
                samples = events(lambda: a.copy_(b, non_blocking=True), 20)
                return summary(samples, timer="events").row()

            yield "pcie", {"direction": direction, "bytes": chunk}, run
