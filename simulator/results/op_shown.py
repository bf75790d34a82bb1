"""Points of one op as a table, as rows and as a file, and the list of ops that can be asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simulator.base import console
from simulator.base.errors import InputError
from simulator.base.files import replaced
from simulator.base.interval import Interval
from simulator.ops.named import NAMED, Parameter
from simulator.results.one_op import OpPoints
from simulator.results.verdict import figure

MOST_SHOWN = 60
"""Rows of a table; a file has all [-]."""


def rows(points: OpPoints) -> Iterator[dict[str, Any]]:
    """A mapping per point, as ``--json`` prints it."""
    columns = points.columns()
    for i in range(len(points)):
        yield {k: v[i].item() if isinstance(v, np.ndarray) else v for k, v in columns.items()}


def refuse_suffix(out: Path) -> None:
    """Refuse a file that is no Parquet."""
    if out.suffix != ".parquet":
        raise InputError(f"{out.name} ends otherwise; write FILE.parquet", where="--out")


def write(points: Sequence[OpPoints], out: Path) -> None:
    """Every point as one row of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for of in points:
        n = len(of)
        columns = {k: v if isinstance(v, np.ndarray) else [v] * n for k, v in of.columns().items()}
        tables.append(pa.table(columns))
    with replaced(out) as fresh:
        pq.write_table(pa.concat_tables(tables, promote_options="permissive"), fresh)


def show(text: str, points: Sequence[OpPoints], out: Path | None) -> None:
    """The table, and what its columns mean."""
    all_points = sum(map(len, points))
    compared = any(of.versus is not None for of in points)
    shown, problems, varying = [], [], _varying(points)
    for of in points:
        if of.problem is not None:
            problems.append(f"{of.labels['device']}: {of.problem.message}")
            continue
        for row in rows(of):
            if len(shown) == MOST_SHOWN:
                break
            shown.append(_cells(row, varying, compared))
    heads = [*varying, "us", "bound", "% of peak", "% of bandwidth", "% launch", "x roofline"]
    heads += ["MFLOP", "weight MB", "KV MB", "activation MB", "index MB", "basis", "kernel"]
    versus = next(str(of.labels["versus"]) for of in points) if compared else ""
    console.table(
        text + (f", faster than {versus} by" if compared else ""),
        heads + (["speed-up"] if compared else []),
        shown,
        note="us (90 % interval); peak and bandwidth: datasheet; roofline: the longer of flop/peak and bytes/bandwidth",
    )
    if all_points > MOST_SHOWN and out is None:
        console.say(f"the first {MOST_SHOWN} of {all_points:,} points; --out FILE.parquet has all")
    for line in problems:
        console.say(f"left out: {line}")


def _varying(points: Sequence[OpPoints]) -> list[str]:
    """Device, and whatever else differs between points."""
    sizes = list(points[0].sizes)
    labels = [
        key
        for key in points[0].labels
        if key not in ("device", "kernel", "op", "versus") and len({str(of.labels.get(key)) for of in points}) > 1
    ]
    return ["device", *labels, *sizes]


def _cells(row: dict[str, Any], varying: Sequence[str], compared: bool) -> list[str]:
    time = Interval(row["time_s"], row["time_s_lo"], row["time_s_hi"]).each(lambda s: s * 1e6)
    cells = [str(row[k]) if isinstance(row[k], str) else f"{row[k]:,g}" for k in varying]
    cells += [console.spread(time), row["bound"]]
    cells += [f"{100.0 * row[k]:.0f}" for k in ("peak_share", "bandwidth_share", "launch_share")]
    cells += [f"{row['over_roofline']:.2f}", console.number(row["flop"] / 1e6)]
    cells += [console.number(row[f"{k}_bytes"] / 1e6) for k in ("weight", "kv", "activation", "index")]
    cells += [row["basis"], row["kernel"]]
    if compared:
        ratio = Interval(row["speedup"], row["speedup_lo"], row["speedup_hi"])
        cells.append(f"{figure(ratio)}, {row['verdict']}")
    return cells


def list_ops(*, as_json: bool) -> None:
    """Every op, and what each of its values means."""
    facts = [
        {
            "op": name,
            "parameter": key,
            "unit": "" if p.choices else p.unit,
            "default": p.default,
            "values": _kind(p),
            "meaning": p.meaning,
        }
        for name, op in NAMED.items()
        for key, p in op.parameters.items()
    ]
    if as_json:
        console.out_json({"rows": facts})
        return
    for name, op in NAMED.items():
        body = [
            [key, "" if p.choices else p.unit, "needed" if p.default is None else str(p.default), _kind(p), p.meaning]
            for key, p in op.parameters.items()
        ]
        console.table(
            f"{name}: {op.summary}",
            ["value", "unit", "default", "may be", "meaning"],
            body,
            left=5,
            note=f"e.g. '{op.example}'" + ("; --dtype FORMAT" if op.takes_dtype else ""),
        )


def _kind(parameter: Parameter) -> str:
    if parameter.choices:
        return ", ".join(parameter.choices)
    if parameter.share:
        return "above 0, at most 1"
    return f"{parameter.least} or more"
