"""How wrong are we: ``python -m simulator.validate --kind gemm --data FILE [--holdout 0.3|source|device|release]``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.base import console
from simulator.base.errors import InputError, UnknownNameError
from simulator.fitting.curve import learning_curve
from simulator.fitting.judged import KERNEL_KINDS, figures, judge_rows, module_of, prepared, table
from simulator.fitting.tables import read_tables

if TYPE_CHECKING:
    import pandas as pd

KINDS = (*KERNEL_KINDS, "sparse", "e2e", "disaggregated")
JUDGES = {"sparse": "sparse_judged"}
"""Module of `simulator.fitting` that judges a kind, where another one fits it."""
GROUP = ("source", "device", "dtype", "module", "phase", "kernel_family")
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def command(
    kind: Annotated[str, typer.Option(help=" | ".join(KINDS))],
    data: Annotated[
        list[Path], typer.Option(help="Parquet or CSV of measured rows; repeat: rows that a later file repeats replace")
    ],
    holdout: Annotated[
        str | None,
        typer.Option(help="share, 'source', 'device' or 'release': fit on the rest; none = judge what is committed"),
    ] = None,
    learning_curve: Annotated[
        list[str] | None,
        typer.Option(help="DEVICE:DTYPE, of attention DEVICE:PHASE.KV: held-out error against rows fitted; repeat"),
    ] = None,
    by: Annotated[str, typer.Option(help="columns of the table")] = "device,dtype,phase",
    json_: Annotated[bool, typer.Option("--json", help='{"rows": [...], "excluded": {...}} on stdout')] = False,
) -> None:
    """Judge predictions on measured rows: APE, bias, coverage and width of the interval.

    Without --holdout nothing is fitted. Splits are by shape, repeats are aggregated to their median first.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS, where="--kind")
    raw, left_out = read_tables(data)
    if learning_curve:
        _curves(kind, raw, learning_curve, json_)
        return
    if kind not in KERNEL_KINDS:
        module = module_of(JUDGES.get(kind, kind))
        result = module.validate(raw, holdout)
        if json_:
            console.out_json(result)
        else:
            module.show(result)
        return
    compared = getattr(module_of(kind), "speedups", None)
    judged, excluded = judge_rows(kind, raw, holdout)
    excluded = left_out | excluded
    for j in judged:
        j.rows["kernel_family"] = j.rows["library"]
    if json_:
        blank = dict.fromkeys(GROUP)
        rows = [{**blank, **r} for j in judged for r in table(kind, j, GROUP)]
        total = [{"family": kind, "split": j.split, **figures(j.rows)} for j in judged]
        told = {"speedups": [{"split": j.split, **r} for j in judged for r in compared(j.rows)]} if compared else {}
        console.out_json({"rows": rows, "total": total, "excluded": excluded, **told})
        return
    for j in judged:
        shown = [{"family": kind, "device": "all", "split": j.split, **figures(j.rows)}]
        shown += table(kind, j, tuple(c.strip() for c in by.split(",")))
        _print(kind, j.split, shown, excluded)
        if compared:
            _print_speedups(j.split, compared(j.rows))


CURVE_SIZES = (10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120)
CURVE_KINDS = ("gemm", "attention", "moe")
CURVE_SEEDS = (0, 1, 2)


def _curves(kind: str, raw: pd.DataFrame, wanted: list[str], json_: bool) -> None:
    """Error on 30 % of the shapes against the number of rows of this device alone that were fitted."""
    from simulator.device.catalogue import resolve

    if kind not in CURVE_KINDS:
        raise InputError(f"only {', '.join(CURVE_KINDS)} have a learning curve", where="--learning-curve")
    module = module_of(kind)
    excluded: dict[str, int] = {}
    rows, out = prepared(kind, raw, excluded), []
    for text in wanted:
        device, colon, dtype = text.partition(":")
        if not colon:
            raise InputError(f"{text!r}: write DEVICE:DTYPE, e.g. h100-sxm:bf16", where="--learning-curve")
        name = resolve(device)
        points = learning_curve(module, rows, name, dtype, CURVE_SIZES, CURVE_SEEDS)
        if not points:
            raise InputError(f"fewer than {CURVE_SIZES[0]} rows of {name} {dtype}", where="--learning-curve")
        for size in CURVE_SIZES:
            runs = [p for p in points if p["fit_rows"] == size]
            if runs:
                medians = [p["median_ape"] for p in runs]
                out.append(
                    {
                        "device": name,
                        "dtype": dtype,
                        "fit_rows": size,
                        "n": runs[0]["n"],
                        "median_ape": sorted(medians)[len(medians) // 2],
                        "best": min(medians),
                        "worst": max(medians),
                        "p90_ape": sorted(p["p90_ape"] for p in runs)[len(runs) // 2],
                    }
                )
    if json_:
        console.out_json({"rows": out})
        return
    console.table(
        f"{kind}: error on unseen shapes against rows fitted, {len(CURVE_SEEDS)} draws",
        ["device", "dtype", "rows fitted", "judged on", "median APE", "best draw", "worst draw", "p90 APE"],
        [
            [
                r["device"],
                r["dtype"],
                f"{r['fit_rows']}",
                f"{r['n']}",
                *(f"{r[k]:.1%}" for k in ("median_ape", "best", "worst", "p90_ape")),
            ]
            for r in out
        ],
        left=2,
    )


def _print_speedups(split: str, rows: list[dict[str, Any]]) -> None:
    console.table(
        f"speed-up over the dense module of the same engine, {split}",
        ["device", "engine", "phase", "n", "sign right", "clear", "sign right", "median APE", "p90 APE"],
        [
            [
                *(r[k] for k in ("device", "engine", "phase")),
                f"{r['n']}",
                f"{r['sign']:.1%}",
                f"{r['n_clear']}",
                "-" if r["clear"] is None else f"{r['clear']:.1%}",
                f"{r['median_ape']:.1%}",
                f"{r['p90_ape']:.1%}",
            ]
            for r in rows
        ],
        left=3,
        note="clear: measured speed-ups beyond 5 % either way",
    )


def _print(kind: str, split: str, rows: list[dict[str, Any]], excluded: dict[str, int]) -> None:
    def percent(x: Any) -> str:
        return "-" if x is None else f"{x:.1%}"

    labels = [
        k for k in ("source", "device", "dtype", "module", "phase", "op", "kernel_family") if any(k in r for r in rows)
    ]
    console.table(
        f"{kind}, {split}: predicted against measured",
        [*labels, "n", "> 50 us", "median APE", "> 50 us", "p90 APE", "bias", "coverage", "width", "noise", "roofline"],
        [
            [
                *(str(r.get(k, "")) for k in labels),
                f"{r['n']}",
                *(
                    [
                        str(r["n_over_50us"]),
                        percent(r["median_ape"]),
                        percent(r["median_ape_over_50us"]),
                        percent(r["p90_ape"]),
                        f"{r['bias']:+.1%}",
                        percent(r["coverage_90"]),
                        f"{r['interval_width']:.2f}",
                        percent(r["noise_floor"]),
                        percent(r["roofline_median_ape"]),
                    ]
                    if "median_ape" in r
                    else ["-"] * 9
                ),
            ]
            for r in rows
        ],
        left=len(labels),
        note="coverage: share inside the 90 % interval; width: median ln(hi/lo); roofline: median APE of max(flop/peak,"
        " bytes/bandwidth); left out: " + (", ".join(f"{v} {k}" for k, v in excluded.items()) or "nothing"),
    )


if __name__ == "__main__":
    console.main(app)
