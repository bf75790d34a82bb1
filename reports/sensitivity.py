"""Which axis of the sweep, and which input of a recommended row, moves the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from reports import charts
from reports.advice import Advice
from reports.again import Inside
from reports.content import Block, Cell, Column, Figure, Paragraph, Section, Table, section
from reports.rows import Sweep
from reports.text import listed, num, share, times, upper
from simulator.base.errors import ShadowlineError
from simulator.results.answer import Words
from simulator.results.prediction import Prediction

STEP = 0.2
"""Relative change of an input [-]."""
IDLE = 5e-4
"""Effect below which an input is said to have none [-]."""


def sensitivity(a: Advice, insides: Sequence[Inside]) -> Section:
    """Which axis of the sweep, and which input of the recommended row, moves the answer most."""
    blocks: list[Block] = [b for b in (_axes(a.sweep),) if b is not None]
    chosen = next((i for i in insides if i.prediction.answer.policy != "dense"), insides[0] if insides else None)
    if chosen is not None:
        blocks += _inputs(chosen)
    if not blocks:
        blocks = [Paragraph("The sweep has one value on every axis, and no row could be predicted again.")]
    return section("sensitivity", "Which input moves the answer", blocks)


def _axes(sweep: Sweep) -> Figure | None:
    """Share of the variance of ln(speed-up) that each axis explains alone (eta squared)."""
    gain = sweep.rows.speedup.mid
    use = sweep.ok & ~sweep.dense & (gain > 0)
    if use.sum() < 3:
        return None
    y = np.log(gain[use].astype(float))
    total = float(np.var(y))
    if total <= 0.0:
        return None
    found: dict[str, float] = {}
    for name in ("policy", "model", "device", "batch", "prompt_tokens", "output_tokens", "tp", "pp", "engine"):
        column = getattr(sweep.rows, name)
        values, index = np.unique((column.codes if isinstance(column, Words) else column)[use], return_inverse=True)
        if len(values) < 2:
            continue
        n = np.bincount(index)
        means = np.bincount(index, weights=y) / n
        found[name.replace("_", " ")] = float(np.sum(n * (means - y.mean()) ** 2) / len(y)) / total
    if not found:
        return None
    names = sorted(found, key=lambda k: -found[k])
    title = f"The {names[0]} decides most: alone it explains {share(found[names[0]])} of the spread of the speed-ups"
    title += f", the {names[1]} {share(found[names[1]])}" if len(names) > 1 else ""
    return Figure(
        "fig-axes",
        title,
        charts.stacked(
            names,
            {"share": np.array([found[k] for k in names])},
            "share of the variance of ln speed-up [-]",
            percent=True,
        ),
        "; ".join(f"{k} {share(found[k])}" for k in names),
        "Each axis of the sweep on its own (between-group variance over all); what two axes do together is in none of"
        " the bars.",
    )


DEVICE_INPUTS = {
    "memory bandwidth": "bandwidth",
    "peak arithmetic": "math",
    "GPU link": "link",
    "host link": "host",
    "latencies": "latency",
}


def _inputs(i: Inside) -> list[Block]:
    """Tokens/s and speed-up when one input at a time changes by `STEP`."""
    changed: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {}
    speed, gain = _speed(i.prediction), _gain(i.prediction, i.dense)
    for name, key in DEVICE_INPUTS.items():
        less, more = _scaled(i, key, 1.0 - STEP), _scaled(i, key, 1.0 + STEP)
        if less is not None and more is not None:
            changed[name] = less, more
    for name, field in (("batch", "batch"), ("prompt length", "prompt_tokens"), ("output length", "output_tokens")):
        value = getattr(i.scenario, field)
        low, high = max(1, round(value * (1 - STEP))), max(value + 1, round(value * (1 + STEP)))
        if low == value:
            continue
        less, more = _loaded(i, {field: low}), _loaded(i, {field: high})
        if less is not None and more is not None:
            changed[name] = less, more
    if not changed or speed is None:
        return []
    row = i.prediction.answer
    effect = {k: (lo[0] / speed - 1.0, hi[0] / speed - 1.0) for k, (lo, hi) in changed.items()}
    order = sorted(effect, key=lambda k: -max(abs(v) for v in effect[k]))
    idle = [k for k in order if max(abs(v) for v in effect[k]) < IDLE]
    order = [k for k in order if k not in idle]
    if not order:
        return []
    low, high = (np.array([effect[k][s] for k in order]) for s in (0, 1))
    where = f"{row.model} on {row.device}, {row.policy}, batch {row.batch:.0f}, prompt {row.prompt_tokens:.0f}"
    strongest = max(abs(v) for v in effect[order[0]])
    step = share(STEP)
    title = f"{upper(order[0])} moves tokens/s most: a change of {step} moves it by up to {share(strongest, '.1')}"
    blocks: list[Block] = [
        Figure(
            "fig-inputs",
            title,
            charts.tornado(order, low, high, "change of tokens/s [-]", (f"input -{step}", f"input +{step}")),
            "; ".join(f"{k} {share(effect[k][0], '+.1')} and {share(effect[k][1], '+.1')}" for k in order),
            f"{where}; one input at a time."
            + (f" No effect here: {listed(idle)}." if idle else "")
            + " Rent moves the cost in proportion and the speed not at all.",
        )
    ]
    if row.policy != "dense" and gain is not None:
        gains = sorted(order, key=lambda k: -max(abs(v[1] - gain) for v in changed[k]))
        blocks.append(
            Table(
                "tab-inputs",
                f"The speed-up of {row.policy} when an input changes; {times(gain)} as it stands",
                (
                    Column("input"),
                    Column(f"-{step}", True, "speed-up"),
                    Column(f"+{step}", True, "speed-up"),
                    Column("tokens/s at -", True),
                    Column("tokens/s at +", True),
                ),
                tuple(
                    (
                        Cell(k),
                        Cell(f"{changed[k][0][1]:.3f}x", changed[k][0][1]),
                        Cell(f"{changed[k][1][1]:.3f}x", changed[k][1][1]),
                        num(changed[k][0][0]),
                        num(changed[k][1][0]),
                    )
                    for k in gains
                ),
                note=where + ".",
            )
        )
    return blocks


def _speed(p: Prediction) -> float | None:
    """tokens/s, whether it fits or not."""
    a = p.answer
    return a.batch * a.output_tokens / a.e2e_s.mid if a.timed else None


def _gain(p: Prediction, dense: Prediction) -> float | None:
    speeds = _speed(p), _speed(dense)
    return None if speeds[0] is None or speeds[1] is None else speeds[0] / speeds[1]


def _loaded(i: Inside, load: dict[str, int]) -> tuple[float, float] | None:
    from simulator.results.prediction import predict

    try:
        p, d = (predict(x.scenario.model_copy(update=load)) for x in (i.prediction, i.dense))
    except ShadowlineError:
        return None
    speed, gain = _speed(p), _gain(p, d)
    return None if speed is None or gain is None else (speed, gain)


def _scaled(i: Inside, key: str, factor: float) -> tuple[float, float] | None:
    """(tokens/s, speed-up) with one group of the device's numbers multiplied."""
    from simulator.device.catalogue import scaled
    from simulator.inference.evaluate import evaluate

    s = i.scenario
    try:
        group = replace(i.group, device=scaled(i.group.device, **{key: factor}))
        one = [np.array([float(v)]) for v in (s.batch, s.prompt_tokens, s.output_tokens)]
        e2e, dense = (float(evaluate(g, *one).e2e_s.mid[0]) for g in (group, group.dense))
    except ShadowlineError:
        return None
    return s.batch * s.output_tokens / e2e, dense / e2e
