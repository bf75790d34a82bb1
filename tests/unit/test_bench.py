"""Benchmark machinery without a clock: statistics, hash before run, rows on disk, errors of the verbs."""

import itertools
import json
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from simulator.base.errors import InputError
from simulator.device.catalogue import load
from simulator.ops.ops import Elementwise
from simulator.ops.traffic import Operand
from simulator.roofline.bandwidth import DRAM_LATENCY_S, bytes_in_flight
from sparse_kernels import baselines, bench, bench_rows, calibrate, machine, predictions
from sparse_kernels.bench_cpu import CpuBench
from sparse_kernels.cpu.registry import kernel
from sparse_kernels.registry import case
from sparse_kernels.timing import LEAST_RUNS, Timing, summary, time_cpu
from sparse_kernels.timing_cuda import is_cold, rounds_for, sets_for


def test_median_and_quantiles():
    t = summary([float(i) for i in range(1, 12)])
    assert (t.median_s, t.p20_s, t.p80_s, t.runs, t.disturbed) == (6.0, 3.0, 9.0, 11, 0.0)


def test_runs_that_lost_the_core_are_dropped():
    wall = [1.0] * 8 + [5.0, 9.0]
    t = summary(wall, [1.0] * 10)
    assert (t.median_s, t.runs, t.disturbed) == (1.0, 8, pytest.approx(0.2))


def test_all_runs_are_kept_when_few_were_calm():
    wall = [1.0] * (LEAST_RUNS - 1) + [5.0] * 10
    t = summary(wall, [1.0] * len(wall))
    assert (t.median_s, t.runs, t.disturbed) == (5.0, len(wall), 0.0)


def test_no_run_is_an_error():
    with pytest.raises(ValueError, match="no run"):
        summary([])


def test_time_cpu_on_a_clock_that_ticks():
    ticks = itertools.count()
    calls = []
    t = time_cpu(
        lambda: calls.append(1), budget_s=1000.0, most=20, wall=lambda: next(ticks), busy=lambda: 0.0, threads=2
    )
    assert (t.runs, t.median_s, len(calls)) == (20, 1.0, 21)
    short = time_cpu(lambda: None, budget_s=0.0, wall=lambda: next(ticks), busy=lambda: 0.0, threads=2)
    assert short.runs == LEAST_RUNS


@pytest.mark.parametrize(
    ("touched", "occupied", "free", "sets"),
    [(10.0, 10.0, 1e9, 16), (1e9, 1e9, 1e12, 2), (10.0, 100.0, 1000.0, 4), (50.0, 1e9, 1.0, 1)],
)
def test_sets_leave_l2_between_two_uses(touched, occupied, free, sets):
    assert sets_for(touched, occupied, 50.0, free) == sets


def test_cold_or_not():
    assert is_cold(6, 10.0, 50.0)
    assert not is_cold(5, 10.0, 50.0)
    assert is_cold(1, 150.0, 50.0)
    assert rounds_for(10e-6, 4) == 25
    assert rounds_for(1.0, 1) == 1


def test_an_index_list_costs_bytes_but_no_launch():
    device = load("h200")
    pass_ = Elementwise(role="a", kind="unary", read_bytes=1e6)
    listed = Elementwise(role="b", kind="index", read_bytes=1e6, operand=Operand.INDEX, launches=0.0)
    alone, both = predictions.expect([pass_], device), predictions.expect([pass_, listed], device)
    again = predictions.expect([pass_, pass_], device)
    assert alone.predicted_s < both.predicted_s < again.predicted_s
    assert both.launches == 1.0
    assert both.lo_s < both.predicted_s < both.hi_s


@dataclass
class FakePoint:
    key: str


@dataclass
class FakeBench:
    """Points that need no machine; notes when it was asked to run."""

    device: object = field(default_factory=lambda: load("h200"))
    seconds: float = 2.0
    log: list = field(default_factory=list)
    stop_at: int = 99

    def points(self, ops):
        return [FakePoint(bench_rows.key("op", f"c{i}")) for i in range(3)]

    def predict(self, points):
        self.log.append("predict")
        own = predictions.Expected(1.0, 0.5, 3.0, "CALIBRATED", 8.0, 2.0, 1.0)
        for i, _ in enumerate(points):
            shape = case(f"c{i}", "quick", m=i + 1, n=4, k=5, keep=0.5)
            yield bench_rows.predicted("op", "weights", "decode", "h200", shape, own, own)

    def run(self, point, row):
        self.log.append(point.key)
        if len(self.log) > self.stop_at:
            raise KeyboardInterrupt
        t = Timing(self.seconds, 1.0, 3.0, 9, 0.0, "perf_counter")
        return bench_rows.measured(row, t, baseline="dense", dense=t, copy=t)


