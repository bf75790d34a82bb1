"""Pictures of a trace, decided here for the report, the page and the file alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from simulator.base.console import share
from simulator.base.drawing import Line, Lines, Picture
from simulator.ops.union import independent_density
from simulator.trace.depth import DepthCurves, over_layers
from simulator.trace.judged import judged
from simulator.trace.picked import KV, LEVELS, Units
from simulator.trace.schema import MASSES, TENSORS
from simulator.trace.tables import rank_share

if TYPE_CHECKING:
    from simulator.trace.curves import Trace

YARDSTICKS = ("oracle", "random", "static")
"""Methods that no model could run, or that need no predictor."""
NO_ZEROS = 0.005
"""Share of exact zeros below which there is nothing to draw."""
MOST_RATIO = 4.0
"""Perplexity over dense's beyond which a method is of no use."""
DRAWN = 100
"""Neurons of a layer that are drawn."""
INDEPENDENT = "if rows were independent"
SHORT: Mapping[str, str] = {"ffn.down": "FFN neurons", "moe.expert": "experts", "attn.head": "query heads"}
"""Units with a name of their own; the others go by their tensor's."""


def pictures(trace: Trace) -> list[Picture]:
    """Every picture of a trace that has curves, in the order of `tables`."""
    units = Units.of(trace)
    found = (
        zeros(trace),
        depth(trace),
        union(trace, units.tensor, LEVELS, units.level),
        union(trace, "attn.head", LEVELS, 0.5),
        use(trace),
        mass(trace),
        kept(trace),
        spectrum(trace),
        loss(trace),
    )
    return [p for p in found if p is not None]


def measured(trace: Trace, statistic: str) -> list[str]:
    """Tensors that have the statistic, in the order of `TENSORS`."""
    c = trace.curves
    there = set(c["tensor"][c["statistic"] == statistic].astype(str))
    return [t for t in TENSORS if t in there]


def _banded(name: str, curve: DepthCurves, beside: np.ndarray | None = None) -> Line:
    return Line(name, curve.x, curve.mean, curve.values.min(0), curve.values.max(0), beside)


def zeros(trace: Trace) -> Picture | None:
    """Exact zeros of every tensor, layer by layer; None where there is next to none."""
    curves = {t: over_layers(trace, t, "exact_zero") for t in measured(trace, "exact_zero")}
    there = {t: c for t, c in curves.items() if c is not None}
    if not there:
        return None
    means = {t: float(c.mean[0]) for t, c in there.items()}
    most = max(means, key=lambda t: means[t])
    lines = tuple(Line(t, c.layers.astype(float), c.values[:, 0]) for t, c in there.items() if means[t] >= NO_ZEROS)
    if not lines:
        return None
    return Picture(
        "zeros",
        "Exact zeros by layer",
        f"Most zeros: {most}, {share(means[most])} on average",
        Lines(lines, "layer", "share of exact zeros"),
        "; ".join(f"{t}: mean {share(v)}" for t, v in means.items()),
        "; ".join(f"{line.name}: {TENSORS[line.name].replace('`', '')}" for line in lines) + ".",
    )


def depth(trace: Trace) -> Picture | None:
    """What one token, a batch and a window need of each layer."""
    units = Units.of(trace)
    of, window, before = (
        over_layers(trace, units.tensor, s, units.level)
        for s in ("union_density", "window_density", "overlap_previous")
    )
    if of is None:
        return None
    asked = [(f"{b} row{'s' if b > 1 else ''}", of, b) for b in (1, 8, 64)]
    asked += [("32 tokens in a row", window, 32), ("as the token before", before, 1)]
    lines = [
        Line(name, c.layers.astype(float), v) for name, c, x in asked if c is not None and (v := c.at(x)) is not None
    ]
    first = of.values[:, 0]
    most, least = int(of.layers[np.argmax(first)]), int(of.layers[np.argmin(first)])
    return Picture(
        "depth",
        f"{units.name[0].upper()}{units.name[1:]} by layer",
        f"Layer {most} uses most {units.name} per token ({share(first.max())}), layer {least} fewest"
        f" ({share(first.min())})",
        Lines(tuple(lines), "layer", f"share of the {units.name}"),
        "One row: " + "; ".join(f"layer {n} {share(v)}" for n, v in zip(of.layers, first, strict=True)) + ".",
        f"Those {units.words}. As the token before: share of a token's units that the token before it used too.",
    )


