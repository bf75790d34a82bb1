"""What every kernel becomes on each GPU generation: ``python -m sparse_kernels.compile [--op NAME] [--cc 80,90]``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from simulator.base import console
from simulator.base.errors import InputError, UnknownNameError
from simulator.base.files import replaced
from sparse_kernels import markdown as tables
from sparse_kernels.markdown import replace_section

Planned = tuple[Any, Any, Sequence[int]]
"""A kernel, a case of it, and the compute capabilities to compile it for."""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def command(
    op: Annotated[list[str] | None, typer.Option(help="kernels to compile; default all")] = None,
    cc: Annotated[str, typer.Option(help="compute capabilities times ten, comma separated")] = "80,86,89,90,100,120",
    sample: Annotated[
        bool, typer.Option("--sample", help="the first hot case of each kernel on one of --cc each")
    ] = False,
    jobs: Annotated[int, typer.Option(min=0, help="processes; 0 is one per core")] = 0,
    out: Annotated[Path | None, typer.Option(help="write the table as CSV")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="file whose table between <!-- compile --> comments is replaced")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help='{"rows": [...]} on stdout')] = False,
) -> None:
    """Compile without a GPU: registers, spills, shared memory, occupancy, instruction mix.

    Exit status 1 where a kernel does not compile, or where a hot configuration spills or does not fit.
    """
    from sparse_kernels import interpreter

    targets = _targets(cc)
    if out is not None and not out.parent.is_dir():
        raise InputError(f"no folder {out.parent}; create it first", where="--out")
    if markdown is not None and op:
        raise InputError("the table holds all kernels; leave out --op", where="--markdown")
    interpreter.switch_off()
    from sparse_kernels.registry import kernel, kernels

    chosen = [kernel(name) for name in op] if op else list(kernels().values())
    plan = sampled(chosen, targets) if sample else everything(chosen, targets)
    if op and len({k.name for k, _, _ in plan}) < len({k.name for k in chosen}):
        mute = sorted({k.name for k in chosen} - {k.name for k, _, _ in plan})
        raise InputError(f"{mute[0]} is a library's kernel; there is no code to compile", where="--op")
    rows = table(plan, jobs or len(os.sched_getaffinity(0)))
    if out is not None:
        write(rows, out)
    if markdown is not None:
        replace_section(markdown, "compile", tables.compiled(rows))
    if json_:
        console.out_json({"rows": rows, "devices": devices(targets)})
    else:
        _show(rows, targets)
    wrong = [r for r in rows if problem(r)]
    for row in wrong:
        console.say(f"error: {row['op']}, {row['case']}, {row['kernel']}, cc {row['cc']}: {problem(row)}")
    if wrong:
        raise typer.Exit(1)


def _targets(text: str) -> list[int]:
    from sparse_kernels.occupancy import MULTIPROCESSORS

    known = {str(c): c for c in MULTIPROCESSORS}
    asked = [part.strip().replace(".", "") for part in text.split(",") if part.strip()]
    for part in asked:
        if part not in known:
            raise UnknownNameError("compute capability", part, known, where="--cc")
    return [known[part] for part in asked]


def everything(chosen: Sequence[Any], targets: Sequence[int]) -> list[Planned]:
    """Every case to compile, on every target."""
    return [(k, c, targets) for k in chosen for c in k.cases_for("compile", "hot")]


def sampled(chosen: Sequence[Any], targets: Sequence[int]) -> list[Planned]:
    """One case of each kernel on one target, targets in turn: seconds instead of minutes."""
    first = ((k, next(k.cases_for("hot"), None)) for k in chosen)
    return [(k, c, [targets[i % len(targets)]]) for i, (k, c) in enumerate(first) if c is not None]


def table(plan: Sequence[Planned], processes: int) -> list[dict[str, Any]]:
    """One row per kernel, case, launch and compute capability; equal launches compile once."""
    from dataclasses import asdict

    from sparse_kernels import build

    wanted = [
        (k, c, cc, i, job)
        for k, c, targets in plan
        for cc, found in build.jobs(k, c, targets).items()
        for i, job in enumerate(found)
    ]
    made = build.compile_all([(job, cc) for _, _, cc, _, job in wanted], processes)
    rows = []
    for k, c, cc, i, job in wanted:
        row: dict[str, Any] = {
            "op": k.name,
            "case": c.name,
            "launch": i,
            "kernel": job.name,
            "cc": cc,
            "hot": "hot" in c.uses,
            "error": "",
        }
        result = made[job, cc]
        if isinstance(result, str):
            rows.append({**row, "error": result})
            continue
        rows.append(
            {
                **row,
                "warps": result.warps,
                **asdict(result.use),
                "spilled_bytes": result.spilled_bytes,
                "shared_bytes": result.shared_bytes,
                "in_flight_bytes": result.in_flight_bytes,
                "blocks_per_sm": result.fit.blocks_per_sm,
                "occupancy": round(result.fit.warp_share, 4),
                "limit": result.fit.limit,
            }
        )
    return rows


def problem(row: dict[str, Any]) -> str:
    """Why a row fails, or nothing."""
    if row["error"]:
        return row["error"]
    if not row["hot"]:
        return ""
    if row["spilled_bytes"]:
        return f"spills {row['spilled_bytes']} B per thread to local memory (stores and loads)"
    if not row["blocks_per_sm"]:
        return f"needs {row['shared_bytes']:,} B of shared memory, more than a block can have"
    return ""


def devices(targets: Sequence[int]) -> list[dict[str, Any]]:
    """Profiles of each compute capability: a row's blocks per SM times SMs are resident on that device."""
    from simulator.device.catalogue import list_devices, load

    found = []
    for name in list_devices():
        device = load(name)
        if device.vendor != "nvidia" or device.compute_capability is None:
            continue
        cc = int(str(device.compute_capability).replace(".", ""))
        if cc in targets:
            found.append({"device": device.name, "cc": cc, "sm_count": device.sm_count})
    return found


