"""The report of a device: what was measured on it, how well the fits hold, and every number of its profile."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reports import charts, provenance
from reports.content import Block, Bullets, Cell, Column, Paragraph, Report, Section, Subheading, Table, section
from reports.text import DASH, count, listed, percent, plural, share
from reports.validation import FAMILIES, band, validation
from simulator.base.drawing import Line, Lines, Picture
from simulator.base.dtypes import get_format
from simulator.base.errors import ShadowlineError
from simulator.device.catalogue import Device
from simulator.device.fits import Fit
from simulator.roofline.engine import load_engines
from simulator.scenario.catalogue import CATALOGUE

GEMM_NK = (4096, 4096)
"""Output and input features of the GEMM that is drawn: a projection of a 7B model."""
NO_SPARSE = "Sparse kernels of this card where none was measured: they are carried from its dense fits."
ROWS = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192], float)


def compose(name: str, data: Path | None = None) -> Report:
    """The report of the device `name`; `data` is the folder of measured tables for the scatter."""
    device = CATALOGUE.device(name)
    fits = {family: device.measured.own(family) for family in FAMILIES}
    names = [f"{f.device}/{f.family}/{f.dtype}/{f.library}" for of in fits.values() for f in of]
    sections = (
        _first_page(device, fits, name),
        _kernels(device),
        validation([device], names, data, coverage=False),
        _fits(fits),
        _profile(device),
        provenance.not_modelled((), (*provenance.GENERAL, NO_SPARSE)),
        provenance.sources([device], names),
        provenance.versions(
            [(f"profile {device.name}", device.profile_hash), (f"fits of {device.name}", device.measured.digest)]
        ),
    )
    report = Report(
        f"How well do we know the {device.name}?",
        f"{device.vendor.upper() if len(device.vendor) < 4 else device.vendor.capitalize()}, {device.arch}: profile"
        " and calibration",
        tuple(s for s in sections if s is not None),
    )
    return provenance.with_glossary(report, "sources")


def _first_page(device: Device, fits: dict[str, tuple[Fit, ...]], name: str) -> Section:
    facts = [f for _, f in device.facts()]
    kinds = {k: sum(f.kind == k for f in facts) / len(facts) for k in ("datasheet", "measured", "assumed")}
    assumed = [f"{path} {f.text}" for path, f in device.facts() if f.kind == "assumed" and f.note]
    blocks: list[Block] = [
        Paragraph(f"How many measurements stand behind a prediction on the {device.name}, and how wide is its error?"),
        Paragraph(_answer(device, fits), "lead"),
        _families(fits),
        Subheading("Assumptions"),
        Bullets(
            (
                "Residuals are out of fold: measured over predicted on rows that the fit has not seen, nine of ten"
                " inside the range.",
                "A prediction for another source's kernels is wider by the spread between sources; a family without"
                " rows of its own borrows its architecture's fit, and says EXTRAPOLATED.",
                f"Of the profile's {len(facts)} numbers {listed([f'{share(v)} are {k}' for k, v in kinds.items()])}.",
                f"Assumed among them: {listed(assumed, 5)}." if assumed else "None of them is assumed.",
            )
        ),
        Subheading("The exact command"),
        provenance.command_block(f"python -m reports.build {name} -o report.html -o report.pdf"),
    ]
    return section("answer", "The question and the answer", blocks)


def _answer(device: Device, fits: dict[str, tuple[Fit, ...]]) -> str:
    own = {k: of for k, of in fits.items() if of}
    if not own:
        return (
            f"Nothing was measured on the {device.name}: every prediction is carried from its like ({device.arch})"
            " or from"
            " all devices pooled. Its intervals are wide for that reason; forty rows of your own narrow them (python -m"
            " simulator.calibrate)."
        )
    rows = sum(f.n for of in own.values() for f in of)
    sources = {s for of in own.values() for f in of for s in f.sources}
    median = {
        k: float(np.average([abs(np.expm1(0.6745 * f.residual.sigma_in)) for f in of], weights=[f.n for f in of]))
        for k, of in own.items()
    }
    best, worst = min(median, key=lambda k: median[k]), max(median, key=lambda k: median[k])
    lacking = [k for k in fits if k not in own]
    text = (
        f"{rows:,} measured rows of {plural(len(sources), 'source')} in {plural(len(own), 'kernel family')}; half of"
        f" the unseen {best} rows lie within about {share(median[best])}"
    )
    text += f", of {worst} within {share(median[worst])}." if worst != best else "."
    return text + (
        f" Not measured here and therefore extrapolated: {listed(lacking)}."
        if lacking
        else " No kernel family is missing."
    )


def _families(fits: dict[str, tuple[Fit, ...]]) -> Table:
    rows = []
    for family, of in fits.items():
        dates = sorted({f.date for f in of})
        dtypes = dict.fromkeys(f.dtype for f in of)
        rows.append(
            (
                Cell(family),
                count(sum(f.n for f in of)),
                count(len(of)),
                Cell(listed(dtypes, 7) or DASH),
                Cell(band(of)),
                Cell(dates[-1] if dates else DASH),
                Cell("CALIBRATED" if of else "EXTRAPOLATED", tone="" if of else "quiet"),
            )
        )
    columns = (
        Column("kernel family"),
        Column("measured rows", True, "measured"),
        Column("fits", True),
        Column("formats and patterns", wide=1),
        Column("residual, 90 % of rows", term="residual"),
        Column("fitted on"),
        Column("basis", term="basis"),
    )
    return Table("tab-families", "What was measured on this device", columns, tuple(rows))


def _kernels(device: Device) -> Section | None:
    """Predicted speed of one GEMM over its rows, per format, with the interval and the datasheet's roof."""
    from simulator.ops.ops import Linear
    from simulator.roofline.timing import time_op

    engine = load_engines()["vllm"]
    n, k = GEMM_NK
    lines: list[Line] = []
    best = 0.0
    half = get_format("bf16" if device.has("bf16") else "fp16")
    for fmt in (half, *map(get_format, ("fp8", "w8a16", "w4a16"))):
        op = Linear(role="gemm", m=ROWS, n=n, k=k, fmt=fmt)
        try:
            t = time_op(op, device, engine)
        except ShadowlineError:
            continue
        rate = 1e-12 * np.asarray(op.flop) / np.asarray(t.total_s)
        peak = fmt.math if device.has(fmt.math) else half.math
        low, high = rate * t.total_s / t.hi_s, rate * t.total_s / t.lo_s
        lines.append(Line(f"{fmt.name} ({t.basis.lower()})", ROWS, rate, low, high))
        best = max(best, float(rate[-1]) / (1e-12 * device.peak_flop_per_s(peak)))
    if not lines:
        return None
    first = max(lines, key=lambda line: line.y[0])
    picture = Picture(
        "gemm",
        "Speed of a GEMM",
        f"At one row {first.name} is the fastest format; at {ROWS[-1]:,.0f} rows the best reaches {share(best)} of its"
        " peak",
        Lines(tuple(lines), "rows m [tokens]", "speed [Tflop/s]", x_log=True, y_log=True, share=False),
        "; ".join(f"{line.name} {line.y[-1]:,.0f} Tflop/s at {ROWS[-1]:,.0f} rows" for line in lines),
        f"C[m, {n}] = A[m, {k}] B under vLLM, predicted; band: 90 % interval.",
    )
    return section("kernels", "What it reaches", [charts.figure(picture)])


