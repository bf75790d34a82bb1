"""Fit the time functions to measured rows: ``python -m simulator.calibrate --kind gemm --data FILE``."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.base import console
from simulator.base.errors import InputError, UnknownNameError, reason
from simulator.fitting.judged import FAMILIES, KERNEL_KINDS, module_of
from simulator.fitting.tables import read_tables

if TYPE_CHECKING:
    from simulator.device.fits import Fit

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

    module = module_of(kind)
    rows = module.prepare(raw)
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
        raise InputError("give either --data FILE or --from aiconfigurator-core", where="--data")
    if data:
        return read_tables(data)[0]
    from simulator.fitting import aiconfigurator

    if origin != aiconfigurator.PACKAGE:
        raise UnknownNameError("origin", str(origin), [aiconfigurator.PACKAGE], where="--from")
    from simulator.device.catalogue import resolve

    return aiconfigurator.rows(kind, resolve(device) if device else None)


@app.command()
def command(
    kind: Annotated[str, typer.Option(help=" | ".join(KERNEL_KINDS))],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Parquet or CSV of measured rows; repeat: rows that a later file repeats replace"),
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="'aiconfigurator-core': the rows of that installed wheel")
    ] = None,
    device: Annotated[str | None, typer.Option(help="fit one device only")] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of measured/ tables; default your own ($SHADOWLINE_HOME/measured)")
    ] = None,
    date: Annotated[str | None, typer.Option(help="ISO date to write; default today")] = None,
    json_: Annotated[bool, typer.Option("--json", help='{"rows": [...]} on stdout')] = False,
) -> None:
    """Fit a kernel family and write coefficients with n, residuals, date and sources.

    Your own measurements answer before the shipped ones. `--out hw_profiles/measured` is for maintainers.
    """
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


if __name__ == "__main__":
    console.main(app)