def union(trace: Trace, tensor: str, levels: Iterable[float | None], told: float | None) -> Picture | None:
    """What a batch needs together at several levels; one of them is `told`, beside the assumption of independent rows.

    With fewer non-zeros than a share kept the curve is that of the non-zeros under a misleading name, and left out.
    """
    curves = {k: over_layers(trace, tensor, "union_density", k) for k in levels}
    there = {k: c for k, c in curves.items() if c is not None and (k is None or k == told or c.mean[0] >= 0.9 * k)}
    c = there.get(told)
    if c is None:
        return None
    exact = "chosen by the router" if tensor == "moe.expert" else "non-zeros"
    names = {k: exact if k is None else f"{share(k)} kept" for k in there}
    alone = {k: np.mean(independent_density(v.values[:, :1], v.x), axis=0) for k, v in there.items()}
    lines = [
        _banded(names[k], v, alone[k]) if k == told else Line(names[k], v.x, v.mean, beside=alone[k])
        for k, v in there.items()
    ]
    what = f"{SHORT.get(tensor, tensor)}, {names[told]}"
    half = next((int(b) for b, d in zip(c.x, c.mean, strict=True) if d >= 0.5), 0)
    said = f"From {half} rows on a batch needs more than half" if half > 1 else f"One row needs {share(c.mean[0])}"
    return Picture(
        f"union-{tensor.replace('.', '-')}",
        f"Union over a batch: {SHORT.get(tensor, tensor)}",
        f"{said} ({what}); {c.x[-1]:,.0f} rows together need {share(c.mean[-1])},"
        f" {share(alone[told][-1])} {INDEPENDENT}",
        Lines(
            tuple(lines),
            "rows of the batch [tokens]",
            f"share of the {SHORT.get(tensor, tensor)}",
            x_log=True,
            beside=INDEPENDENT,
        ),
        f"{what}: " + "; ".join(f"{b:,.0f} rows {share(d)}" for b, d in zip(c.x, c.mean, strict=True)),
        f"Mean over layers; band: least to most of the layers. Dotted: {INDEPENDENT}, 1 - (1 - d)^B; tokens share"
        " units, so they need less.",
    )


