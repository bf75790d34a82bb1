"""From measured rows to the files a simulator reads: a device profile and fits, written whole or not at all.

Everything is made in a temporary home first and moved file by file at the end, so that an interrupt or a failed
fit leaves what was there before.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.base.errors import InputError, ShadowlineError
from simulator.base.files import replaced

if TYPE_CHECKING:
    from simulator.device.fits import Fit, Residual

Row = Mapping[str, Any]
SMALLEST_GATHER = 6


@contextmanager
def home(path: Path) -> Iterator[None]:
    """Let the simulator look for the user's own devices and measurements in `path`."""
    before = os.environ.get("SHADOWLINE_HOME")
    os.environ["SHADOWLINE_HOME"] = str(path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SHADOWLINE_HOME"]
        else:
            os.environ["SHADOWLINE_HOME"] = before


def make(
    device: str,
    measured: Mapping[str, Sequence[Row]],
    out: Path,
    *,
    date: str,
    document: Mapping[str, Any] | None = None,
) -> tuple[list[Fit], list[Path]]:
    """Fit `measured` and install profile and fits under `out`.

    Parameters
    ----------
    measured : mapping of family to rows
        ``gemm``, ``attention``, ``elementwise`` in the columns of the shared tables; ``gather`` and
        ``element`` with run_bytes, bytes, time_s.
    out : Path
        A home: ``devices/`` and ``measured/<device>/`` below it.
    document : mapping, optional
        Device profile; None where the device is known already.

    Returns
    -------
    list of Fit, list of Path
        What was fitted and what was written.
    """
    import pandas as pd

    from simulator.calibrate import calibrate
    from simulator.device.catalogue import user_data_dir
    from simulator.device.fit_file import dump
    from simulator.device.fits import LOCAL, VENDOR
    from simulator.device.text import write_document

    own_profile = user_data_dir() / "devices" / f"{device}.toml"
    with tempfile.TemporaryDirectory(prefix="shadowline-") as name:
        fresh = Path(name)
        profile = fresh / "devices" / own_profile.name
        profile.parent.mkdir()
        if document is not None:
            profile.write_text(write_document(document), encoding="utf-8")
        elif own_profile.is_file():
            # A device only its owner has a profile of: it goes along, for `out` may be another home.
            shutil.copyfile(own_profile, profile)
        folder = fresh / "measured" / device
        fits: list[Fit] = []
        with home(fresh):
            # Caches first, for the other fits are made with them; gathers last, for they need the passes.
            memory = cache_fit(device, measured, date) if document is not None else None
            if memory is not None:
                dump(folder / "memory.toml", [memory])
            for family in ("gemm", "elementwise", "attention"):
                rows = measured.get(family, ())
                if not rows:
                    continue
                found = calibrate(family, pd.DataFrame(list(rows)), device, date)
                # The vendor fit pools a device's libraries; other families have one library per key here.
                own = [f for f in found if f.device == device]
                own = [f for f in own if f.library == VENDOR] or own
                dump(folder / f"{family}.toml", [replace(f, library=LOCAL) for f in own])
                fits += own
            memory = with_gathers(device, memory, measured, date)
            if memory is not None:
                dump(folder / "memory.toml", [memory])
                fits.append(memory)
            for family, rows in measured.items():
                folder.mkdir(parents=True, exist_ok=True)
                pd.DataFrame(list(rows)).to_csv(folder / f"{family}.csv", index=False)
        paths = _install(fresh, out)
    return fits, paths


def keep_rows(measured: Mapping[str, Sequence[Row]], folder: Path) -> None:
    """Write the bare rows, one CSV per family: what a lent device measured must outlive a fit that fails."""
    import pandas as pd

    for family, rows in measured.items():
        with replaced(folder / f"{family}.csv") as temporary:
            pd.DataFrame(list(rows)).to_csv(temporary, index=False)


def cache_fit(device: str, measured: Mapping[str, Sequence[Row]], date: str) -> Fit | None:
    """Streaming rate against bytes, from matrix-vector products: ln(rate / rate of main memory).

    The rate of a product is its bytes over its time less the shortest product's, the call's own cost; each
    octave of bytes gives the median of its products. None with fewer than two octaves.
    """
    from simulator.device import catalogue as devices
    from simulator.device.fits import LOCAL, Fit
    from simulator.device.surface import Surface

    rows = [r for r in measured.get("gemm", ()) if r["m"] == 1]
    if not rows:
        return None
    moved = np.array([4.0 * (r["n"] * r["k"] + r["n"] + r["k"]) for r in rows])
    time = np.array([r["time_s"] for r in rows])
    call_s = time.min()
    clear = time > 2.0 * call_s
    size = np.log2(moved[clear])
    octave = np.round(size)
    if len(np.unique(octave)) < 2:
        return None
    far = devices.load(device).hbm_bytes_per_s
    rate = np.log(moved[clear] / (time[clear] - call_s) / far)

    def curve(used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        knots = np.unique(octave[used])
        return knots, np.array([np.median(rate[used & (octave == o)]) for o in knots])

    every = np.arange(len(rate))
    knots, values = curve(every >= 0)
    off = np.array([np.interp(size[i], *curve(every != i)) for i in every]) - rate
    return Fit(
        "memory",
        device,
        "any",
        LOCAL,
        {},
        Surface((("bytes", tuple(map(float, knots))),), values),
        len(rows),
        _sources(rows),
        date,
        _residual(off),
    )


def with_gathers(device: str, memory: Fit | None, measured: Mapping[str, Sequence[Row]], date: str) -> Fit | None:
    """`memory` with half-rate run length and share of a copying gather, and the rate of single indexed elements.

    ``t = elementwise(moved (run + half) / (share run), write)``, robust least squares in log time; the rate is the best
    of the single-element rows per core and cycle. The residual leaves out one run length at a time. `memory` as it was
    with too few rows.
    """
    from scipy.optimize import least_squares

    from simulator.device import catalogue as devices
    from simulator.device.fits import LOCAL, Fit
    from simulator.roofline.elementwise import elementwise_time
    from simulator.roofline.hardware import hardware
    from simulator.roofline.lookup import lookup
    from simulator.roofline.sparse import gathered_bytes

    rows = measured.get("gather", ())
    lengths = {r["run_bytes"] for r in rows}
    if len(rows) < SMALLEST_GATHER or len(lengths) < 3:
        return memory
    profile = devices.load(device)
    hw = hardware(profile, next(iter(profile.peaks)))
    fit = lookup(profile, "elementwise", "bf16").fit
    time = np.log([r["time_s"] for r in rows])
    moved, run = (np.array([float(r[c]) for r in rows]) for c in ("bytes", "run_bytes"))

    def predicted(u: np.ndarray) -> np.ndarray:
        half, share = np.exp(u)
        there = replace(hw, gather_run_bytes=float(half), gather_share=float(share))
        read = np.array([gathered_bytes(b, r, there) for b, r in zip(moved, run, strict=True)])
        return np.log(
            elementwise_time(read, moved, kind="unary", hw=there, coef=fit.coefficients, surface=fit.surface).total_s
        )

    def best(used: np.ndarray) -> np.ndarray:
        return least_squares(
            lambda u: (predicted(u) - time)[used],
            np.log([256.0, 0.7]),
            loss="soft_l1",
            f_scale=0.1,
            bounds=(np.log([1.0, 0.05]), np.log([65536.0, 1.0 + 1e-9])),
            diff_step=1e-3,
        ).x

    found = best(run > 0.0)
    half, share = (float(v) for v in np.exp(found))
    coefficients = {"gather_run_bytes": half, "gather_share": min(share, 1.0)}
    single = [r["bytes"] / 4.0 / r["time_s"] for r in measured.get("element", ())]
    if single:
        coefficients["nonzeros_per_cycle"] = max(single) / (hw.sm_count * hw.clock_hz)
    off = np.empty_like(time)
    for length in lengths:
        off[run == length] = (time - predicted(best(run != length)))[run == length]
    residual = _residual(off)
    surface = memory.surface if memory is not None else None
    return Fit("memory", device, "any", LOCAL, coefficients, surface, len(rows), _sources(rows), date, residual)


def _sources(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(sorted({str(r["source"]) for r in rows}))


def _residual(off: np.ndarray) -> Residual:
    """Spread of ln(measured/predicted) of rows that their own fit did not see, whatever they take."""
    from simulator.fitting.residuals import residual_of

    return residual_of(off, np.ones_like(off), 0.0)


def _install(fresh: Path, out: Path) -> list[Path]:
    """Move every file of `fresh` to its place under `out`, each by rename."""
    files = sorted(p for p in fresh.rglob("*") if p.is_file())
    paths = [out / file.relative_to(fresh) for file in files]
    for file, path in zip(files, paths, strict=True):
        with replaced(path) as temporary:
            temporary.write_bytes(file.read_bytes())
    return paths


def check(device: str, out: Path) -> None:
    """Load what was written; a profile that its own reader refuses is a bug, told as one line."""
    from simulator.device import catalogue as devices

    with home(out):
        try:
            devices.load(device)
        except ShadowlineError as error:
            raise InputError(f"the measured profile is not usable: {error}", where=device) from None
