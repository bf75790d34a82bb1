"""The report of a trace: how sparse a model is, and how that fades with the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reports import charts, provenance
from reports.content import Block, Bullets, Cell, Column, Figure, Paragraph, Report, Section, Subheading, Table, section
from reports.curves import Units, kept_quality
from reports.text import DASH, count, listed, percent, plural, share
from simulator.trace import DepthCurves, Trace, over_layers, read_trace

BATCHES = (1, 8, 64, 256)
AT = (0.3, 0.5, 0.7)
"""Sparsities of the quality table [-]."""


def compose(folder: Path) -> Report:
    """The report of the trace in `folder`."""
    t = read_trace(folder)
    m = t.manifest
    sections = [
        _first_page(t, folder),
        _layers(t),
        _attention(t),
        _cache(t),
        _quality(t),
        _beyond(),
        provenance.versions(_facts(t)),
    ]
    report = Report(
        f"How sparse is {m.model}?",
        f"Measured on {m.tokens:,} tokens, {m.facts.n_layers} layers, {m.dtype}, {m.created}",
        tuple(s for s in sections if s is not None),
    )
    return provenance.with_glossary(report, "versions")


def measured_section(folder: Path) -> Section:
    """The trace beside a sweep: its union over the batch, attention and quality in one section."""
    t = read_trace(folder)
    f = t.manifest.facts
    intro = Paragraph(
        f"{t.manifest.model}, {f.n_layers} layers, {t.manifest.tokens:,} tokens of text"
        f" {t.manifest.text_sha256[:12]}, trace {t.digest[:12]}. {_answer(t)}"
    )
    parts = (_unions(t), *_mass(t), *_quality_blocks(t))
    return section("trace", f"Measured sparsity of {t.manifest.model}", [intro, *parts])


def _first_page(t: Trace, folder: Path) -> Section:
    m = t.manifest
    f = m.facts
    settings = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in sorted(m.settings.items()) if not isinstance(v, str))
    blocks: list[Block | None] = [
        Paragraph(
            f"Which share of its neurons, heads and keys does {m.model} use for a token, and what is left of that"
            " sparsity when a batch shares the reads?"
        ),
        Paragraph(_answer(t), "lead"),
        _summary(t),
        _unions(t),
        Subheading("Assumptions"),
        Bullets(
            (
                f"Measured, not predicted: {m.tokens:,} tokens of text {m.text_sha256[:12]}, seed {m.seed}, {m.dtype};"
                " another text gives other shares.",
                f"{f.n_layers} layers, hidden {f.hidden}, {f.n_heads} query heads on {f.n_kv_heads} KV heads,"
                f" {f.intermediate:,} {f.activation} neurons.",
                f"Settings: {settings}.",
                "Rows of a batch are tokens of different sequences. A band is the spread of the layers, not an error.",
            )
        ),
        Subheading("The exact command"),
        provenance.command_block(f"python -m reports.build {folder} -o report.html -o report.pdf"),
    ]
    return section("answer", "The question and the answer", blocks)


def _answer(t: Trace) -> str:
    units = Units.of(t)
    union = over_layers(t, units.tensor, "union_density", units.level)
    parts = []
    if union is not None:
        many = [b for b in BATCHES if b in union.x and b > 1]
        fades = listed([f"{share(union.mean_at(b))} for {b} rows" for b in many])
        parts.append(
            f"A token uses {share(union.mean_at(1), '.1')} of the {units.name} ({units.words}); a batch needs the"
            f" union, {fades}."
        )
    mass = over_layers(t, "attn.mass", "tokens_for_mass", 0.9)
    if mass is not None:
        parts.append(
            f"90 % of the attention lies on {share(mass.mean[-1])} of {mass.x[-1]:,.0f} tokens of context, each"
            " sequence for itself, so this sparsity does not fade with the batch."
        )
    return " ".join(parts) or "The trace holds neither sets of units nor attention."


def _summary(t: Trace) -> Table | None:
    """Shares of every set of units, over batches, windows and from token to token."""
    units = Units.of(t)
    sets = [(units.tensor, units.name, units.level, units.words)]
    sets += [("attn.head", "query heads", k, f"the {share(k)} largest") for k in (0.3, 0.5)]
    sets += [
        ("ffn.down", "FFN neurons", k, f"the {share(k)} largest") for k in (0.1, 0.3) if units.tensor == "ffn.down"
    ]
    rows = []
    for tensor, name, level, words in sets:
        union = over_layers(t, tensor, "union_density", level)
        if union is None:
            continue
        window, before = (over_layers(t, tensor, s, level) for s in ("window_density", "overlap_previous"))
        rows.append(
            (
                Cell(name),
                Cell(words),
                *(percent(union.mean_at(b), 1) for b in BATCHES),
                percent(window.mean_at(32) if window else np.nan, 1),
                percent(before.mean_at(1) if before else np.nan, 1),
            )
        )
    if not rows:
        return None
    columns = (
        Column("units"),
        Column("kept per token"),
        *(Column(plural(b, "row"), True, "union density") for b in BATCHES),
        Column("32 tokens in a row", True, "window density"),
        Column("as the token before", True),
    )
    return Table(
        "tab-sparsity",
        "Share of the units that a step needs, mean over layers",
        columns,
        tuple(rows),
        note="As the token before: share of a token's units that the token before it used too.",
    )


def _unions(t: Trace) -> Figure | None:
    units = Units.of(t)
    lines, bands = {}, {}
    alone = None
    for tensor, name, level in ((units.tensor, units.name, units.level), ("attn.head", "query heads, 50 % kept", 0.5)):
        c = over_layers(t, tensor, "union_density", level)
        if c is not None:
            lines[name] = (c.x, c.mean)
            bands[name] = (c.values.min(0), c.values.max(0))
            alone = alone if alone is not None else (1.0 - (1.0 - c.values[:, :1]) ** c.x).mean(0)
    if not lines:
        return None
    name, (x, y) = next(iter(lines.items()))
    lines["if rows were independent"] = (x, alone)
    half = next((int(b) for b, d in zip(x, y, strict=True) if d >= 0.5), None)
    if half is None:
        title = f"{x[-1]:,.0f} rows still need only {share(y[-1])} of the {name}"
    elif half > 1:
        title = f"From {half} rows on a batch needs more than half of the {name}"
    else:
        title = f"Even one row needs {share(y[0])} of the {name}"
    svg = charts.lines(lines, "rows of the batch [tokens]", "share needed [-]", log_x=True, bands=bands)
    alt = "; ".join(f"{b:,.0f} rows {share(d)}" for b, d in zip(x, y, strict=True))
    return Figure(
        "fig-union",
        title,
        svg,
        f"Share of the {name} by rows of the batch: {alt}.",
        "Mean over layers; band: least to most of the layers. Independent rows would need 1 - (1 - d)^B; tokens share"
        " units, so they need less.",
    )


def _layers(t: Trace) -> Section:
    units = Units.of(t)
    zeros = over_layers(t, "ffn.down", "exact_zero")
    union = over_layers(t, units.tensor, "union_density", units.level)
    window = over_layers(t, units.tensor, "window_density", units.level)
    heads = over_layers(t, "attn.head", "overlap_previous", 0.5)

    def of(c: DepthCurves | None, layer: int, x: float) -> Cell:
        return percent(np.nan if c is None else c.of_layer(layer, x), 1)

    rows = tuple(
        (Cell(str(n), n), of(zeros, n, 0), *(of(union, n, b) for b in BATCHES), of(window, n, 32), of(heads, n, 1))
        for n in range(t.n_layers)
    )
    columns = (
        Column("layer", True),
        Column("exact zeros", True),
        *(Column(plural(b, "row"), True, "union density") for b in BATCHES),
        Column("32 tokens in a row", True, "window density"),
        Column("heads as before", True),
    )
    table = Table(
        "tab-layers",
        f"Every layer: share of the {units.name} {units.words}",
        columns,
        rows,
        shown=128,
        note="Heads as before: share of a token's heads (half kept) that the token before it kept too.",
    )
    return section("layers", "Layer by layer", [_layer_figure(t, units, union), table])


def _layer_figure(t: Trace, units: Units, union: DepthCurves | None) -> Figure | None:
    if union is None:
        return None
    shown = [b for b in (1, 8, 64) if b in union.x]
    series = {plural(b, "row"): (union.layers.astype(float), union.values[:, union.x == b][:, 0]) for b in shown}
    first = union.values[:, 0]
    most, least = int(union.layers[np.argmax(first)]), int(union.layers[np.argmin(first)])
    title = f"Layer {most} uses most {units.name} per token ({share(first.max())})"
    title += f", layer {least} fewest ({share(first.min())})"
    alt = "; ".join(f"layer {n} {share(v)}" for n, v in zip(union.layers, first, strict=True))
    svg = charts.lines(series, "layer", f"share of the {units.name} [-]")
    return Figure("fig-layers", title, svg, f"One row: {alt}.")


def _mass(t: Trace) -> list[Block]:
    curves = {
        f"{share(k)} of the attention": over_layers(t, "attn.mass", "tokens_for_mass", k) for k in (0.9, 0.95, 0.99)
    }
    there = {k: c for k, c in curves.items() if c is not None}
    if not there:
        return []
    c = next(iter(there.values()))
    title = f"{next(iter(there))} lies on {share(c.mean[0])} of {c.x[0]:,.0f} tokens"
    title += f" and on {share(c.mean[-1])} of {c.x[-1]:,.0f}"
    svg = charts.lines(
        {k: (v.x, v.mean) for k, v in there.items()}, "context [tokens]", "share of the context [-]", log_x=True
    )
    alt = "; ".join(f"{k}: {share(v.mean[-1])} of {v.x[-1]:,.0f} tokens" for k, v in there.items())
    return [
        Figure("fig-mass", title, svg, alt, "Mean over layers and heads; the tokens with the largest probabilities.")
    ]


def _attention(t: Trace) -> Section | None:
    blocks = _mass(t)
    near, first = (over_layers(t, "attn.mass", s) for s in ("locality", "sink_share"))
    rows = []
    for c, words in ((near, "the nearest {:,.0f}"), (first, "the first {:,.0f}")):
        if c is not None:
            rows += [
                (Cell(words.format(x), i), percent(v, 1)) for i, (x, v) in enumerate(zip(c.x, c.mean, strict=True))
            ]
    if rows:
        columns = (Column("tokens"), Column("share of the attention", True, "attention mass"))
        blocks.append(Table("tab-where", "Where the attention lies", columns, tuple(rows)))
    hits = over_layers(t, "attn.mass", "topk_hit")
    if hits is not None:
        rows = [(percent(x), percent(v, 1)) for x, v in zip(hits.x, hits.mean, strict=True)]
        columns = (Column("selected per step", True), Column("already selected by the step before", True))
        blocks.append(Table("tab-hits", "How much of a selection is reused by the next step", columns, tuple(rows)))
    return section("attention", "Attention", blocks) if blocks else None


def _cache(t: Trace) -> Section | None:
    tensors = {"keys": "kv.k_cached", "values": "kv.v"}
    kept = {k: c for k, v in tensors.items() if (c := over_layers(t, v, "kept_error")) is not None}
    bits = {k: c for k, v in tensors.items() if (c := over_layers(t, v, "quant_error")) is not None}
    blocks: list[Block] = []
    if kept:
        at = {k: c.mean_at(0.5) for k, c in kept.items()}
        title = "Keeping the larger half of each vector leaves a relative error of " + listed(
            [f"{share(v)} in the {k}" for k, v in at.items()]
        )
        svg = charts.lines({k: (c.x, c.mean) for k, c in kept.items()}, "share kept [-]", "relative error [-]")
        alt = "; ".join(f"{k} at half kept {share(v)}" for k, v in at.items())
        blocks.append(
            Figure("fig-kept", title, svg, alt, "L2 error of the largest elements kept; keys after rotation.")
        )
    if bits:
        names = list(bits)
        rows = tuple((count(x), *(percent(bits[n].mean_at(x), 1) for n in names)) for x in next(iter(bits.values())).x)
        columns = (Column("bits", True), *(Column(f"error of the {n}", True) for n in names))
        note = "Asymmetric, groups of 32; keys per channel, values per token (KIVI)."
        blocks.append(Table("tab-bits", "Rounding the cache to fewer bits", columns, rows, note=note))
    return section("cache", "KV cache", blocks) if blocks else None


def _quality(t: Trace) -> Section:
    blocks = _quality_blocks(t)
    if not blocks:
        text = (
            "No predictor was judged on this trace, so nothing is said about accuracy. python -m traces.shadow evaluate"
            " measures it."
        )
        blocks = [Paragraph(text)]
    return section("quality", "What sparsity costs in quality", blocks)


def _quality_blocks(t: Trace) -> list[Block]:
    found = kept_quality(t)
    if not found:
        return []
    middle = {k: float(np.interp(0.5, s, r, np.nan, np.nan)) for k, (s, r, _, _) in found.items()}
    order = sorted(found, key=lambda k: (np.isnan(middle[k]), middle[k]))
    best = order[0]
    title = (
        f"At 50 % sparsity {best} costs least: a perplexity ratio of {middle[best]:.2f}"
        if np.isfinite(middle[best])
        else f"Perplexity of {listed(order, 4)} over the dense model's"
    )
    lines = {k: (found[k][0], found[k][1]) for k in order[:7]}
    svg = charts.lines(lines, "sparsity [-]", "perplexity over dense [-]", percent=False, log_y=True)
    rows = []
    for k in order:
        sparsity, ratio, same, variant = found[k]
        at = [np.exp(np.interp(s, sparsity, np.log(ratio), np.nan, np.nan)) for s in AT]
        half = float(np.interp(0.5, sparsity, same, np.nan, np.nan))
        shown = [Cell(f"{r:.3f}", float(r)) if np.isfinite(r) else Cell(DASH, np.nan) for r in at]
        rows.append((Cell(k), Cell(variant), *shown, percent(half, 1)))
    columns = (
        Column("method"),
        Column("best variant"),
        *(Column(f"{share(s)} sparse", True, "perplexity ratio") for s in AT),
        Column(f"same token at {share(0.5)}", True, "agreement"),
    )
    alt = "; ".join(f"{k} {v:.2f} at half" for k, v in middle.items() if np.isfinite(v)) or title
    caption = (
        "Sparsity of heads and neurons, of a matrix's inputs (teal), of neurons (cats) or of the KV cache, as the"
        " method has it: methods that spare different bytes are not rivals."
    )
    note = (
        "Perplexity over dense, means over seeds, ln linear between measured sparsities; of several variants the one"
        " with the lowest."
    )
    title_of_table = "Perplexity over dense by method and sparsity"
    return [
        Figure("fig-trace-quality", title, svg, alt, caption),
        Table("tab-trace-quality", title_of_table, columns, tuple(rows), note=note),
    ]


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
