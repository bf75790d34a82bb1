"""Inside a row: time by op beside dense, the ops under the roofline, and which input moves the answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from reports import charts
from reports.again import Inside
from reports.content import Block, Cell, Column, Figure, Paragraph, Section, Subheading, Table, section
from reports.text import count, ms, num, percent, share, upper
from simulator.base.console import number
from simulator.base.dtypes import DType
from simulator.results.prediction import OpRow


def inside_section(found: Sequence[Inside | str], binds: Sequence[Block]) -> Section:
    """Bounds of all rows, then the breakdown of the recommended ones."""
    blocks = list(binds)
    insides = [f for f in found if isinstance(f, Inside)]
    problems = list(dict.fromkeys(f for f in found if isinstance(f, str)))
    if insides:
        blocks += [Subheading("Inside the recommended rows"), _steps(insides)]
        blocks += [_ops(i, n) for n, i in enumerate(insides[:2])]
    blocks += [Paragraph(f"A row could not be looked into: {p}.", "note") for p in problems]
    return section("bound", "What takes the time", blocks)


def _sum(ops: Iterable[OpRow], phase: str) -> dict[str, float]:
    out: dict[str, float] = {}
    for op in ops:
        if op.phase == phase:
            out[op.part] = out.get(op.part, 0.0) + op.total_s
    return out


def _steps(insides: Sequence[Inside]) -> Figure:
    """Decode step by part of the model, dense beside the policy."""
    names, sums = [], []
    for i in insides:
        row = i.prediction.answer
        where = f"{row.model}, {row.device}, batch {row.batch:.0f}"
        for prediction in (i.dense, i.prediction):
            if prediction.ops and (prediction is i.dense or row.policy != "dense"):
                names.append(f"{where}: {prediction.answer.policy}")
                sums.append(_sum(prediction.ops, "decode"))
    groups = ("attention projections", "attention", "FFN", "LM head", "communication", "other", "added by the policy")
    parts = {g: np.array([1e3 * s.get(g, 0.0) for s in sums]) for g in groups}
    first = insides[0].prediction
    total = _sum(first.ops, "decode")
    largest = max(total, key=lambda k: total[k])
    row = first.answer
    title = (
        f"{upper(largest)} take{'s' if not largest.endswith('s') else ''}"
        f" {share(total[largest] / sum(total.values()))} of"
        f" a decode step's kernels with {row.policy} on {row.device}"
    )
    return Figure(
        "fig-steps",
        title,
        charts.stacked(names, parts, "kernels of one mean decode step [ms]"),
        "; ".join(f"{n}: {sum(s.values()) * 1e3:.3g} ms" for n, s in zip(names, sums, strict=True)),
        "The recommended rows at the load of page one. Host time that the GPU does not hide is not in these bars.",
    )


def _ops(i: Inside, n: int) -> Table:
    p = i.prediction
    steps = max(p.answer.output_tokens - 1, 1)
    ops = sorted(p.ops, key=lambda o: -o.total_s * (steps if o.phase == "decode" else 1))[:14]
    whole = sum(o.total_s * (steps if o.phase == "decode" else 1) for o in p.ops)
    return Table(
        f"tab-ops-{n}",
        f"{p.answer.model} on {p.answer.device}, {p.answer.policy}: the ops that take most of the time",
        (
            Column("op"),
            Column("phase"),
            Column("calls", True),
            Column("time [ms]", True),
            Column("share of all", True),
            Column("math [ms]", True),
            Column("memory [ms]", True),
            Column("link [ms]", True),
            Column("launch [ms]", True),
            Column("moved [MB]", True),
            Column("basis", term="basis"),
        ),
        tuple(
            (
                Cell(o.role + (" *" if o.overhead else "")),
                Cell(o.phase),
                count(o.count),
                ms(o.total_s),
                percent(o.total_s * (steps if o.phase == "decode" else 1) / whole, 1),
                ms(o.math_s),
                ms(o.memory_s),
                ms(o.link_s),
                ms(o.launch_s),
                num(o.moved_bytes / 1e6),
                Cell(o.basis.lower()),
            )
            for o in ops
        ),
        note="Per prefill or decode step, all layers; terms overlap and need not add up. Share: of the end-to-end"
        " kernels. *: work the policy adds.",
    )


def roofline_section(insides: Sequence[Inside]) -> Section | None:
    """Ops of the first recommended row under its device's roof, dense beside the policy."""
    if not insides:
        return None
    i = insides[0]
    device, row = i.group.device, i.prediction.answer
    roof = charts.Roof(
        {str(d): device.peak_flop_per_s(d) for d in (DType.BF16, DType.FP8, DType.FP32) if device.has(d)},
        device.hbm_bytes_per_s,
    )
    points: dict[str, Any] = {}
    mean: dict[str, float] = {}
    for phase in ("decode", "prefill"):
        for p in (i.dense, i.prediction):
            if p is i.prediction and row.policy == "dense":
                continue
            ops = [o for o in p.ops if o.phase == phase and o.flop > 0 and o.moved_bytes > 0]
            if not ops:
                continue
            whole = sum(o.total_s for o in p.ops if o.phase == phase)
            name = f"{phase}, {p.answer.policy}"
            points[name] = (
                np.array([o.flop / o.moved_bytes for o in ops]),
                np.array([o.flop / o.total_s for o in ops]),
                np.array([o.total_s / whole for o in ops]),
            )
            mean[name] = sum(o.flop for o in ops) / sum(o.moved_bytes for o in ops)
    if not points:
        return None
    peak = roof.flop_per_s.get("bf16", max(roof.flop_per_s.values()))
    ridge = peak / roof.bytes_per_s
    name = next(iter(mean))
    side = "left of" if mean[name] < ridge else "right of"
    why = "memory, not arithmetic, is its roof" if mean[name] < ridge else "arithmetic is its roof"
    title = (
        f"{upper(name)} of {row.model} at batch {row.batch:.0f} does {number(mean[name])} flop/B, {side} the"
        f" {row.device}'s ridge at {number(ridge)}: {why}"
    )
    return section(
        "roofline",
        "Roofline",
        [
            Figure(
                "fig-roofline",
                title,
                charts.roofline(roof, points),
                "; ".join(f"{k}: {number(v)} flop per byte" for k, v in mean.items()),
                "One mark per op, its area the share of the step's time; lines are the datasheet's peaks, dense and"
                " without 2:4. What stands below the roof waits for launches, ramps or partly filled tiles.",
            )
        ],
    )
