"""Builds a report: ``python -m reports.build sweep.parquet -o report.html -o report.pdf``."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulator.base import console
from simulator.base.errors import InputError
from simulator.base.files import read_limited, refuse_overwriting, refuse_unwritable, replaced

if TYPE_CHECKING:
    from reports.content import Logo, Report, Table


class Kind(StrEnum):
    """What a report is about."""

    SWEEP = "sweep"
    TRACE = "trace"
    DEVICE = "device"
    CLAIMS = "claims"
    CAPACITY = "capacity"


class Paper(StrEnum):
    """Page of the PDF."""

    A4 = "a4"
    LETTER = "letter"


MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".svg": "image/svg+xml"}
MOST_LOGO_BYTES, MOST_NOTE_BYTES = 2 * 2**20, 2**20

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="sweep .parquet, folder of a trace, device name, claims .json, or what serve or plan wrote",
        ),
    ] = "",
    out: Annotated[
        list[Path] | None, typer.Option("--out", "-o", help="FILE.html or FILE.pdf; repeat the flag for both")
    ] = None,
    kind: Annotated[
        Kind | None, typer.Option(help="sweep, trace, device, claims or capacity; else seen from INPUT")
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="folder of a measured trace to show beside a sweep")] = None,
    validation: Annotated[
        bool, typer.Option("--validation", help="measured against predicted on these devices, as scatter")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="folder of the measured tables for --validation; else $SHADOWLINE_DATA")
    ] = None,
    title: Annotated[str, typer.Option(help="title instead of the report's own")] = "",
    logo: Annotated[Path | None, typer.Option(help="picture for page one: .svg, .png or .jpg")] = None,
    notes: Annotated[list[str] | None, typer.Option(help="text under the title, or @FILE; repeat the flag")] = None,
    paper: Annotated[Paper, typer.Option(help="page of the PDF")] = Paper.A4,
    with_data: Annotated[bool, typer.Option("--with-data", help="every table also as CSV beside the report")] = False,
    json_: Annotated[bool, typer.Option("--json", help="the files written, as JSON on stdout")] = False,
) -> None:
    """Build a report in HTML and PDF: sweeps, traces, devices, published claims and serving.

    The same input gives the same bytes. Exit 0; 2 bad input.
    """
    outputs = _outputs(out)
    texts = [("--notes", Path(n[1:])) for n in notes or [] if n.startswith("@")]
    refuse_overwriting(
        [("--out", path) for path in outputs],
        [("INPUT", Path(source) if source else None), ("--trace", trace), ("--logo", logo), *texts],
    )
    front = {"logo": _logo(logo), "notes": _notes(notes or [])}
    report = replace(_compose(kind or _kind(source), source, trace, _data(validation, data)), **front)
    if title.strip():
        report = replace(report, title=title.strip())
    files = {path: _rendered(report, path, paper) for path in outputs}
    if with_data:
        tables = _csv_files(report, outputs[0])
        refuse_overwriting([("--with-data", path) for path in tables], [("INPUT", Path(source) if source else None)])
        files |= tables
    _write(files)
    if json_:
        console.out_json({"rows": [{"file": str(p), "bytes": len(b)} for p, b in files.items()]})
    else:
        for path, content in files.items():
            console.out(f"{path}  {len(content) / 1e3:,.0f} kB")


def _outputs(out: list[Path] | None) -> list[Path]:
    if not out:
        raise InputError("is needed, e.g. -o report.html -o report.pdf", where="--out")
    for path in out:
        if path.suffix.lower() not in (".html", ".pdf"):
            raise InputError(f"{path.name!r} must end in .html or .pdf", where="--out")
        refuse_unwritable(path, "--out")
    return out


def _kind(source: str) -> Kind:
    """What INPUT looks like."""
    path = Path(source)
    if not source:
        raise InputError(
            "is needed: a sweep .parquet, a trace's folder, a device, claims .json or what serve or plan wrote",
            where="INPUT",
        )
    if path.suffix in (".parquet", ".json") and path.is_file():
        from reports.served import is_served

        if is_served(path):
            return Kind.CAPACITY
    if path.suffix == ".parquet":
        return Kind.SWEEP
    if path.is_dir():
        return Kind.TRACE
    if path.suffix == ".json":
        return Kind.CLAIMS
    if path.suffix in (".csv", ".tsv"):
        raise InputError(f"{path.name} is no Parquet file; sweep with --out FILE.parquet", where="INPUT")
    return Kind.DEVICE


def _compose(kind: Kind, source: str, trace: Path | None, data: Path | None) -> Report:
    if trace is not None and kind is not Kind.SWEEP:
        raise InputError("goes with a sweep; for a trace alone give its folder as INPUT", where="--trace")
    if kind is Kind.SWEEP:
        from reports.sweep import compose as of_sweep

        return of_sweep(Path(source), trace, data)
    if kind is Kind.TRACE:
        from reports.trace import compose as of_trace

        return of_trace(Path(source))
    if kind is Kind.DEVICE:
        from reports.device import compose as of_device

        return of_device(source, data)
    if kind is Kind.CAPACITY:
        from reports.capacity import compose as of_capacity

        return of_capacity(Path(source))
    from reports.claims import compose as of_claims

    return of_claims(Path(source) if source else None)


def _data(validation: bool, data: Path | None) -> Path | None:
    if not validation:
        if data is not None:
            raise InputError("goes with --validation", where="--data")
        return None
    if data is None:
        home = os.environ.get("SHADOWLINE_DATA", "")
        if not home:
            raise InputError("needs --data DIR or $SHADOWLINE_DATA with gemm.parquet, ...", where="--validation")
        data = Path(home)
    if not data.is_dir():
        raise InputError(f"no such folder: {data}", where="--data")
    return data


def _notes(notes: list[str]) -> tuple[str, ...]:
    """Paragraphs of the texts and of the files behind ``@``."""
    texts: list[str] = []
    for note in notes:
        if note.startswith("@"):
            try:
                note = read_limited(Path(note[1:]), MOST_NOTE_BYTES).decode("utf-8")
            except UnicodeDecodeError:
                raise InputError(f"{note[1:]} is not UTF-8 text", where="--notes") from None
        texts += [part.strip() for part in note.split("\n\n") if part.strip()]
    return tuple(texts)


def _logo(path: Path | None) -> Logo | None:
    if path is None:
        return None
    from reports.content import Logo

    suffix = path.suffix.lower()
    if suffix not in MIME:
        raise InputError(f"{path.name!r} must end in {', '.join(MIME)}", where="--logo")
    content = read_limited(path, MOST_LOGO_BYTES)
    starts = {".png": b"\x89PNG", ".jpg": b"\xff\xd8", ".jpeg": b"\xff\xd8"}.get(suffix, b"")
    if not content.startswith(starts) or (suffix == ".svg" and b"<svg" not in content):
        raise InputError(f"{path} is no {suffix[1:].upper()} picture", where="--logo")
    return Logo("logo" + suffix, content, MIME[suffix])


def _rendered(report: Report, path: Path, paper: Paper) -> bytes:
    if path.suffix.lower() == ".html":
        from reports import html

        return html.render(report)
    from reports import pdf

    return pdf.render(report, paper)


def _csv_files(report: Report, beside: Path) -> dict[Path, bytes]:
    return {beside.with_name(f"{beside.stem}.{t.id}.csv"): _csv(t) for t in report.tables()}


def _csv(table: Table) -> bytes:
    """All rows of a table with unrounded numbers."""
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(c.name for c in table.columns)
    writer.writerows([cell.raw for cell in row] for row in table.rows)
    return text.getvalue().encode("utf-8", "replace")


def _write(files: dict[Path, bytes]) -> None:
    """All files or none: written aside first, then renamed."""
    with contextlib.ExitStack() as stack:
        for path, content in files.items():
            stack.enter_context(replaced(path)).write_bytes(content)


if __name__ == "__main__":
    console.main(app)
