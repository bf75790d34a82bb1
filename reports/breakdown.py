"""Inside a row: time by op beside dense, the ops under the roofline, and which input moves the answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reports import charts
from reports.again import Inside
from reports.content import Block, Cell, Column, Figure, Paragraph, Section, Subheading, Table, section
from reports.roofline import Roofline
from reports.text import count, ms, num, percent, share, upper
from simulator.results.prediction import PARTS, Prediction


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


def by_part(prediction: Prediction, phase: str) -> dict[str, float]:
    """Time of one step's kernels by part of the model, every one of `PARTS` [s]."""
    out: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    for op in prediction.ops:
        if op.phase == phase:
            out[op.part] += op.total_s
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
                sums.append(by_part(prediction, "decode"))
    parts = {part: np.array([1e3 * s[part] for s in sums]) for part in PARTS}
    first = insides[0].prediction
    total = by_part(first, "decode")
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
    row = i.prediction.answer
    drawn = Roofline.of(i.group, (i.dense, i.prediction) if row.policy != "dense" else (i.prediction,))
    if not drawn.marks:
        return None
    title = drawn.said(f"{row.model} at batch {row.batch:.0f}", row.device)
    figure = Figure("fig-roofline", title, charts.roofline(drawn), drawn.alt, drawn.caption)
    return section("roofline", "Roofline", [figure])
