"""Fitted coefficients: what a fit is, how it is stored, and which one answers for a device.

A fit is a few physical coefficients times a compact log-space residual surface, with its own
out-of-fold error. Files live in ``hw_profiles/measured/<device>/<family>.toml``; a user's own
measurements in ``$SHADOWLINE_HOME/measured/<device>/`` answer first.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.base.errors import InputError, UnsupportedError
from simulator.base.files import replaced
from simulator.device.catalogue import user_data_dir
from simulator.device.surface import Surface

SCHEMA = 1
STEP_LN = 8e-3
"""Resolution of stored surfaces: 0.8 %, a fraction of any median error, keeps a device under 200 kB."""
DEFAULT = "_default"
ANY = "any"
VENDOR = "vendor"
"""Library of the fit that answers when nobody names one."""
LOCAL = "local"
"""Library of fits made on the user's own machine by ``sparse_kernels.calibrate``: they answer before all but
the very kernel that was asked for."""

NEAR_DTYPES: Mapping[str, tuple[str, ...]] = {
    "fp8": ("fp8_static", "fp8_block", "int8"),
    "fp8_static": ("fp8", "int8", "fp8_block"),
    "fp8_block": ("fp8", "fp8_static", "int8"),
    "int8": ("fp8_static", "fp8"),
    "nvfp4": ("mxfp4",),
    "mxfp4": ("nvfp4",),
    "w4a16": ("w8a16",),
    "w8a16": ("w4a16",),
    "tf32": ("fp32",),
    "fp32": ("tf32",),
    "prefill.bf16": ("prefill.fp8",),
    "prefill.fp8": ("prefill.bf16", "prefill.fp8.fp8"),
    "prefill.fp8.fp8": ("prefill.fp8", "prefill.bf16"),
    "decode.bf16": ("decode.fp8",),
    "decode.fp8": ("decode.bf16",),
}
"""Formats whose kernels behave alike, nearest first; used when a device has no fit of its own."""


TWINS: Mapping[str, str] = {"bf16": "fp16", "fp16": "bf16"}
"""Formats that run the same kernels at the same rate: a fit of one answers for the other."""


LAUNCH_SPREAD_S = 2e-6
"""Standard deviation of a kernel's launch floor between sources: timed inside a CUDA graph or from the host [s]."""


class Basis(StrEnum):
    """Where a number comes from, best first; a sum is as good as its worst part."""

    CALIBRATED = "CALIBRATED"
    EXTRAPOLATED = "EXTRAPOLATED"
    DATASHEET = "DATASHEET"

    @property
    def rank(self) -> int:
        """0 for the best basis, 2 for the worst."""
        return list(Basis).index(self)

    def merge(self, other: Basis) -> Basis:
        """The worse of the two."""
        return self if self.rank >= other.rank else other


class DeviceLike(Protocol):
    """The facts of a device that choose a fit."""

    @property
    def name(self) -> str:
        """Profile name."""
        ...

    @property
    def arch(self) -> str:
        """Architecture."""
        ...

    @property
    def compute_capability(self) -> str | None:
        """NVIDIA's, or None."""
        ...


def scope_of(device: DeviceLike) -> str:
    """Devices that share kernels: ``sm80``, ``sm86``, ..., ``sm100`` (all 10.x); else the arch."""
    capability = device.compute_capability
    if not capability:
        return device.arch
    major, minor = (int(part) for part in capability.split("."))
    return f"sm{major}{minor if major < 9 else 0}"


