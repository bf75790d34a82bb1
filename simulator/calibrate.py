"""Fit the time functions to measured rows: ``python -m simulator.calibrate --kind gemm --data FILE``."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.base import console
from simulator.base.errors import InputError, UnknownNameError, reason
from simulator.fitting.e2e_rows import counts
from simulator.fitting.judged import FAMILIES, KERNEL_KINDS, module_of, prepared
from simulator.fitting.own_runs import Setup
from simulator.fitting.tables import read_tables
from simulator.scenario.options import refuse_beside

if TYPE_CHECKING:
    from simulator.device.fits import Fit

SERVER = "e2e"
"""Kind that fits an engine to one's own server."""
ENGINES = "engines"
"""Kind that fits all shipped engines to whole-model rows."""
OF_ENGINES = ("kind", "data", "out", "date", "json_")
"""Parameters that go with it."""
OF_KERNELS = ("kind", "data", "from_", "device", "out", "date", "json_")
"""Parameters that go with a kernel's kind."""
OF_SERVERS = (
    "kind",
    "data",
    "device",
    "engine",
    "model",
    "tp",
    "ep",
    "pp",
    "dtype",
    "kv_cache_dtype",
    "name",
    "date",
    "json_",
)
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def calibrate(kind: str, raw: Any, device: str | None = None, date: str | None = None) -> list[Fit]:
    """Fits of one kernel family from measured rows, residuals out of fold.

    Parameters
    ----------
    raw : DataFrame
        Rows in the columns of ``data/README.md`` of the measurements.
    device : str, optional
        Fit this device only.
    date : str, optional
        ISO date written beside the coefficients; today if absent.

    Raises
    ------
    InputError
        Missing columns, no usable row, or a time far below what the datasheet allows.
    """
    from simulator.fitting.asked import refuse_implausible

    module, left_out = module_of(kind), dict[str, int]()
    rows = prepared(kind, raw, left_out)
    if left_out:
        console.say(f"left out: {counts(left_out)}")
    if device is not None:
        from simulator.device.catalogue import resolve

        name = resolve(device)
        rows = rows[rows["device"] == name]
    if len(rows) == 0:
        raise InputError("no usable row (flags, times or --device leave nothing)", where="--data")
    refuse_implausible(module.FAMILY, rows, module.INPUTS)
    return module.fit(rows, date=date)


def write(kind: str, fits: list[Fit], out: Path, *, pooled: bool) -> list[Path]:
    """Write ``OUT/<device>/<kind>.toml`` for every device; pooled fits go to ``_default``."""
    from simulator.device.catalogue import list_devices
    from simulator.device.fit_file import dump
    from simulator.device.fits import DEFAULT

    known = set(list_devices())
    by_folder: dict[str, list[Fit]] = defaultdict(list)
    for fit in fits:
        own = fit.device in known
        if own or pooled:
            by_folder[fit.device if own else DEFAULT].append(fit)
    paths = []
    for folder, members in sorted(by_folder.items()):
        path = out / folder / f"{FAMILIES.get(kind, kind)}.toml"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            dump(path, members)
        except OSError as error:
            raise InputError(f"cannot write {path}: {reason(error)}", where="--out") from None
        paths.append(path)
    return paths


def _rows(kind: str, data: list[Path] | None, origin: str | None, device: str | None) -> Any:
    if (not data) == (origin is None):
        raise InputError("give either --data FILE or --from aisimulate", where="--data")
    if data:
        return read_tables(data)[0]
    from simulator.fitting import aiconfigurator

    if origin not in aiconfigurator.PACKAGES:
        raise UnknownNameError("origin", str(origin), aiconfigurator.PACKAGES, where="--from")
    from simulator.device.catalogue import resolve

    return aiconfigurator.rows(origin, kind, resolve(device) if device else None)


