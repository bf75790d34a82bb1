"""Prints and draws a trace: ``python -m traces.show DIR``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulator.base import console

if TYPE_CHECKING:
    from simulator.trace import DepthCurves, Trace

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the trace.")],
    plot: Annotated[Path | None, typer.Option(help="Also draw it: a .svg, .png or .pdf file.")] = None,
    dark: Annotated[bool, typer.Option("--dark", help="Draw on a dark ground.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Every layer curve as JSON.")] = False,
) -> None:
    """Print what a trace measured: sparsity by layer, unions, attention mass, KV compression, quality."""
    from simulator.trace import read_trace

    trace = read_trace(folder)
    if plot is not None:
        from traces.figures import draw

        draw(trace, plot, dark=dark)
    if json:
        console.out_json({"rows": _rows(trace), "manifest": trace.manifest.model_dump()})
        return
    _header(trace)
    _layers(trace)
    _unions(trace)
    _attention(trace)
    _kv(trace)
    _quality(trace)
    if plot is not None:
        console.say(f"drawn in {plot}")


def _rows(trace: Trace) -> list[dict[str, object]]:
    names = list(trace.curves)
    columns = (trace.curves[n].tolist() for n in names)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _header(trace: Trace) -> None:
    m = trace.manifest
    f = m.facts
    revision = f" at {m.revision[:12]}" if m.revision else ""
    console.out(
        f"{m.model}{revision}: {f.n_layers} layers, hidden {f.hidden}, {f.n_heads} heads on {f.n_kv_heads} "
        f"KV heads, {f.intermediate} {f.activation} neurons"
    )
    console.out(
        f"{m.tokens:,} tokens of text {m.text_sha256[:12]}, {m.dtype}, seed {m.seed}, {m.created}, "
        f"sequences of {m.settings.get('sequence_length', '?')}\n"
    )


def _share(value: float | None) -> str:
    return "-" if value is None or value != value else f"{100 * value:.1f}"


def _at(curve: DepthCurves | None, layer: int, x: float) -> float | None:
    """Value of one layer at `x`."""
    return None if curve is None else curve.of_layer(layer, x)


def _layers(trace: Trace) -> None:
    from simulator.trace import over_layers
    from traces.summary import own_level, units_tensor

    units = units_tensor(trace)
    level = own_level(trace, units)
    zeros = over_layers(trace, "ffn.down", "exact_zero")
    union = over_layers(trace, units, "union_density", level)
    window = over_layers(trace, units, "window_density", level)
    overlap = over_layers(trace, units, "overlap_previous", level)
    heads = over_layers(trace, "attn.head", "overlap_previous", 0.5)
    rows = [x for x in (1, 8, 64, 256) if union is not None and union.at(x) is not None]
    body = [
        [
            str(n),
            _share(_at(zeros, n, 0)),
            *(_share(_at(union, n, x)) for x in rows),
            _share(_at(window, n, 32)),
            _share(_at(overlap, n, 1)),
            _share(_at(heads, n, 1)),
        ]
        for n in range(trace.n_layers)
    ]
    kind = "experts" if units == "moe.expert" else "neurons"
    what = "non-zeros" if level is None else f"the {100 * level:.0f} % largest"
    console.table(
        f"FFN {kind} by layer, {what} [%]",
        ["layer", "exact zeros", *(f"B={x}" for x in rows), "window 32", "as before", "heads as before"],
        body,
        note="Used by B tokens of different sequences, by 32 consecutive tokens, and by the token before too "
        "(of the used ones; heads at half kept).",
    )


def _unions(trace: Trace) -> None:
    from simulator.trace import over_layers
    from traces.summary import units_tensor

    units = units_tensor(trace)
    for tensor, title in ((units, "FFN"), ("attn.head", "Query heads")):
        curves = {k: over_layers(trace, tensor, "union_density", k) for k in (None, 0.1, 0.3, 0.5, 0.7)}
        present = {k: c for k, c in curves.items() if c is not None}
        if not present:
            continue
        xs = next(iter(present.values())).x
        body = [
            ["non-zeros" if k is None else f"{100 * k:.0f} %", *(_share(v) for v in c.mean)] for k, c in present.items()
        ]
        console.table(
            f"{title}: share used by B rows, mean over layers [%]",
            ["kept per token", *(f"B={x:.0f}" for x in xs)],
            body,
            note="A threshold of 0 keeps the non-zeros, however large the share asked for."
            if tensor == "ffn.down"
            else "",
        )


def _attention(trace: Trace) -> None:
    from simulator.trace import over_layers

    masses = {m: over_layers(trace, "attn.mass", "tokens_for_mass", m) for m in (0.9, 0.95, 0.99)}
    entropy = over_layers(trace, "attn.mass", "entropy")
    first = masses[0.9]
    if first is None or entropy is None:
        return
    body = [
        [f"{x:,.0f}", *(_share(c.mean[i]) if c is not None else "-" for c in masses.values()), f"{entropy.mean[i]:.2f}"]
        for i, x in enumerate(first.x)
    ]
    console.table(
        "Share of the context that holds the attention mass [%]",
        ["context [tokens]", "90 %", "95 %", "99 %", "entropy [nat]"],
        body,
    )
    near = over_layers(trace, "attn.mass", "locality")
    sink = over_layers(trace, "attn.mass", "sink_share")
    hits = over_layers(trace, "attn.mass", "topk_hit")
    lines = []
    if near is not None:
        lines += [[f"nearest {x:,.0f}", _share(v)] for x, v in zip(near.x, near.mean, strict=True)]
    if sink is not None:
        lines += [[f"first {x:.0f}", _share(v)] for x, v in zip(sink.x, sink.mean, strict=True)]
    console.table("Where the mass lies [%]", ["tokens", "mass"], lines)
    if hits is not None:
        body = [[f"{100 * x:.0f} %", _share(v)] for x, v in zip(hits.x, hits.mean, strict=True)]
        console.table("Top-k of a step already in that of the step before [%]", ["k of the context", "hits"], body)


def _kv(trace: Trace) -> None:
    from simulator.trace import over_layers
    from traces.summary import rank_share

    kept = {t: over_layers(trace, t, "kept_error") for t in ("kv.k_cached", "kv.v")}
    bits = {t: over_layers(trace, t, "quant_error") for t in ("kv.k_cached", "kv.v")}
    body = []
    for x in (0.3, 0.5, 0.7):
        body.append([f"keep the {100 * x:.0f} % largest", *(_share(_mean_at(c, x)) for c in kept.values())])
    for x in (8, 4, 2):
        body.append([f"{x} bits", *(_share(_mean_at(c, x)) for c in bits.values())])
    console.table(
        "KV cache: relative error [%]",
        ["", "keys", "values"],
        body,
        note="Keys after rotation; rounded in groups of 32, keys per channel and values per token (KIVI).",
    )
    body = []
    for tensor, name in (("kv.k", "keys before rotation"), ("kv.v", "values")):
        curve = over_layers(trace, tensor, "singular_energy")
        if curve is not None:
            shares = [_share(float(rank_share(curve, e).mean())) for e in (0.9, 0.95, 0.99)]
            body.append([name, *shares])
    console.table(
        "Rank that holds the squared norm [% of head_dim]",
        ["", "90 %", "95 %", "99 %"],
        body,
        note="All but the first table are means over layers, and over heads where heads are told apart.",
    )


def _quality(trace: Trace) -> None:
    """Methods judged on held-out text, the best variant of each."""
    from traces.summary import judged

    found = judged(trace)
    if not found:
        console.out("No quality: python -m traces.shadow evaluate --trace DIR adds it.")
        return
    sparsities = (0.3, 0.5, 0.7)
    at = {name: [curve.at(s) for s in sparsities] for name, curve in found.items()}
    body = [
        [
            curve.policy,
            curve.variant,
            *("-" if r != r else f"{r:.3f}" for r, _ in at[name]),
            *(_share(a) for _, a in at[name]),
        ]
        for name, curve in sorted(found.items(), key=lambda item: _middle(item[1].at(0.5)[0]))
    ]
    q = trace.quality or {}
    console.table(
        f"Perplexity over dense's, and next tokens equal to dense's [%], on {int(q['tokens'][0]):,} held-out tokens",
        [
            "policy near 50 %",
            "best variant",
            *(f"x at {s:.0%}" for s in sparsities),
            *(f"same at {s:.0%}" for s in sparsities),
        ],
        body,
        left=2,
        note=f"Dense: {q['dense_perplexity'][0]:.3f}; context {q['context'][0]:.0f}; means over seeds, ln linear"
        " between sparsities: of heads and neurons, of inputs (teal), of neurons (cats), of the KV cache.",
    )


def _middle(ratio: float) -> float:
    return ratio if ratio == ratio else float("inf")


def _mean_at(curve: DepthCurves | None, x: float) -> float | None:
    return None if curve is None else curve.mean_at(x)


if __name__ == "__main__":
    console.main(app)
