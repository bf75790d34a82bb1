"""The GPU side of `sparse_kernels.bench`: Triton kernels against their twins, then under CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from simulator.base.errors import InputError, UnknownNameError
from simulator.device.catalogue import Device
from sparse_kernels import baselines, bench_rows, machine, warm
from sparse_kernels.launch import captured
from sparse_kernels.predictions import expect
from sparse_kernels.registry import Case, Kernel, Tolerance
from sparse_kernels.timing import Timing
from sparse_kernels.warm import SEED, first_line

NAIVE_ELEMENTS = 150e6
"""Elements up to which the twin of a timed shape runs on the CPU; above, it is tried on the GPU [-]."""
NOT_COMPARED = "compared at test shapes only"
PARTLY_IN_L2 = "cold operands partly in L2: too small for so many copies"
BUDGET_S = {False: 0.15, True: 0.3}
"""Seconds per timing, quick and full; three to six are made per point."""


def require_cuda() -> str:
    """Name of the first GPU, or one line why there is none."""
    try:
        import torch
    except ImportError:
        raise InputError("needs torch and triton: pip install 'shadowline[kernels]'", where="--device") from None
    if not torch.cuda.is_available():
        raise InputError("no GPU that torch can use; --device cpu needs none", where="--device")
    return str(torch.cuda.get_device_name(0))


def this_device() -> Device:
    """Profile of the first GPU, by what its driver calls it."""
    from simulator.device import catalogue as devices

    name = require_cuda()
    try:
        return devices.load(devices.resolve(name))
    except UnknownNameError:
        raise InputError(
            f"no profile matches {name!r}; copy the nearest with `python -m simulator.devices NAME --toml` "
            'into $SHADOWLINE_HOME/devices/ and add it to "matches"',
            where="--device",
        ) from None


def require_policies() -> None:
    """One line where the simulator's policies cannot be found: without them no kernel has a prediction."""
    from simulator import policies

    if "dense" not in policies.POLICIES:
        raise InputError(
            "the simulator's policies are not registered: install the package, or put its .dist-info folder on "
            "PYTHONPATH, as docs/gpu_session.md says"
        )


def facts_of() -> dict[str, Any]:
    """Versions, driver and clocks; clocks are read, never set."""
    import torch

    return {
        "versions": machine.versions("torch", "triton", "flash_attn"),
        "gpu": torch.cuda.get_device_name(0),
        "cuda": torch.version.cuda,
        "smi": machine.nvidia_smi(),
        "cpu": machine.cpu_model(),
    }


