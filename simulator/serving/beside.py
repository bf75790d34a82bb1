"""What a deployment's policy does to a batch of its mean load, beside dense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from simulator.base.interval import Interval
from simulator.inference.evaluate import evaluate
from simulator.inference.paired import throughput
from simulator.results.verdict import told, verdict
from simulator.serving.deployment import Deployment
from simulator.serving.requests import Requests

KEYS = ("speedup", "speedup_lo", "speedup_hi", "p_win", "verdict")


def beside_dense(deployment: Deployment, requests: Requests, running: float) -> dict[str, Any]:
    """Columns `KEYS`: throughput over dense of a static batch of the mean prompt and output; None and "" for dense.

    Parameters
    ----------
    running : float
        Sequences that decode at once on a replica [-].
    """
    group = deployment.group
    if not group.policies.members:
        return {**dict.fromkeys(KEYS), "verdict": ""}
    sizes = max(running, 1.0), max(float(np.mean(requests.prompt)), 1.0), max(float(np.mean(requests.output)), 1.0)
    load = [np.array([np.rint(size)]) for size in sizes]
    points, dense = evaluate(group, *load), evaluate(group.dense, *load)
    at = throughput(points, dense).each(lambda end: float(end[0]))
    return dict(zip(KEYS, (*at, float(at.above(1.0)), str(verdict(at))), strict=True))


def told_beside(row: Mapping[str, Any]) -> str:
    """``w4a16 against dense, a batch of the mean load: wins, 1.35x dense (...)``; empty for dense."""
    if row["speedup"] is None:
        return ""
    at = Interval(row["speedup"], row["speedup_lo"], row["speedup_hi"])
    return f"{row['policy']} against dense, a batch of the mean load: {told(at)}"
