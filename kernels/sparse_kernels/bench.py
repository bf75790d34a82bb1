"""Predicted against measured, kernel by kernel: ``python -m sparse_kernels.bench --device cpu --quick``."""

from __future__ import annotations

import datetime as dt
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from simulator.base import console
from simulator.base.errors import InputError, UnknownNameError

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

DEVICES = ("cpu", "cuda")
LIMIT_S = {("cpu", False): 120.0, ("cpu", True): 540.0, ("cuda", False): 290.0, ("cuda", True): 530.0}
"""Wall time after which no further point is begun [s], by device and --full."""
BUSY = 0.1
"""Share of interrupted runs from which a verdict says that the machine was not idle [-]."""


def run(
    bench: Any,
    ops: Sequence[str],
    *,
    out: Path | None,
    resume: bool,
    limit_s: float,
    facts: dict[str, Any],
    quiet: bool,
) -> tuple[list[dict[str, Any]], str, int]:
    """Predict everything, hash it, then judge and time point by point.

    Parameters
    ----------
    bench : CpuBench or CudaBench
        Chooses, predicts and runs points.
    ops : sequence of str
        Kernel names; empty takes all.
    out : Path, optional
        CSV that is whole after every point; the predictions lie beside it before the first.
    facts : dict
        Versions and clocks, written into every row.

    Returns
    -------
    rows, digest, int
        Rows, those of an earlier run included; hash of the predictions; and points not reached in `limit_s`.
    """
    from sparse_kernels import bench_rows, machine, predictions

    end = time.monotonic() + limit_s
    points = bench.points(ops)
    if not points:
        raise InputError("no case of that kernel is meant for timing; try --full", where="--op")
    before = list(bench.predict(points))
    listed = [{c: r[c] for c in bench_rows.HASHED} for r in before]
    digest = predictions.digest(listed, bench.device)
    console.say(f"{len(points)} predictions made before the run, sha256 {digest}")
    left = bench_rows.resumable(out, digest) if out and resume else []
    rows = {bench_rows.key(r["op"], r["case"]): r for r in left}
    # Predictions that rows were measured under keep the time they were made at.
    if out is not None and not (rows and bench_rows.prediction_file(out).is_file()):
        record = {
            "sha256": digest,
            "made": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "device": bench.device.name,
            "profile": bench.device.profile_hash,
            "facts": facts,
            "points": listed,
        }
        bench_rows.write_predictions(bench_rows.prediction_file(out), record)
    same = {
        "prediction_sha256": digest,
        "date": dt.date.today().isoformat(),
        "versions": " ".join(f"{k}={v}" for k, v in facts.get("versions", {}).items()),
        "machine": machine.fingerprint(facts),
    }
    finished = {key for key, r in rows.items() if r["status"] == "ok"}
    todo = [(p, r) for p, r in zip(points, before, strict=True) if p.key not in finished]
    # What broke an earlier run comes last, so that it cannot break this one before the rest.
    todo.sort(key=lambda pair: pair[0].key in rows)
    missed, lost = 0, False
    for point, row in console.progress(todo, len(todo), "timing", quiet=quiet):
        if lost or time.monotonic() > end:
            missed += 1
            continue
        try:
            failed = row["status"] == "failed"
            rows[point.key] = row | same if failed else bench.run(point, row | same)
        except bench_rows.DeviceLostError as error:
            console.say(f"{point.key}: {error}; the GPU needs a new process")
            rows[point.key] = error.row
            lost = True
        if out is not None:
            bench_rows.write_rows(out, list(rows.values()))
    return list(rows.values()), digest, missed


def _cpu(threads: int, full: bool, calibrate: bool) -> Any:
    from simulator.device import catalogue as devices
    from sparse_kernels import machine
    from sparse_kernels.bench_cpu import CpuBench

    name = machine.slug(machine.cpu_model()) + f"-{threads}t"
    if calibrate:
        from sparse_kernels.calibrate import calibrate_cpu

        calibrate_cpu(devices.user_data_dir(), quick=not full, threads=threads)
    if name not in devices.list_devices():
        raise InputError(
            f"this processor ({name}) was not calibrated; run `python -m sparse_kernels.calibrate "
            "--device cpu` once, or add --calibrate",
            where="--device",
        )
    return CpuBench(devices.load(name), threads, full)


@contextmanager
def _home(calibrate: bool, home: Path | None) -> Iterator[None]:
    """The user's folder, or the one named, or a temporary one for a calibration that nobody keeps."""
    from sparse_kernels import overlay

    if home is not None:
        with overlay.home(home):
            yield
    elif calibrate:
        with tempfile.TemporaryDirectory(prefix="shadowline-") as name, overlay.home(Path(name)):
            yield
    else:
        yield


