"""One page that shows a trace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.base.errors import InputError
from simulator.base.files import replaced
from simulator.trace import over_layers
from traces.summary import judged, own_level, units_tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from simulator.trace import Trace

SUFFIXES = (".svg", ".png", ".pdf")
# Okabe and Ito's colours, told apart by colour-blind readers.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.7,
    "svg.hashsalt": "shadowline",
    "figure.dpi": 110,
}
_DARK_GROUND, _DARK_INK = "#14171c", "#e6e8eb"
_DARK: dict[str, Any] = {
    "figure.facecolor": _DARK_GROUND,
    "axes.facecolor": _DARK_GROUND,
    "savefig.facecolor": _DARK_GROUND,
    "grid.color": "#333a44",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "axes.edgecolor"), _DARK_INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), _DARK_INK),
}


def draw(trace: Trace, path: Path, *, dark: bool = False) -> None:
    """Write eight panels: sparsity by layer, unions, frequencies, heads, attention, KV errors, rank, quality."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path.name!r} must end in {', '.join(SUFFIXES)}", where="--plot")
    try:
        import matplotlib as mpl
    except ImportError:
        raise InputError("drawing needs matplotlib; run 'pip install matplotlib'", where="--plot") from None
    mpl.use("agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(_STYLE | (_DARK if dark else {})):
        figure, axes = plt.subplots(2, 4, figsize=(16.5, 8.2), layout="constrained")
        panels = (_by_layer, _unions, _frequencies, _heads, _mass, _errors, _rank, _quality)
        for panel, ax in zip(panels, axes.flat, strict=True):
            panel(trace, ax)
        m = trace.manifest
        figure.suptitle(f"{m.model}: {m.tokens:,} tokens, {m.dtype}", x=0.01, ha="left", weight="bold")
        metadata = {"Date": None} if path.suffix == ".svg" else None
        try:
            with replaced(path, "--plot") as temporary:
                figure.savefig(temporary, format=path.suffix[1:], metadata=metadata)
        finally:
            plt.close(figure)


def _percent(ax: Axes, axis: str = "y", top: float | None = 100.0) -> None:
    if axis == "y":
        ax.set_ylim(0, top)
    else:
        ax.set_xlim(0, top)


def _log_ticks(ax: Axes, values: Any) -> None:
    from matplotlib.ticker import NullLocator

    ax.set_xscale("log", base=2)
    shown = [v for v in values if float(v).is_integer() and (int(v) & (int(v) - 1)) == 0]
    ax.set_xticks(shown, [f"{v:,.0f}" for v in shown])
    ax.xaxis.set_minor_locator(NullLocator())


def _by_layer(trace: Trace, ax: Axes) -> None:
    """Used share and overlap of each layer."""
    units = units_tensor(trace)
    level = own_level(trace, units)
    what = "non-zeros" if level is None else f"{100 * level:.0f} % kept"
    lines = (
        ("one token uses", over_layers(trace, units, "union_density", level), 1),
        ("32 tokens in a row use", over_layers(trace, units, "window_density", level), 32),
        ("64 sequences use", over_layers(trace, units, "union_density", level), 64),
        ("same as previous token", over_layers(trace, units, "overlap_previous", level), 1),
    )
    for (name, curve, x), colour in zip(lines, COLOURS, strict=False):
        values = None if curve is None else curve.at(x)
        if curve is not None and values is not None:
            style = "--" if "same" in name else "-"
            ax.plot(curve.layers, 100 * values, style, marker="o", ms=4, color=colour, label=name)
    ax.set(title=f"FFN by layer ({what})", xlabel="layer", ylabel="share of units [%]")
    ax.xaxis.get_major_locator().set_params(integer=True)
    _percent(ax, top=105)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def _unions(trace: Trace, ax: Axes) -> None:
    """Union over rows of the FFN."""
    _union(trace, ax, units_tensor(trace), (None, 0.05, 0.1, 0.3, 0.5, 0.7))
    ax.set(title="FFN union over a batch", ylabel="share of units used [%]")


def _heads(trace: Trace, ax: Axes) -> None:
    """Union over rows of the query heads."""
    _union(trace, ax, "attn.head", (0.1, 0.3, 0.5, 0.7))
    ax.set(title="Query heads' union over a batch", ylabel="share of heads used [%]")


def _union(trace: Trace, ax: Axes, tensor: str, keeps: tuple[float | None, ...]) -> None:
    """Union over rows of a tensor's units, measured and if rows were independent."""
    import numpy as np

    for keep, colour in zip(keeps, COLOURS, strict=False):
        curve = over_layers(trace, tensor, "union_density", keep)
        # With fewer non-zeros than `keep` the curve is that of the non-zeros under a misleading name.
        if curve is None or (keep is not None and curve.mean[0] < 0.9 * keep):
            continue
        name = "non-zeros" if keep is None else f"{100 * keep:.0f} % kept"
        ax.plot(curve.x, 100 * curve.mean, color=colour, marker="o", ms=3, label=name)
        alone = (1.0 - (1.0 - curve.values[:, :1]) ** curve.x).mean(0)
        ax.plot(curve.x, 100 * alone, ":", color=colour, lw=1.1)
    ax.plot([], [], ":", color="#888888", label="if rows were independent")
    ax.set(xlabel="rows [tokens]")
    _log_ticks(ax, np.array([1, 2, 4, 8, 16, 32, 64, 128, 256]))
    _percent(ax, top=103)
    ax.legend(loc="lower right")


def _frequencies(trace: Trace, ax: Axes) -> None:
    """Neurons of each layer by how often they are used."""
    import matplotlib as mpl
    import numpy as np

    level = own_level(trace, "ffn.down")
    # The ends of the map vanish on a dark or a white ground.
    colours = mpl.colormaps["viridis"](np.linspace(0.25, 0.88, trace.n_layers))
    for layer in range(trace.n_layers):
        p = np.sort(trace.frequencies(layer, keep=level))[::-1]
        if len(p):
            label = f"layer {layer}" if layer in (0, trace.n_layers - 1) else None
            share = 100 * (np.arange(len(p)) + 0.5) / len(p)
            ax.plot(share, 100 * p, color=colours[layer], label=label, lw=1.3)
    what = "non-zeros" if level is None else f"{100 * level:.0f} % kept"
    ax.set(title=f"Neurons by use ({what})", xlabel="neurons, most used first [%]", ylabel="tokens that use it [%]")
    _percent(ax)
    _percent(ax, "x")
    if ax.lines:
        ax.legend(loc="upper right")
    else:
        ax.text(0.5, 0.5, "not measured inside experts", transform=ax.transAxes, ha="center")


def _mass(trace: Trace, ax: Axes) -> None:
    """Share of the context that holds the attention mass."""
    for mass, colour in zip((0.99, 0.95, 0.9), COLOURS, strict=False):
        curve = over_layers(trace, "attn.mass", "tokens_for_mass", mass)
        if curve is None:
            continue
        if mass == 0.9:
            low, high = 100 * curve.values.min(0), 100 * curve.values.max(0)
            ax.fill_between(curve.x, low, high, color=colour, alpha=0.13, lw=0)
        ax.plot(curve.x, 100 * curve.mean, marker="o", ms=4, color=colour, label=f"{100 * mass:.0f} % of the mass")
        _log_ticks(ax, curve.x)
    ax.set(title="Attention mass (band: layers, 90 %)", xlabel="context [tokens]", ylabel="share of the context [%]")
    _percent(ax)
    ax.legend(loc="upper right")


def _errors(trace: Trace, ax: Axes) -> None:
    """Error of pruning and of rounding keys and values."""
    for (tensor, name), colour in zip((("kv.k_cached", "keys"), ("kv.v", "values")), COLOURS, strict=False):
        kept = over_layers(trace, tensor, "kept_error")
        bits = over_layers(trace, tensor, "quant_error")
        if kept is not None:
            ax.plot(100 * kept.x, 100 * kept.mean, marker="o", ms=4, color=colour, label=f"{name}, largest kept")
        if bits is not None:
            # 16-bit elements: b bits are b/16 of the bytes.
            ax.plot(100 * bits.x / 16, 100 * bits.mean, "s--", ms=4, color=colour, label=f"{name}, 2/4/8 bits")
    ax.set(title="KV compression", xlabel="elements kept, or bits of 16 [%]", ylabel="relative L2 error [%]")
    _percent(ax, top=None)
    _percent(ax, "x")
    ax.legend(loc="upper right")


def _rank(trace: Trace, ax: Axes) -> None:
    """Squared norm in the largest singular directions."""
    for (tensor, name), colour in zip((("kv.k", "keys before rotation"), ("kv.v", "values")), COLOURS, strict=False):
        curve = over_layers(trace, tensor, "singular_energy")
        if curve is not None:
            x = 100 * curve.x / curve.x[-1]
            ax.fill_between(x, 100 * curve.values.min(0), 100 * curve.values.max(0), color=colour, alpha=0.13, lw=0)
            ax.plot(x, 100 * curve.mean, marker="o", ms=4, color=colour, label=name)
    channels = over_layers(trace, "kv.k_cached", "channel_share")
    if channels is not None:
        ax.plot(100 * channels.x, 100 * channels.mean, "--", color=COLOURS[2], label="q k by channel")
    ax.set(
        title="Rank and channels (band: layers)", xlabel="share of head_dim [%]", ylabel="share held by the largest [%]"
    )
    _percent(ax, top=102)
    _percent(ax, "x")
    ax.legend(loc="lower right")


_KV_METHODS = ("streaming_llm", "h2o", "snapkv", "quest", "mustafar")
_YARDSTICKS = ("oracle", "static", "random")


def _quality(trace: Trace, ax: Axes) -> None:
    """Perplexity over dense's against sparsity, each method's best variant at a half."""
    found = judged(trace)
    ax.set(
        title="Quality (variant that is best at 50 %)",
        xlabel="sparsity [%]",
        ylabel="perplexity over dense's, at most 4 [-]",
    )
    if not found:
        ax.text(0.5, 0.5, "not judged yet", transform=ax.transAxes, ha="center")
        ax.set_axis_off()
        return
    colour = iter(COLOURS * 3)
    for name, curve in sorted(found.items(), key=lambda item: item[0] in _YARDSTICKS):
        style = ":" if name in _YARDSTICKS else "--" if name in _KV_METHODS else "-"
        shade = "#888888" if name in _YARDSTICKS else next(colour)
        marker = {"static": "s", "random": "x", "streaming_llm": "s", "teal": "s"}.get(name, "o")
        ax.plot(100 * curve.sparsity, curve.ratio, style, marker=marker, ms=3, color=shade, label=name)
    ax.set_yscale("log")
    ax.set_ylim(0.95, 4.0)
    ax.set_yticks([1, 1.5, 2, 3, 4], ["1", "1.5", "2", "3", "4"])
    ax.minorticks_off()
    _percent(ax, "x")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
