"""Points and curves on two axes: scatters, rooflines, lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from reports.charts.axes import plain_log
from reports.content import Figure
from reports.style import COLOURS, INK, LINES, MARKERS, MUTED, WIDTH_IN, draw
from reports.text import share

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

    from reports.roofline import Roofline
    from simulator.base.drawing import Lines, Picture


def scatter(
    groups: Mapping[str, tuple[np.ndarray, np.ndarray]],
    x_label: str,
    y_label: str,
    *,
    log: bool = True,
    diagonal: float | None = None,
    labels: Sequence[tuple[float, float, str]] = (),
    width_in: float = 5.0,
    height_in: float = 3.7,
    line: tuple[np.ndarray, np.ndarray] | None = None,
) -> str:
    """Points of several groups; `diagonal` draws y = x with a band of that relative width."""

    def paint(canvas: Canvas) -> None:
        ax = canvas.subplots()
        many = sum(len(x) for x, _ in groups.values()) > 400
        for i, (name, (x, y)) in enumerate(groups.items()):
            ax.plot(
                x,
                y,
                MARKERS[i % 7],
                color=COLOURS[i % 7],
                label=name,
                alpha=0.55 if many else 0.9,
                markersize=2.2 if many else 4.5,
                markeredgewidth=0.0,
                linestyle="none",
            )
        if line is not None:
            ax.plot(*line, color=INK, linewidth=1.0, linestyle="--")
        if log:
            ax.set_xscale("log")
            ax.set_yscale("log")
        if diagonal is not None:
            values = np.concatenate([np.concatenate([x, y]) for x, y in groups.values()])
            ends = np.array([values.min() / 1.2, values.max() * 1.2])
            ax.plot(ends, ends, color=INK, linewidth=0.9)
            ax.fill_between(ends, ends / (1 + diagonal), ends * (1 + diagonal), color=MUTED, alpha=0.18, linewidth=0)
            ax.set_xlim(*ends)
            ax.set_ylim(*ends)
        if log:
            plain_log(ax, "x")
            plain_log(ax, "y")
        for x, y, text in labels:
            ax.annotate(text, (x, y), xytext=(4, 3), textcoords="offset points", size=6.2, color=INK)
        ax.set_xlabel(x_label)
        ax.set_ylabel(y_label)
        if len(groups) > 1:
            canvas.legend(*ax.get_legend_handles_labels(), loc="outside right upper", handlelength=1.0, markerscale=1.4)

    return draw(height_in, paint, WIDTH_IN if len(groups) > 1 else width_in)


def roofline(drawn: Roofline) -> str:
    """Ops under the roof, one mark each."""
    from matplotlib.collections import PathCollection

    def paint(canvas: Canvas) -> None:
        ax = canvas.subplots()
        peak, speed = max(drawn.flop_per_s.values()), drawn.bytes_per_s
        ridge = peak / speed
        low = min([0.3, *(m.intensity / 3 for m in drawn.marks)])
        high = max([10 * ridge, *(m.intensity * 3 for m in drawn.marks)])
        x = np.geomspace(low, high, 200)
        for i, (name, flop) in enumerate(sorted(drawn.flop_per_s.items(), key=lambda kv: -kv[1])):
            ax.plot(x, np.minimum(flop, x * speed) / 1e12, color=MUTED, linewidth=1.1, linestyle=LINES[i % 7])
            ax.annotate(
                f"{name}: {flop / 1e12:,.0f} Tflop/s",
                (high, flop / 1e12),
                xytext=(-2, 2),
                textcoords="offset points",
                ha="right",
                va="bottom",
                size=6.3,
                color=MUTED,
            )
        middle = float(np.sqrt(low * ridge))
        ax.annotate(
            f"memory: {speed / 1e12:.3g} TB/s",
            (middle, middle * speed / 1e12),
            xytext=(7, -4),
            textcoords="offset points",
            va="top",
            size=6.3,
            color=MUTED,
        )
        for i, name in enumerate(drawn.means):
            marks = [m for m in drawn.marks if m.series == name]
            ax.scatter(
                [m.intensity for m in marks],
                [m.flop_per_s / 1e12 for m in marks],
                s=[8 + 150 * m.share for m in marks],
                marker=MARKERS[i % 7],
                color=COLOURS[i % 7],
                label=name,
                alpha=0.8,
                linewidth=0.0,
            )
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlim(low, high)
        ax.set_ylim(min([low * speed / 1e12, *(m.flop_per_s / 2e12 for m in drawn.marks)]), 2.2 * peak / 1e12)
        ax.set_xlabel("arithmetic intensity [flop/B]")
        ax.set_ylabel("speed [Tflop/s]")
        plain_log(ax, "x")
        plain_log(ax, "y")
        if drawn.marks:
            legend = canvas.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)
            for handle in legend.legend_handles:
                if isinstance(handle, PathCollection):
                    handle.set_sizes([22.0])

    return draw(3.4, paint)


def lines(drawn: Lines, height_in: float = 2.6) -> str:
    """Curves told apart by colour, dash and marker; yardsticks are grey and dotted."""

    def paint(canvas: Canvas) -> None:
        ax = canvas.subplots()
        own = [line for line in drawn.lines if not line.aside]
        aside = [line for line in drawn.lines if line.aside]
        for i, line in enumerate((*own, *aside)):
            colour = MUTED if line.aside else COLOURS[i % 7]
            style = ":" if line.aside else LINES[(i + i // 7) % 7]
            mark = MARKERS[i % 7] if len(line.x) <= 24 else None
            ax.plot(line.x, line.y, color=colour, linestyle=style, marker=mark, markersize=3.5, label=line.name)
            if line.low is not None and line.high is not None:
                ax.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
            if line.beside is not None:
                ax.plot(line.x, line.beside, ":", color=colour, linewidth=1.0)
        if drawn.beside:
            ax.plot([], [], ":", color=MUTED, linewidth=1.0, label=drawn.beside)
        if drawn.most is not None:
            least = min(float(np.nanmin(line.y)) for line in drawn.lines)
            ax.set_ylim(0.95 * min(least, drawn.most), drawn.most)
        if drawn.x_log:
            ax.set_xscale("log", base=2)
            shown = sorted({float(v) for line in own for v in line.x if float(np.log2(v)).is_integer()})
            from matplotlib.ticker import NullLocator

            ax.set_xticks(shown, [f"{v:,.0f}" for v in shown])
            ax.xaxis.set_minor_locator(NullLocator())
        if drawn.y_log:
            ax.set_yscale("log")
            plain_log(ax, "y")
        if drawn.x_share:
            ax.xaxis.set_major_formatter(lambda v, _: share(v))
        if drawn.share:
            ax.set_ylim(bottom=0.0)
            ax.yaxis.set_major_formatter(lambda v, _: share(v))
        ax.set_xlabel(drawn.x_label)
        ax.set_ylabel(drawn.y_label)
        if len(drawn.lines) > 1 or drawn.beside:
            canvas.legend(*ax.get_legend_handles_labels(), loc="outside right upper", handlelength=3.0)

    return draw(height_in, paint)


def figure(picture: Picture) -> Figure:
    """A picture in a report: its title is what it says."""
    return Figure(f"fig-{picture.id}", picture.said, lines(picture.drawn), picture.alt, picture.caption)
