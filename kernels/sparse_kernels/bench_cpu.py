"""The CPU side of `sparse_kernels.bench`: numpy kernels under perf_counter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.device.catalogue import Device
from sparse_kernels import bench_rows
from sparse_kernels.cpu.registry import CpuKernel, kernel, kernels
from sparse_kernels.predictions import Expected, expect
from sparse_kernels.timing import Timing, time_cpu

SEED = 0


@dataclass(frozen=True)
class CpuBench:
    """How points of a CPU are chosen, predicted, judged and timed."""

    device: Device
    threads: int
    full: bool

    def points(self, ops: Sequence[str]) -> list[bench_rows.Point]:
        """Cases of the named kernels; of all without names."""
        chosen = [kernel(op) for op in ops] if ops else list(kernels().values())
        return bench_rows.points(chosen, self.full)

    def predict(self, points: Sequence[bench_rows.Point]) -> Iterator[bench_rows.Row]:
        """Rows known beforehand; no kernel runs and no array is made."""
        for p in points:
            own = expect(p.member.ops(p.case, {}), self.device)
            dense: Expected = expect(p.member.dense_ops(p.case, {}), self.device)
            yield bench_rows.predicted(
                p.member.name, p.member.family, p.member.phase, self.device.name, p.case, own, dense
            )

    def run(self, point: bench_rows.Point, row: bench_rows.Row) -> bench_rows.Row:
        """`row` with its times, or with status ``wrong`` where the kernel's answer is not the naive one's."""
        member = point.member
        inputs = member.inputs(point.case, SEED)
        reason = wrong(member, inputs)
        if reason:
            return row | {"status": "wrong", "reason": reason}
        budget = 0.4 if self.full else 0.06
        own = self._time(lambda: member.run(**inputs), budget)
        dense = self._time(lambda: member.dense(**inputs), budget / 2)
        copy = self._time(copies(row["total_bytes"], row["launches"]), budget / 4)
        return bench_rows.measured(row, own, baseline="numpy dense", dense=dense, copy=copy)

    def _time(self, run: Any, budget_s: float) -> Timing:
        return time_cpu(run, budget_s=budget_s, threads=self.threads)


def wrong(member: CpuKernel, inputs: dict[str, Any]) -> str:
    """Why the kernel's answer is not the naive one's; empty where it is."""
    got, want = np.asarray(member.run(**inputs)), np.asarray(member.naive(**inputs))
    if got.shape != want.shape:
        return f"shape {got.shape}, expected {want.shape}"
    t = member.tolerance
    off = np.abs(got - want)
    if not np.all(off <= t.absolute + t.relative * np.abs(want)):
        bad = int(np.count_nonzero(~np.isfinite(got)))
        finite = off[np.isfinite(off)]
        worst = f"off by {float(finite.max()):.3g} at worst" if finite.size else "no number at all"
        return worst + (f", {bad} values not finite" if bad else "")
    return ""


def copies(total_bytes: float, launches: float) -> Any:
    """A function that copies half of `total_bytes` onto the other half, in `launches` calls."""
    calls = max(round(launches), 1)
    size = max(int(total_bytes / 2 / 4 / calls), 1)
    source, target = np.ones(size, np.float32), np.empty(size, np.float32)

    def run() -> None:
        for _ in range(calls):
            np.copyto(target, source)

    return run
