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
"""Finest resolution of stored surfaces: 0.8 %, a fraction of any median error."""
ALPHABET = "".join(chr(c) for c in range(ord("#"), ord("~") + 1) if chr(c) != "\\")
"""One character a knot, in the order of ASCII: `MIDDLE` steps below zero to as many above it."""
MIDDLE = len(ALPHABET) // 2
THIN_LN = {"attention": 0.02, "moe": 0.015}
"""Root mean square that knots may miss which are not stored, `THIN` elsewhere: a device stays under 200 kB. Fits of
both miss by 4 to 9 %."""
THIN = 0.01
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
        "# residual: e = ln(measured/predicted), out of fold. surface: a character a knot, P = 0 (fit_file.py).",
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
    lines = ["", "[[fit]]", *(f"{key} = {toml_value(value, DIGITS, tight=True)}" for key, value in head.items())]
    if fit.surface is not None:
        surface = fit.surface.thinned(THIN_LN.get(fit.family, THIN))
        axes = [{"name": name, "knots": [int(k) if k == int(k) else k for k in at]} for name, at in surface.axes]
        step_ln = max(STEP_LN, float(np.abs(surface.values).max()) / MIDDLE)
        # One string, not a TOML array: tomllib needs a second per megabyte of integers.
        places = np.rint(surface.values / step_ln).astype(int) + MIDDLE
        rows = ("".join(ALPHABET[i] for i in row) for row in places.reshape(-1, places.shape[-1]))
        lines += ["[fit.surface]", f"axes = {toml_value(axes, DIGITS, tight=True)}"]
        lines += [f"step_ln = {toml_value(step_ln, DIGITS)}", 'values = """', *rows, '"""']
    return lines


def _values(table: Mapping[str, Any]) -> np.ndarray:
    """Knot values of a stored surface, flat [-]; files of before 2026-12 hold plain numbers of `STEP_LN`."""
    raw = table["values"]
    if "step_ln" in table:
        text = "".join(raw.split())
        return (np.array([ALPHABET.index(c) for c in text], dtype=float) - MIDDLE) * float(table["step_ln"])
    return np.array(raw.split() if isinstance(raw, str) else raw, dtype=float) * STEP_LN


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
        surface = Surface(axes, _values(table["surface"]).reshape(tuple(len(k) for _, k in axes)))
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
