"""Traces checked and judged: ``python -m simulator.trace check|union|defaults DIR ...``."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.base import console

if TYPE_CHECKING:
    from simulator.trace.law import UnionCheck

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
Folders = Annotated[list[Path], typer.Argument(help="folders of traces")]
Json = Annotated[bool, typer.Option("--json", help='{"rows": [...]} on stdout')]


@app.callback()
def main() -> None:
    """Check measured traces, and which law their union over rows follows."""


@app.command()
def check(folders: Folders, json_: Json = False) -> None:
    """Read traces, verify every table against its manifest, and say what they hold.

    Exit 0; 2 where one is missing, truncated, changed or of an unknown schema.
    """
    from simulator.trace import read_trace

    rows = [_summary(read_trace(folder)) for folder in folders]
    if json_:
        console.out_json({"rows": rows})
        return
    console.table(
        "Traces",
        ["trace", "model", "dtype", "created", "sha256", "layers", "tokens", "curves", "quality rows"],
        [
            [
                str(r["path"]),
                r["model"],
                r["dtype"],
                r["created"],
                r["sha256"][:12],
                *(f"{r[k]:,}" for k in ("n_layers", "tokens", "curve_points", "quality_rows")),
            ]
            for r in rows
        ],
        left=5,
    )


@app.command()
def union(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="folders of traces; none = the published tables only")
    ] = None,
    json_: Json = False,
) -> None:
    """Measured union densities against 1-(1-d)^B, the frequency formula and the Beta law.

    A law within 10 % at every number of rows could stand for the measurement; else the table is used.
    """
    from simulator.trace import read_trace
    from simulator.trace.law import check_published, check_trace

    checks = [c for folder in folders or [] for c in check_trace(read_trace(folder))]
    checks += check_published()
    if json_:
        console.out_json({"rows": [_row(c) for c in checks]})
        return
    console.table(
        "Union over rows: largest relative error of each law at any number of rows",
        ["trace", "tensor", "keep", "layers", "d(1)", "independent", "frequency", "beta", "table", "use"],
        _grouped(checks),
        left=2,
        note="the worst layer of each group counts; table: a measured point left out and interpolated from"
        " its neighbours; use: layers a law is within 10 % of, else the table",
    )


@app.command()
def defaults(
    folders: Folders,
    out: Annotated[
        Path | None, typer.Option("--out", help="write the defaults of the first folder, the others as their spread")
    ] = None,
    json_: Json = False,
) -> None:
    """Judge what stands for a model without a trace, at 2 to 64 rows; or write it from these traces."""
    from dataclasses import asdict

    from simulator.base.errors import InputError, reason
    from simulator.base.files import replaced
    from simulator.trace import read_trace
    from simulator.trace.defaults import judge, judge_published, text

    traces = [read_trace(folder) for folder in folders]
    if out is not None:
        if len(traces) < 2:
            raise InputError("what models differ by needs a second trace", where="--out")
        command = " ".join(["python -m simulator.trace defaults", *map(str, folders), "--out", str(out)])
        content = text(traces[0], traces[1:], command, _kept(out))
        try:
            with replaced(out) as new:
                new.write_text(content, encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {out}: {reason(error)}", where="--out") from None
        console.say(f"wrote {out}")
        return
    checks = [*(c for trace in traces for c in judge(trace)), *judge_published()]
    if json_:
        console.out_json({"rows": [asdict(c) for c in checks]})
        return
    console.table(
        "The default union against measured ones, 2 to 64 rows: relative error",
        ["trace", "tensor", "law", "points", "median", "worst", "from 30% kept", "layers", "routers", "per ln B"],
        [
            [c.source, c.tensor, c.law.split(" (")[0], f"{c.n}"]
            + ["-" if x != x else f"{x:.1%}" for x in (c.median, c.worst, c.worst_kept, c.layers, c.routers)]
            + [f"{c.log_error:.3f}"]
            for c in checks
        ],
        left=3,
        note="means over layers at every share measured; layers: median of single ones; routers: median of OPT's"
        " published routers, which stood for every tensor; per ln B: error of ln r(B)",
    )


def _kept(file: Path) -> dict[str, dict[str, float]]:
    """How far models differ that `file` knows; those whose traces are not at hand stay in it."""
    from simulator.base.files import parse_toml, read_limited

    if not file.is_file():
        return {}
    found = parse_toml(read_limited(file, 2**20).decode("utf-8", "replace"), str(file)).get("union", {})
    return {name: entry["apart"] for name, entry in found.items() if "apart" in entry}


def _summary(trace: Any) -> dict[str, Any]:
    m = trace.manifest
    return {
        "path": str(trace.path),
        "model": m.model,
        "revision": m.revision,
        "dtype": m.dtype,
        "created": m.created,
        "sha256": trace.digest,
        "n_layers": trace.n_layers,
        "tokens": m.tokens,
        "curve_points": len(trace.curves["x"]),
        "quality_rows": 0 if trace.quality is None else len(trace.quality["policy"]),
    }


def _row(c: UnionCheck) -> dict[str, Any]:
    from simulator.trace.law import LAWS

    return {
        "source": c.source,
        "tensor": c.tensor,
        "layer": c.layer,
        "keep": c.keep,
        "density_1": c.density_1,
        **{f"{law}_error": c.errors.get(law) for law in LAWS},
        "table_error": c.table_error,
        "beta_spread": c.spread,
        "use": c.use,
    }


def _grouped(checks: list[UnionCheck]) -> list[list[str]]:
    from simulator.trace.law import LAWS

    def key(c: UnionCheck) -> tuple[str, str, str]:
        exact = "router" if c.layer is None else "non-zero"
        return c.source, c.tensor, exact if c.keep != c.keep else f"{c.keep:g}"

    out = []
    for (source, tensor, keep), group in groupby(sorted(checks, key=key), key=key):
        layers = list(group)
        judged = [[c.errors[law] for c in layers if law in c.errors] for law in LAWS]
        worst = [f"{max(errors):.1%}" if errors else "-" for errors in judged]
        worst.append(f"{max(c.table_error for c in layers):.1%}")
        uses = [c.use for c in layers]
        counts = ", ".join(f"{name} {uses.count(name)}" for name in dict.fromkeys(uses))
        n = "mean" if layers[0].layer is None else f"{len(layers)}"
        mean = sum(c.density_1 for c in layers) / len(layers)
        out.append([source, tensor, keep, n, f"{mean:.3f}", *worst, counts])
    return out


if __name__ == "__main__":
    console.main(app)
