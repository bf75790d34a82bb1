"""A scenario of a claim, predicted: its quantities, and how two of them compare."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.base.errors import UnsupportedError
from simulator.base.interval import Interval
from simulator.claims.kernel import KernelScenario, KernelTime, kernel_time
from simulator.claims.metrics import SIZES, Value, base, better, e2e_values
from simulator.inference import paired
from simulator.inference.evaluate import Points, evaluate, rate
from simulator.inference.group import Group, group_of
from simulator.inference.paired import Run
from simulator.inference.status import TIMED
from simulator.results.prediction import predict
from simulator.results.rows import load_of
from simulator.scenario.scenario import Scenario

ALIKE = ("model", "device", "engine", "fmt", "kv_dtype", "tp", "pp", "ep")
"""What two groups have in common where their errors cancel."""
PREFILL = ("ttft_s", "prefill_tokens_per_s")
DECODE = ("tpot_s", "decode_s", "decode_tokens_per_s", "decode_phase_tokens_per_s")


@dataclass(frozen=True, eq=False)
class Asked:
    """One scenario, predicted.

    Attributes
    ----------
    values : mapping of metric to Interval
        Its quantities, those that compare with a baseline left out.
    of : Points or KernelTime
        What they were told from.
    """

    group: Group
    values: Mapping[str, Value]
    of: Points | KernelTime
    batch: float

    def value(self, metric: str) -> Value:
        """The quantity that `metric` is about.

        Raises
        ------
        UnsupportedError
            It needs more output than is generated.
        """
        name = base(metric)
        if name not in self.values:
            raise UnsupportedError(f"{name} needs output_tokens of 2 or more")
        return self.values[name]

    def run(self, metric: str, beside: Asked | None = None) -> Run:
        """Its run per sequence [s]; `beside` is the one it is compared with, None for that side itself."""
        if isinstance(self.of, KernelTime):
            made = self._kernel(None if beside is None else beside.of)
        else:
            other = None if beside is None or isinstance(beside.of, KernelTime) else beside.of
            name = base(metric)
            part = paired.prefill if name in PREFILL else paired.decode if name in DECODE else paired.whole
            made = part(self.of, other)
        return made.each(lambda seconds: float(np.sum(seconds)) / self.batch)

    def _kernel(self, beside: Points | KernelTime | None) -> Run:
        own = self.of
        assert isinstance(own, KernelTime)
        if not isinstance(beside, KernelTime):
            return Run(own.time_s, own.kernels_s)
        members = paired.changing(self.group.policies.members, beside.group.policies.members)
        return Run(
            own.time_s, own.kernels_s, *paired.changes(members, own.changed_s, own.errors, beside.errors.families)
        )


def asked(scenario: Mapping[str, Any], kind: str, seen: dict[str, Asked]) -> Asked:
    """The prediction of a scenario; those that several claims share are made once.

    Raises
    ------
    ShadowlineError
        It cannot run, or a name is unknown.
    """
    key = repr(sorted(scenario.items()))
    if key not in seen:
        seen[key] = _kernel(scenario) if kind == "kernel" else _whole(scenario)
    return seen[key]


def _kernel(scenario: Mapping[str, Any]) -> Asked:
    kernel = KernelScenario.of(scenario)
    t = kernel_time(kernel)
    time = Interval(t.time_s, t.lo_s, t.hi_s)
    values = {
        "time_s": time,
        "dense_flop_per_s": rate(t.dense_flop, time),
        "kv_read_bytes": Interval.exact(t.kv_read_bytes),
    }
    return Asked(t.group, values, t, float(kernel.batch))


def _whole(scenario: Mapping[str, Any]) -> Asked:
    s = Scenario.of(**scenario)
    group = group_of(s)
    points = None if group.problem else evaluate(group, *load_of(s))
    # No comparison with dense is asked for, so `predict` need not make one.
    if points is None or points.status.ravel()[0] not in TIMED:
        raise UnsupportedError(predict(s).sentence)
    ttft, tpot = (figure.each(lambda end: float(end[0])) for figure in (points.ttft_s, points.tpot_s))
    values = e2e_values(s, group.gpus, ttft, tpot, float(np.ravel(points.footprint.total_bytes)[0]))
    return Asked(group, values, points, float(s.batch))


def runs(metric: str, own: Asked, beside: Asked) -> tuple[Run, Run] | None:
    """Both sides per sequence, where they have enough in common for their errors to cancel."""
    if base(metric) in SIZES or any(getattr(own.group, k) != getattr(beside.group, k) for k in ALIKE):
        return None
    return own.run(metric, beside), beside.run(metric)


def faster(metric: str, own: Asked, beside: Asked) -> Value:
    """How much better `metric` is than its baseline's [-]; errors that both share cancel.

    What either alone has of policies keeps its own: a paper's baseline may be a policy, too.

    Raises
    ------
    UnsupportedError
        A quantity needs more output than is generated.
    """
    found = better(metric, own.value(metric), beside.value(metric))
    both = runs(metric, own, beside)
    if both is None:
        return found
    here, there = paired.faster(*both), paired.faster(beside.run(metric, own), own.run(metric))
    factor = math.exp(math.hypot(*(math.log(float(end.hi / end.mid)) for end in (here, there))))
    return Interval(found.mid, found.mid / factor, found.mid * factor)
