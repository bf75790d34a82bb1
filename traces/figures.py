"""One page that shows a trace."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.base.errors import InputError
from simulator.base.files import replaced
from simulator.trace.pictures import pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.typing import RcKeyType

    from simulator.base.drawing import Picture
    from simulator.trace import Trace

SUFFIXES = (".svg", ".png", ".pdf")
ACROSS = 3
# Okabe and Ito's colours, told apart by colour-blind readers.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
GREY = "#888888"
_STYLE: dict[RcKeyType, Any] = {
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
_DARK: dict[RcKeyType, Any] = {
    "figure.facecolor": _DARK_GROUND,
    "axes.facecolor": _DARK_GROUND,
    "savefig.facecolor": _DARK_GROUND,
    "grid.color": "#333a44",
    "text.color": _DARK_INK,
    "axes.labelcolor": _DARK_INK,
    "axes.titlecolor": _DARK_INK,
    "axes.edgecolor": _DARK_INK,
    "xtick.color": _DARK_INK,
    "ytick.color": _DARK_INK,
}


def draw(trace: Trace, path: Path, *, dark: bool = False) -> None:
    """Write every picture of the trace as a panel of one page."""
    m = trace.manifest
    draw_all(pictures(trace), path, f"{m.model}: {m.tokens:,} tokens, {m.dtype}", dark=dark)


def draw_all(found: Sequence[Picture], path: Path, title: str, *, dark: bool = False) -> None:
    """Write pictures as the panels of one page."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path.name!r} must end in {', '.join(SUFFIXES)}", where="--plot")
    try:
        import matplotlib as mpl
    except ImportError:
        raise InputError("drawing needs matplotlib; run 'pip install matplotlib'", where="--plot") from None
    mpl.use("agg")
    import matplotlib.pyplot as plt

    across = min(ACROSS, len(found))
    down = -(-len(found) // across)
    with plt.rc_context(_STYLE | (_DARK if dark else {})):
        size = (5.5 * across, 4.3 * down)
        figure, axes = plt.subplots(down, across, figsize=size, layout="constrained", squeeze=False)
        for ax in axes.flat[len(found) :]:
            ax.set_axis_off()
        for picture, ax in zip(found, axes.flat, strict=False):
            _panel(picture, ax)
        figure.suptitle(title, x=0.01, ha="left", weight="bold")
        metadata = {"Date": None} if path.suffix == ".svg" else None
        try:
            with replaced(path, "--plot") as temporary:
                figure.savefig(temporary, format=path.suffix[1:], metadata=metadata)
        finally:
            plt.close(figure)


def _panel(picture: Picture, ax: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

    drawn = picture.drawn
    own = [line for line in drawn.lines if not line.aside]
    for i, line in enumerate([*own, *(line for line in drawn.lines if line.aside)]):
        colour = GREY if line.aside else COLOURS[i % len(COLOURS)]
        style = ":" if line.aside else "-" if i < len(COLOURS) else "--"
        marker = "osx^"[i % 4] if len(line.x) <= 24 else None
        ax.plot(line.x, line.y, style, marker=marker, ms=3, color=colour, label=line.name)
        if line.low is not None and line.high is not None:
            ax.fill_between(line.x, line.low, line.high, color=colour, alpha=0.13, lw=0)
        if line.beside is not None:
            ax.plot(line.x, line.beside, ":", color=colour, lw=1.1)
    if drawn.beside:
        ax.plot([], [], ":", color=GREY, label=drawn.beside)
    if drawn.x_log:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    elif drawn.x_share:
        ax.set_xlim(0.0, 1.0)
        ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        whole = all((line.x == line.x.round()).all() for line in drawn.lines)
        ax.xaxis.set_major_locator(MaxNLocator(integer=whole))
    if drawn.y_log:
        ax.set_yscale("log")
        ax.set_ylim(0.95 * min(1.0, *(float(line.y.min()) for line in drawn.lines)), drawn.most)
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 4.0, 6.0)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.yaxis.set_minor_locator(NullLocator())
    if drawn.share:
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set(title=picture.title, xlabel=drawn.x_label, ylabel=drawn.y_label)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
