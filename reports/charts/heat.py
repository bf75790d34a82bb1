"""Heat maps of speed-ups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reports.style import INK, MUTED, PAPER, draw
from simulator.results.verdict import Speedups, loses, wins

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

STRONG = 2.0
"""Speed-up at which the colours of a heat map are at their strongest."""
MOST_CELLS = 12
"""Rows or columns up to which the cells of a map over loads carry their numbers."""


@dataclass(frozen=True)
class Panel:
    """One heat map of speed-ups, shape (rows, columns); NaN where no row fits."""

    title: str
    values: Speedups
    rows: Sequence[str]
    columns: Sequence[str]


def _shade(ax: Axes, panel: Panel, *, size: float, numbers: bool) -> Any:
    """Colours, and either the numbers or, on ordered axes, the line of break-even and hatched losses."""
    import matplotlib as mpl
    from matplotlib.colors import Normalize, to_rgb

    norm = Normalize(-np.log(STRONG), np.log(STRONG))
    colours = mpl.colormaps["PuOr"]
    mid = panel.values.mid
    logs = np.ma.masked_invalid(np.log(mid))
    n_rows, n_columns = mid.shape
    mesh = ax.pcolormesh(
        np.arange(n_columns + 1),
        np.arange(n_rows + 1),
        logs,
        cmap=colours,
        norm=norm,
        edgecolors=PAPER if numbers else "none",
        linewidth=1.0,
        rasterized=not numbers,
    )
    ax.set_xlim(0, n_columns)
    ax.set_ylim(n_rows, 0)
    ax.grid(False)
    for side in ax.spines.values():
        side.set_visible(False)
    ax.tick_params(length=0)
    _labels(ax.set_xticks, panel.columns, n_columns if numbers else 4)
    _labels(ax.set_yticks, panel.rows, n_rows if numbers else 9)
    if numbers:
        won = wins(panel.values)
        for (i, j), value in np.ndenumerate(mid):
            if not np.isfinite(value):
                ax.text(j + 0.5, i + 0.5, "–", ha="center", va="center", color=MUTED, size=size, in_layout=False)
                continue
            r, g, b = to_rgb(colours(norm(np.log(value))))
            dark = 0.299 * r + 0.587 * g + 0.114 * b < 0.5
            weight = "bold" if won[i, j] else "normal"
            ax.text(
                j + 0.5,
                i + 0.5,
                f"{value:.2f}",
                ha="center",
                va="center",
                size=size,
                color="#fffffe" if dark else "#000000",
                weight=weight,
                in_layout=False,
            )
    elif min(n_rows, n_columns) > 1 and np.isfinite(mid).any():
        x, y = np.arange(n_columns) + 0.5, np.arange(n_rows) + 0.5
        filled = np.where(np.isfinite(mid), np.log(mid), np.nan)
        if np.nanmin(filled) < 0.0 < np.nanmax(filled):
            ax.contour(x, y, filled, levels=[0.0], colors="#000000", linewidths=1.0)
        lost = loses(panel.values)
        if lost.any():
            hatched = ax.contourf(x, y, lost.astype(float), levels=[0.5, 1.0], colors="none", hatches=["///"])
            hatched.set_edgecolor(INK)
            hatched.set_linewidth(0.0)
    return mesh


def _labels(set_ticks: Any, names: Sequence[str], most: int) -> None:
    """At most `most` labels, evenly spaced."""
    step = -(-len(names) // most)
    at = range(0, len(names), step)
    set_ticks([i + 0.5 for i in at], [names[i] for i in at])


def heat_map(panel: Panel) -> str:
    """Speed-ups of rows against columns, each cell with its number."""

    def paint(canvas: Canvas) -> None:
        ax = canvas.subplots()
        mesh = _shade(ax, panel, size=7, numbers=True)
        if sum(map(len, panel.columns)) > 90:
            ax.tick_params(axis="x", labelrotation=30)
        ax.xaxis.tick_top()
        _key(canvas, mesh, [ax])

    return draw(0.55 + 0.187 * max(len(panel.rows), 5), paint)


def heat_maps(panels: Sequence[Panel], x_label: str, y_label: str) -> str:
    """Several speed-up maps side by side, three to a line."""
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    tall = max(len(p.rows) for p in panels)
    numbers = max(tall, *(len(p.columns) for p in panels)) <= MOST_CELLS
    each = 0.62 + (0.24 * tall if numbers else 1.6)

    def paint(canvas: Canvas) -> None:
        axes: list[Axes] = list(canvas.subplots(down, across, squeeze=False).flat)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        meshes = []
        for k, (ax, panel) in enumerate(zip(axes, panels, strict=False)):
            meshes.append(_shade(ax, panel, size=6.2, numbers=numbers))
            ax.set_title(panel.title)
            ax.set_xlabel(x_label)
            if k % across == 0:
                ax.set_ylabel(y_label)
        _key(canvas, meshes[-1], axes)

    return draw(0.25 + each * down, paint)


def _key(canvas: Canvas, mesh: Any, axes: list[Axes]) -> None:
    ticks = [0.5, 0.7, 1.0, 1.4, 2.0]
    bar = canvas.colorbar(mesh, ax=axes, fraction=0.03, pad=0.015, aspect=18, extend="both")
    bar.set_ticks(np.log(ticks).tolist(), labels=[f"{t:g}x" for t in ticks])
    bar.outline.set_visible(False)
    bar.set_label("throughput over dense [-]")
    bar.ax.grid(False)
