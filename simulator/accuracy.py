"""How wrong we are, in one table: ``python -m simulator.accuracy``.

Without --data it prints the committed table of held-out shapes. With --data it judges the committed fits on all
rows, which they have seen, and compares them with the golden copy; with --update it refits on 70 % of the shapes
of every family, judges the other 30 %, and writes the golden copy and the table. --claims does the same for the
published wins and losses, which need no data.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from simulator.base import console
from simulator.base.errors import InputError, reason
from simulator.fitting.judged import KERNEL_KINDS, figures, judge_rows
from simulator.fitting.tables import paths_of, read_tables

GOLDEN = "accuracy.json"
"""Golden copy in `hw_profiles`, so that an installed Shadowline can say how wrong it is."""
SLACK = 0.002
"""How much a committed median or p90 may worsen before the golden test fails [-]."""
TARGETS = {
    "gemm": (0.04, 0.14),
    "attention": (0.04, 0.14),
    "collective": (0.10, 0.25),
    "moe": (0.07, 0.22),
    "elementwise": (None, None),
    "sparse_attention": (0.10, 0.30),
    "linear_attention": (0.08, 0.25),
    "alltoall": (0.10, 0.25),
}
"""Median and p90 APE the design asks of unseen shapes, kernel known [-]."""


def measure(data: Path, holdout: str | None) -> dict[str, Any]:
    """Figures of every kernel family whose tables are in `data`, the larger one (``_more``) where it is there.

    Returns
    -------
    dict
        kind -> {file_sha256, n, median_ape, p90_ape, bias, coverage_90, ...}.
    """
    out: dict[str, Any] = {}
    for kind in KERNEL_KINDS:
        paths = paths_of(kind, data)
        if not paths:
            continue
        judged, _ = judge_rows(kind, read_tables(paths)[0], holdout)
        digest = hashlib.sha256(b"".join(p.read_bytes() for p in paths)).hexdigest()[:16]
        for j in judged:
            out[f"{kind}.{j.split}" if j.split != "in_source" else kind] = {"file_sha256": digest, **figures(j.rows)}
    if not out:
        raise InputError(f"{data} holds none of {', '.join(k + '.parquet' for k in KERNEL_KINDS)}", where="--data")
    return out


def golden() -> dict[str, Any]:
    """The committed copy: ``{date, committed, held_out}``."""
    return json.loads(resources.files("hw_profiles").joinpath(GOLDEN).read_text("utf-8"))


def worse(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """What got worse than the golden copy on the same file, one line each."""
    out = []
    for kind, old in then.items():
        new = now.get(kind)
        if new is None or new["file_sha256"] != old["file_sha256"] or "median_ape" not in old:
            continue
        out += [
            f"{kind}: {key} {old[key]:.2%} -> {new[key]:.2%}"
            for key in ("median_ape", "p90_ape")
            if new[key] > old[key] + SLACK
        ]
    return out


GROUPS_GATED = ("all", "other_papers")
GATED = ("losses_called", "balanced_accuracy")
"""Shares of the published wins and losses that no change may lower."""


def measure_claims() -> dict[str, Any]:
    """`simulator.claims.statistics.called` of the committed claims, by group of rows."""
    from simulator.claims.judge import judge
    from simulator.claims.rows import committed
    from simulator.claims.statistics import summary

    total = summary(judge(committed()))
    return {k: total[k]["called"] for k in GROUPS_GATED}


def worse_claims(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Which gated share of the wins and losses is lower than the golden copy's, one line each."""
    return [
        f"claims, {group}, by {weighing}: {key} {then[group][weighing][key]:.2%} -> {now[group][weighing][key]:.2%}"
        for group in GROUPS_GATED
        for weighing in ("rows", "papers")
        for key in GATED
        if now[group][weighing][key] < then[group][weighing][key] - SLACK
    ]


def markdown(found: dict[str, Any], rows: str = "held-out rows") -> str:
    """The README's table; `rows` says whether the fits have seen them."""
    lines = [
        f"| family | {rows} | median APE (target) | p90 APE (target) | bias | covered | bare roofline |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, row in found.items():
        if "median_ape" not in row:
            continue
        median, p90 = TARGETS.get(kind.split(".")[0], (None, None))
        lines.append(
            f"| {kind} | {row['n']:,} | {_percent(row['median_ape'], median)} | {_percent(row['p90_ape'], p90)} |"
            f" {row['bias']:+.1%} | {row['coverage_90']:.0%} | {row['roofline_median_ape']:.0%} |"
        )
    return "\n".join(lines)


def _percent(value: float, target: float | None) -> str:
    return f"{value:.1%}" + (f" ({target:.0%})" if target is not None else "")


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def command(
    data: Annotated[
        Path | None, typer.Option(help="folder with gemm.parquet, ...: judge the committed fits on these rows")
    ] = None,
    update: Annotated[
        Path | None, typer.Option(help="refit on 70 %, judge 30 %, write this golden copy (minutes)")
    ] = None,
    date: Annotated[str, typer.Option(help="ISO date to write with --update; default today")] = "",
    claims: Annotated[
        bool, typer.Option("--claims", help="published wins and losses called; with --update written to that copy")
    ] = False,
    quality: Annotated[
        bool, typer.Option("--quality", help="losses of quality known, and how wrong the carried-over ones are")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="figures on stdout")] = False,
) -> None:
    """Print the committed accuracy on held-out shapes, or judge the committed fits on your rows.

    Exit 0; 2 bad input, or a committed fit got worse than the golden copy on the same rows.
    """
    date = date or dt.date.today().isoformat()
    if quality:
        if claims or data is not None or update is not None:
            raise InputError(
                "asks something else than --data, --update and --claims; leave them out", where="--quality"
            )
        from simulator.results.loss_table import show

        show(as_json=json_)
        return
    if claims:
        if data is not None:
            raise InputError("the committed claims need no rows; leave out --data", where="--claims")
        _claims(update, date, json_=json_)
        return
    if data is None:
        if update is not None:
            raise InputError("a refit needs measured rows; add --data DIR", where="--update")
        held_out = golden()["held_out"]
        if json_:
            console.out_json({"rows": [{"kind": k, **v} for k, v in held_out.items()]})
        else:
            console.out(markdown(held_out))
        return
    if update is not None:
        record = {"date": date, "committed": measure(data, None), "held_out": measure(data, "0.3")}
        _write(update, {**golden(), **record})
        console.out(markdown(record["held_out"]))
        return
    now, old = measure(data, None), golden()
    if json_:
        console.out_json({"rows": [{"kind": k, **v} for k, v in now.items()], "golden": old})
    else:
        console.out(markdown(now, "rows the fits saw"))
    problems = worse(now, old["committed"])
    if problems:
        raise InputError("; ".join(problems) + f"; if meant, rerun with --update hw_profiles/{GOLDEN}")


def _write(path: Path, record: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}", where="--update") from None


def _claims(update: Path | None, date: str, *, json_: bool) -> None:
    from simulator.claims.statistics import told

    now, old = measure_claims(), golden()
    if json_:
        console.out_json({"claims": now, "golden": old["claims"]})
    else:
        for group in GROUPS_GATED:
            console.out(f"{group}: {told(now[group])}")
    if update is not None:
        _write(update, {**old, "claims": {"date": date, **now}})
        return
    problems = worse_claims(now, old["claims"])
    if problems:
        raise InputError("; ".join(problems) + f"; if meant, rerun with --claims --update hw_profiles/{GOLDEN}")


if __name__ == "__main__":
    console.main(app)
