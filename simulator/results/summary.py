"""What a sweep says, gathered block by block and printed: best row per device, wins and losses, break-even."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from simulator.base import console
from simulator.inference.status import Status
from simulator.results.result import COLUMNS, Block

WIN = 1.02
"""Speed-up from which a policy counts as winning: below it is inside any measurement's noise."""

SHOWN = (
    "model",
    "device",
    "policy",
    "dtype",
    "tp",
    "pp",
    "batch",
    "prompt_tokens",
    "output_tokens",
    "status",
    "ttft_s",
    "tpot_s",
    "tpot_lo_s",
    "tpot_hi_s",
    "tokens_per_s_per_gpu",
    "usd_per_mtoken",
    "throughput_speedup_same_batch",
    "basis",
    "bound",
    "total_bytes",
)


@dataclass
class PolicyTally:
    """Speed-ups of one policy for one model on one device at the same batch."""

    speedups: list[np.ndarray] = field(default_factory=list)
    batches: list[np.ndarray] = field(default_factory=list)
    prompts: list[np.ndarray] = field(default_factory=list)
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Figures of the tally."""
        if not self.speedups:
            return {"rows": 0, "reason": self.reason}
        s, b, p = (np.concatenate(x) for x in (self.speedups, self.batches, self.prompts))
        return {
            "rows": len(s),
            "wins": float(np.mean(s >= WIN)),
            "loses": float(np.mean(s < 1.0 / WIN)),
            "median": float(np.median(s)),
            "best": float(s.max()),
            "worst": float(s.min()),
            "break_even": break_even(s, b, p),
        }


def break_even(speedup: np.ndarray, batch: np.ndarray, prompt: np.ndarray) -> str:
    """From which batch or prompt on a policy wins, in words; medians over the other axis."""
    if np.all(speedup >= WIN):
        return "wins everywhere here"
    if not np.any(speedup >= WIN):
        return "never wins here"
    for name, axis in (("batch", batch), ("prompt", prompt)):
        values = np.unique(axis)
        if len(values) < 2:
            continue
        wins = np.array([np.median(speedup[axis == v]) >= WIN for v in values])
        if not wins.any() or wins.all():
            continue
        if wins[-1] and not wins[: int(np.argmax(wins))].any() and wins[int(np.argmax(wins)) :].all():
            return f"wins from {name} {int(values[np.argmax(wins)])}"
        if wins[0] and not wins[int(np.argmin(wins)) :].any():
            last = int(np.argmin(wins)) - 1
            return f"wins {'up to' if last else 'only at'} {name} {int(values[last])}"
    return f"wins in {np.mean(speedup >= WIN):.0%} of the points"


@dataclass
class Summary:
    """Running answer of a sweep."""

    rows: int = 0
    status: dict[str, int] = field(default_factory=dict)
    best: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    best_of_policy: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    tallies: dict[tuple[str, str, str], PolicyTally] = field(default_factory=dict)

    def add(self, block: Block) -> None:
        """Take in one block."""
        c = block.columns
        self.rows += block.rows
        codes = np.asarray(c["status"][0])
        for code, n in zip(*np.unique(codes, return_counts=True), strict=True):
            name = Status(code).word
            self.status[name] = self.status.get(name, 0) + int(n)
        model, device, policy = (c[k][1][0] for k in ("model", "device", "policy"))
        key = (model, device, policy)
        tally = self.tallies.setdefault(key, PolicyTally())
        ok = codes == Status.OK
        if not ok.any():
            if codes[0] in (Status.NOT_APPLICABLE, Status.UNSUPPORTED_DTYPE):
                tally.reason = c["reason"][1][0]
            return
        if policy != "dense":
            tally.speedups.append(np.asarray(c["throughput_speedup_same_batch"])[ok])
            tally.batches.append(np.asarray(c["batch"])[ok])
            tally.prompts.append(np.asarray(c["prompt_tokens"])[ok])
        rate = np.where(ok, np.asarray(c["tokens_per_s_per_gpu"], float), -np.inf)
        row = row_at(block, int(np.argmax(rate)))
        for store, name in ((self.best, key[:2]), (self.best_of_policy, key)):
            old = store.get(name)  # type: ignore[call-overload]
            if old is None or row["tokens_per_s_per_gpu"] > old["tokens_per_s_per_gpu"]:
                store[name] = row  # type: ignore[index]

    @property
    def ok(self) -> int:
        """Rows with status ok."""
        return self.status.get("ok", 0)

    def quality(self) -> list[dict[str, Any]]:
        """Speed against quality: the fastest row of every policy whose quality a trace measured.

        ``front`` marks those no other policy of that model and device beats in both.
        """
        rows = [
            {k: row[k] for k in QUALITY}
            for row in self.best_of_policy.values()
            if row["quality_perplexity_ratio"] is not None
        ]
        for row in rows:
            row["front"] = not any(
                all(other[k] == row[k] for k in ("model", "device")) and _beats(other, row) for other in rows
            )
        return sorted(rows, key=lambda r: (r["model"], r["device"], r["quality_perplexity_ratio"]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json`` and for reports."""
        return {
            "rows": self.rows,
            "status": self.status,
            "best_per_device": list(self.best.values()),
            "policies": [
                {"model": m, "device": d, "policy": p, **t.to_dict()}
                for (m, d, p), t in self.tallies.items()
                if p != "dense"
            ],
            "quality": self.quality(),
        }


