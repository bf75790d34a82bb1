"""Make this machine's CPU or GPU a calibrated device: ``python -m sparse_kernels.calibrate --device cpu``."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.base import console
from simulator.base.errors import UnknownNameError

if TYPE_CHECKING:
    from simulator.device.fits import Fit

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
DEVICES = ("cpu", "cuda")


def calibrate_cpu(out: Path, *, quick: bool, threads: int) -> tuple[str, list[Fit], list[Path]]:
    """Measure this CPU and install its profile and fits under `out`; device name, fits and files."""
    from sparse_kernels import calibrate_cpu as cpu
    from sparse_kernels import machine, overlay

    name = machine.slug(machine.cpu_model()) + f"-{threads}t"
    date = dt.date.today().isoformat()
    measured: dict[str, list[dict[str, Any]]] = defaultdict(list)
    console.say(f"measuring {name}: products, passes, gathers, attention")
    for family, row in cpu.rows(name, quick=quick, threads=threads):
        measured[family].append(row)
    document = cpu.profile(name, measured, threads=threads, date=date)
    fits, paths = overlay.make(name, measured, out, date=date, document=document)
    overlay.check(name, out)
    return name, fits, paths


@app.command()
def command(
    device: Annotated[str, typer.Option(help="cpu | cuda")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="folder for devices/ and measured/; default your own ($SHADOWLINE_HOME)")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="fewer shapes, at most a minute")] = False,
    threads: Annotated[int, typer.Option(min=1, help="BLAS threads (cpu)")] = 1,
    json_: Annotated[bool, typer.Option("--json", help='{"rows": [...]} on stdout')] = False,
) -> None:
    """Time copies, gathers, products and attention, and fit the model to them.

    Afterwards `python -m simulator.predict --device NAME` answers from this machine's own numbers. Profile and fits
    are written together at the end, so an interrupt leaves the last calibration as it was; of a GPU the bare rows
    are kept as they come, in rows/ of the same folder.
    """
    if device not in DEVICES:
        raise UnknownNameError("device", device, DEVICES, where="--device")
    from simulator.device.catalogue import user_data_dir

    home = out or user_data_dir()
    if device == "cpu":
        from sparse_kernels.machine import use_threads

        use_threads(threads)
        name, fits, paths = calibrate_cpu(home, quick=quick, threads=threads)
    else:
        from sparse_kernels.calibrate_cuda import calibrate_cuda

        name, fits, paths = calibrate_cuda(home, quick=quick)
    rows = [
        {
            "family": f.family,
            "device": f.device,
            "dtype": f.dtype,
            "n": f.n,
            "sigma": f.residual.sigma_in,
            "q05": f.residual.q05,
            "q95": f.residual.q95,
            "coefficients": dict(f.coefficients),
            "date": f.date,
        }
        for f in fits
    ]
    if json_:
        console.out_json({"rows": rows, "device": name, "files": [str(p) for p in paths]})
        return
    console.table(
        f"{name}: {len(fits)} fits in {len(paths)} files under {home}",
        ["family", "format", "n", "sigma", "5 %", "95 %"],
        [
            [r["family"], r["dtype"], f"{r['n']}", f"{r['sigma']:.1%}", f"{r['q05']:+.1%}", f"{r['q95']:+.1%}"]
            for r in rows
        ],
        left=2,
        note="sigma and quantiles of ln(measured/predicted), out of fold",
    )
    where = "" if out is None else f"SHADOWLINE_HOME={home} "
    dtype = " --dtype fp32" if device == "cpu" else ""
    console.out(f"next: {where}python -m simulator.predict --device {name}{dtype} --model llama-2-7b")


if __name__ == "__main__":
    console.main(app)