def write(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """CSV of the rows that compiled, written whole or not at all."""
    import csv
    import io

    import triton

    text = io.StringIO()
    good = [r for r in rows if not r["error"]]
    columns = [*(c for c in good[0] if c != "error"), "triton"] if good else []
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**r, "hot": int(r["hot"]), "triton": triton.__version__} for r in good)
    with replaced(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _show(rows: Sequence[dict[str, Any]], targets: Sequence[int]) -> None:
    by_cc: dict[int, list[str]] = {}
    for d in devices(targets):
        by_cc.setdefault(d["cc"], []).append(d["device"])
    console.table(
        f"{len({(r['op'], r['case'], r['launch']) for r in rows})} launches on {len(targets)} compute capabilities",
        [
            "kernel",
            "case",
            "function",
            "cc",
            "warps",
            "registers",
            "spilled B",
            "shared B",
            "blocks / SM",
            "occupancy",
            "limit",
            "wide / loads",
            "async",
            "tensor",
        ],
        [
            [r["op"], r["case"], r["kernel"], str(r["cc"]), "error"]
            if r["error"]
            else [
                r["op"],
                r["case"],
                r["kernel"],
                str(r["cc"]),
                str(r["warps"]),
                str(r["registers"]),
                str(r["spilled_bytes"]),
                f"{r['shared_bytes']:,}",
                str(r["blocks_per_sm"]),
                f"{r['occupancy']:.0%}",
                r["limit"],
                f"{r['wide_loads']} / {r['loads']}",
                str(r["async_loads"]),
                f"{r['tensor_instructions']} {r['tensor_kinds']}".strip(),
            ]
            for r in rows
        ],
        left=3,
        note="; ".join(f"cc {cc}: {', '.join(names)}" for cc, names in sorted(by_cc.items())),
    )


if __name__ == "__main__":
    console.main(app)
