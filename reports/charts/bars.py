"""Bars and dots with intervals: one line per name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from reports.charts.axes import legend, marks, plain_log
from reports.style import COLOURS, HATCHES, INK, MARKERS, MUTED, PAPER, draw
from reports.text import share

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


def stacked(
    names: Sequence[str],
    parts: Mapping[str, np.ndarray],
    x_label: str,
    *,
    lines: Mapping[str, float] | None = None,
    percent: bool = False,
) -> str:
    """Horizontal bars of parts, one per name; `lines` are named and vertical."""
    present = {k: v for k, v in parts.items() if np.nansum(v) > 0.0}

    def paint(canvas: Canvas) -> None:
        ax = canvas.subplots()
        left = np.zeros(len(names))
        for i, (name, values) in enumerate(present.items()):
            v = np.nan_to_num(values)
            ax.barh(
                np.arange(len(names)),
                v,
                left=left,
                label=name,
                color=COLOURS[i % 7],
                height=0.72,
                hatch=HATCHES[i % 7],
                edgecolor=PAPER,
                linewidth=0.6,
            )
            left = left + v
        ax.set_yticks(np.arange(len(names)), names)
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.set_xlabel(x_label)
        ax.grid(axis="y", visible=False)
        ax.set_xlim(0, 1.0 if percent else None)
        if percent:
            ax.xaxis.set_major_formatter(lambda v, _: share(v))
        marks(ax, lines or {}, float(left.max(initial=0.0)))
        legend(canvas, ax, len(present))

    height_in = 0.62 + 0.16 * -(-len(present) // 5) + 0.185 * len(names)
    return draw(height_in + 0.13 * min(len(lines or ()), 4), paint)


def intervals(
    names: Sequence[str],
    series: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    x_label: str,
    *,
    log: bool = False,
    at_one: float | None = None,
    around_one: float = 0.0,
) -> str:
    """Dots with intervals: `series` gives (middle, low, high) per name; `around_one` shades that relative band."""
    n = len(series)

    def paint(canvas: Canvas) -> None:
        ax = canvas.subplots()
        for i, (label, (mid, lo, hi)) in enumerate(series.items()):
            y = np.arange(len(names)) + (i - (n - 1) / 2.0) * 0.62 / max(n, 1)
            ok = np.isfinite(mid)
            error = np.array([np.maximum(mid - lo, 0.0)[ok], np.maximum(hi - mid, 0.0)[ok]])
            ax.errorbar(
                np.asarray(mid)[ok],
                y[ok],
                xerr=np.nan_to_num(error),
                fmt=MARKERS[i % 7],
                color=COLOURS[i % 7],
                label=label,
                elinewidth=1.3,
                capsize=2.0,
            )
        if at_one is not None:
            ax.axvline(at_one, color=INK, linewidth=0.9)
            if around_one:
                ax.axvspan(at_one * (1 - around_one), at_one * (1 + around_one), color=MUTED, alpha=0.15, linewidth=0)
        ax.set_yticks(np.arange(len(names)), names)
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.set_xlabel(x_label)
        if log:
            ax.set_xscale("log")
            plain_log(ax, "x")
        else:
            ax.set_xlim(left=0.0 if at_one is None else None)
        legend(canvas, ax, n)

    return draw(0.65 + (0.16 if n > 1 else 0.0) + max(0.185, 0.09 * n + 0.05) * len(names), paint)


def tornado(names: Sequence[str], low: np.ndarray, high: np.ndarray, x_label: str, names_of: tuple[str, str]) -> str:
    """Bars from a centre at 0: the answer's change when an input is lowered and when it is raised."""

    def paint(canvas: Canvas) -> None:
        ax = canvas.subplots()
        y = np.arange(len(names))
        ax.barh(y - 0.19, low, height=0.36, color=COLOURS[0], edgecolor=PAPER, label=names_of[0])
        ax.barh(y + 0.19, high, height=0.36, color=COLOURS[1], hatch=HATCHES[1], edgecolor=PAPER, label=names_of[1])
        ax.axvline(0.0, color=INK, linewidth=0.9)
        ax.set_yticks(y, names)
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.set_xlabel(x_label)
        ax.grid(axis="y", visible=False)
        ax.xaxis.set_major_formatter(lambda v, _: share(v, "+.0") if abs(v) >= 0.01 or v == 0 else share(v, "+.1"))
        legend(canvas, ax, 2)

    return draw(0.85 + 0.3 * len(names), paint)