@app.command()
def command(
    context: typer.Context,
    kind: Annotated[str, typer.Option(help=" | ".join((*KERNEL_KINDS, SERVER, ENGINES)))],
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Parquet or CSV of measured rows; repeat: rows that a later file repeats replace; e2e: results of a"
            " benchmark, or folders of them"
        ),
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="'aisimulate' or 'aiconfigurator-core': rows of that wheel")
    ] = None,
    device: Annotated[str | None, typer.Option(help="fit one device only; e2e: the one that was measured")] = None,
    engine: Annotated[str | None, typer.Option(help="e2e: the shipped engine that was measured, e.g. vllm")] = None,
    model: Annotated[str | None, typer.Option(help="e2e: the model that was served")] = None,
    tp: Annotated[int, typer.Option(help="e2e: GPUs a layer was split over", min=1)] = 1,
    ep: Annotated[int, typer.Option(help="e2e: GPUs the experts were split over", min=1)] = 1,
    pp: Annotated[int, typer.Option(help="e2e: GPUs the layers were shared out to", min=1)] = 1,
    dtype: Annotated[str, typer.Option(help="e2e: number format, as in predict")] = "auto",
    kv_cache_dtype: Annotated[str, typer.Option(help="e2e: format of the KV cache, as in predict")] = "auto",
    name: Annotated[str, typer.Option(help="e2e: what the engine is then called, vllm@NAME")] = "own",
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder of measured/ tables, default your own ($SHADOWLINE_HOME/measured); engines: file to rewrite"
        ),
    ] = None,
    date: Annotated[str | None, typer.Option(help="ISO date to write; default today")] = None,
    json_: Annotated[bool, typer.Option("--json", help='{"rows": [...]} on stdout')] = False,
) -> None:
    """Fit a kernel family and write coefficients with n, residuals, date and sources.

    Your own measurements answer before the shipped ones. `--out hw_profiles/measured` is for maintainers. `--kind e2e`
    fits an engine to the results of vllm bench serve, sglang.bench_serving, trtllm-bench or llama-bench on your
    server; it is then asked for by `--engine vllm@own`. `--kind engines --data e2e.parquet --out
    hw_profiles/engines.toml` is for maintainers: it fits the shipped engines and rewrites their figures in place.
    """
    if kind == ENGINES:
        _engines(context, data or [], out, date or dt.date.today().isoformat(), json_)
        return
    if kind == SERVER:
        asked = Setup(engine or "", model or "", device or "", dtype, kv_cache_dtype, tp, ep, pp)
        _server(context, data or [], asked, name, date, json_)
        return
    refuse_beside(context, OF_KERNELS, "is for --kind e2e; drop it")
    if kind not in KERNEL_KINDS:
        raise UnknownNameError("kind", kind, KERNEL_KINDS, where="--kind")
    if out is None:
        from simulator.device.catalogue import user_data_dir

        out = user_data_dir() / "measured"
    fits = calibrate(kind, _rows(kind, data, from_, device), device, date)
    paths = write(kind, fits, out, pooled=device is None)
    rows = [
        {
            "family": f.family,
            "device": f.device,
            "dtype": f.dtype,
            "library": f.library,
            "n": f.n,
            "sigma": f.residual.sigma_in,
            "q05": f.residual.q05,
            "q95": f.residual.q95,
            "surface_values": 0 if f.surface is None else int(f.surface.values.size),
            "sources": list(f.sources),
            "date": f.date,
        }
        for f in fits
    ]
    if json_:
        console.out_json({"rows": rows, "files": [str(p) for p in paths]})
        return
    console.table(
        f"{kind}: {len(fits)} fits in {len(paths)} files under {out}",
        ["device", "format", "library", "n", "sigma", "5 %", "95 %", "surface", "sources"],
        [
            [
                r["device"],
                r["dtype"],
                r["library"],
                f"{r['n']}",
                f"{r['sigma']:.1%}",
                f"{r['q05']:+.1%}",
                f"{r['q95']:+.1%}",
                f"{r['surface_values']}",
                f"{len(r['sources'])}",
            ]
            for r in rows
        ],
        left=3,
        note="sigma and quantiles of ln(measured/predicted), out of fold",
    )


