"""Ops under the roof of a device: what is drawn, decided for the report and the page alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.text import upper
from simulator.base.console import number

if TYPE_CHECKING:
    from simulator.api import Prediction
    from simulator.inference.group import Group

BESIDE = ("fp8", "bf16")
"""Formats whose peaks are drawn beside that of the model's own arithmetic."""


@dataclass(frozen=True, slots=True)
class Mark:
    """One op: flop per moved byte, flop/s reached, and its share of the step's time [-]."""

    series: str
    op: str
    intensity: float
    flop_per_s: float
    share: float


@dataclass(frozen=True)
class Roofline:
    """Ops of some predictions, series by series, under the datasheet's peaks.

    Attributes
    ----------
    flop_per_s : mapping of format to float
        Peaks [flop/s].
    bytes_per_s : float
        Memory bandwidth [B/s].
    ridge : float
        Intensity from which the model's own arithmetic, not memory, is the roof [flop/B].
    means : mapping of series to float
        All flop over all moved bytes [flop/B].
    """

    flop_per_s: Mapping[str, float]
    bytes_per_s: float
    ridge: float
    marks: tuple[Mark, ...]
    means: Mapping[str, float]

    @classmethod
    def of(cls, group: Group, predictions: Sequence[Prediction]) -> Roofline:
        """Decode and prefill of `predictions`, all on the device of `group`."""
        device, math = group.device, str(group.fmt.math)
        peaks = {
            str(d): device.peak_flop_per_s(d)
            for d in type(group.fmt.math)
            if device.has(d) and str(d) in {math, *BESIDE}
        }
        marks, means = [], {}
        for phase in ("decode", "prefill"):
            for p in predictions:
                ops = [o for o in p.ops if o.phase == phase and o.flop > 0 and o.moved_bytes > 0]
                if not ops:
                    continue
                whole = sum(o.total_s for o in p.ops if o.phase == phase)
                name = f"{phase}, {p.answer.policy}"
                marks += [
                    Mark(name, o.role, o.flop / o.moved_bytes, o.flop / o.total_s, o.total_s / whole) for o in ops
                ]
                means[name] = sum(o.flop for o in ops) / sum(o.moved_bytes for o in ops)
        ridge = peaks[math] / device.hbm_bytes_per_s
        return cls(peaks, device.hbm_bytes_per_s, ridge, tuple(marks), means)

    def said(self, where: str, device: str) -> str:
        """Which side of the ridge the first series lies on."""
        name, mean = next(iter(self.means.items()))
        left = mean < self.ridge
        why = "memory, not arithmetic, is its roof" if left else "arithmetic is its roof"
        return (
            f"{upper(name)} of {where} does {number(mean)} flop/B, {'left' if left else 'right'} of the {device}'s"
            f" ridge at {number(self.ridge)}: {why}"
        )

    @property
    def alt(self) -> str:
        """Means and ridge in words."""
        told = "; ".join(f"{k}: {number(v)} flop per byte" for k, v in self.means.items())
        return f"{told}; ridge at {number(self.ridge)}"

    caption = (
        "One mark per op, its area the share of the step's time; lines are the datasheet's peaks, dense and without"
        " 2:4. What stands below the roof waits for launches, ramps or partly filled tiles."
    )
