"""What a sweep says, gathered block by block and printed: best row per device, wins and losses, break-even."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from simulator.base import console
from simulator.base.interval import Interval
from simulator.inference.status import Status
from simulator.policies import IDEAL, in_kernel
from simulator.results.answer import Row, Rows
from simulator.results.loss import LOSS_UNKNOWN, UNIT, front
from simulator.results.verdict import RULE, Tally, figure, tally, wins

LOAD = ("batch", "prompt", "output")
Key = tuple[str, str, str]
"""Model, device, and policy with its kernel where that is another than its own."""
QUALITY = (
    "model",
    "device",
    "policy",
    "tokens_per_s_per_gpu",
    "throughput_speedup_same_batch",
    "throughput_speedup_same_batch_lo",
    "throughput_speedup_same_batch_hi",
    "p_win",
    "quality_points_lost",
    "quality_points_lost_lo",
    "quality_points_lost_hi",
    "quality_basis",
    "quality_perplexity_ratio",
    "quality_agreement",
    "quality_source",
)


@dataclass
class _Found:
    """Rows of one policy for one model on one device, block by block."""

    speedups: list[Interval[np.ndarray]] = field(default_factory=list)
    """At the same batch."""
    largest: list[Interval[np.ndarray]] = field(default_factory=list)
    """Each at its own largest batch; NaN where dense has none."""
    loads: list[np.ndarray] = field(default_factory=list)
    """Batch, prompt and output of each, shape (3, n)."""
    rows: int = 0
    reason: str = ""
    best: Row | None = None
    """With most tokens/s per GPU."""
    winner: Row | None = None
    """The same among those that win."""

    def tally(self, key: Key, *, largest: bool = False) -> Tally:
        """What the policy does against dense at the same batch, or each at its largest, over the loads that fit."""
        found = self.largest if largest else self.speedups
        speedup = Interval(*map(np.concatenate, zip(*found, strict=True))) if found else Interval.exact(np.zeros(0))
        known = np.isfinite(speedup.mid)
        if not known.any():
            return Tally(*key, of=self.rows, reason=self.reason)
        axes = zip(LOAD, np.concatenate(self.loads, axis=1)[:, known], strict=True)
        # Of a largest batch it makes no difference at which batch a row is.
        at = {noun: axis for noun, axis in axes if not (largest and noun == "batch")}
        return tally(key, speedup.each(lambda end: end[known]), at, self.rows)


@dataclass
class Summary:
    """Running answer of a sweep."""

    rows: int = 0
    status: dict[str, int] = field(default_factory=dict)
    found: dict[Key, _Found] = field(default_factory=dict)
    software: dict[str, None] = field(default_factory=dict)
    """Where policies can be run, each sentence once."""

    def add(self, rows: Rows) -> None:
        """Take in the rows of one group."""
        self.rows += rows.n
        for code, n in zip(*np.unique(rows.status.codes, return_counts=True), strict=True):
            word = rows.status.words[int(code)]
            self.status[word] = self.status.get(word, 0) + int(n)
        policy = in_kernel(rows.policy[0], rows.kernel[0], rows.speculate[0])
        found = self.found.setdefault((rows.model[0], rows.device[0], policy), _Found())
        if rows.software[0]:
            self.software.setdefault(rows.software[0])
        found.rows += rows.n
        ok = rows.ok
        if not ok.any():
            if rows.status[0] in (Status.NOT_APPLICABLE.word, Status.UNSUPPORTED_DTYPE.word):
                found.reason = rows.reason[0]
            return
        for kept, speedup in ((found.speedups, rows.speedup), (found.largest, rows.speedup_at_max_batch)):
            kept.append(speedup.each(lambda end: end[ok]))
        found.loads.append(np.stack([rows.batch[ok], rows.prompt_tokens[ok], rows.output_tokens[ok]]))
        found.best = _faster(found.best, rows, ok)
        found.winner = _faster(found.winner, rows, ok & wins(rows.speedup))

    @property
    def ok(self) -> int:
        """Rows that run."""
        return self.status.get(Status.OK.word, 0)

    @property
    def best(self) -> list[Row]:
        """Row with most tokens/s per GPU of every model and device, dense or one that wins over it.

        Where dense was not asked for or does not fit, policies have nothing to win over: the fastest of them. An ideal
        kernel is a bound that nobody can run, so it is the best only where nothing else was asked.
        """
        of: dict[tuple[str, str], list[Row]] = {}
        alone: dict[tuple[str, str], list[Row]] = {}
        for (model, device, policy), found in self.found.items():
            at = model, device
            if found.best is not None:
                alone.setdefault(at, []).append(found.best)
            chosen = found.best if policy == "dense" else found.winner
            if chosen is not None:
                of.setdefault(at, []).append(chosen)
        dense = {key[:2] for key, found in self.found.items() if key[2] == "dense" and found.best is not None}
        best = (of[at] if at in dense else rows for at, rows in alone.items())
        return [fastest([row for row in rows if row.kernel != IDEAL] or rows) for rows in best]

    def tallies(self, *, largest: bool = False) -> list[Tally]:
        """What each policy does against dense at the same batch, or each at its largest, over the loads that fit."""
        return [found.tally(key, largest=largest) for key, found in self.found.items() if key[2] != "dense"]

    def loss(self, t: Tally) -> str:
        """Loss of quality of a policy that a tally is of."""
        best = self.found[t.model, t.device, t.policy].best
        return LOSS_UNKNOWN if best is None else best.loss

    def quality(self) -> list[tuple[Row, bool]]:
        """Speed against quality: the fastest row of every policy whose loss is known, and whether no other policy of
        that model and device beats it in both.
        """
        of: dict[tuple[str, str], list[Row]] = {}
        for (model, device, _), found in sorted(self.found.items(), key=lambda kv: kv[0][:2]):
            if found.best is not None and isfinite(found.best.points_lost.mid):
                of.setdefault((model, device), []).append(found.best)
        out: list[tuple[Row, bool]] = []
        for rows in of.values():
            rows.sort(key=lambda row: row.points_lost.mid)
            loss = [row.points_lost.mid for row in rows]
            out += zip(rows, map(bool, front([row.tokens_per_s_per_gpu.mid for row in rows], loss)), strict=True)
        return out

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        quality = ((row.to_dict(), first) for row, first in self.quality())
        return {
            "rows": self.rows,
            "status": self.status,
            "best_per_device": [row.to_dict() for row in self.best],
            "policies": [t.to_dict() for t in self.tallies()],
            "policies_at_max_batch": [t.to_dict() for t in self.tallies(largest=True)],
            "quality": [{k: row[k] for k in QUALITY} | {"front": first} for row, first in quality],
            "software": list(self.software),
        }


def _faster(known: Row | None, rows: Rows, among: np.ndarray) -> Row | None:
    """The one with most tokens/s per GPU of `known` and of some of `rows`."""
    speed = np.where(among, rows.tokens_per_s_per_gpu.mid, np.nan)
    if not np.isfinite(speed).any():
        return known
    best = rows.at(int(np.nanargmax(speed)))
    return best if known is None else fastest([known, best])


def fastest(rows: Iterable[Row]) -> Row:
    """The first with most tokens/s per GPU."""
    return max(rows, key=lambda row: row.tokens_per_s_per_gpu.mid)


def show(summary: Summary, out: Path | None) -> None:
    """Print the answer, then the best row of every model, device and policy."""
    status = ", ".join(f"{n:,} {word}" for word, n in summary.status.items())
    console.out(f"{summary.rows:,} rows: {status}")
    console.out()
    console.table(
        "Most tokens/s per GPU on each device, of dense and what wins over it",
        [
            "model",
            "device",
            "policy",
            "dtype",
            "tp",
            "batch",
            "prompt",
            "output",
            "tokens/s/GPU",
            "TTFT ms",
            "TPOT ms (90 %)",
            "vs dense",
            "loss",
            "$/Mtoken",
            "bound by",
            "basis",
        ],
        map(_best_row, summary.best),
        left=4,
    )
    for title, largest, note in (
        ("at the same batch", False, "dense is timed even where it does not fit"),
        ("each at its largest batch", True, "where dense fits at no batch there is nothing to win over"),
    ):
        tallies = summary.tallies(largest=largest)
        devices = list(dict.fromkeys(t.device for t in tallies))
        if devices:
            console.table(
                f"Throughput over dense, {title}: median (90 % interval, P(win)), and where it wins",
                ["model", "policy", "loss", *devices],
                _pivot(summary, tallies, devices),
                left=3 + len(devices),
                note=f"{RULE}. Over the rows with status ok; {note}",
            )
    for line in _why_not(summary):
        console.out(line)
    quality = summary.quality()
    if any(not row.is_dense for row, _ in quality):
        missing = sorted(
            {key[2] for key in summary.found} - {in_kernel(row.policy, row.kernel, row.speculate) for row, _ in quality}
        )
        # Of many pairs of model and device a screen holds what is worth a choice; --json has the rest.
        many = len({(row.model, row.device) for row, _ in quality}) > MOST_PAIRS
        shown = [(row, first) for row, first in quality if not many or (first and not row.is_dense)]
        which = ", those of the front" if many else ""
        console.table(
            f"Speed against quality: each policy at its most tokens/s per GPU{which}",
            ["model", "device", "policy", "front", "tokens/s/GPU", "vs dense", "loss", "same token", "source"],
            [_quality_row(row, first) for row, first in shown],
            left=4,
            note=f"loss: {UNIT}; front: no other policy here is both as fast and as good; same token: next tokens that"
            " are dense's, where measured" + (f"; {LOSS_UNKNOWN}: {', '.join(missing)}" if missing else ""),
        )
    for told in summary.software:
        console.out(f"software: {told}")
    if out is not None:
        console.out(f"all rows: {out}")


def _why_not(summary: Summary) -> Iterator[str]:
    """One line for every reason why policies do not apply, with those it keeps from applying."""
    models = {model for model, *_ in summary.found}
    said: dict[tuple[str, str], dict[str, None]] = {}
    for (model, _, policy), found in summary.found.items():
        if found.reason and not found.loads:
            said.setdefault((model if len(models) > 1 else "", found.reason), {})[policy] = None
    for (model, reason), policies in said.items():
        yield f"not applicable{f' to {model}' if model else ''}: {', '.join(policies)}: {reason}"


MOST_PAIRS = 4
"""Pairs of model and device up to which a printed table shows every policy's speed and loss [-]."""


