"""How wrong the predictions are: held-out errors, residuals of the fits used, measured against predicted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reports import charts
from reports.content import Block, Cell, Column, Figure, Paragraph, Section, Subheading, Table, section
from reports.provenance import named_fit
from reports.text import DASH, count, listed, percent, share, upper
from simulator.base.errors import ShadowlineError

if TYPE_CHECKING:
    from simulator.device.catalogue import Device
    from simulator.device.fits import Fit

FAMILIES = ("gemm", "attention", "collective", "moe", "elementwise", "sparse")
MOST_FITS = 24
"""Fits whose residuals are drawn: those with most rows."""
SCATTER_POINTS = 1500
"""Points per family of a scatter: more would only be ink."""


def validation(
    devices: Sequence[Device], fit_names: Iterable[str], data: Path | None, *, coverage: bool = True
) -> Section:
    """How wrong we are: held-out figures of every family, residuals on these devices, scatter where asked for."""
    from simulator.accuracy import golden

    held_out = {k: v for k, v in golden()["held_out"].items() if "median_ape" in v}
    blocks: list[Block] = [
        Paragraph(
            "Single kernels, fitted on 70 % of the measured shapes and judged on the other 30 %, as committed with this"
            f" version ({golden()['date']}). Whole steps and serving err more: the README has those figures."
        ),
        _accuracy_figure(held_out),
        _accuracy_table(held_out),
    ]
    here: list[Block] = [_coverage(devices)] if coverage else []
    fits = [f for name in dict.fromkeys(fit_names) for f in named_fit(name)]
    if fits:
        here.append(_residuals(fits))
    if here:
        blocks += [Subheading("On these devices" if len(devices) > 1 else "On this device"), *here]
    if data is not None:
        blocks += [Subheading("Measured against predicted"), *_scatter(devices, data)]
    return section("validation", "How wrong are we", blocks)


def _accuracy_figure(held_out: Mapping[str, Mapping[str, float]]) -> Figure:
    names = list(held_out)
    ours = np.array([held_out[k]["median_ape"] for k in names])
    p90 = np.array([held_out[k]["p90_ape"] for k in names])
    bare = np.array([held_out[k]["roofline_median_ape"] for k in names])
    none = np.full(len(names), np.nan)
    title = (
        f"Half of the unseen kernels are within {share(ours.min(), '.1')} to {share(ours.max(), '.1')}, by family; a"
        f" bare roofline misses by {share(bare.min())} to {share(bare.max())}"
    )
    series = {
        "ours: median, bar to p90": (100 * ours, none, 100 * p90),
        "bare roofline: median": (100 * bare, none, none),
    }
    svg = charts.intervals(names, series, "APE on held-out shapes [%]")
    alt = "; ".join(
        f"{k}: median {share(a, '.1')}, p90 {share(b, '.1')}, roofline {share(c)}"
        for k, a, b, c in zip(names, ours, p90, bare, strict=True)
    )
    return Figure("fig-accuracy", title, svg, alt)


def _accuracy_table(held_out: Mapping[str, Mapping[str, float]]) -> Table:
    rows = tuple(
        (
            Cell(k),
            count(r["n"]),
            percent(r["median_ape"], 1),
            percent(r["p90_ape"], 1),
            Cell(share(r["bias"], "+.1"), r["bias"]),
            percent(r["coverage_90"]),
            percent(r["roofline_median_ape"]),
        )
        for k, r in held_out.items()
    )
    columns = (
        Column("family"),
        Column("held-out rows", True, "held-out"),
        Column("median APE", True, "APE"),
        Column("p90 APE", True, "p90"),
        Column("bias", True, "bias"),
        Column("covered by the 90 % interval", True, "coverage"),
        Column("bare roofline", True, "bare roofline"),
    )
    return Table("tab-accuracy", "Error on shapes the fit has not seen", columns, rows)


def _coverage(devices: Sequence[Device]) -> Table:
    """Measured rows behind each family on each device."""
    rows = []
    for device in devices:
        for family in FAMILIES:
            fits = device.measured.own(family)
            if not fits and family == "sparse":
                continue
            n = sum(f.n for f in fits)
            sources = sorted({s for f in fits for s in f.sources})
            told = "own measurements" if fits else f"borrowed from its like ({device.arch}) or pooled"
            rows.append(
                (
                    Cell(device.name),
                    Cell(family),
                    count(n),
                    count(len(fits)),
                    Cell(band(fits)),
                    Cell(told, tone="" if fits else "quiet"),
                    Cell(", ".join(sources)),
                )
            )
    own = sorted({r[0].text for r in rows if r[5].text.startswith("own")})
    none = [d.name for d in devices if d.name not in own]
    title = f"Measured on {listed(own)}" if own else "None of these devices was measured"
    title += f"; {listed(none)} borrow{'s' if len(none) == 1 else ''} everything" if none and own else ""
    columns = (
        Column("device"),
        Column("family"),
        Column("measured rows", True, "measured"),
        Column("fits", True),
        Column("residual, 90 % of rows", term="residual"),
        Column("answered by"),
        Column("sources", wide=1),
    )
    return Table("tab-coverage", title, columns, tuple(rows))


def band(fits: Sequence[Fit]) -> str:
    """Widest to be expected: row-weighted mean of the fits' 5 % and 95 % quantiles."""
    if not fits:
        return DASH
    n = np.array([f.n for f in fits], float)
    lo, hi = (
        float(np.exp(np.average(list(qs), weights=n)) - 1.0)
        for qs in ([f.residual.q05 for f in fits], [f.residual.q95 for f in fits])
    )
    return f"{share(lo, '+.0')} to {share(hi, '+.0')}"