@dataclass(frozen=True)
class CudaBench:
    """How points of a GPU are chosen, predicted, judged and timed.

    `judged` remembers by kernel why its test shapes are wrong; `where` is torch's device, "cpu" in tests.
    """

    device: Device
    full: bool
    judged: dict[str, str]
    where: str = "cuda"

    def points(self, ops: Sequence[str]) -> list[bench_rows.Point]:
        """Cases of the named kernels; of all without names."""
        from sparse_kernels.registry import kernel, kernels

        chosen = [kernel(op) for op in ops] if ops else list(kernels().values())
        return bench_rows.points(chosen, self.full)

    def predict(self, points: Sequence[bench_rows.Point]) -> Iterator[bench_rows.Row]:
        """Rows known beforehand: inputs are drawn, for demands depend on them, and kernels compiled, none is run."""
        plans = [warm.plan(p.member, p.case, self.where) for p in points]
        for member in {p.member.name: p.member for p in points}.values():
            plans += [warm.plan(member, c, self.where) for c in member.cases_for("test")]
        compiled = warm.compile_ahead(plans)
        for p, plan in zip(points, plans[: len(points)], strict=True):
            what = baselines.kind(p.member, p.case)
            phase = "prefill" if p.member.family == "prefill" else "decode"
            in_flight = warm.in_flight_bytes(plan, compiled, self.device)
            own = expect(plan.ops, self.device, in_flight) if plan.ops else None
            dense = expect(baselines.dense_ops(what, p.case), self.device) if what else None
            row = bench_rows.predicted(p.member.name, p.member.family, phase, self.device.name, p.case, own, dense)
            yield row if own else row | {"status": "failed", "reason": plan.reason}

    def run(self, point: bench_rows.Point, row: bench_rows.Row) -> bench_rows.Row:
        """`row` with its times; status ``wrong`` after a failed comparison, ``failed`` where memory or a launch did.

        Raises
        ------
        DeviceLostError
            An error that stays: no later kernel of this process could run.
        """
        try:
            reason, compared = self._gate(point)
            if reason:
                return row | {"status": "wrong", "reason": reason}
            timed = self._timed(point, row)
            return timed if compared else timed | {"reason": "; ".join(filter(None, (timed["reason"], NOT_COMPARED)))}
        except Exception as error:  # noqa: BLE001  one kernel must not end a session on a lent GPU
            broken = row | {"status": "failed", "reason": first_line(error)}
        if not answers():
            raise bench_rows.DeviceLostError(broken)
        return broken

    def _gate(self, point: bench_rows.Point) -> tuple[str, bool]:
        """Why the kernel is wrong, and whether its timed shape could be compared; test shapes are judged once."""
        import torch

        member = point.member
        if member.name not in self.judged:
            cases = member.cases_for("test")
            reasons = (_wrong(member, c, self.where, "cpu") for c in cases)
            self.judged[member.name] = next((r for r in reasons if r), "")
        if self.judged[member.name]:
            return self.judged[member.name], True
        if member.family == "prefill":
            return "", False
        with suppress(torch.cuda.OutOfMemoryError):
            return _wrong(member, point.case, self.where), True
        return "", False

    def _timed(self, point: bench_rows.Point, row: bench_rows.Row) -> bench_rows.Row:
        from sparse_kernels.tensors import clone

        member, case = point.member, point.case
        touched = float(row["total_bytes"])
        drawn = member.inputs(case, SEED, self.where)

        def make() -> tuple[baselines.Run, int]:
            inputs = clone(drawn)
            buffers = member.buffers(**inputs)
            return lambda: member.triton(**inputs, **buffers), _bytes(inputs) + _bytes(buffers)

        with captured(run=True) as launches:
            make()[0]()
        # A library's launches cannot be counted: then as many as the simulator thinks.
        launched = len(launches) or float(row["launches"])
        cold, hot, out_of_l2 = self._both(make, touched)
        dense, name = self._baseline(point)
        copy, *_ = self._both(copier(touched, launched, self.where), touched, hot=False)
        timed = bench_rows.measured(
            row | {"launched": launched}, hot or cold, baseline=name, dense=dense, copy=copy, cold=cold
        )
        return timed if out_of_l2 else timed | {"reason": PARTLY_IN_L2}

    def _baseline(self, point: bench_rows.Point) -> tuple[Timing | None, str | None]:
        """Fastest dense call and its name."""
        what = baselines.kind(point.member, point.case)
        if what is None:
            return None, None
        best: tuple[Timing, str] | None = None
        touched = float(sum(op.traffic().total_bytes for op in baselines.dense_ops(what, point.case)))
        for name, make in baselines.candidates(what, point.case, self.where).items():
            if name.startswith("our") and point.member.family == "dense":
                continue
            try:
                found, *_ = self._both(make, touched, hot=False)
            except (RuntimeError, ImportError):
                # No kernel of this library for this shape, or not enough memory: the next candidate may do.
                if not answers():
                    raise
                continue
            if best is None or found.median_s < best[0].median_s:
                best = found, name
        return best or (None, None)

    def _both(self, make: baselines.Maker, touched: float, hot: bool = True) -> tuple[Timing, Timing | None, bool]:
        """Cold and, where asked for, hot timing of what `make` allocates; whether cold is out of L2."""
        import torch

        from sparse_kernels import timing_cuda

        # The comparison's memory is free, too, though torch's cache holds it.
        torch.cuda.empty_cache()
        first, occupied = make()
        l2 = self.device.l2_bytes
        free = torch.cuda.mem_get_info()[0] + occupied
        count = timing_cuda.sets_for(touched, occupied, l2, free)
        runs = [first, *(make()[0] for _ in range(count - 1))]
        flush = timing_cuda.flusher(l2)
        budget = BUDGET_S[self.full]
        cold = timing_cuda.time_runs(runs, budget, flush=flush)
        away = cold.timer == "events" or timing_cuda.is_cold(count, touched, l2)
        if not hot:
            return cold, None, away
        return cold, timing_cuda.time_runs([first], budget / 2), away


