"""What a policy does to one scenario: the answer in words, the numbers, and where time and memory go."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import axes, blocks, compute, figures, state, words
from simulator.base.console import number
from simulator.inference.group import group_of
from simulator.results.prediction import PARTS, Prediction
from simulator.scenario.scenario import Scenario

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
    blocks.pinned(scenario)
    if base is not None and pinned is not None:
        st.caption(f"Changes are against the baseline: {words.told(pinned)}")
    shown = {"dense": dense, scenario.policy: answer}
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
    row = p.row
    old: dict[str, Any] = base.row if base else {}

    def tile(label: str, key: str, text: str, term: str, below: str = "", less: bool = False) -> None:
        with st.container(border=True, width=166, gap=None):
            st.metric(
                label,
                text,
                words.relative(row[key], old.get(key)),
                help=blocks.tip(term),
                delta_color="inverse" if less else "normal",
            )
            st.caption(below or "&nbsp;")

    with st.container(horizontal=True, gap="small"):
        speedup = row["throughput_speedup_same_batch"]
        tile("tokens/s", "tokens_per_s", words.num(row["tokens_per_s"]), "tokens/s", words.interval_rate(row))
        tile(
            "speed-up over dense",
            "throughput_speedup_same_batch",
            "–" if speedup is None else f"{speedup:.2f}x",
            "speed-up",
            _largest(row),
        )
        tile(
            "TTFT",
            "ttft_s",
            words.ms(row["ttft_s"]),
            "TTFT",
            words.interval_ms(row["ttft_s"], row["ttft_lo_s"], row["ttft_hi_s"]),
            less=True,
        )
        tile(
            "TPOT",
            "tpot_s",
            words.ms(row["tpot_s"]),
            "TPOT",
            words.interval_ms(row["tpot_s"], row["tpot_lo_s"], row["tpot_hi_s"]),
            less=True,
        )
        total, capacity = row["total_bytes"], row["capacity_bytes"]
        tile(
            "memory per GPU",
            "total_bytes",
            f"{number(total / 1e9)} GB" if total else "–",
            "GB",
            f"of {words.gb(capacity)}",
            less=True,
        )
        tile(
            "max batch",
            "max_batch",
            "–" if row["max_batch"] is None else f"{row['max_batch']:,}",
            "max batch",
            "at this length",
        )
        cost = row["usd_per_mtoken"]
        tile(
            "$ per M tokens",
            "usd_per_mtoken",
            "–" if cost is None else f"${number(cost)}",
            "assumed",
            "profile's price",
            less=True,
        )
        energy = row["energy_j_per_token"]
        tile(
            "energy per token",
            "energy_j_per_token",
            "–" if energy is None else f"{number(energy)} J",
            "assumed",
            "estimate",
            less=True,
        )
    blocks.badge(row["basis"])


def _largest(row: dict[str, Any]) -> str:
    best = row["throughput_speedup_at_max_batch"]
    return "" if best is None else f"{best:.2f}x at max batch"


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
        parts: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        for op in p.ops:
            if op.phase == phase:
                parts[op.part] += 1e3 * op.total_s
        rows += [{"name": name, "part": k, "value": v} for k, v in parts.items()]
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
    roof = compute.roof(scenario)
    points = []
    for p in (dense, answer) if scenario.policy != "dense" else (answer,):
        for phase in ("decode", "prefill"):
            ops = [o for o in p.ops if o.phase == phase]
            whole = sum(o.total_s for o in ops)
            points += [
                {
                    "intensity": o.flop / o.moved_bytes,
                    "rate": o.flop / o.total_s / 1e12,
                    "share": o.total_s / whole,
                    "series": f"{phase}, {p.row['policy']}",
                    "op": o.role,
                }
                for o in ops
                if o.flop > 0 and o.moved_bytes > 0
            ]
    ridge = roof.flop_per_s[roof.math] / roof.bytes_per_s
    mean = {s: _mean([p for p in points if p["series"] == s]) for s in dict.fromkeys(p["series"] for p in points)}
    alt = "; ".join(f"{s}: {v:.3g} flop per byte" for s, v in mean.items()) + f"; ridge at {ridge:.3g}"
    blocks.chart(
        figures.roofline(points, roof.flop_per_s, roof.bytes_per_s),
        alt,
        "roofline",
        f"One mark per op, its area the share of its step. Left of {ridge:,.0f} flop/B memory is the roof.",
    )


def _mean(points: list[dict[str, Any]]) -> float:
    weight = sum(p["share"] for p in points) or 1.0
    return sum(p["intensity"] * p["share"] for p in points) / weight


def memory(scenario: Scenario, shown: dict[str, Prediction]) -> None:
    """What fills the GPU, against what the engine may use and what the driver reports."""
    blocks.heading("Does it fit")
    rows = [
        {"name": name, "part": part, "value": p.row[key] / 1e9}
        for name, p in shown.items()
        for part, key in (("weights", "weights_bytes"), ("KV cache", "kv_bytes"), ("other", "other_bytes"))
        if p.row[key] is not None
    ]
    if not rows:
        st.caption("Nothing can be said about the memory of this combination.")
        return
    device = group_of(scenario).device
    share = scenario.gpu_memory_utilization
    marks = [
        {"name": f"{share:.0%} for the engine", "value": share * device.capacity_bytes / 1e9},
        {"name": "", "value": device.capacity_bytes / 1e9},
    ]
    alt = "; ".join(
        f"{n}: {p.row['total_bytes'] / 1e9:.3g} GB" for n, p in shown.items() if p.row["total_bytes"] is not None
    )
    blocks.chart(
        figures.stacked(rows, ("weights", "KV cache", "other"), "memory of the fullest GPU [GB]", marks=marks),
        f"{alt}, of {device.capacity_bytes / 1e9:.3g} GB",
        "memory",
        f"Dashed: what the driver reports ({words.gb(device.capacity_bytes)}), and the engine's share.",
    )


def win_curves(scenario: Scenario, place: Any) -> None:
    """Speed-up along batch and prompt; the sentence goes to `place`, beneath the answer."""
    found = [compute.curve(scenario, axis) for axis in ("batch", "prompt_tokens")]
    if not any(c.fits.any() for c in found):
        return
    place.markdown(words.where_it_wins(found, scenario))
    blocks.heading("Where it wins", "break-even")
    for column, c in zip(st.columns(2, gap="medium"), found, strict=True):
        rows = [
            {"x": float(x), "y": float(y), "series": scenario.policy}
            for x, y, fits in zip(c.values, c.speedup, c.fits, strict=True)
            if fits and y == y
        ]
        title = {"batch": "batch [sequences]", "prompt_tokens": "prompt [tokens]"}[c.axis]
        with column:
            blocks.chart(
                figures.curves(rows, title, "tokens/s over dense", rule=1.0, here=float(getattr(scenario, c.axis))),
                words.where_it_wins([c], scenario),
                f"speedup_{c.axis}",
                "Above the dashed line the policy wins; the grey line is this scenario.",
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