@app.command()
def command(
    device: Annotated[str, typer.Option(help="cpu | cuda")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="the main shapes; the default")] = False,
    full: Annotated[bool, typer.Option("--full", help="all shapes, more repeats")] = False,
    op: Annotated[list[str] | None, typer.Option(help="kernel, repeatable; default all")] = None,
    out: Annotated[Path | None, typer.Option(help="CSV of rows; whole after every point")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="keep the rows OUT already has")] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="calibrate this CPU first, and forget it afterwards")
    ] = False,
    home: Annotated[Path | None, typer.Option(help="folder of calibrated profiles; default $SHADOWLINE_HOME")] = None,
    threads: Annotated[int, typer.Option(min=1, help="BLAS threads (cpu)")] = 1,
    limit_s: Annotated[float | None, typer.Option(min=1.0, help="begin no point after so many seconds")] = None,
    summary: Annotated[bool, typer.Option("--summary", help="print the verdict without the table")] = False,
    json_: Annotated[bool, typer.Option("--json", help='{"rows": [...]} on stdout')] = False,
) -> None:
    """Judge every kernel against its naive twin, time it, and print predicted beside measured.

    All predictions are made and hashed before anything is timed. The fits know dense products, copies and plain
    gathers only; the kernels judged here were never part of one.
    """
    if device not in DEVICES:
        raise UnknownNameError("device", device, DEVICES, where="--device")
    if quick and full:
        raise InputError("give either --quick or --full", where="--full")
    if out is not None and out.suffix != ".csv":
        raise InputError(f"{out.name!r} must end in .csv", where="--out")
    if resume and out is None:
        raise InputError("needs the --out of the run to continue", where="--resume")
    from sparse_kernels import machine

    if device == "cpu":
        machine.use_threads(threads)
    with _home(calibrate, home):
        if device == "cpu":
            bench = _cpu(threads, full, calibrate)
            facts: dict[str, Any] = {
                "versions": machine.versions("numpy", "scipy"),
                "cpu": machine.cpu_model(),
                "cores": machine.cores(),
                "threads": threads,
                "clock_hz": machine.clocks_hz(),
            }
        else:
            from sparse_kernels.bench_cuda import facts_of, open_bench

            bench = open_bench(full)
            facts = facts_of()
        limit = LIMIT_S[device, full] if limit_s is None else limit_s
        rows, digest, missed = run(bench, op or [], out=out, resume=resume, limit_s=limit, facts=facts, quiet=json_)
    if json_:
        _as_json(rows, digest, missed, facts)
    else:
        _show(rows, digest, bench.device.name, summary)
    for r in rows if summary else ():
        if r["status"] != "ok":
            console.say(f"{r['op']}, {r['case']}: {r['status']}: {r['reason']}")
    if missed:
        console.say(f"{missed} points were not reached in time; go on with --out FILE --resume")
    if any(r["status"] == "wrong" for r in rows):
        raise SystemExit(1)


def _as_json(rows: list[dict[str, Any]], digest: str, missed: int, facts: dict[str, Any]) -> None:
    from sparse_kernels import bench_rows

    total = bench_rows.summary(rows)
    console.out_json(
        {"rows": rows, "summary": total, "prediction_sha256": digest, "not_reached": missed, "facts": facts}
    )


def _show(rows: list[dict[str, Any]], digest: str, device: str, summary: bool) -> None:
    from sparse_kernels import bench_rows

    total = bench_rows.summary(rows)
    if not summary:
        _table(rows, digest, device, total["points"])
    console.out(f"{device}: {verdict(total)}")
    kept = bench_rows.committed()
    for line in kept:
        console.out(f"committed: {line}")
    if not kept:
        console.out(
            "These are this CPU's kernels. Ours were not timed on a GPU yet; on yours:"
            " python -m sparse_kernels.bench --device cuda."
            " Predictions for GPUs are checked against public measurements (README)."
        )


def _table(rows: list[dict[str, Any]], digest: str, device: str, points: int) -> None:
    ms = console.milliseconds
    body = []
    for r in rows:
        tell = "" if r["status"] == "ok" else f"{r['status']}: {r['reason']}"
        if r["status"] == "ok" and not r["inside"]:
            tell = "outside"
        body.append(
            [
                r["op"],
                r["case"],
                ms(r["measured_s"]),
                ms(r["predicted_s"]),
                f"{ms(r['lo_s'])}-{ms(r['hi_s'])}",
                console.number(r["ratio"]),
                console.number(r["speedup"]),
                console.number(r["predicted_speedup"]),
                console.number(r["copy_share"]),
                tell,
            ]
        )
    console.table(
        f"{device}: {points} kernels timed, predictions {digest[:12]} made before",
        [
            "op",
            "case",
            "measured ms",
            "predicted ms",
            "90 % interval",
            "pred/meas",
            "speed-up",
            "predicted",
            "copy share",
            "",
        ],
        body,
        left=2,
        note="copy share: time of a copy of the same bytes in as many launches, over the kernel's",
    )


def verdict(total: dict[str, Any]) -> str:
    """One sentence for people."""
    if not total["points"]:
        return "no kernel was timed"
    text = (
        f"predicted over measured, {total['points']} kernels no fit has seen: median {total['median_ratio']:.2f}, "
        f"80 % within {total['p10_ratio']:.2f}-{total['p90_ratio']:.2f}; median error {total['median_ape']:.0%}, "
        f"{total['coverage_90']:.0%} inside the 90 % interval"
    )
    if total["same_verdict"] is not None:
        text += f"; faster or slower than dense foreseen for {total['same_verdict']:.0%}"
    if total["disturbed"] > BUSY:
        text += f"; other processes held the core in {100 * total['disturbed']:.0f} % of the runs"
    return text


if __name__ == "__main__":
    console.main(app)
