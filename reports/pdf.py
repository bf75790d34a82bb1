"""A report as a tagged PDF (PDF/UA-1) through typst."""

from __future__ import annotations

import json
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from reports.content import Block, Bullets, Cell, Code, Figure, Paragraph, Report, Subheading, Table, Terms
from reports.style import WIDTH_IN
from simulator.base.console import say
from simulator.base.errors import InputError

PAPERS = {"a4": "a4", "letter": "us-letter"}


def render(report: Report, paper: str = "a4") -> bytes:
    """The PDF's bytes; the same report gives the same bytes.

    Only fonts that come with typst and matplotlib are used, so they are the same on every machine. Where those lack a
    letter of a user's text the system's fonts are asked, and PDF/UA is given up last.
    """
    import typst

    files: dict[str, bytes] = {
        "main.typ": resources.files("reports").joinpath("templates", "report.typ").read_bytes(),
        "data.json": json.dumps(_data(report, paper), sort_keys=True, ensure_ascii=False).encode("utf-8", "replace"),
    }
    files |= {f"{f.id}.svg": f.svg.encode() for f in report.figures()}
    if report.logo is not None:
        files[report.logo.name] = report.logo.data
    problem = ""
    for system_fonts, accessible in ((False, True), (True, True), (True, False)):
        fonts = typst.Fonts(include_system_fonts=system_fonts, font_paths=[_fonts()])
        try:
            out = typst.Compiler(font_paths=fonts).compile(
                input=files,  # type: ignore[type-var]  # typst takes files by name, its stub says one only
                format="pdf",
                pdf_standards="ua-1" if accessible else [],
                timestamp=0,
            )
        except typst.TypstError as error:
            problem = str(error.message)
            if "image" in problem and report.logo is not None:
                raise InputError(f"is no picture typst can draw: {problem}", where="--logo") from None
            continue
        if not accessible:
            say(f"note: the PDF is not PDF/UA: {problem}")
        if isinstance(out, bytes):
            return out
    raise InputError(f"typst cannot set this report: {problem}")


def _fonts() -> str:
    """Folder of DejaVu, which matplotlib brings along."""
    import matplotlib as mpl

    return str(Path(mpl.get_data_path()) / "fonts" / "ttf")


def _data(report: Report, paper: str) -> dict[str, Any]:
    return {
        "title": report.title,
        "subtitle": report.subtitle,
        "notes": list(report.notes),
        "logo": report.logo.name if report.logo else "",
        "paper": PAPERS[paper],
        "version": version("shadowline"),
        "sections": [{"title": s.title, "blocks": [_block(b) for b in s.blocks]} for s in report.sections],
    }


def _block(block: Block) -> dict[str, Any]:
    kind = type(block).__name__
    match block:
        case Paragraph():
            return {"kind": kind, "text": block.text, "style": block.kind}
        case Subheading() | Code():
            return {"kind": kind, "text": block.text}
        case Bullets() | Terms():
            return {"kind": kind, "items": list(block.items)}
        case Figure():
            return {
                "kind": kind,
                "title": block.title,
                "alt": block.alt,
                "caption": block.caption,
                "file": f"{block.id}.svg",
                "width": _width(block.svg),
            }
        case Table():
            more = f"{block.left_out:,} more rows are left out here; --with-data writes them all as CSV."
            return {
                "kind": kind,
                "id": block.id,
                "title": block.title,
                "note": block.note,
                "more": more if block.left_out else "",
                "columns": [{"name": c.name, "numeric": c.numeric, "wide": c.wide} for c in block.columns],
                "rows": [[_cell(c) for c in row] for row in block.rows[: block.shown]],
            }


def _cell(cell: Cell) -> dict[str, str]:
    out = {"text": cell.text}
    if cell.tone:
        out["tone"] = cell.tone
    if cell.href:
        out["href"] = cell.href
    return out


def _width(svg: str) -> Any:
    """Share of the text width: figures keep their letters' size."""
    points = float(svg.split('width="', 1)[1].split("pt", 1)[0])
    return {"percent": min(100.0, 100.0 * points / (WIDTH_IN * 72.0))}