@dataclass(frozen=True)
class Residual:
    """Out-of-fold error of a fit, as e = ln(measured/predicted).

    Attributes
    ----------
    sigma_in, sigma_cross : float
        Robust standard deviation within the source, and against another source [-].
    q05, q95 : float
        Quantiles of e within the source [-].
    bias : float
        Median of e [-].
    between_source : float
        Standard deviation of the offset between two good sources on one device [-].
    n_eff : float
        Shape groups behind the quantiles [-].
    classes : tuple of (from_s, q05, q95)
        Quantiles by predicted time, ascending in `from_s`; empty = `q05`, `q95` hold throughout.
    """

    sigma_in: float
    sigma_cross: float
    q05: float
    q95: float
    bias: float = 0.0
    between_source: float = 0.0
    n_eff: float = 0.0
    classes: tuple[tuple[float, float, float], ...] = ()

    def quantiles(self, time_s: ArrayLike, *, cross: bool = False) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """5 % and 95 % quantiles of e for predictions of `time_s`.

        `cross` adds the between-source term in quadrature, 1.645 sigma to each side: `between_source`
        and, in a class of short times, `LAUNCH_SPREAD_S` over half the next class's edge.
        """
        t = np.asarray(time_s, float)
        lo, hi = np.full(t.shape, self.q05), np.full(t.shape, self.q95)
        extra = np.full(t.shape, self.between_source)
        edges = [c[0] for c in self.classes[1:]]
        for (from_s, q05, q95), until_s in zip(self.classes, [*edges, np.inf], strict=False):
            here = t >= from_s
            lo, hi = np.where(here, q05, lo), np.where(here, q95, hi)
            floor = LAUNCH_SPREAD_S / (0.5 * until_s)
            extra = np.where(here, np.hypot(self.between_source, floor), extra)
        if cross:
            centre = (lo + hi) / 2
            lo = centre - np.hypot(centre - lo, 1.645 * extra)
            hi = centre + np.hypot(hi - centre, 1.645 * extra)
        return lo, hi

    def widened(self, extra_sigma: float) -> Residual:
        """The same residual with an independent error of `extra_sigma` added."""
        z = 1.645 * extra_sigma
        return replace(
            self,
            sigma_in=float(np.hypot(self.sigma_in, extra_sigma)),
            sigma_cross=float(np.hypot(self.sigma_cross, extra_sigma)),
            q05=-float(np.hypot(self.q05, z)),
            q95=float(np.hypot(self.q95, z)),
            classes=tuple((t, -float(np.hypot(a, z)), float(np.hypot(b, z))) for t, a, b in self.classes),
        )


@dataclass(frozen=True, eq=False)
class Fit:
    """One fitted member of a family: coefficients, residual surface and their error.

    `device` is a profile name; in the ``_default`` file a `scope_of`, an architecture or ``any``.
    """

    family: str
    device: str
    dtype: str
    library: str
    coefficients: Mapping[str, float]
    surface: Surface | None
    n: int
    sources: tuple[str, ...]
    date: str
    residual: Residual


def dump(path: Path, fits: Iterable[Fit]) -> None:
    """Write `fits` of one family as TOML, whole or not at all."""
    fits = list(fits)
    if not fits:
        raise InputError("no fits to write", where=str(path))
    lines = [
        f"schema = {SCHEMA}",
        f'family = "{fits[0].family}"',
        f'device = "{fits[0].device if path.parent.name != DEFAULT else DEFAULT}"',
        f'date = "{max(f.date for f in fits)}"',
        "# residual: e = ln(measured/predicted), out of fold. surface: 8e-3 ln, C order.",
    ]
    for fit in fits:
        lines += _fit_lines(fit)
    with replaced(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    _load_file.cache_clear()
    load_fits.cache_clear()


def _fit_lines(fit: Fit) -> list[str]:
    r = fit.residual
    numbers = {
        key: getattr(r, key) for key in ("sigma_in", "sigma_cross", "q05", "q95", "bias", "between_source", "n_eff")
    }
    lines = [
        "",
        "[[fit]]",
        f'device = "{fit.device}"',
        f'dtype = "{fit.dtype}"',
        f'library = "{fit.library}"',
        f"n = {fit.n}",
        "sources = [" + ", ".join(f'"{s}"' for s in fit.sources) + "]",
        "coefficients = { " + ", ".join(f"{k} = {_g(v)}" for k, v in fit.coefficients.items()) + " }",
        "residual = { "
        + ", ".join(f"{k} = {_g(v)}" for k, v in numbers.items())
        + ", classes = ["
        + ", ".join(f"[{_g(t)}, {_g(a)}, {_g(b)}]" for t, a, b in r.classes)
        + "] }",
    ]
    if fit.surface is not None:
        lines.append("[fit.surface]")
        axes = (
            f'{{ name = "{name}", knots = [{", ".join(_g(k) for k in knots)}] }}' for name, knots in fit.surface.axes
        )
        lines.append("axes = [" + ", ".join(axes) + "]")
        # One string, not a TOML array: tomllib needs a second per megabyte of integers.
        milli = np.rint(fit.surface.values / STEP_LN).astype(int)
        rows = milli.reshape(-1, milli.shape[-1])
        lines.append('values = """')
        lines += [" ".join(str(v) for v in row) for row in rows]
        lines.append('"""')
    return lines


def _g(value: float) -> str:
    text = f"{float(value):.6g}"
    return text if any(c in text for c in ".en") else text + ".0"


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
        residual=Residual(**{k: float(v) for k, v in residual.items()}, classes=classes),
    )