def _engines(context: typer.Context, data: Sequence[Path], out: Path | None, date: str, json_: bool) -> None:
    """Fit the shipped engines to whole-model rows and rewrite their figures in the file `out`."""
    from simulator.base.files import replaced
    from simulator.fitting import e2e_fit
    from simulator.fitting.e2e_rows import prepare
    from simulator.fitting.engine_file import rewritten
    from simulator.roofline.engine import load_shipped

    refuse_beside(context, OF_ENGINES, f"has no place beside --kind {ENGINES}; drop it")
    if not data:
        raise InputError(f"is needed for --kind {ENGINES}: rows of whole models", where="--data")
    if out is None or not out.is_file():
        raise InputError("give the engine file to rewrite, e.g. hw_profiles/engines.toml", where="--out")
    rows, left_out = prepare(read_tables(list(data))[0])
    shipped = load_shipped()
    fitted = e2e_fit.fit(rows, shipped)
    found = {
        name: e2e_fit.figures(replace(engine, date=date))
        for name, engine in fitted.items()
        if name in e2e_fit.FREE and engine.n and engine != e2e_fit.assumed(shipped[name])
    }
    text = rewritten(out.read_text("utf-8"), found)
    with replaced(out, "--out") as file:
        file.write_text(text, encoding="utf-8")
    told = [
        {"engine": name, "figure": key, "before": getattr(shipped[name], key), "after": value, "n": figures["n"]}
        for name, figures in found.items()
        for key, value in figures.items()
        if isinstance(value, float)
    ]
    if json_:
        console.out_json({"rows": told, "files": [str(out)], "excluded": left_out})
        return
    console.table(
        f"{len(found)} engines of {out}",
        ["engine", "figure", "before", "after", "setups"],
        [[r["engine"], r["figure"], f"{r['before']:.3g}", f"{r['after']:.3g}", f"{r['n']}"] for r in told],
        left=2,
    )
    console.out(f"left out: {counts(left_out)}")


def _server(
    context: typer.Context, data: Sequence[Path], setup: Setup, name: str, date: str | None, json_: bool
) -> None:
    """Fit an engine to benchmark results, say what it buys on runs it has not seen, and keep it where it does."""
    from simulator.base.files import replaced
    from simulator.device.catalogue import user_data_dir
    from simulator.fitting.engine_file import to_toml
    from simulator.fitting.own_engine import fit_own
    from simulator.fitting.own_runs import files_of, read_runs
    from simulator.model.formats import choose
    from simulator.roofline.engine import get_engine
    from simulator.scenario.catalogue import CATALOGUE

    refuse_beside(context, OF_SERVERS, f"has no place beside --kind {SERVER}; drop it")
    wanted = {"--data": data, "--engine": setup.engine, "--model": setup.model, "--device": setup.device}
    for flag, value in wanted.items():
        if not value:
            raise InputError(f"is needed for --kind {SERVER}: the results do not say it", where=flag)
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise InputError(f"{name!r} may hold letters, digits, '-', '_' and '.'", where="--name")
    shipped = get_engine(setup.engine)
    choose(setup.dtype)
    CATALOGUE.model(setup.model)
    CATALOGUE.device(setup.device)
    rows, left_out = read_runs([f for path in data for f in files_of(path)], replace(setup, engine=shipped.name))
    own = fit_own(rows, shipped, name, date or dt.date.today().isoformat())
    reasons = {**left_out, **own.excluded}
    path = user_data_dir() / "engines" / f"{own.engine.name}.toml"
    if own.helps:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path, "$SHADOWLINE_HOME") as file:
            file.write_text(to_toml({own.engine.name: own.engine}), encoding="utf-8")
    if own.helps and own.worse:
        told = ", ".join(m.upper() for m in own.worse)
        console.say(f"{told} of unseen runs is farther off than by {shipped.name}: for it, ask that one")
    rows_of = [
        {"engine": e, "metric": m, **found}
        for e, by in ((shipped.name, own.before), (own.engine.name, own.after))
        for m, found in sorted(by.items())
    ]
    if json_:
        console.out_json({"rows": rows_of, "files": [str(path)] if own.helps else [], "excluded": reasons})
        return
    done = f"ask for it by --engine {own.engine.name}; kept in {path}"
    miss = f"no run is told better than by {shipped.name}: nothing is kept"
    console.out(done if own.helps else miss)
    console.table(
        f"{len(rows)} times of {setup.model} on {setup.device}, each judged by a fit on the other runs",
        ["engine", "metric", "n", "median APE", "p90 APE", "bias", "coverage"],
        [
            [
                r["engine"],
                r["metric"].upper(),
                f"{r['n']}",
                *(f"{r[k]:.1%}" for k in ("median_ape", "p90_ape")),
                f"{r['bias']:+.1%}",
                f"{r['coverage_90']:.0%}",
            ]
            for r in rows_of
        ],
        left=2,
        note=f"left out: {counts(reasons)}" if reasons else "",
    )


if __name__ == "__main__":
    console.main(app)