def _best_row(a: Row) -> list[str]:
    ms, num = console.milliseconds, console.number
    return [
        a.model,
        a.device,
        in_kernel(a.policy, a.kernel, a.speculate),
        a.dtype,
        f"{a.tp:.0f}" if a.pp == 1 else f"{a.tp:.0f}x{a.pp:.0f}",
        *(f"{v:.0f}" for v in (a.batch, a.prompt_tokens, a.output_tokens)),
        num(a.tokens_per_s_per_gpu.mid),
        ms(a.ttft_s.mid),
        console.spread(a.tpot_s, ms),
        "-" if a.is_dense else figure(a.speedup),
        "-" if a.is_dense else a.loss,
        num(a.usd_per_mtoken),
        a.bound,
        a.basis.lower(),
    ]


def _quality_row(a: Row, first: bool) -> list[str]:
    return [
        a.model,
        a.device,
        in_kernel(a.policy, a.kernel, a.speculate),
        "*" if first else "",
        console.number(a.tokens_per_s_per_gpu.mid),
        "-" if a.is_dense else figure(a.speedup),
        "-" if a.is_dense else a.loss,
        f"{a.quality_agreement:.1%}" if isfinite(a.quality_agreement) else "-",
        a.quality_source,
    ]


def _pivot(summary: Summary, tallies: list[Tally], devices: list[str]) -> Iterator[list[str]]:
    """One row per model and policy, one column per device."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    losses: dict[tuple[str, str], str] = {}
    for t in tallies:
        cells.setdefault((t.model, t.policy), {})[t.device] = t.told()
        if t.rows:
            losses[t.model, t.policy] = summary.loss(t)
    for key, row in cells.items():
        yield [*key, losses.get(key, "-"), *(row.get(d, "-") for d in devices)]