def _fits(fits: dict[str, tuple[Fit, ...]]) -> Section | None:
    rows = tuple(_fit(f) for of in fits.values() for f in of)
    if not rows:
        return None
    columns = (
        Column("family"),
        Column("format"),
        Column("kernel library"),
        Column("rows", True, "measured"),
        Column("bias", True, "bias"),
        Column("spread", True),
        Column("residual, 90 %", True, "residual"),
        Column("between sources", True),
        Column("sources", wide=1),
    )
    note = "Spread: robust standard deviation within a source; between sources: of the offset of two good sources."
    title = "Fits of this device, out of fold"
    return section("fits", "Every fit", [Table("tab-fits", title, columns, rows, note, shown=90)])


def _fit(f: Fit) -> tuple[Cell, ...]:
    r = f.residual
    low, high = np.expm1(r.q05), np.expm1(r.q95)
    return (
        Cell(f.family),
        Cell(f.dtype),
        Cell(f.library),
        count(f.n),
        percent(float(np.expm1(r.bias)), 1),
        percent(float(np.expm1(r.sigma_in)), 1),
        Cell(f"{share(low, '+.0')} to {share(high, '+.0')}", float(high - low)),
        percent(float(np.expm1(r.between_source))),
        Cell(", ".join(f.sources)),
    )


def _profile(device: Device) -> Section:
    rows = tuple(
        (
            Cell(path),
            Cell(f.text, f.value),
            Cell(f.kind, tone="quiet" if f.kind == "assumed" else ""),
            Cell(f.source),
            Cell(f.note),
        )
        for path, f in device.facts()
    )
    columns = (Column("number"), Column("value", True), Column("kind"), Column("source"), Column("note", wide=1))
    title = f"The {len(rows)} numbers of the profile, each with its source"
    return section("profile", "Profile", [Table("tab-profile", title, columns, rows, shown=120)])
