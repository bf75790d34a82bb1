"""Tables of a trace, decided here for the terminal and the report alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from simulator.base.console import share
from simulator.trace.depth import DepthCurves, over_layers
from simulator.trace.judged import judged
from simulator.trace.picked import BATCHES, KV, LEVELS, Units
from simulator.trace.schema import MASSES, ROWS

if TYPE_CHECKING:
    from simulator.trace.curves import Trace

SPARSITIES = (0.3, 0.5, 0.7)


@dataclass(frozen=True, slots=True)
class Column:
    """Heading of a column and how its numbers are told; `term` is a word of the glossary."""

    name: str
    form: Literal["text", "share", "number", "ratio"] = "share"
    term: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of texts and plain numbers; NaN was not measured."""

    id: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str | float, ...], ...]
    note: str = ""


def tables(trace: Trace) -> list[Table]:
    """Every table of a trace that has rows, most general first."""
    found = (sets(trace), layers(trace), context(trace), where(trace), hits(trace), cache(trace), rank(trace))
    return [t for t in (*found, quality(trace)) if t is not None]


def _mean_at(curve: DepthCurves | None, x: float) -> float:
    return float("nan") if curve is None else curve.mean_at(x)


def _table(id_: str, title: str, columns: Sequence[Column], rows: Iterable[tuple], note: str = "") -> Table | None:
    body = tuple(rows)
    return Table(id_, title, tuple(columns), body, note) if body else None


def sets(trace: Trace) -> Table | None:
    """Units and query heads that a batch, a window and the next token share."""
    units = Units.of(trace)
    rows = []
    for tensor, name in ((units.tensor, units.name), ("attn.head", "query heads")):
        for level in LEVELS:
            union = over_layers(trace, tensor, "union_density", level)
            if union is not None:
                window, before = (over_layers(trace, tensor, s, level) for s in ("window_density", "overlap_previous"))
                kept = share(level) if level is not None else "non-zeros" if tensor == "ffn.down" else "chosen"
                shared = (*(union.mean_at(b) for b in ROWS), _mean_at(window, 32), _mean_at(before, 1))
                rows.append((name, kept, *shared))
    columns = (
        Column("units", "text"),
        Column("kept per token", "text"),
        *(Column(f"B={b}", term="union density") for b in ROWS),
        Column("32 in a row", term="window density"),
        Column("as before"),
    )
    note = (
        "Mean over layers; used by B tokens of different sequences, by 32 consecutive tokens, and by the token before"
        " too (of the used ones). A threshold of 0 keeps the non-zeros, however large the share asked for."
    )
    return _table("sparsity", "Share of the units that a step needs", columns, rows, note)


def layers(trace: Trace) -> Table | None:
    """The FFN's units and the heads, layer by layer."""
    units = Units.of(trace)
    zeros = over_layers(trace, "ffn.down", "exact_zero")
    union, window, before = (
        over_layers(trace, units.tensor, s, units.level)
        for s in ("union_density", "window_density", "overlap_previous")
    )
    heads = over_layers(trace, "attn.head", "overlap_previous", 0.5)
    told = [(zeros, 0), *((union, b) for b in BATCHES), (window, 32), (before, 1), (heads, 1)]
    columns = (
        Column("layer", "number"),
        Column("exact zeros"),
        *(Column(f"B={b}", term="union density") for b in BATCHES),
        Column("32 in a row", term="window density"),
        Column("as before"),
        Column("heads as before"),
    )
    rows = ((n, *(float("nan") if c is None else c.of_layer(n, x) for c, x in told)) for n in range(trace.n_layers))
    title = f"Every layer: share of the {units.name} {units.words}"
    return _table("layers", title, columns, rows, "As before: used by the token before too; heads at half kept.")


def context(trace: Trace) -> Table | None:
    """Share of the context that holds the attention, and its entropy."""
    masses = [over_layers(trace, "attn.mass", "tokens_for_mass", m) for m in MASSES]
    entropy = over_layers(trace, "attn.mass", "entropy")
    first = next((c for c in masses if c is not None), None)
    if first is None:
        return None
    columns = (
        Column("context [tokens]", "number"),
        *(Column(share(m), term="attention mass") for m in MASSES),
        Column("entropy [nat]", "ratio"),
    )
    rows = ((float(x), *(_mean_at(c, x) for c in masses), _mean_at(entropy, x)) for x in first.x)
    return _table("mass", "Share of the context that holds the attention", columns, rows)


