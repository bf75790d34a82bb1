"""What drawings share: a legend below, readable ticks on logarithmic axes, names of lines that do not meet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from reports.style import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

LETTER = 0.0095
"""Width of a letter of a mark's name, as a share of the axes' width; on the wide side."""
STEPS = (
    (1.0,),
    (1.0, 3.0),
    (1.0, 2.0, 5.0),
    (1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
    (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0),
)
"""Ticks within a decade, few to many."""


def legend(canvas: Canvas, ax: Axes, n: int) -> None:
    """A legend below the axes, where there is more than one thing to tell apart."""
    if n > 1:
        canvas.legend(
            *ax.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=min(n, 4 if n == 8 else 5),
            handlelength=1.6,
            columnspacing=1.4,
        )


def plain_log(ax: Axes, axis: str) -> None:
    """Three or more plain numbers on a logarithmic axis, no powers of ten."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    which = ax.xaxis if axis == "x" else ax.yaxis
    low, high = ax.get_xlim() if axis == "x" else ax.get_ylim()
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)

    def shown(steps: tuple[float, ...]) -> int:
        ticks = np.outer(decades, steps)
        return int(np.sum((ticks >= low) & (ticks <= high)))

    steps = next((s for s in STEPS if shown(s) >= 4), STEPS[-1])
    if shown(steps) >= 3:
        which.set_major_locator(LogLocator(base=10.0, subs=steps))
    else:  # within a fraction of a decade
        even = np.asarray(MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high))
        which.set_major_locator(FixedLocator(even[(even >= low) & (even <= high)].tolist()))
    which.set_minor_locator(NullLocator())
    which.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 1000 else f"{v:g}"))


def marks(ax: Axes, named: Mapping[str, float], top: float) -> int:
    """Named vertical lines; the names stand on as many levels as they need, which is returned."""
    if not named:
        return 0
    far = 1.04 * max(top, *named.values())
    together: list[tuple[float, list[str]]] = []
    for name, x in sorted(named.items(), key=lambda kv: (kv[1], kv[0])):
        if together and x - together[-1][0] < 0.004 * far:
            together[-1][1].append(name)
        else:
            together.append((x, [name]))
    ax.set_xlim(0, far)
    ends: list[float] = []
    for x, names in together:
        text = ", ".join(names)
        left = x / far - (LETTER * len(text) if x > 0.7 * far else 0.0)
        level = next((i for i, end in enumerate(ends) if left > end), len(ends))
        ends[level : level + 1] = [left + LETTER * len(text) + 0.01]
        ax.axvline(x, color=INK, linestyle="--", linewidth=1.0)
        ax.annotate(
            f" {text} ",
            (x, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 1 + 9 * level),
            textcoords="offset points",
            ha="right" if x > 0.7 * far else "left",
            va="bottom",
            size=6.5,
            color=INK,
        )
    return len(ends)