QUALITY = (
    "model",
    "device",
    "policy",
    "tokens_per_s_per_gpu",
    "throughput_speedup_same_batch",
    "quality_perplexity_ratio",
    "quality_agreement",
    "quality_source",
)


def _beats(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether `a` is as fast and as good as `b`, and better in one."""
    faster = a["tokens_per_s_per_gpu"] - b["tokens_per_s_per_gpu"]
    better = b["quality_perplexity_ratio"] - a["quality_perplexity_ratio"]
    return min(faster, better) >= 0.0 and max(faster, better) > 0.0


def row_at(block: Block, index: int) -> dict[str, Any]:
    """One row as plain values; absent ones are None."""
    out: dict[str, Any] = {}
    for name, column in COLUMNS.items():
        value = block.columns[name]
        if column.kind == "text":
            code = int(value[0][index])
            out[name] = value[1][code] if code >= 0 else None
        else:
            real = float(value[index])
            known = np.isfinite(real)
            out[name] = None if not known else int(real) if column.kind == "whole" else real
    return out


def merge_words(summary: Mapping[str, Any]) -> str:
    """Rows by status in one line."""
    parts = [f"{n:,} {status}" for status, n in summary["status"].items()]
    return f"{summary['rows']:,} rows: " + ", ".join(parts)


def show(summary: Summary, out: Path | None) -> None:
    """Print the answer, then the best row of every model, device and policy."""
    answer = summary.to_dict()
    console.out(merge_words(answer))
    console.out()
    console.table(
        "Most tokens/s per GPU on each device",
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
            "$/Mtoken",
            "bound by",
            "basis",
        ],
        [_best_row(row) for row in answer["best_per_device"]],
        left=4,
    )
    devices = list(dict.fromkeys(t["device"] for t in answer["policies"]))
    if devices:
        console.table(
            "Where sparsity wins and loses: throughput over dense at the same batch, median (worst-best)",
            ["model", "policy", *devices],
            _pivot(answer["policies"], devices),
            left=2 + len(devices),
            note=f"a win is {WIN:g}x or more, a loss {1 / WIN:.2f}x or less, over the rows with status ok;"
            " dense is timed even where it does not fit",
        )
    if answer["quality"]:
        console.table(
            "Speed against quality, as the trace measured it: each policy at its most tokens/s per GPU",
            ["model", "device", "policy", "front", "tokens/s/GPU", "vs dense", "perplexity", "same token", "measured"],
            [_quality_row(row) for row in answer["quality"]],
            left=4,
            note="front: no other policy here is both as fast and as good; perplexity over dense's;"
            " same token: next tokens that are dense's; a policy that is missing was not judged with these"
            " parameters: python -m traces.show lists what was",
        )
    if out is not None:
        console.out(f"all rows: {out}")


def _best_row(row: dict[str, Any]) -> list[str]:
    ms, num = console.milliseconds, console.number
    tpot = f"{ms(row['tpot_s'])} ({ms(row['tpot_lo_s'])}-{ms(row['tpot_hi_s'])})"
    gpus = f"{row['tp']}" if row["pp"] == 1 else f"{row['tp']}x{row['pp']}"
    return [
        row["model"],
        row["device"],
        row["policy"],
        row["dtype"],
        gpus,
        f"{row['batch']}",
        f"{row['prompt_tokens']}",
        f"{row['output_tokens']}",
        num(row["tokens_per_s_per_gpu"]),
        ms(row["ttft_s"]),
        tpot,
        f"{num(row['throughput_speedup_same_batch'])}x",
        num(row["usd_per_mtoken"]),
        row["bound"],
        row["basis"].lower(),
    ]


def _quality_row(row: dict[str, Any]) -> list[str]:
    return [
        row["model"],
        row["device"],
        row["policy"],
        "*" if row["front"] else "",
        console.number(row["tokens_per_s_per_gpu"]),
        f"{console.number(row['throughput_speedup_same_batch'])}x",
        f"{row['quality_perplexity_ratio']:.3f}x",
        "-" if row["quality_agreement"] is None else f"{row['quality_agreement']:.1%}",
        row["quality_source"],
    ]


def _pivot(tallies: list[dict[str, Any]], devices: list[str]) -> Iterator[list[str]]:
    """One row per model and policy, one column per device."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for t in tallies:
        cells.setdefault((t["model"], t["policy"]), {})[t["device"]] = _cell(t)
    for (model, policy), row in cells.items():
        yield [model, policy, *(row.get(d, "-") for d in devices)]


def _cell(tally: dict[str, Any]) -> str:
    if not tally["rows"]:
        return "not applicable" if tally["reason"] else "no row fits"
    median = f"{tally['median']:.2f}x"
    if tally["rows"] == 1:
        return median
    words = tally["break_even"].removesuffix(" here")
    return f"{median} ({tally['worst']:.2f}-{tally['best']:.2f}) {words.removeprefix('wins ')}"
