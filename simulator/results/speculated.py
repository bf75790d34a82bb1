"""What speculation gives: tokens per step, what drafting costs, its speed-up over none, and where it wins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from simulator.base import console
from simulator.inference import paired
from simulator.inference.evaluate import evaluate
from simulator.results.verdict import Speedups, along, figure

if TYPE_CHECKING:
    from simulator.inference.evaluate import Points
    from simulator.inference.group import Group

MOST_BATCH = 4096
"""Largest batch of the break-even, whether it fits or not [sequences]."""


def over_none(group: Group, batch: np.ndarray, prompt: float, output: float) -> Speedups:
    """TPOT of `group` without speculation over that with it, shape of `batch` [-]."""
    sizes = batch, np.full_like(batch, prompt), np.full_like(batch, output)
    return paired.tpot(evaluate(group, *sizes), evaluate(group.plain, *sizes))


def sentence(points: Points) -> str:
    """The answer in words, for points of one load."""
    group, prompt, output = points.group, float(np.ravel(points.prompt)[0]), float(np.ravel(points.output)[0])
    kernels = [(t.op.role.startswith("draft."), float(np.mean(t.total_s))) for t in points.decode.ops]
    drafts = sum(s for drafts, s in kernels if drafts) / sum(s for _, s in kernels)
    step = float(np.mean(points.decode.total_s)) * group.tokens_per_step
    own = paired.tpot(points, evaluate(group.plain, points.batch, points.prompt, points.output))
    batches = 2.0 ** np.arange(0.0, np.log2(MOST_BATCH) + 1.0)
    where = along("batch", batches, over_none(group, batches, prompt, output))
    return (
        f"speculation: {group.tokens_per_step:.3g} tokens per step of {console.milliseconds(step)} ms, {drafts:.0%} of"
        f" its kernels draft; TPOT {figure(own.each(lambda end: float(end.ravel()[0])))} faster than without; {where}"
    )
