"""The heat map of a sweep, with the line of break-even."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from app.figures import FIT, GREY, Rows, Spec, channel


def heat_map(
    rows: Rows,
    x: str,
    y: str,
    xs: Sequence[Any],
    ys: Sequence[Any],
    unit: str,
    *,
    ratio: bool = False,
    numbers: bool = True,
) -> Spec:
    """Cells of `rows` (x, y, value, text, told, wins) with a line round the ratios that win.

    Parameters
    ----------
    ratio : bool
        Values are speed-ups: colours diverge at 1, and winning cells are bordered from losing ones.
    numbers : bool
        Whether every cell carries its value.
    """
    at_x = channel("x", "ordinal", x, sort=list(xs), axis={"labelAngle": 0, "labelOverlap": True, "labelLimit": 160})
    at_y = channel("y", "ordinal", y, sort=list(ys), axis={"labelLimit": 200})
    known = [r for r in rows if r["value"] is not None]
    largest = max([abs(math.log(r["value"])) for r in known if r["value"] > 0] or [1.0])
    edge = max(math.exp(min(max(largest, 0.05), math.log(4.0))), 1.05)
    scale = (
        {"type": "log", "domain": [1 / edge, edge], "scheme": "purpleorange", "reverse": True, "clamp": True}
        if ratio
        else {"scheme": "viridis", "type": "log" if _wide(known) else "linear"}
    )
    legend = {"orient": "right", "title": unit, "gradientLength": 140, "format": ",.3~g"}
    cells: Spec = {
        "transform": [{"filter": "isValid(datum.value)"}],
        "mark": {"type": "rect"},
        "encoding": {
            "x": at_x,
            "y": at_y,
            "color": {"field": "value", "type": "quantitative", "scale": scale, "legend": legend},
            "tooltip": [{"field": "x", "title": x}, {"field": "y", "title": y}, {"field": "told", "title": unit}],
        },
    }
    empty: Spec = {
        "transform": [{"filter": "!isValid(datum.value)"}],
        "mark": {"type": "rect", "color": GREY, "opacity": 0.25},
        "encoding": {
            "x": at_x,
            "y": at_y,
            "tooltip": [*cells["encoding"]["tooltip"][:2], {"field": "told", "title": "no answer"}],
        },
    }
    layers = [cells, empty]
    if ratio:
        layers += _borders(rows, at_x, at_y, xs, ys)
    if numbers:
        text: Spec = {"mark": {"type": "text", "fontSize": 11}, "encoding": {"x": at_x, "y": at_y}}
        text["encoding"]["text"] = {"field": "text"}
        text["encoding"]["color"] = {"value": GREY} if not known else _on_cell(ratio, edge, known)
        layers.append(text)
    return {**FIT, "data": {"values": list(rows)}, "height": max(120, min(26 * len(ys), 520)), "layer": layers}


def _wide(known: Rows) -> bool:
    values = [r["value"] for r in known]
    return bool(values) and min(values) > 0 and max(values) / min(values) > 20


def _on_cell(ratio: bool, edge: float, known: Rows) -> dict[str, Any]:
    """Black or white, whichever is legible on the cell."""
    if ratio:
        dark = f"datum.value > {edge**0.6} || datum.value < {edge**-0.6}"
    elif _wide(known):
        values = [r["value"] for r in known]
        dark = f"datum.value < {math.sqrt(min(values) * max(values))}"
    else:
        values = [r["value"] for r in known]
        dark = f"datum.value < {(min(values) + max(values)) / 2}"
    blank = {"test": "!isValid(datum.value)", "value": GREY}
    return {"condition": [blank, {"test": dark, "value": "#ffffff"}], "value": "#000000"}


def _borders(rows: Rows, at_x: Spec, at_y: Spec, xs: Sequence[Any], ys: Sequence[Any]) -> list[Spec]:
    """Lines between neighbouring cells of which one wins and the other does not."""
    known = [r for r in rows if r["value"] is not None]
    wins = {(r["x"], r["y"]): r["wins"] for r in known}
    right = [
        {"x": a, "y": y}
        for y in ys
        for a, b in itertools.pairwise(xs)
        if (a, y) in wins and (b, y) in wins and wins[a, y] != wins[b, y]
    ]
    below = [
        {"x": x, "y": a}
        for x in xs
        for a, b in itertools.pairwise(ys)
        if (x, a) in wins and (x, b) in wins and wins[x, a] != wins[x, b]
    ]
    mark = {"type": "rule", "color": "#000000", "strokeWidth": 2.5}
    out: list[Spec] = []
    for segments, one, two in ((right, "x", "y"), (below, "y", "x")):
        if not segments:
            continue
        fixed, along = (at_x, at_y) if one == "x" else (at_y, at_x)
        encoding = {
            one: {**fixed, "bandPosition": 1},
            two: {**along, "bandPosition": 0},
            f"{two}2": {"field": two, "bandPosition": 1},
        }
        out.append({"data": {"values": segments}, "mark": mark, "encoding": encoding})
    return out