def _residuals(fits: Sequence[Fit]) -> Figure:
    fits = sorted(fits, key=lambda f: -f.n)[:MOST_FITS]
    fits = sorted(fits, key=lambda f: (f.device, f.family, f.dtype))
    names = [f"{_of(f)} {f.dtype} {f.library} (n = {f.n:,})" for f in fits]
    mid, lo, hi = (
        100.0 * (np.exp(np.array(v)) - 1.0)
        for v in ([f.residual.bias for f in fits], [f.residual.q05 for f in fits], [f.residual.q95 for f in fits])
    )
    widest, best = int(np.argmax(hi - lo)), int(np.argmin(hi - lo))
    title = (
        f"The surest fit behind these predictions is {_of(fits[best])}"
        f" ({lo[best]:+.0f} to {hi[best]:+.0f} %), the least sure {_of(fits[widest])}"
        f" ({lo[widest]:+.0f} to {hi[widest]:+.0f} %)"
    )
    svg = charts.intervals(
        names, {"fit": (mid, lo, hi)}, "measured over predicted on unseen rows, 90 % [%]", at_one=0.0
    )
    alt = "; ".join(f"{n}: {a:+.0f} to {b:+.0f} %" for n, a, b in zip(names, lo, hi, strict=True))
    return Figure("fig-residuals", title, svg, alt, "Dot: median. The intervals of this report are made of these.")


def _of(fit: Fit) -> str:
    """Device and family; a fit over several devices is called pooled."""
    return f"{'pooled' if fit.device == 'any' else fit.device} {fit.family}"


def _scatter(devices: Sequence[Device], data: Path) -> Iterator[Block]:
    """Committed fits against the measured rows of these devices, one figure per family with data."""
    from simulator.fitting.judged import KERNEL_KINDS, figures, judge_rows, read_rows

    names = {d.name for d in devices}
    found = False
    for kind in KERNEL_KINDS:
        path = data / f"{kind}.parquet"
        if not path.is_file():
            continue
        raw = read_rows(path)
        known = {d: _profile(str(d)) for d in raw["device"].unique()}
        raw = raw[raw["device"].map(known).isin(names)]
        if not len(raw):
            continue
        try:
            judged, _ = judge_rows(kind, raw, None)
        except ShadowlineError as error:
            yield Paragraph(f"{kind}: {error}", "note")
            continue
        for j in judged:
            if len(j.rows) < 50:
                continue
            found = True
            yield _judged_figure(kind, j.split, j.rows, figures(j.rows))
    if not found:
        yield Paragraph(f"No family has 50 measured rows of {listed(sorted(names))} in the data folder.")


def _profile(name: str) -> str:
    """Name of the profile that a table's device has; empty where it has none."""
    from simulator.scenario.catalogue import CATALOGUE

    try:
        return CATALOGUE.device(name).name
    except ShadowlineError:
        return ""


def _judged_figure(kind: str, split: str, rows: Any, f: Mapping[str, Any]) -> Figure:
    groups = {}
    for device, part in rows.groupby("device", sort=True):
        step = -(-len(part) // SCATTER_POINTS)
        part = part.sort_values("time_s").iloc[::step]
        groups[str(device)] = (1e6 * part["time_s"].to_numpy(float), 1e6 * part["mid_s"].to_numpy(float))
    title = (
        f"{upper(kind)}, {split.replace('_', ' ')}: median APE {share(f['median_ape'], '.1')}, p90"
        f" {share(f['p90_ape'], '.1')}, {share(f['coverage_90'])} inside the 90 % interval"
    )
    return Figure(
        f"fig-scatter-{kind}-{split}",
        title,
        charts.scatter(dict(list(groups.items())[:7]), "measured [us]", "predicted [us]", diagonal=0.2),
        f"{f['n']:,} rows; bias {share(f['bias'], '+.1')}.",
        f"{f['n']:,} rows measured on these devices, committed fits; in source: the fit has seen this source."
        " Band: 20 %.",
    )
