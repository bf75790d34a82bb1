"""Fits as TOML: ``hw_profiles/measured/<device>/<family>.toml``, read and written."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from simulator.base.errors import InputError
from simulator.base.files import replaced, toml_value
from simulator.device.fits import DEFAULT, Fit, Residual
from simulator.device.surface import Surface

SCHEMA = 1
STEP_LN = 8e-3
"""Resolution of stored surfaces: 0.8 %, a fraction of any median error."""
THIN_LN = 0.01
"""Root mean square that knots may miss which are not stored: a device stays under 200 kB."""
DIGITS = 4
"""Of stored coefficients."""


def dump(path: Path, fits: Iterable[Fit]) -> None:
    """Write `fits` of one family as TOML, whole or not at all."""
    fits = list(fits)
    if not fits:
        raise InputError("no fits to write", where=str(path))
    device = fits[0].device if path.parent.name != DEFAULT else DEFAULT
    lines = [
        f"schema = {SCHEMA}",
        f'family = "{fits[0].family}"',
        f'device = "{device}"',
        f'date = "{max(f.date for f in fits)}"',
        "# residual: e = ln(measured/predicted), out of fold. surface: 8e-3 ln, C order.",
    ]
    for fit in fits:
        lines += _fit_lines(fit, device)
    with replaced(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _fit_lines(fit: Fit, device: str) -> list[str]:
    head: dict[str, Any] = {} if fit.device == device else {"device": fit.device}
    head |= {"dtype": fit.dtype, "library": fit.library, "n": fit.n, "sources": list(fit.sources)}
    told = {f.name: getattr(fit.residual, f.name) for f in fields(fit.residual)}
    told = {name: value for name, value in told.items() if value != ()}
    head |= {"releases": list(fit.releases)} if fit.releases else {}
    head |= {"coefficients": dict(fit.coefficients), "residual": told}
    lines = ["", "[[fit]]", *(f"{key} = {toml_value(value, DIGITS)}" for key, value in head.items())]
    if fit.surface is not None:
        surface = fit.surface.thinned(THIN_LN)
        axes = [{"name": name, "knots": [int(k) if k == int(k) else k for k in at]} for name, at in surface.axes]
        # One string, not a TOML array: tomllib needs a second per megabyte of integers.
        milli = np.rint(surface.values / STEP_LN).astype(int)
        rows = (" ".join(map(str, row)) for row in milli.reshape(-1, milli.shape[-1]))
        lines += ["[fit.surface]", f"axes = {toml_value(axes, DIGITS)}", 'values = """', *rows, '"""']
    return lines


def parse(text: str, where: str) -> tuple[Fit, ...]:
    """Fits of the TOML `text`; `where` names it in errors."""
    try:
        data = tomllib.loads(text)
        if data["schema"] != SCHEMA:
            raise InputError(f"schema {data['schema']}, this version reads {SCHEMA}", where=where)
        return tuple(_parse_fit(data, table) for table in data["fit"])
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError, OverflowError) as err:
        raise InputError(
            f"not a fit table ({type(err).__name__}: {err}); rewrite it with `python -m simulator.calibrate`",
            where=where,
        ) from err


def _parse_fit(data: Mapping[str, Any], table: Mapping[str, Any]) -> Fit:
    residual = dict(table["residual"])
    classes = tuple((float(t), float(a), float(b)) for t, a, b in residual.pop("classes", ()))
    surface = None
    if "surface" in table:
        axes = tuple((str(a["name"]), tuple(float(k) for k in a["knots"])) for a in table["surface"]["axes"])
        raw = table["surface"]["values"]
        flat = np.array(raw.split() if isinstance(raw, str) else raw, dtype=float)
        surface = Surface(axes, flat.reshape(tuple(len(k) for _, k in axes)) * STEP_LN)
    return Fit(
        family=str(data["family"]),
        device=str(table.get("device", data["device"])),
        dtype=str(table["dtype"]),
        library=str(table["library"]),
        coefficients={str(k): float(v) for k, v in table["coefficients"].items()},
        surface=surface,
        n=int(table["n"]),
        sources=tuple(table["sources"]),
        date=str(table.get("date", data["date"])),
        releases=tuple(map(str, table.get("releases", ()))),
        residual=Residual(**{k: float(v) for k, v in residual.items()}, classes=classes),
    )