def use(trace: Trace) -> Picture | None:
    """Neurons by how often they are used, most used first; None inside experts."""
    level = Units.of(trace).level
    sorted_ = [np.sort(trace.frequencies(n, keep=level))[::-1] for n in range(trace.n_layers)]
    there = {n: p for n, p in enumerate(sorted_) if len(p)}
    if not there:
        return None
    curves = np.stack(list(there.values()))
    mean = curves.mean(0)
    tenth = float(mean[: max(len(mean) // 10, 1)].sum() / max(mean.sum(), 1e-30))
    shown = np.unique(np.linspace(0, len(mean) - 1, DRAWN).round().astype(int))
    at, curves = (shown + 0.5) / len(mean), curves[:, shown]
    middle = Line("mean of the layers", at, mean[shown], curves.min(0), curves.max(0))
    ends = [Line(f"layer {n}", at, there[n][shown]) for n in dict.fromkeys((min(there), max(there)))]
    return Picture(
        "use",
        "Neurons by use",
        f"The most used tenth of the neurons takes {share(tenth)} of all uses",
        Lines((middle, *ends), "neurons, most used first", "tokens that use it", x_share=True),
        f"Most used neuron {share(float(curves.max()))} of the tokens; the most used tenth {share(tenth)} of all uses.",
        "Band: least to most of the layers.",
    )


def mass(trace: Trace) -> Picture | None:
    """Share of the context that holds the attention as the context grows."""
    found = {f"{share(m)} of the attention": over_layers(trace, "attn.mass", "tokens_for_mass", m) for m in MASSES}
    there = {name: c for name, c in found.items() if c is not None}
    if not there:
        return None
    name, c = next(iter(there.items()))
    lines = [_banded(name, c), *(Line(k, v.x, v.mean) for k, v in there.items() if k != name)]
    return Picture(
        "mass",
        "Where attention goes",
        f"{name} lies on {share(c.mean[0])} of {c.x[0]:,.0f} tokens and on {share(c.mean[-1])} of {c.x[-1]:,.0f}",
        Lines(tuple(lines), "context [tokens]", "share of the context", x_log=True),
        "; ".join(f"{k}: {share(v.mean[-1])} of {v.x[-1]:,.0f} tokens" for k, v in there.items()),
        "Mean over layers and heads, band: least to most of the layers; the tokens with the largest probabilities.",
    )


def kept(trace: Trace) -> Picture | None:
    """Error of pruning and of rounding keys and values."""
    lines, half = [], {}
    for name, tensor in KV.items():
        pruned, bits = (over_layers(trace, tensor, s) for s in ("kept_error", "quant_error"))
        if pruned is not None:
            lines.append(Line(f"{name}, largest kept", pruned.x, pruned.mean))
            half[name] = pruned.mean_at(0.5)
        if bits is not None:
            # 16-bit elements: b bits are b/16 of the bytes.
            lines.append(Line(f"{name}, rounded", bits.x / 16.0, bits.mean))
    if not half:
        return None
    told = " and ".join(f"{share(v)} in the {k}" for k, v in half.items())
    return Picture(
        "kept",
        "KV compression",
        f"Keeping the larger half of each vector leaves a relative error of {told}",
        Lines(tuple(lines), "elements kept, or bits of 16", "relative L2 error", x_share=True),
        "; ".join(f"{k} at half kept {share(v)}" for k, v in half.items()),
        "Keys after rotation; rounded in groups of 32, keys per channel and values per token (KIVI).",
    )


def spectrum(trace: Trace) -> Picture | None:
    """Squared norm in the largest singular directions and channels."""
    curves = {
        n: over_layers(trace, t, "singular_energy") for t, n in (("kv.k", "keys before rotation"), ("kv.v", "values"))
    }
    there = {n: c for n, c in curves.items() if c is not None}
    if not there:
        return None
    lines = []
    for name, c in there.items():
        line = _banded(name, c)
        lines.append(Line(name, c.x / c.x[-1], line.y, line.low, line.high))
    channels = over_layers(trace, "kv.k_cached", "channel_share")
    if channels is not None:
        lines.append(Line("q k by channel", channels.x, channels.mean))
    told = {n: share(float(rank_share(c, 0.9).mean())) for n, c in there.items()}
    words = " and ".join(f"{v} of the directions of the {n}" for n, v in told.items())
    return Picture(
        "rank",
        "Rank and channels",
        f"{words} hold 90 % of the squared norm",
        Lines(tuple(lines), "share of head_dim", "share held by the largest", x_share=True),
        "; ".join(f"{n}: {v} of the rank holds 90 %" for n, v in told.items()),
        "Band: least to most of the layers.",
    )


def loss(trace: Trace, *, per_sequence: bool = False, recall: bool = False) -> Picture | None:
    """Perplexity over dense's (or the predictor's recall) against sparsity, each method's best variant."""
    found = judged(trace, per_sequence=per_sequence)
    lines = []
    for name, c in sorted(found.items(), key=lambda item: item[0] in YARDSTICKS):
        y = c.recall if recall else c.ratio
        if np.isfinite(y).any():
            lines.append(Line(name, c.sparsity, y, aside=name in YARDSTICKS))
    if not lines:
        return None
    middle = {k: c.at(0.5)[0] for k, c in found.items() if k not in YARDSTICKS and np.isfinite(c.at(0.5)[0])}
    names = ", ".join(line.name for line in lines)
    if recall:
        said, y_label = f"Recall of the units that {names} kept", "recall of the kept units"
    else:
        y_label = f"perplexity over dense's, at most {MOST_RATIO:g} [-]"
        best = min(middle, key=lambda k: middle[k], default="")
        said = (
            f"At 50 % sparsity {best} costs least: a perplexity ratio of {middle[best]:.2f}"
            if best
            else f"Perplexity of {names} over the dense model's"
        )
    return Picture(
        "recall" if recall else "quality",
        "Recall" if recall else "Quality",
        said,
        Lines(
            tuple(lines),
            "sparsity",
            y_label,
            x_share=True,
            y_log=not recall,
            share=recall,
            most=None if recall else MOST_RATIO,
        ),
        "; ".join(f"{k} {v:.2f} at half" for k, v in middle.items()) or said,
        "Each method's best variant at half sparsity, means over seeds. Sparsity of heads and neurons, of a matrix's"
        " inputs (teal), of neurons (cats) or of the KV cache: methods that spare different bytes are not rivals.",
    )
