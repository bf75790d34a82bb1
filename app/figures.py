"""Charts as Vega-Lite specifications: plain dictionaries, which cost no time to build.

Colours are Okabe and Ito's, legible on white and on near-black; axes and text follow the page's theme.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from reports.roofline import Roofline
from reports.style import COLOURS
from simulator.base.drawing import Lines

Spec = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]
GREY = "#8C8C8C"
RULE = "#D55E00"
SPARSE = {"tickCount": 5, "format": ",~g"}
"""Few lines on a logarithmic axis."""
PERCENT = {"format": ".3~%"}
MOST_POINTS = 40
"""Points of a curve that are marked."""
MOST_LETTERS = 40
"""Letters of two names side by side in a legend, at 390 pixels."""
FIT: Spec = {"autosize": {"type": "fit-x", "contains": "padding"}}
"""Heights are those of the plot; axes and legends take theirs besides."""


def channel(name: str, kind: str, title: str | None = None, **more: Any) -> dict[str, Any]:
    return {"field": name, "type": kind, "title": title, **more}


def _colour(names: Sequence[str], title: str | None = None, **more: Any) -> dict[str, Any]:
    """Fixed colours by name, in the order given; the legend is below, where a narrow page has room."""
    return {"type": "nominal", "scale": _scale(names), "legend": _legend(title, names), **more}


def _scale(names: Sequence[str], aside: Collection[str] = ()) -> dict[str, Any]:
    """Colours by name; what stands `aside` is grey."""
    own = iter(COLOURS * (len(names) // len(COLOURS) + 1))
    return {"domain": list(names), "range": [GREY if n in aside else next(own) for n in names]}


def _legend(title: str | None, names: Sequence[str]) -> dict[str, Any]:
    """Two columns where the longest names fit beside each other on a narrow page."""
    wide = sum(sorted((len(n) for n in names), reverse=True)[:2])
    columns = 2 if wide <= MOST_LETTERS else 1
    return {"orient": "bottom", "columns": columns, "labelLimit": 240, "title": title}


def stacked(rows: Rows, parts: Sequence[str], unit: str, *, marks: Rows = (), format: str = "") -> Spec:
    """Horizontal bars of `rows` (name, part, value), stacked in the order of `parts`; `marks` are dashed lines."""
    there = [p for p in parts if any(r["part"] == p and r["value"] > 0 for r in rows)]
    order = {p: i for i, p in enumerate(there)}
    values = [{**r, "order": order[r["part"]]} for r in rows if r["part"] in order]
    names = list(dict.fromkeys(r["name"] for r in rows))
    axis = {"format": format} if format else {}
    bars: Spec = {
        "mark": {"type": "bar", "height": {"band": 0.7}},
        "encoding": {
            "y": channel("name", "nominal", sort=names, axis={"labelLimit": 220}),
            "x": channel("value", "quantitative", unit, stack="zero", axis=axis),
            "color": {"field": "part", **_colour(there)},
            "order": {"field": "order"},
            "tooltip": [
                {"field": "name", "title": ""},
                {"field": "part", "title": "part"},
                {"field": "value", "title": unit, "format": format or ",.4~g"},
            ],
        },
    }
    spec: Spec = {**FIT, "data": {"values": values}, "height": 30 * len(names)}
    if not marks:
        return {**spec, **bars}
    line: Spec = {
        "data": {"values": list(marks)},
        "mark": {"type": "rule", "strokeDash": [5, 3], "strokeWidth": 2, "color": RULE},
        "encoding": {
            "x": channel("value", "quantitative", unit),
            "tooltip": [{"field": "name", "title": ""}, {"field": "value", "title": unit, "format": ",.4~g"}],
        },
    }
    text = {**line, "mark": {"type": "text", "dy": -8, "baseline": "bottom", "align": "right", "color": RULE}}
    text["encoding"] = {"x": line["encoding"]["x"], "y": {"value": 0}, "text": {"field": "name"}}
    return {**spec, "layer": [bars, line, text]}


def roofline(drawn: Roofline) -> Spec:
    """Ops under the datasheet's roofs, each mark's area its share of the step."""
    roofs, bytes_per_s, series = drawn.flop_per_s, drawn.bytes_per_s, list(drawn.means)
    points = [{**asdict(m), "rate": m.flop_per_s / 1e12} for m in drawn.marks]
    xs = [m.intensity for m in drawn.marks]
    low, high = min([*xs, 0.5]) / 1.5, max([*xs, 2 * max(roofs.values()) / bytes_per_s]) * 1.2
    lines = []
    for name, peak in roofs.items():
        ridge = peak / bytes_per_s
        knots = sorted({low, ridge, high}) if low < ridge < high else [low, high]
        lines += [{"roof": name, "x": x, "y": min(peak, x * bytes_per_s) / 1e12} for x in knots]
    log = {"type": "log"}
    across = {**log, "domain": [low, high]}
    x_title, y_title = "arithmetic intensity [flop/B]", "speed [TFLOP/s]"
    dots: Spec = {
        "mark": {"type": "point", "filled": True, "opacity": 0.85},
        "encoding": {
            "x": channel("intensity", "quantitative", x_title, axis=SPARSE, scale=across),
            "y": channel("rate", "quantitative", y_title, axis=SPARSE, scale=log),
            "size": {"field": "share", "type": "quantitative", "legend": None, "scale": {"range": [20, 700]}},
            "color": {"field": "series", **_colour(series)},
            "shape": {
                "field": "series",
                "type": "nominal",
                "scale": {"domain": series},
                "legend": _legend(None, series),
            },
            "tooltip": [
                {"field": "op", "title": "op"},
                {"field": "series", "title": ""},
                {"field": "intensity", "title": "flop/B", "format": ",.3~g"},
                {"field": "rate", "title": "TFLOP/s", "format": ",.3~g"},
                {"field": "share", "title": "share of the step", "format": ".1%"},
            ],
        },
    }
    # The same titles in every layer: one without takes them from all.
    x = channel("x", "quantitative", x_title, scale=across)
    y = channel("y", "quantitative", y_title, scale=log)
    roof: Spec = {
        "data": {"values": lines},
        "mark": {"type": "line", "color": GREY, "strokeWidth": 1.5},
        "encoding": {"x": x, "y": y, "detail": {"field": "roof"}},
    }
    # Left of the ridge, where no mark can be.
    ends = [{"roof": f"{name} peak", "x": peak / bytes_per_s, "y": peak / 1e12} for name, peak in roofs.items()]
    label: Spec = {
        "data": {"values": ends},
        "mark": {"type": "text", "align": "right", "baseline": "bottom", "dx": -6, "color": GREY},
        "encoding": {"x": x, "y": y, "text": {"field": "roof"}},
    }
    return {**FIT, "data": {"values": points}, "height": 240, "layer": [roof, label, dots]}


def curves(
    drawn: Lines, *, rule: float | None = None, here: float | None = None, series_title: str | None = None
) -> Spec:
    """Curves, their bands and what they are compared with; a dashed rule across at `rule`, one upright at `here`."""
    names = [line.name for line in drawn.lines]
    scale = _scale(names, {line.name for line in drawn.lines if line.aside})
    ends = [v for line in drawn.lines for v in (line.x.min(), line.x.max())]
    across = {"type": "log" if drawn.x_log else "linear", "nice": False, "domain": [min(ends), max(ends)]}
    x_axis = SPARSE if drawn.x_log else PERCENT if drawn.x_share else {"tickMinStep": 1}
    x = channel("x", "quantitative", drawn.x_label, axis=x_axis, scale=across)
    up: dict[str, Any] = {"type": "log", "nice": False} if drawn.y_log else {"zero": drawn.share}
    if drawn.most is not None:
        up |= {"domainMax": drawn.most}
    y = channel("y", "quantitative", drawn.y_label, scale=up, axis=PERCENT if drawn.share else {})
    colour = {"field": "series", "type": "nominal", "scale": scale}
    dashes = {"field": "series", "type": "nominal", "scale": {"domain": names}}
    # Strokes, dashed as the lines are: a dashed outline of a disc reads as a star.
    legend = {**_legend(series_title, names), "symbolType": "stroke", "symbolSize": 400} if len(names) > 1 else None
    rows = [
        {"series": line.name, "x": float(a), "y": float(b)}
        for line in drawn.lines
        for a, b in zip(line.x, line.y, strict=True)
        if b == b
    ]
    few = max((len(line.x) for line in drawn.lines), default=0) <= MOST_POINTS
    lines: Spec = {
        "mark": {"type": "line", "point": {"size": 18} if few else False, "strokeWidth": 2, "clip": True},
        "encoding": {
            "x": x,
            "y": y,
            "color": {**colour, "legend": legend},
            **({"strokeDash": {**dashes, "legend": legend}} if len(names) > 1 else {}),
            "tooltip": [
                {"field": "series", "title": series_title or ""},
                {"field": "x", "title": drawn.x_label, "format": ".3~%" if drawn.x_share else ",.6~g"},
                {"field": "y", "title": drawn.y_label, "format": ".3~%" if drawn.share else ",.4~g"},
            ],
        },
    }
    layers = [lines]
    for line, shade in zip(drawn.lines, scale["range"], strict=True):
        if line.low is not None and line.high is not None:
            values = [
                {"x": float(a), "y": float(low), "high": float(high)}
                for a, low, high in zip(line.x, line.low, line.high, strict=True)
            ]
            mark = {"type": "area", "opacity": 0.13, "clip": True, "color": shade}
            encoding = {"x": x, "y": y, "y2": {"field": "high"}}
            layers.insert(0, {"data": {"values": values}, "mark": mark, "encoding": encoding})
        if line.beside is not None:
            values = [{"x": float(a), "y": float(b)} for a, b in zip(line.x, line.beside, strict=True)]
            mark = {"type": "line", "strokeDash": [1, 3], "strokeWidth": 1.5, "clip": True, "color": shade}
            layers.append({"data": {"values": values}, "mark": mark, "encoding": {"x": x, "y": y}})
    for way, value in (("y", rule), ("x", here)):
        if value is not None:
            mark = {"type": "rule", "strokeDash": [5, 3], "color": RULE if way == "y" else GREY}
            layers.append({"data": {"values": [{}]}, "mark": mark, "encoding": {way: {"datum": value}}})
    return {**FIT, "data": {"values": rows}, "height": 220, "layer": layers}


def front(rows: Rows, x_title: str, y_title: str, most: float | None = None) -> Spec:
    """Choices (x, y, name, front, told), the undominated ones joined; dotted: dense; `most` is an upright line."""
    on = sorted((r for r in rows if r["front"]), key=lambda r: r["x"])
    values = [{**r, "side": "on the front" if r["front"] else "beaten"} for r in rows]
    sides = [side for side in ("on the front", "beaten") if any(v["side"] == side for v in values)]
    # A mark is not cut by the frame.
    x, y = (
        channel("x", "quantitative", x_title, scale={"padding": 8}),
        channel("y", "quantitative", y_title, scale={"zero": False, "padding": 8}),
    )
    dots: Spec = {
        "mark": {"type": "point", "filled": True, "size": 70, "opacity": 0.9},
        "encoding": {
            "x": x,
            "y": y,
            "color": {"field": "side", **_colour(sides)},
            "shape": {"field": "side", "type": "nominal", "scale": {"domain": sides}, "legend": _legend(None, sides)},
            "tooltip": [
                {"field": "name", "title": ""},
                {"field": "x", "title": x_title, "format": ".3~f"},
                {"field": "y", "title": y_title, "format": ".2f"},
                {"field": "told", "title": "source"},
            ],
        },
    }
    line: Spec = {
        "data": {"values": on},
        "mark": {"type": "line", "color": COLOURS[0], "interpolate": "step-after", "opacity": 0.6},
        "encoding": {"x": x, "y": y},
    }
    names: Spec = {
        "data": {"values": on},
        "mark": {"type": "text", "align": "left", "dx": 7, "dy": -6, "color": GREY, "limit": 170},
        "encoding": {"x": x, "y": y, "text": {"field": "name"}},
    }
    even: Spec = {
        "data": {"values": [{}]},
        "mark": {"type": "rule", "strokeDash": [2, 3], "color": GREY},
        "encoding": {"y": {"datum": 1.0}},
    }
    layers = [even, line, dots, names]
    if most is not None:
        mark = {"type": "rule", "strokeDash": [5, 3], "color": RULE}
        layers.append({"data": {"values": [{}]}, "mark": mark, "encoding": {"x": {"datum": most}}})
    return {**FIT, "data": {"values": values}, "height": 280, "layer": layers}


def choices(rows: Rows, x_title: str, y_title: str, limit: float | None = None) -> Spec:
    """Choices (x, y, series, name, told, good: meets or misses); `limit` is an upright line."""
    names = list(dict.fromkeys(r["series"] for r in rows))
    log = {"type": "log", "nice": False, "padding": 10}  # a mark is not cut by the frame
    opacity = {"field": "good", "type": "nominal", "scale": {"domain": ["meets", "misses"], "range": [0.9, 0.0]}}
    dots: Spec = {
        "mark": {"type": "point", "size": 70, "strokeWidth": 1.5, "opacity": 1},
        "encoding": {
            "x": channel("x", "quantitative", x_title, axis=SPARSE, scale=log),
            "y": channel("y", "quantitative", y_title, axis=SPARSE, scale=log),
            "color": {"field": "series", **_colour(names)},
            "fill": {"field": "series", **_colour(names), "legend": None},
            "shape": {"field": "series", "type": "nominal", "scale": {"domain": names}, "legend": _legend(None, names)},
            "fillOpacity": {**opacity, "legend": None},
            "tooltip": [
                {"field": "name", "title": ""},
                {"field": "told", "title": ""},
                {"field": "y", "title": y_title, "format": ",.3~g"},
                {"field": "good", "title": "targets"},
            ],
        },
    }
    layers = [dots]
    if limit is not None:
        mark = {"type": "rule", "strokeDash": [5, 3], "color": RULE}
        layers.append({"data": {"values": [{}]}, "mark": mark, "encoding": {"x": {"datum": limit}}})
    return {**FIT, "data": {"values": list(rows)}, "height": 280, "layer": layers}


def dots(rows: Rows, unit: str) -> Spec:
    """Marks of `rows` (name, value, series) on one line a name."""
    names, series = (list(dict.fromkeys(r[k] for r in rows)) for k in ("name", "series"))
    marks: Spec = {
        "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
        "encoding": {
            "y": channel("name", "nominal", sort=names, axis={"labelLimit": 200, "grid": True}),
            "x": channel("value", "quantitative", unit),
            "color": {"field": "series", **_colour(series)},
            "shape": {
                "field": "series",
                "type": "nominal",
                "scale": {"domain": series},
                "legend": _legend(None, series),
            },
            "tooltip": [
                {"field": "name", "title": ""},
                {"field": "series", "title": ""},
                {"field": "value", "title": unit, "format": ".3~g"},
            ],
        },
    }
    return {**FIT, "data": {"values": list(rows)}, "height": 30 * len(names), **marks}


def against(rows: Rows, x_title: str, y_title: str, *, legend: bool = True) -> Spec:
    """Marks (x, y, series) about the line of equality and its band of 20 %, both axes logarithmic."""
    values = [v for r in rows for v in (r["x"], r["y"])]
    low, high = min(values) / 1.3, max(values) * 1.3
    names = list(dict.fromkeys(r["series"] for r in rows))
    scale = {"type": "log", "domain": [low, high], "nice": False}
    colour = _colour(names)
    dots_: Spec = {
        "mark": {"type": "point", "filled": True, "size": 14, "opacity": 0.6},
        "encoding": {
            "x": channel("x", "quantitative", x_title, axis=SPARSE, scale=scale),
            "y": channel("y", "quantitative", y_title, axis=SPARSE, scale=scale),
            "color": {"field": "series", **colour, **({} if legend and len(names) <= 8 else {"legend": None})},
            "tooltip": [
                {"field": "series", "title": ""},
                {"field": "told", "title": ""},
                {"field": "x", "title": x_title, "format": ",.4~g"},
                {"field": "y", "title": y_title, "format": ",.4~g"},
            ],
        },
    }
    ends = [{"a": v, "mid": v, "low": v / 1.2, "high": 1.2 * v} for v in (low, high)]
    x = {"field": "a", "type": "quantitative", "scale": scale}
    band: Spec = {
        "data": {"values": ends},
        "mark": {"type": "area", "opacity": 0.15, "color": GREY, "clip": True},
        "encoding": {"x": x, "y": {"field": "low", "type": "quantitative", "scale": scale}, "y2": {"field": "high"}},
    }
    line: Spec = {
        "data": {"values": ends},
        "mark": {"type": "line", "color": GREY, "strokeWidth": 1},
        "encoding": {"x": x, "y": {"field": "mid", "type": "quantitative", "scale": scale}},
    }
    return {**FIT, "data": {"values": list(rows)}, "height": 340, "layer": [band, line, dots_]}
