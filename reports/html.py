"""A report as one HTML file that opens offline."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING

from reports.content import Column, Report, Terms
from reports.style import themed
from simulator.base.glossary import TERMS

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

_BREAKS = re.compile(r"(?<=[(,_/+=.:-])(?=[^\d\s])")


def render(report: Report) -> bytes:
    """The page, with figures, style and script inside; every text is escaped by the template."""
    from markupsafe import Markup, escape

    script = _read("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    figures = {f.id: Markup(themed(f.svg, f.id, str(escape(f.alt)))) for f in report.figures()}
    numbers = {f.id: i for i, f in enumerate(report.figures(), start=1)}
    tables = {t.id: i for i, t in enumerate(report.tables(), start=1)}
    terms = {term for b in report.blocks() if isinstance(b, Terms) for term, _ in b.items}

    def term_of(column: Column) -> str:
        return column.term if column.term in terms else ""

    text = _template().render(
        report=report,
        figures=figures,
        numbers=numbers,
        tables=tables,
        term_of=term_of,
        meaning=TERMS,
        anchor=anchor,
        soft=_soft,
        kind=lambda block: type(block).__name__,
        style=Markup(_read("report.css")),
        script=Markup(script),
        digest=digest,
        logo=_data_uri(report),
    )
    # A name of the command line may hold bytes that are no text.
    return text.encode("utf-8", "replace")


def _soft(text: str) -> Markup:
    """Escaped, with leave to break long names after their punctuation but not inside a number."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in _BREAKS.split(text))


def anchor(term: str) -> str:
    """Anchor of a glossary term."""
    return "term-" + "".join(c if c.isalnum() else "-" for c in term.casefold())


def _data_uri(report: Report) -> str:
    if report.logo is None:
        return ""
    return f"data:{report.logo.mime};base64,{base64.b64encode(report.logo.data).decode()}"


def _read(name: str) -> str:
    return resources.files("reports").joinpath("templates", name).read_text("utf-8")


@lru_cache(maxsize=1)
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_read("report.html"))