def open_bench(full: bool) -> CudaBench:
    """The bench of this machine's GPU; one line why there is none."""
    require_policies()
    return CudaBench(this_device(), full, {})


def _bytes(values: Mapping[str, Any]) -> int:
    from sparse_kernels.tensors import tensors_of

    return sum(t.numel() * t.element_size() for t in tensors_of(values).values())


def answers() -> bool:
    """Whether the GPU still works: after an illegal access every call of the process fails. Frees what it can."""
    import torch

    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def _wrong(member: Kernel, case: Case, where: str, twin: str | None = None) -> str:
    """Why `member` is not its naive twin at `case`; empty where it is.

    The kernel runs on `where` into buffers full of NaN; the twin on `twin`, by default on the CPU for up to
    `NAIVE_ELEMENTS` of inputs.
    """
    import torch

    from sparse_kernels.tensors import poison, tensors_of

    inputs = member.inputs(case, SEED, where)
    elements = sum(t.numel() for t in tensors_of(inputs).values())
    twin = twin or ("cpu" if elements <= NAIVE_ELEMENTS else where)
    moved = {k: v.to(twin) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    buffers = member.buffers(**inputs)
    poison(buffers)
    want = member.naive(**moved)
    member.triton(**inputs, **buffers)
    return difference(buffers | inputs, want, member.tolerance, case.name)


def difference(got: Mapping[str, Any], want: Mapping[str, Any], tolerance: Tolerance, label: str) -> str:
    """First tensor of `want` that `got` misses by more than `tolerance`; empty where there is none."""
    import torch

    for name, truth in want.items():
        if name not in got:
            return f"{label}: {name} is neither an input nor a buffer"
        mine = got[name].to(truth.device)
        if mine.numel() != truth.numel():
            return f"{label}: {name} has shape {tuple(mine.shape)}, expected {tuple(truth.shape)}"
        truth = truth.reshape(mine.shape)
        if not truth.dtype.is_floating_point:
            if not torch.equal(mine, truth):
                return f"{label}: {name} differs in {int((mine != truth).sum())} whole numbers"
            continue
        # A twin marks what no kernel may write with NaN, so both must have it in the same places.
        if not torch.equal(mine.isnan(), truth.isnan()):
            return f"{label}: {name} is NaN elsewhere than its twin"
        # In place and in float32: a cache of 2e9 elements must fit beside its copy.
        truth = truth.float().nan_to_num()
        off = mine.float().nan_to_num().sub_(truth).abs_()
        worst = float(off.max()) if off.numel() else 0.0
        if not bool((off <= truth.abs_().mul_(tolerance.relative).add_(tolerance.absolute)).all()):
            return f"{label}: {name} off by {worst:.3g}"
    return ""


def copier(total_bytes: float, launches: float, where: str = "cuda") -> baselines.Maker:
    """Copies of half of `total_bytes` onto the other half in as many launches."""
    calls = max(round(launches), 1)
    size = max(int(total_bytes / 2 / calls) // 16 * 16, 16)

    def make() -> tuple[baselines.Run, int]:
        import torch

        source = torch.ones((calls, size), dtype=torch.int8, device=where)
        target = torch.empty_like(source)

        def run() -> None:
            for i in range(calls):
                target[i].copy_(source[i])

        return run, 2 * calls * size

    return make
