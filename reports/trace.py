"""The report of a trace: how sparse a model is, and how that fades with the batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reports import charts, provenance
from reports.content import Block, Bullets, Cell, Column, Paragraph, Report, Section, Subheading, Table, section
from reports.text import count, num, percent
from simulator.base.drawing import Picture
from simulator.trace import Trace, picked, pictures, read_trace, tables


def compose(folder: Path) -> Report:
    """The report of the trace in `folder`."""
    t = read_trace(folder)
    m, units = t.manifest, picked.Units.of(t)
    union = pictures.union(t, units.tensor, picked.LEVELS, units.level)
    heads = pictures.union(t, "attn.head", picked.LEVELS, 0.5)
    chapters = (
        ("layers", "Layer by layer", (pictures.depth(t), pictures.zeros(t), pictures.use(t), tables.layers(t))),
        ("attention", "Attention", (pictures.mass(t), heads, tables.context(t), tables.where(t), tables.hits(t))),
        ("cache", "KV cache", (pictures.kept(t), tables.cache(t), pictures.spectrum(t), tables.rank(t))),
    )
    sections = [
        _first_page(t, folder, _blocks(tables.sets(t), union)),
        *(section(id_, title, blocks) for id_, title, parts in chapters if (blocks := _blocks(*parts))),
        _quality(t),
        _beyond(),
        provenance.versions(_facts(t)),
    ]
    report = Report(
        f"How sparse is {m.model}?",
        f"Measured on {m.tokens:,} tokens, {m.facts.n_layers} layers, {m.dtype}, {m.created}",
        tuple(sections),
    )
    return provenance.with_glossary(report, "versions")


def measured_section(folder: Path) -> Section:
    """The trace beside a sweep: its union over the batch, attention and quality in one section."""
    t = read_trace(folder)
    units = picked.Units.of(t)
    intro = Paragraph(f"{picked.facts(t)}, trace {t.digest[:12]}. {picked.answer(t)}")
    union = pictures.union(t, units.tensor, picked.LEVELS, units.level)
    parts = _blocks(union, pictures.mass(t), pictures.loss(t), tables.quality(t))
    return section("trace", f"Measured sparsity of {t.manifest.model}", [intro, *parts])


def _blocks(*parts: Picture | tables.Table | None) -> list[Block]:
    return [charts.figure(p) if isinstance(p, Picture) else _table(p) for p in parts if p is not None]


def _table(found: tables.Table) -> Table:
    cells = {"share": lambda v: percent(v, 1), "ratio": lambda v: num(v, 4), "number": count, "text": Cell}
    columns = tuple(Column(c.name, c.form != "text", c.term) for c in found.columns)
    rows = tuple(tuple(cells[c.form](v) for c, v in zip(found.columns, row, strict=True)) for row in found.rows)
    return Table(f"tab-{found.id}", found.title, columns, rows, found.note, shown=128)


def _first_page(t: Trace, folder: Path, shown: Sequence[Block]) -> Section:
    m = t.manifest
    settings = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in sorted(m.settings.items()) if not isinstance(v, str))
    blocks: list[Block] = [
        Paragraph(
            f"Which share of its neurons, heads and keys does {m.model} use for a token, and what is left of that"
            " sparsity when a batch shares the reads?"
        ),
        Paragraph(picked.answer(t), "lead"),
        *shown,
        Subheading("Assumptions"),
        Bullets(
            (
                f"Measured, not predicted, on one text; another gives other shares. {picked.facts(t)}.",
                f"Settings: {settings}.",
                "Rows of a batch are tokens of different sequences. A band is the spread of the layers, not an error.",
            )
        ),
        Subheading("The exact command"),
        provenance.command_block(f"python -m reports.build {folder} -o report.html -o report.pdf"),
    ]
    return section("answer", "The question and the answer", blocks)


def _quality(t: Trace) -> Section:
    text = (
        "No predictor was judged on this trace, so nothing is said about accuracy. python -m traces.shadow evaluate"
        " measures it."
    )
    blocks = _blocks(pictures.loss(t), pictures.loss(t, recall=True), tables.quality(t)) or [Paragraph(text)]
    return section("quality", "What sparsity costs in quality", blocks)


def _beyond() -> Section:
    items = (
        "Other texts, longer contexts and other precisions than those measured.",
        "Speed: sweep with --trace DIR to see what this sparsity buys on a device.",
        "Other models: with --trace-transfer the shares are carried over, as extrapolated.",
    )
    return section("not-modelled", "What was not measured", [Bullets(items)])


def _facts(t: Trace) -> list[tuple[str, str]]:
    m = t.manifest
    out = [
        ("trace", t.digest),
        ("model", m.model + (f" at {m.revision}" if m.revision else "")),
        ("config", m.config_sha256),
    ]
    out += [("text", m.text_sha256), *((f"table {n}", r.sha256) for n, r in sorted(m.files.items()))]
    out += [(f"setting {k.replace('_', ' ')}", str(v)) for k, v in sorted(m.settings.items())]
    return out + [(f"made with {k}", v) for k, v in sorted(m.versions.items())]