def run(fake, out=None, **options):
    settings = {"resume": False, "limit_s": 60.0, "facts": {"versions": {"numpy": "2"}}, "quiet": True}
    return bench.run(fake, [], out=out, **(settings | options))


def test_predictions_are_written_before_the_first_run(tmp_path, capsys):
    out = tmp_path / "rows.csv"
    seen = []

    class Watched(FakeBench):
        def run(self, point, row):
            record = json.loads(bench_rows.prediction_file(out).read_text())
            seen.append((record["sha256"], row["prediction_sha256"], row.get("measured_s")))
            return super().run(point, row)

    rows, digest, missed = run(Watched(), out)
    assert seen == [(digest, digest, None)] * 3
    assert missed == 0
    assert digest in capsys.readouterr().err
    assert [r["ratio"] for r in rows] == [0.5] * 3
    assert all(r["inside"] and r["status"] == "ok" for r in rows)


def test_hash_changes_with_a_prediction_and_not_with_a_time():
    device = load("h200")
    point = {"op": "a", "predicted_s": 1.0}
    assert predictions.digest([point], device) == predictions.digest([dict(point)], device)
    assert predictions.digest([point], device) != predictions.digest([point | {"predicted_s": 1.1}], device)
    assert predictions.digest([point], device) != predictions.digest([point], load("h100-sxm"))
    assert run(FakeBench(seconds=2.0))[1] == run(FakeBench(seconds=5.0))[1]


def test_an_interrupt_keeps_rows_and_resume_goes_on(tmp_path):
    out = tmp_path / "rows.csv"
    with pytest.raises(KeyboardInterrupt):
        run(FakeBench(stop_at=2), out)
    kept = bench_rows.read_rows(out)
    assert [r["case"] for r in kept] == ["c0"]
    again = FakeBench()
    rows, _, _ = run(again, out, resume=True)
    assert again.log == ["predict", "op / c1", "op / c2"]
    assert [r["case"] for r in rows] == ["c0", "c1", "c2"]
    assert bench_rows.read_rows(out) == [{c: r.get(c) for c in bench_rows.COLUMNS} for r in rows]
    assert not list(tmp_path.glob(".*"))


