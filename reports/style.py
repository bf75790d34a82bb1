"""House style of the figures: one look, fixed bytes, colours that follow the page's light or dark theme."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas
    from matplotlib.typing import RcKeyType

INK, MUTED, RULE, PAPER = "#1b1f24", "#57606a", "#d0d7de", "#fefefe"
THEMED = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--paper)"}
"""Colours of the drawing that the HTML page replaces by its own."""

# Okabe and Ito's colours, told apart by colour-blind readers; all legible on white and on near-black.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C")
HATCHES = ("", "////", "||||", "xxxx", "\\\\\\\\", "++", "---")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)), (0, (8, 2)))
WIDTH_IN = 6.9

RC: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.6,
    "hatch.color": PAPER,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "path",
    # Large maps are drawn as pictures inside the SVG.
    "savefig.dpi": 144,
    "svg.hashsalt": "shadowline",
    "path.simplify": True,
    # A user's `$` is a dollar.
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
}


def draw(height_in: float, paint: Callable[[Canvas], None], width_in: float = WIDTH_IN) -> str:
    """SVG of what `paint` draws; the same drawing gives the same bytes."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context(RC), warnings.catch_warnings():
        # A letter of a user's name that the font lacks is drawn as a box; the tables have it in full.
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        canvas = Canvas(figsize=(width_in, height_in), layout="constrained")
        FigureCanvasSVG(canvas)
        paint(canvas)
        out = io.StringIO()
        canvas.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return _bare(out.getvalue())


def _bare(svg: str) -> str:
    """`svg` as one element: no prolog, no metadata, no comments; places to a hundredth of a point."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*<!--.*?-->", "", svg, flags=re.DOTALL).strip()
    # Lengths only: a glyph's scale(0.015625) has to stay.
    svg = _PLACES.sub(lambda m: _DIGITS.sub(r"\1", m[0]), svg)
    svg = re.sub(r">\s+<", "><", svg).replace("DejaVuSans-", "g").replace("xlink:href", "href")
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    return re.sub(r"\s*\n\s*", " ", svg)


_PLACES = re.compile(r'(?<= d=")[^"]*|translate\([^)]*\)|(?<= [xy]=")[^"]*')
_DIGITS = re.compile(r"(\.\d\d)\d+")


_ID = re.compile(r'(\bid="|\bhref="#|url\(#)')


def themed(svg: str, prefix: str, label: str) -> str:
    """`svg` for a page: own ids, colours of the theme, and a name for who cannot see it.

    `label` must be escaped already.
    """
    svg = _ID.sub(lambda m: f"{m[1]}{prefix}-", svg)
    for colour, variable in THEMED.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