def where(trace: Trace) -> Table | None:
    """How near, and how early, the attended tokens are."""
    rows = []
    for statistic, words in (("locality", "the nearest {:,.0f}"), ("sink_share", "the first {:,.0f}")):
        curve = over_layers(trace, "attn.mass", statistic)
        if curve is not None:
            rows += [(words.format(x), float(v)) for x, v in zip(curve.x, curve.mean, strict=True)]
    columns = (Column("tokens", "text"), Column("share of the attention", term="attention mass"))
    return _table("where", "Where the attention lies", columns, rows)


def hits(trace: Trace) -> Table | None:
    """How much of a selection of tokens the next step reuses."""
    curve = over_layers(trace, "attn.mass", "topk_hit")
    if curve is None:
        return None
    columns = (Column("selected per step"), Column("already selected by the step before"))
    rows = ((float(x), float(v)) for x, v in zip(curve.x, curve.mean, strict=True))
    return _table("hits", "How much of a selection the next step reuses", columns, rows)


def cache(trace: Trace) -> Table | None:
    """Error of pruning and of rounding keys and values."""
    kept, bits = (
        {name: over_layers(trace, tensor, s) for name, tensor in KV.items()} for s in ("kept_error", "quant_error")
    )
    asked = [(f"keep the {share(k)} largest", kept, k) for k in (0.3, 0.5, 0.7)]
    asked += [(f"{b} bits", bits, b) for b in (8, 4, 2)]
    rows = [(words, *(_mean_at(of[name], x) for name in KV)) for words, of, x in asked]
    rows = [r for r in rows if any(v == v for v in r[1:])]
    note = "Keys after rotation; rounded in groups of 32, keys per channel and values per token (KIVI)."
    columns = (Column("", "text"), *(Column(name) for name in KV))
    return _table("cache", "KV cache: relative error", columns, rows, note)


def rank(trace: Trace) -> Table | None:
    """Directions that hold the squared norm of keys and values."""
    rows = []
    for tensor, name in (("kv.k", "keys before rotation"), ("kv.v", "values")):
        curve = over_layers(trace, tensor, "singular_energy")
        if curve is not None:
            rows.append((name, *(float(rank_share(curve, e).mean()) for e in MASSES)))
    columns = (Column("", "text"), *(Column(share(e)) for e in MASSES))
    title = "Rank that holds the squared norm, as a share of head_dim"
    return _table("rank", title, columns, rows, "Mean over layers and heads.")


def rank_share(curve: DepthCurves, energy: float) -> np.ndarray:
    """Smallest measured share of the directions that holds `energy`, per layer."""
    return curve.x[np.argmax(curve.values >= energy, axis=1)] / curve.x[-1]


def quality(trace: Trace) -> Table | None:
    """Methods judged on held-out text, the best variant of each at half sparsity."""
    rows = []
    for curve in judged(trace).values():
        at = [curve.at(s) for s in SPARSITIES]
        rows.append((curve.policy, curve.variant, *(r for r, _ in at), *(a for _, a in at)))
    columns = (
        Column("policy near 50\u202f%", "text"),
        Column("best variant", "text"),
        *(Column(f"x at {share(s)}", "ratio", "perplexity ratio") for s in SPARSITIES),
        *(Column(f"same at {share(s)}", term="agreement") for s in SPARSITIES),
    )
    q = trace.quality or {}
    tokens = sorted({int(n) for n in q.get("tokens", ())})
    note = (
        f"On {' to '.join(f'{n:,}' for n in dict.fromkeys((tokens[0], tokens[-1])))} held-out tokens, context"
        f" {q['context'][0]:.0f}; dense: {q['dense_perplexity'][0]:.3f}. Means over seeds, ln linear between"
        " sparsities: of heads and neurons, of inputs (teal), of neurons (cats), of the KV cache."
        if rows
        else ""
    )
    return _table("quality", "Perplexity over dense's, and next tokens equal to dense's", columns, rows, note)