def test_a_resume_that_runs_out_of_time_keeps_what_was_known(tmp_path):
    class Wrong(FakeBench):
        def run(self, point, row):
            out = super().run(point, row)
            return out | {"status": "wrong", "reason": "off"} if point.key == "op / c1" else out

    out = tmp_path / "rows.csv"
    run(Wrong(), out)
    predictions_before = bench_rows.prediction_file(out).read_bytes()

    class Slow(FakeBench):
        def run(self, point, row):
            raise AssertionError("there was no time for it")

    rows, _, missed = run(Slow(), out, resume=True, limit_s=-1.0)
    assert ([r["status"] for r in rows], missed) == (["ok", "wrong", "ok"], 1)
    assert [r["status"] for r in bench_rows.read_rows(out)] == ["ok", "wrong", "ok"]
    # Two points to go, time for one: the row of the other stays, too.
    bench_rows.write_rows(out, [r | {"status": "wrong"} for r in rows])
    clock = iter((0.0, 0.0, 99.0, 99.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.time, "monotonic", lambda: next(clock))
        run(FakeBench(), out, resume=True)
    assert [r["status"] for r in bench_rows.read_rows(out)] == ["ok", "wrong", "wrong"]
    # The predictions are those of the first run, with the time they were made at.
    assert bench_rows.prediction_file(out).read_bytes() == predictions_before


def test_resume_refuses_rows_of_other_predictions(tmp_path):
    out = tmp_path / "rows.csv"
    run(FakeBench(), out)
    other = FakeBench(device=load("h100-sxm"))
    before = out.read_bytes()
    with pytest.raises(InputError, match="other predictions"):
        run(other, out, resume=True)
    assert out.read_bytes() == before


def test_no_point_is_begun_after_the_limit():
    fake = FakeBench()
    rows, _, missed = run(fake, limit_s=-1.0)
    assert (rows, missed, fake.log) == ([], 3, ["predict"])


def test_a_lost_gpu_ends_the_run_and_its_kernel_comes_last_the_next_time(tmp_path):
    class Breaks(FakeBench):
        def run(self, point, row):
            out = super().run(point, row)
            if point.key == "op / c1":
                raise bench_rows.DeviceLostError(out | {"status": "failed", "reason": "CUDA error"})
            return out

    out = tmp_path / "rows.csv"
    rows, _, missed = run(Breaks(), out)
    assert ([r["status"] for r in rows], missed) == (["ok", "failed"], 1)
    again = FakeBench()
    rows, _, missed = run(again, out, resume=True)
    assert again.log == ["predict", "op / c2", "op / c1"]
    assert [r["status"] for r in bench_rows.read_rows(out)] == ["ok"] * 3


def test_occupancy_limits_what_a_kernel_is_predicted_to_draw():
    device = load("h200")
    ops = (Elementwise(role="r", kind="copy", read_bytes=1e9, operand=Operand.KV),)
    free = predictions.expect(ops, device)
    # One block of 32 KiB on each of 132 SMs: 4.3 MB at 0.65 us are 6.65 TB/s, more than the memory has.
    full = float(bytes_in_flight(1e6, 132, 1, 32768))
    assert predictions.expect(ops, device, full) == free
    # Half of the SMs with 4 KiB each: 270 kB / 0.65 us = 416 GB/s.
    few = float(bytes_in_flight(66, 132, 8, 4096))
    held = predictions.expect(ops, device, few)
    assert held.predicted_s == pytest.approx(1e9 * DRAM_LATENCY_S / (66 * 4096))
    assert held.lo_s < held.predicted_s < held.hi_s
    activations = (Elementwise(role="r", kind="copy", read_bytes=1e9, operand=Operand.ACTIVATION),)
    assert predictions.expect(activations, device, few) == predictions.expect(activations, device)


def test_fingerprint_is_of_the_machine_and_not_of_the_moment():
    facts = {"cpu": "x", "clock_hz": {"now": 1e9}, "smi": {"name": "g", "clocks.sm": "345"}}
    later = {"cpu": "x", "clock_hz": {"now": 2e9}, "smi": {"name": "g", "clocks.sm": "1980"}}
    other = {"cpu": "y", "clock_hz": {"now": 1e9}, "smi": {"name": "g", "clocks.sm": "345"}}
    assert machine.fingerprint(facts) == machine.fingerprint(later) != machine.fingerprint(other)


def test_summary_counts_what_was_timed():
    row = dict.fromkeys(bench_rows.COLUMNS)
    rows = [
        row | {"status": "ok", "ratio": r, "inside": r < 2, "speedup": 2.0, "predicted_speedup": s}
        for r, s in ((0.5, 3.0), (1.0, 0.5), (2.0, 2.0))
    ]
    total = bench_rows.summary([*rows, row | {"status": "wrong"}])
    assert (total["points"], total["median_ratio"], total["median_ape"]) == (3, 1.0, 0.5)
    assert total["coverage_90"] == pytest.approx(2 / 3)
    assert total["same_verdict"] == pytest.approx(2 / 3)
    assert bench_rows.summary([]) == {"points": 0}
    assert bench.verdict({"points": 0}) == "no kernel was timed"
    assert "other processes" not in bench.verdict(total)
    busy = bench_rows.summary([r | {"disturbed": 0.5} for r in rows])
    assert bench.verdict(busy).endswith("other processes held the core in 50 % of the runs")


def test_committed_rows_are_told_with_device_and_date(tmp_path):
    assert bench_rows.committed(tmp_path) == []
    folder = tmp_path / "h200"
    run(FakeBench(), folder / bench_rows.KERNEL_ROWS)
    (line,) = bench_rows.committed(tmp_path)
    assert line.startswith("h200, 20")
    assert "3 kernels, predicted over measured median 0.50" in line


def test_cold_times_are_what_is_judged():
    own = predictions.Expected(1.0, 0.5, 3.0, "CALIBRATED", 8.0, 2.0, 1.0)
    shape = case("c", "quick", m=1, n=4, k=5)
    row = bench_rows.predicted("op", "weights", "decode", "h200", shape, own, None)
    hot, cold = (Timing(s, s, s, 9, 0.0, "graph") for s in (1.0, 4.0))
    out = bench_rows.measured(row, hot, cold=cold, copy=hot)
    assert (out["measured_s"], out["hot_s"], out["ratio"], out["inside"]) == (4.0, 1.0, 0.25, False)
    assert (out["copy_share"], out["speedup"]) == (0.25, None)


def test_a_wrong_kernel_gets_no_time(monkeypatch):
    from sparse_kernels import bench_cpu

    monkeypatch.setattr(bench_cpu, "wrong", lambda member, inputs: "off by 3")
    member = kernel("gathered_gemv")
    point = bench_rows.Point(member, next(member.cases_for("test")))
    row = dict.fromkeys(bench_rows.COLUMNS)
    out = CpuBench(load("h200"), 1, False).run(point, row)
    assert (out["status"], out["reason"], out["measured_s"]) == ("wrong", "off by 3", None)


@pytest.mark.torch
def test_every_timed_gpu_case_with_a_dense_twin_has_its_ops():
    pytest.importorskip("torch", reason="torch not installed")
    pytest.importorskip("triton", reason="triton not installed")
    from sparse_kernels.registry import kernels

    seen = set()
    for member in kernels().values():
        for c in member.cases_for("quick", "full"):
            what = baselines.kind(member, c)
            seen.add(what)
            if member.dense or member.family == "prefill":
                assert what, (member.name, c.name)
            for op in baselines.dense_ops(what, c) if what else ():
                assert op.traffic().total_bytes > 0
    assert {"mlp", "product", "decode", "prefill", "projections"} <= seen


def test_slug_of_processors():
    assert machine.slug("Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz") == "cpu-intel-xeon-gold-6338"
    assert machine.slug("AMD EPYC 7763 64-Core Processor") == "cpu-amd-epyc-7763"
    assert machine.slug("Apple M2 Pro") == "cpu-apple-m2-pro"
    assert machine.slug("???") == "cpu-unknown"
    assert machine.vendor("Neoverse") == "unknown"


def test_threads_cannot_change_once_numpy_is_loaded(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    with pytest.raises(RuntimeError, match="numpy is loaded"):
        machine.fix_threads(7)


def verb(name, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"sparse_kernels.{name}", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("bench", ["--device", "gpu"], "unknown device 'gpu'"),
        ("bench", ["--quick", "--full"], "either --quick or --full"),
        ("bench", ["--out", "x.parquet"], "must end in .csv"),
        ("bench", ["--resume"], "needs the --out"),
        ("bench", ["--threads", "4096"], "this process may use"),
        ("bench", [], "was not calibrated; run `python -m sparse_kernels.calibrate"),
        ("calibrate", ["--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_bad_input_is_one_line(name, arguments, says, tmp_path, monkeypatch):
    monkeypatch.setenv("SHADOWLINE_HOME", str(tmp_path))
    done = verb(name, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert says in done.stderr


@pytest.mark.torch
@pytest.mark.parametrize("name", ["bench", "calibrate"])
def test_cuda_without_a_gpu_is_one_line(name, call):
    torch = pytest.importorskip("torch", reason="torch not installed")
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    told = "error: --device: no GPU that torch can use; --device cpu needs none\n"
    assert call({"bench": bench, "calibrate": calibrate}[name].app, "--device", "cuda") == (2, "", told)


@pytest.mark.parametrize("name", ["bench", "calibrate"])
def test_help_loads_nothing_heavy(name):
    code = (
        f"import sys; import sparse_kernels.{name}; "
        "print([m for m in ('numpy', 'scipy', 'pandas', 'torch', 'triton') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_could_not_be_predicted_is_not_run_and_is_tried_again(tmp_path):
    class Half(FakeBench):
        def predict(self, points):
            for i, row in enumerate(super().predict(points)):
                yield row | {"status": "failed", "reason": "no memory"} if i == 1 else row

    fake, out = Half(), tmp_path / "rows.csv"
    rows, _, _ = run(fake, out)
    assert [r["status"] for r in rows] == ["ok", "failed", "ok"]
    assert fake.log == ["predict", "op / c0", "op / c2"]
    again = Half()
    rows, _, _ = run(again, out, resume=True)
    assert again.log == ["predict"]
    assert sorted(r["case"] for r in rows) == ["c0", "c1", "c2"]


@pytest.mark.torch
def test_difference_finds_shape_value_and_nan():
    torch = pytest.importorskip("torch", reason="torch not installed")
    from sparse_kernels.bench_cuda import difference
    from sparse_kernels.registry import Tolerance

    truth, within = {"y": torch.ones(2, 3)}, Tolerance(0.0, 0.5, "a test")
    assert difference({"y": torch.full((6,), 1.4, dtype=torch.bfloat16)}, truth, within, "c") == ""
    assert "off by 1" in difference({"y": torch.full((6,), 2.0)}, truth, within, "c")
    assert "NaN" in difference({"y": torch.full((6,), float("nan"))}, truth, within, "c")
    hole = {"y": torch.tensor([1.0, float("nan")])}
    assert difference({"y": torch.tensor([1.0, float("nan")])}, hole, within, "c") == ""
    assert "NaN" in difference({"y": torch.tensor([1.0, 1.0])}, hole, within, "c")
    assert "shape (5,)" in difference({"y": torch.ones(5)}, truth, within, "c")
    assert "neither" in difference({}, truth, within, "c")
    bits = {"y": torch.tensor([2**62 + 1])}
    assert "1 whole numbers" in difference({"y": torch.tensor([2**62])}, bits, within, "c")
    assert float(truth["y"].sum()) == 6.0


@pytest.mark.torch
def test_a_bench_without_the_packages_metadata_is_one_line(monkeypatch):
    """Policies are entry points: a checkout on PYTHONPATH alone has none, and every prediction would fail."""
    pytest.importorskip("torch", reason="torch not installed")
    pytest.importorskip("triton", reason="triton not installed")
    from simulator import policies
    from sparse_kernels import bench_cuda

    monkeypatch.setattr(policies, "POLICIES", {})
    with pytest.raises(InputError, match=r"policies are not registered: .* \.dist-info"):
        bench_cuda.open_bench(False)


@pytest.mark.torch
@pytest.mark.parametrize(("raised", "status"), [("OutOfMemoryError", "ok"), ("RuntimeError", "failed")])
def test_only_too_little_memory_excuses_a_comparison(raised, status, monkeypatch):
    torch = pytest.importorskip("torch", reason="torch not installed")
    pytest.importorskip("triton", reason="triton not installed")
    from sparse_kernels import bench_cuda
    from sparse_kernels.registry import kernel as gpu_kernel

    def stop(*_):
        raise {"RuntimeError": RuntimeError}.get(raised, torch.cuda.OutOfMemoryError)("index on cpu")

    monkeypatch.setattr(bench_cuda, "_wrong", stop)
    monkeypatch.setattr(bench_cuda.CudaBench, "_timed", lambda *_: {"status": "ok", "reason": None})
    member = gpu_kernel("gathered_mlp")
    point = bench_rows.Point(member, next(member.cases_for("quick")))
    judge = bench_cuda.CudaBench(load("h100-sxm"), False, {member.name: ""}, "cpu")
    out = judge.run(point, {})
    assert out["status"] == status
    assert out["reason"] == (bench_cuda.NOT_COMPARED if status == "ok" else "RuntimeError: index on cpu")


@pytest.fixture
def jobs(monkeypatch):
    """`calibrate_cuda.measure` over the jobs a test names, with no GPU."""
    pytest.importorskip("torch", reason="torch not installed")
    from sparse_kernels import calibrate_cuda

    def measure(folder, *made):
        monkeypatch.setattr(calibrate_cuda, "_rows", lambda device, quick: iter(made))
        return calibrate_cuda.measure(load("h100-sxm"), folder, quick=True)

    return measure


def fails(error):
    raise error


@pytest.mark.torch
def test_measured_rows_outlive_an_end_without_a_word(jobs, tmp_path):
    def killed():
        # SIGKILL would end here: the family before is on disk already.
        assert (tmp_path / "copy.csv").read_text().splitlines()[1].endswith(",1,2.0")
        raise KeyboardInterrupt

    done = {"time_s": 2.0}
    with pytest.raises(KeyboardInterrupt):
        jobs(
            tmp_path, ("copy", {"bytes": 1}, lambda: done), ("gemm", {"m": 1}, lambda: done), ("gemm", {"m": 2}, killed)
        )
    assert len((tmp_path / "gemm.csv").read_text().splitlines()) == 2


@pytest.mark.torch
def test_a_shape_that_does_not_run_is_left_out_and_a_lost_gpu_ends_it(jobs, tmp_path, monkeypatch, capsys):
    import torch

    from sparse_kernels import calibrate_cuda

    full = ("gemm", {"m": 2}, lambda: fails(torch.cuda.OutOfMemoryError("no memory")))
    after = ("gemm", {"m": 3}, lambda: {"time_s": 2.0})
    assert [r["m"] for r in jobs(tmp_path, full, after)["gemm"]] == [3]
    assert "left out gemm {'m': 2}: OutOfMemoryError: no memory" in capsys.readouterr().err
    monkeypatch.setattr(calibrate_cuda, "answers", lambda: False)
    with pytest.raises(InputError, match="answers this process no more"):
        jobs(tmp_path / "again", after, full)
    assert len((tmp_path / "again" / "gemm.csv").read_text().splitlines()) == 2


@pytest.mark.torch
def test_copies_said_to_come_from_l2_fit_in_it():
    pytest.importorskip("torch", reason="torch not installed")
    from sparse_kernels import calibrate_cuda

    device = load("h100-sxm")
    hot = [row for family, row, _ in calibrate_cuda._passes(device, False) if family == "copy"]
    assert hot
    assert all(row["bytes"] <= device.l2_bytes for row in hot)


@pytest.mark.torch
def test_predicting_a_librarys_kernel_runs_nothing_of_it(monkeypatch):
    pytest.importorskip("triton", reason="triton not installed")
    from sparse_kernels import nm24, warm

    monkeypatch.setattr(nm24.library, "compress", lambda weight: fails(AssertionError("it ran")))
    small = case("small", "quick", m=8, n=64, k=64, keep=0.5)
    plan = warm.plan(nm24.KERNEL, small, "cpu")
    assert (plan.reason, plan.launches) == ("", ())
    assert plan.ops


@pytest.mark.torch
def test_the_gpu_path_runs_but_for_the_clock_in_the_interpreter(monkeypatch):
    torch = pytest.importorskip("torch", reason="torch not installed")
    pytest.importorskip("triton", reason="triton not installed")
    from sparse_kernels import bench_cuda, timing_cuda
    from sparse_kernels.registry import kernel

    def once(runs, budget_s, *, flush=None):
        for run in runs:
            run()
        return Timing(1e-3, 1e-3, 1e-3, 7, 0.0, "graph")

    monkeypatch.setattr(timing_cuda, "time_runs", once)
    monkeypatch.setattr(timing_cuda, "flusher", lambda l2: None)
    monkeypatch.setattr(timing_cuda, "sets_for", lambda *a: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *a: (10**9, 10**9))
    bench = bench_cuda.CudaBench(load("h100-sxm"), False, {}, "cpu")
    points = [
        bench_rows.Point(kernel(name), next(kernel(name).cases_for(use)))
        for name, use in (("teal", "test"), ("skinny_gemm", "test"), ("nm24", "quick"))
    ]
    bench.judged.update(teal="", skinny_gemm="")
    predicted = list(bench.predict(points))
    teal, dense, nm24 = (
        bench.run(point, row) if row["status"] != "failed" else row
        for point, row in zip(points, predicted, strict=True)
    )
    columns = ("op", "status", "launched", "baseline")
    assert [teal[c] for c in columns] == ["teal", "ok", 2, "cuBLAS (torch linear)"]
    # Ours is no baseline of itself.
    assert [dense[c] for c in columns] == ["skinny_gemm", "ok", 1, "cuBLAS (torch linear)"]
    assert (nm24["op"], nm24["status"]) == ("nm24", "failed")
    assert "no CUDA device" in nm24["reason"]


@pytest.mark.gpu
@pytest.mark.torch
def test_a_graph_of_rotating_sets_is_timed():
    torch = pytest.importorskip("torch", reason="torch not installed")
    from sparse_kernels import timing_cuda

    pairs = [(torch.ones(2**20, device="cuda"), torch.empty(2**20, device="cuda")) for _ in range(4)]
    t = timing_cuda.time_runs([lambda a=a, b=b: b.copy_(a) for a, b in pairs], 0.02)
    assert t.timer == "graph"
    assert 0.0 < t.p20_s <= t.median_s <= t.p80_s < 1.0
    synced = timing_cuda.time_runs([lambda: float(pairs[0][0].sum())], 0.02)
    assert synced.timer == "events"
