"""Two free axes around the scenario: where a policy wins, what it costs, and speed against quality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app import axes, blocks, compute, figures, heat, state
from app.axes import Axis
from app.words import plain
from simulator.api import InputError, Scenario
from simulator.base.console import number
from simulator.base.drawing import Line, Lines
from simulator.base.interval import Interval
from simulator.device.catalogue import list_devices
from simulator.results.answer import Row
from simulator.results.choices import best
from simulator.results.loss import LOSS_UNKNOWN, UNIT
from simulator.results.summary import Summary, fastest
from simulator.results.verdict import SURE, WIN, Verdict, figure, told

CELLS_WITH_NUMBERS = 200


@dataclass(frozen=True)
class Measure:
    """A column of the sweep as it is shown."""

    column: str
    unit: str
    scale: float = 1.0
    term: str = ""


MEASURES = {
    "speed-up over dense": Measure("throughput_speedup_same_batch", "x dense", term="speed-up"),
    "tokens/s": Measure("tokens_per_s", "tokens/s", term="tokens/s"),
    "tokens/s per GPU": Measure("tokens_per_s_per_gpu", "tokens/s/GPU", term="tokens/s/GPU"),
    "TTFT": Measure("ttft_s", "ms", 1e3, "TTFT"),
    "TPOT": Measure("tpot_s", "ms", 1e3, "TPOT"),
    "memory per GPU": Measure("total_bytes", "GB", 1e-9, "GB"),
    "largest batch": Measure("max_batch", "sequences", term="max batch"),
    "rent": Measure("usd_per_mtoken", "$ per M tokens", term="assumed"),
    "energy": Measure("energy_j_per_token", "J per token", term="assumed"),
}


def page() -> None:
    """Axes above, the picture, then quality and the files."""
    scenario = state.current()
    st.markdown("#### Where does it pay?")
    chosen = controls(scenario)
    if chosen is None:
        return
    x, y, measure, view, spelled = chosen
    try:
        columns = {x.column: x.values, y.column: y.values}
        grid = axes.grid(scenario, columns)
    except InputError as error:
        st.error(blocks.first_line(error), icon=":material/error:")
        return
    found = compute.swept(grid)
    tell(found.summary)
    draw(found.rows, x, y, measure, view, spelled)
    quality(scenario, found.summary)
    command = axes.command(grid)
    blocks.again(command, axes.snippet(grid))
    blocks.heading("Take it along")
    blocks.tables(found.rows, scenario, "sweep", command)
    blocks.reports(grid, command, scenario)


def controls(scenario: Scenario) -> tuple[Axis, Axis, str, str, dict[str, int]] | None:
    """Axes, measure and view; None where one cannot be read."""
    names = [n for n in axes.LABELS if n != "model"]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        x_name = st.selectbox("Across", names, key="s.x", bind="query-params", width=190, format_func=_axis_name)
        others = [n for n in names if not _clash(n, x_name)]
        y_name = st.selectbox("Down", others, key="s.y", bind="query-params", width=190)
        measure = st.selectbox("Show", list(MEASURES), key="s.show", bind="query-params", width=200)
        view = st.segmented_control(
            "As", ["map", "curves"], default="map", key="s.as", required=True, bind="query-params"
        )
    try:
        (x, x_spelled), (y, y_spelled) = (_axis(n, scenario) for n in (x_name, y_name))
    except InputError as error:
        st.error(blocks.first_line(error), icon=":material/error:")
        return None
    return x, y, measure, view, {**x_spelled, **y_spelled}


def _axis_name(name: str) -> str:
    return name


def _clash(a: str, b: str) -> bool:
    return {a, b} in ({"policy", axes.SPARSITY}, {a})


def _axis(name: str, scenario: Scenario) -> tuple[Axis, dict[str, int]]:
    key = f"s.{name}"
    if name in axes.RANGES:
        text = st.text_input(
            f"{axes.LABELS[name]}: values",
            axes.start(name, scenario),
            key=key,
            bind="query-params",
            max_chars=500,
            help="1,4,16 or first:last:x2 (times) or first:last:+64 (plus)",
        )
        return axes.read(name, text, scenario)
    if name == "device":
        start = [d for d in ("a100-sxm-80g", "h100-sxm", "h200", "b200", "l40s", "rtx-4090") if d in list_devices()]
        picked = st.multiselect("Devices", list_devices(), start, key=key, bind="query-params")
        return axes.read(name, "\n".join(picked), scenario)
    start = "\n".join(dict.fromkeys(["dense", scenario.policy, "nm24", "w4a16", "kv_quant(bits=4)"]))
    text = st.text_area(
        "Policies, one a line", start, key=key, max_chars=4000, height=130, help="A list [0.3,0.5] gives several."
    )
    return axes.read(name, text, scenario)


def tell(summary: Summary) -> None:
    """What the sweep says in words."""
    lines = []
    best = summary.best
    if best:
        top = fastest(best)
        against = "" if top.policy == "dense" else f" ({told(top.speedup)}; {top.loss})"
        lines.append(
            f"Most tokens/s per GPU: **{number(top.tokens_per_s_per_gpu.mid)}** with **{top.policy}**{against} on"
            f" **{top.device}**, batch {top.batch:,.0f}, prompt {top.prompt_tokens:,.0f}."
        )
    tallies = summary.tallies()
    timed = sorted((t for t in tallies if t.rows), key=lambda t: -t.median)
    lines += [f"{t.policy} on {t.device}: {t.told('–')}; {summary.loss(t)}." for t in timed[:4]]
    refused = [t for t in tallies if t.reason]
    lines += [f"{t.policy} on {t.device}: {t.reason}." for t in refused[:3]]
    if not best:
        lines.append("Nothing fits: every cell says why, and what would work.")
    st.markdown("  \n".join(lines))


def draw(rows: pd.DataFrame, x: Axis, y: Axis, measure: str, view: str, spelled: dict[str, int]) -> None:
    """Map or curves of one measure."""
    m = MEASURES[measure]

    def place(axis: Axis, row: Any) -> Any:
        value = row[axis.column]
        return spelled[value] if axis.name == axes.SPARSITY else value

    ratio = m.column == "throughput_speedup_same_batch"
    cells = []
    for row in rows.to_dict("records"):
        value = row[m.column]
        there = value is not None and value == value and (row["status"] == "ok" or m.column == "total_bytes")
        shown = None if value is None or not there else float(value) * m.scale
        said = f"{number(shown or 0.0)} {m.unit}"
        if ratio and shown is not None:
            said = f"{row['verdict']}, {figure(Interval(*(row[m.column + end] for end in ('', '_lo', '_hi'))))}"
        cells.append(
            {
                "x": place(x, row),
                "y": place(y, row),
                "value": shown,
                "text": "–" if shown is None else f"{shown:.2f}" if ratio else number(shown),
                "told": f"{row['status']}: {row['reason']}" if shown is None else said,
                "wins": ratio and row["verdict"] == Verdict.WINS,
                "ends": (row[f"{m.column}_lo"], row[f"{m.column}_hi"]) if ratio else (),
            }
        )
    blocks.heading(measure[0].upper() + measure[1:], m.term)
    there = [c["value"] for c in cells if c["value"] is not None]
    alt = f"{measure} by {x.name} and {y.name}: " + (
        f"{number(min(there))} to {number(max(there))} {m.unit}" if there else "no answer anywhere"
    )
    xs, ys = (list(dict.fromkeys(c[k] for c in cells)) for k in ("x", "y"))
    if view == "map":
        spec = heat.heat_map(
            cells, x.label, y.label, xs, ys, m.unit, ratio=ratio, numbers=len(cells) <= CELLS_WITH_NUMBERS
        )
        caption = (
            f"Black line: round what wins, {WIN:g}x and P(win) {SURE:g} or more."
            if ratio
            else "Grey: no answer; point at it to see why."
        )
    else:
        if not x.numeric:
            st.info("Curves need numbers across; choose batch, a length, tp or sparsity there.")
            return
        lines = []
        for name in ys:
            own = [(c["x"], c["value"], *c["ends"]) for c in cells if c["y"] == name and c["value"] is not None]
            if own:
                lines.append(Line(str(name), *np.array(own, float).T))
        drawn = Lines(
            tuple(lines), x.label, f"{measure} [{m.unit}]", x_log=x.name != axes.SPARSITY, y_log=not ratio, share=False
        )
        spec = figures.curves(drawn, rule=1.0 if ratio else None, series_title=y.label)
        caption = (
            f"Dashed: dense; a policy wins from {WIN:g}x and P(win) {SURE:g}; band: 90 % interval." if ratio else ""
        )
    blocks.chart(spec, alt, "sweep", caption)


def _told(row: Row, *more: str) -> str:
    """What a point of a chart says: its speed-up, and where its quality is from."""
    return "; ".join((told(row.speedup), *more))


def quality(scenario: Scenario, summary: Summary) -> None:
    """Speed against loss of quality: what was swept, and every policy whose loss is known at the sidebar's load."""
    blocks.heading("Speed against quality", "Pareto front")
    swept = [(r, first) for r, first in summary.quality() if r.policy != "dense"]
    if swept:
        rows = [
            {
                "x": r.points_lost.mid,
                "y": r.speedup.mid,
                "name": r.policy,
                "front": first,
                "told": _told(r, r.loss_in_words),
            }
            for r, first in swept
        ]
        blocks.chart(
            figures.front(rows, "points lost against dense", "tokens/s over dense"),
            "; ".join(f"{r['name']} {r['y']:.2f}x, {r['told']}" for r in rows),
            "quality_swept",
            "Policies of this sweep whose loss is known, each at its most tokens/s per GPU.",
        )
    most = st.slider(
        "Points of quality that may be lost",
        0.0,
        10.0,
        1.0,
        0.1,
        key="s.loss",
        bind="query-params",
        help="Percentage points of a mean score, at the upper end of the loss's interval.",
    )
    found = compute.known_losses(scenario, most)
    if not found.choices:
        st.caption(f"{found.problem or LOSS_UNKNOWN}.")
        return
    winner = best(list(found.choices), most)
    unit = "point" if most == 1.0 else "points"
    if winner is None:
        st.markdown(f"No policy of known loss surely loses at most {most:g} {unit} and wins here.")
    else:
        st.markdown(
            f"Fastest that loses at most {most:g} {unit}: **{winner.policy}**,"
            f" {told(winner.answer.speedup)}, {plain(winner.loss.words)}."
        )
    rows = [
        {
            "x": c.loss.points.mid,
            "y": c.answer.speedup.mid,
            "name": c.policy,
            "front": c.front,
            "told": _told(c.answer, c.loss.words),
        }
        for c in found.choices
    ]
    blocks.chart(
        figures.front(rows, "points lost against dense", "tokens/s over dense", most),
        "; ".join(f"{r['name']} {r['y']:.2f}x, {r['told']}" for r in rows),
        "quality_known",
        f"Loss of quality, predicted speed at the sidebar's load. Loss in {UNIT}.",
    )
    for policy, reason in found.skipped.items():
        st.caption(f"Not considered: {policy}: {reason}")


page()
