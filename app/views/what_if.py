"""What a policy does to one scenario: the answer in words, the numbers, and where time and memory go."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite, nan
from typing import Any

import numpy as np
import streamlit as st

from app import axes, blocks, compute, figures, state, words
from reports.breakdown import by_part
from reports.roofline import Roofline
from simulator.api import Prediction, Scenario
from simulator.base.console import milliseconds, number
from simulator.base.drawing import Line, Lines
from simulator.inference.group import group_of
from simulator.results.answer import Row
from simulator.results.prediction import PARTS
from simulator.results.printed import run_in
from simulator.results.verdict import SURE, WIN, as_chance, as_times, figure

REPORT_BATCHES = (1, 4, 16, 64)


def page() -> None:
    """Numbers first: what takes longer is drawn below them."""
    scenario = state.current()
    base = state.baseline()
    answer = compute.predicted(scenario)
    pinned = compute.predicted(base) if base is not None else None
    told, wins = st.empty(), st.empty()
    metrics(answer, pinned)
    dense = compute.predicted(compute.dense_of(scenario))
    told.markdown(f"#### {words.answer(answer, dense)}")
    if known := run_in(answer):
        st.caption(words.plain("; ".join(known)))
    if answer.speculation:
        st.caption(words.plain(answer.speculation))
    blocks.pinned(scenario)
    if base is not None and pinned is not None:
        st.caption(f"Changes are against the baseline: {words.told(pinned)}")
    shown = {"dense": dense, words.named(answer.answer): answer}
    if pinned is not None:
        shown = {"A, baseline": pinned, **shown}
    if answer.ops:
        left, right = st.columns(2, gap="medium")
        with left:
            time(shown)
        with right:
            roofline(scenario, answer, dense)
    memory(scenario, shown)
    if answer.ops and scenario.policy != "dense":
        win_curves(scenario, wins)
    operations(answer)
    blocks.again(scenario.command, words.snippet(scenario))
    downloads(scenario, answer)


def metrics(p: Prediction, base: Prediction | None) -> None:
    """One tile per number, with its interval, and its change against the baseline."""
    a, old = p.answer, base.answer if base else None
    ms = milliseconds

    def tile(label: str, of: Callable[[Row], float], text: str, term: str, below: str = "", less: bool = False) -> None:
        with st.container(border=True, width=166, gap=None):
            st.metric(
                label,
                words.shown(of(a), text),
                words.relative(of(a), nan if old is None else of(old)),
                help=blocks.tip(term),
                delta_color="inverse" if less else "normal",
            )
            st.caption(below or "&nbsp;")

    with st.container(horizontal=True, gap="small"):
        rate, gain, largest = a.tokens_per_s, a.speedup, a.speedup_at_max_batch
        at_max = f"; at max batch {figure(largest, '–')}" if isfinite(largest.mid) else ""
        sure = f", P(win) {as_chance(gain)}" if isfinite(gain.mid) else ""
        tile("tokens/s", lambda r: r.tokens_per_s.mid, number(rate.mid), "tokens/s", words.interval(rate))
        between = words.interval(gain, "{:.2f}".format)
        tile("speed-up over dense", lambda r: r.speedup.mid, as_times(gain.mid), "speed-up", between + sure + at_max)
        between = words.interval(a.ttft_s, ms, " ms")
        tile("TTFT", lambda r: r.ttft_s.mid, f"{ms(a.ttft_s.mid)} ms", "TTFT", between, less=True)
        between = words.interval(a.tpot_s, ms, " ms") or ("no decode step" if a.timed else "")
        tile("TPOT", lambda r: r.tpot_s.mid, f"{ms(a.tpot_s.mid)} ms", "TPOT", between, less=True)
        held = f"{number(a.total_bytes / 1e9)} GB"
        tile("memory per GPU", lambda r: r.total_bytes, held, "GB", f"of {words.gb(a.capacity_bytes)}", less=True)
        tile("max batch", lambda r: r.max_batch, f"{a.max_batch:,.0f}", "max batch", "at this length")
        cost = f"${number(a.usd_per_mtoken)}"
        tile("$ per M tokens", lambda r: r.usd_per_mtoken, cost, "assumed", "profile's price", less=True)
        energy = f"{number(a.energy_j_per_token)} J"
        tile("energy per token", lambda r: r.energy_j_per_token, energy, "assumed", "estimate", less=True)
    blocks.badge(a.basis)


def time(shown: dict[str, Prediction]) -> None:
    """Kernels of a mean decode step or of a prefill, by part of the model."""
    blocks.heading("Where the time goes")
    phase = st.segmented_control(
        "Step",
        ["decode", "prefill"],
        default="decode",
        key="w.phase",
        required=True,
        label_visibility="collapsed",
        help=blocks.tip("decode"),
    )
    rows = []
    for name, p in shown.items():
        rows += [{"name": name, "part": k, "value": 1e3 * v} for k, v in by_part(p, phase).items()]
    totals = {n: sum(r["value"] for r in rows if r["name"] == n) for n in shown}
    alt = f"Kernels of one {phase} step: " + "; ".join(f"{n} {v:.3g} ms" for n, v in totals.items())
    blocks.chart(
        figures.stacked(rows, PARTS, f"kernels of one {phase} step [ms]"),
        alt,
        f"time_{phase}",
        "Host time that the GPU does not hide is not in the bars.",
    )


def roofline(scenario: Scenario, answer: Prediction, dense: Prediction) -> None:
    """Ops under the device's roof."""
    blocks.heading("Under the roof", "roofline")
    drawn = Roofline.of(group_of(scenario), (answer,) if answer.answer.is_dense else (dense, answer))
    blocks.chart(figures.roofline(drawn), drawn.alt, "roofline", drawn.caption)