def _homes() -> tuple[Traversable, ...]:
    """Folders that hold ``<device>/<family>.toml``, the user's first."""
    packaged = resources.files("hw_profiles").joinpath("measured")
    return user_data_dir() / "measured", packaged


@lru_cache(maxsize=256)
def _load_file(path: Traversable) -> tuple[Fit, ...]:
    return parse(path.read_text(encoding="utf-8"), str(path))


@lru_cache(maxsize=512)
def load_fits(device: str, family: str) -> tuple[Fit, ...]:
    """Fits of `family` on `device` (or ``_default``), the user's own first; may be empty."""
    found: list[Fit] = []
    for home in _homes():
        path = home.joinpath(device, f"{family}.toml")
        if path.is_file():
            found += _load_file(path)
    return tuple(found)


def fits_digest(device: str) -> str:
    """12 hex digits over the contents of every fit file that may answer for `device`."""
    digest = hashlib.sha256()
    for home in _homes():
        for name in (device, DEFAULT):
            folder = home.joinpath(name)
            if not folder.is_dir():
                continue
            for path in sorted(folder.iterdir(), key=lambda p: p.name):
                if path.name.endswith(".toml"):
                    digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def lookup(device: DeviceLike, family: str, dtype: str, library: str | None = None) -> tuple[Fit, Basis]:
    """The fit that answers for `device`, and how good an answer it is.

    In order: the device's own fit of this dtype (or its twin) and library (None: the `LOCAL` fit, else
    ``vendor``, else its largest), or its `LOCAL` fit -> CALIBRATED; its fit of another library or a near dtype ->
    EXTRAPOLATED; the pooled fit of its `scope_of`, then architecture, -> EXTRAPOLATED; the family's
    pooled fit -> DATASHEET.
    """
    own = load_fits(device.name, family)
    same = [f for f in own if f.dtype == dtype] or [f for f in own if f.dtype == TWINS.get(dtype)]
    exact = [f for f in same if library is None or f.library == library]
    exact = exact or [f for f in same if f.library == LOCAL]
    if exact:
        return _largest(exact), Basis.CALIBRATED
    if same:
        return _wider(_largest(same)), Basis.EXTRAPOLATED
    near = _near(own, dtype)
    if near is not None:
        return _wider(near), Basis.EXTRAPOLATED
    pooled = load_fits(DEFAULT, family)
    scopes = (scope_of(device), device.arch)
    for scope, basis in (*((s, Basis.EXTRAPOLATED) for s in scopes), (ANY, Basis.DATASHEET)):
        here = [f for f in pooled if f.device == scope]
        best = [f for f in here if f.dtype in (dtype, TWINS.get(dtype))]
        if best:
            named = [f for f in best if f.library == library]
            return _largest(named or best), basis
        near = _near(here, dtype)
        if near is not None:
            return _wider(near), basis
    known = sorted({f.dtype for f in own} | {f.dtype for f in pooled})
    raise UnsupportedError(
        f"no {family} fit for {dtype} on {device.name} or its like; "
        f"fitted: {', '.join(known) or 'none'}; "
        "measure it with `python -m sparse_kernels.calibrate`"
    )


def _largest(fits: Sequence[Fit]) -> Fit:
    return max(fits, key=lambda f: (f.library == LOCAL, f.library == VENDOR, f.n))


def _near(fits: Sequence[Fit], dtype: str) -> Fit | None:
    for other in NEAR_DTYPES.get(dtype, ()):
        hits = [f for f in fits if f.dtype == other]
        if hits:
            return _largest(hits)
    return None


def _wider(fit: Fit) -> Fit:
    """`fit` standing in for another library or dtype: two sources' distance, at least 10 %."""
    extra = max(fit.residual.between_source, 0.10)
    return replace(fit, residual=fit.residual.widened(extra))