def memory(scenario: Scenario, shown: dict[str, Prediction]) -> None:
    """What fills the GPU, against what the engine may use and what the driver reports."""
    blocks.heading("Does it fit")
    rows = [
        {"name": name, "part": part, "value": value / 1e9}
        for name, p in shown.items()
        for part, value in (
            ("weights", p.answer.weights_bytes),
            ("KV cache", p.answer.kv_bytes),
            ("other", p.answer.other_bytes),
        )
        if isfinite(value)
    ]
    if not rows:
        st.caption("Nothing can be said about the memory of this combination.")
        return
    group = group_of(scenario)
    device, share = group.device, group.share if group.start is None else group.start.fraction
    marks = [
        {"name": f"{share:.0%} for the engine", "value": share * device.capacity_bytes / 1e9},
        {"name": "", "value": device.capacity_bytes / 1e9},
    ]
    alt = "; ".join(
        f"{n}: {p.answer.total_bytes / 1e9:.3g} GB" for n, p in shown.items() if isfinite(p.answer.total_bytes)
    )
    blocks.chart(
        figures.stacked(rows, ("weights", "KV cache", "other"), "memory of the fullest GPU [GB]", marks=marks),
        f"{alt}, of {device.capacity_bytes / 1e9:.3g} GB",
        "memory",
        f"Dashed: what the driver reports ({words.gb(device.capacity_bytes)}), and the engine's share.",
    )


def win_curves(scenario: Scenario, place: Any) -> None:
    """Speed-up along batch and prompt; the sentence goes to `place`, beneath the answer."""
    found = compute.over_load(scenario)
    if not any(b.fits.any() for b in found):
        return
    place.markdown(words.where_it_wins(found, scenario))
    blocks.heading("Where it wins", "break-even")
    for column, b in zip(st.columns(2, gap="medium"), found, strict=True):
        use = b.fits & np.isfinite(b.speedup.mid)
        s = b.speedup
        line = Line(scenario.policy, b.values[use], s.mid[use], s.lo[use], s.hi[use])
        title = {"batch": "batch [sequences]", "prompt_tokens": "prompt [tokens]"}[b.axis]
        with column:
            blocks.chart(
                figures.curves(
                    Lines((line,), title, "tokens/s over dense", x_log=True, share=False),
                    rule=1.0,
                    here=float(getattr(scenario, b.axis)),
                ),
                words.where_it_wins([b], scenario),
                f"speedup_{b.axis}",
                f"Dashed: dense; a policy wins from {WIN:g}x and P(win) {SURE:g}. The grey line is this"
                " scenario; band: 90 % interval.",
            )


def operations(answer: Prediction) -> None:
    """Every op with its terms."""
    if not answer.ops:
        return
    with st.expander("Every operation, and the fit behind it"):
        table = answer.to_pandas()
        for column in [c for c in table if c.endswith("_s")]:
            table[column] *= 1e3
        table = table.rename(columns={c: c[:-2] + " [ms]" for c in table if c.endswith("_s")})
        st.dataframe(table, hide_index=True, alt="Operations of one prefill and one mean decode step")
        st.caption("Terms overlap and need not add up.")


def downloads(scenario: Scenario, answer: Prediction) -> None:
    """The row and its operations as files."""
    blocks.heading("Take it along")
    blocks.tables(compute.frame(answer), scenario, "prediction")
    if answer.ops:
        with st.container(horizontal=True):
            blocks.download(
                "Operations as CSV",
                lambda: blocks.csv(answer.to_pandas()),
                blocks.file_name(scenario, "operations", "csv"),
                "text/csv",
                "operations.csv",
            )
    batches = tuple(sorted({*REPORT_BATCHES, scenario.batch}))
    grid = axes.grid(scenario, {"policy": tuple(dict.fromkeys(["dense", scenario.policy])), "batch": batches})
    st.caption(f"The report compares with dense at batches {', '.join(map(str, batches))}.")
    blocks.reports(grid, axes.command(grid), scenario)


page()
