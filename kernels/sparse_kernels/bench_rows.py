"""Rows of a benchmark: columns, summary, and the files that hold them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.base.errors import InputError, reason
from simulator.base.files import replaced
from sparse_kernels.predictions import Expected
from sparse_kernels.registry import Case
from sparse_kernels.timing import Timing

Row = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One kernel at one shape; `member` is a `Kernel` or a `CpuKernel`."""

    member: Any
    case: Case

    @property
    def key(self) -> str:
        """Name of the point among all."""
        return key(self.member.name, self.case.name)


def points(members: Iterable[Any], full: bool) -> list[Point]:
    """Cases of `members` that are timed."""
    return [Point(m, c) for m in members for c in m.cases_for("full" if full else "quick")]


class DeviceLostError(RuntimeError):
    """The GPU answers this process no more; `row` is the kernel that was running."""

    def __init__(self, row: Row):
        super().__init__(str(row["reason"]))
        self.row = row


SIZES = ("m", "n", "k", "batch", "tokens", "hq", "hk", "d", "hidden", "neurons", "page", "block", "budget")
COLUMNS = (
    "op",
    "case",
    "family",
    "device",
    "phase",
    "dtype",
    *SIZES,
    "keep",
    "status",
    "reason",
    "measured_s",
    "p20_s",
    "p80_s",
    "runs",
    "disturbed",
    "timer",
    "hot_s",
    "hot_p20_s",
    "hot_p80_s",
    "predicted_s",
    "lo_s",
    "hi_s",
    "basis",
    "ratio",
    "inside",
    "baseline",
    "baseline_s",
    "baseline_predicted_s",
    "speedup",
    "predicted_speedup",
    "total_bytes",
    "flop",
    "launches",
    "launched",
    "copy_s",
    "copy_share",
    "prediction_sha256",
    "versions",
    "machine",
    "date",
)
"""One row per op and case; times in s, empty where `status` is not ok. `ratio` is predicted / measured; `launches`
are the simulator's, `launched` those the kernel really made."""

HASHED = ("op", "case", "predicted_s", "lo_s", "hi_s", "basis", "baseline_predicted_s", "total_bytes", "launches")
"""What the hash of predictions covers."""


def key(op: str, case: str) -> str:
    """What tells two rows apart."""
    return f"{op} / {case}"


def predicted(
    op: str, family: str, phase: str, device: str, case: Case, own: Expected | None, dense: Expected | None
) -> Row:
    """The part of a row that is known before the run; it is what gets hashed."""
    row: Row = dict.fromkeys(COLUMNS) | {
        "op": op,
        "case": case.name,
        "family": family,
        "device": device,
        "phase": phase,
        "dtype": case.dtype,
        **{s: case.sizes.get(s) for s in SIZES},
        "keep": case.keep,
        "baseline_predicted_s": dense.predicted_s if dense else None,
    }
    if own is None:
        return row
    return row | {
        "predicted_s": own.predicted_s,
        "lo_s": own.lo_s,
        "hi_s": own.hi_s,
        "basis": own.basis,
        "predicted_speedup": dense.predicted_s / own.predicted_s if dense else None,
        "total_bytes": own.total_bytes,
        "flop": own.flop,
        "launches": own.launches,
    }


def measured(
    row: Mapping[str, Any],
    own: Timing,
    *,
    baseline: str | None = None,
    dense: Timing | None = None,
    copy: Timing | None = None,
    cold: Timing | None = None,
) -> Row:
    """`row` with what was timed beside what was predicted.

    ``ratio = predicted / measured``; ``copy_share`` = time of copying the same bytes in as many launches, over
    the kernel's. Where the operands were also timed cold, that is what predictions and shares are judged by: a
    step of a model finds its weights in main memory.
    """
    judged = cold or own
    out = dict(row) | {
        "status": "ok",
        "measured_s": judged.median_s,
        "p20_s": judged.p20_s,
        "p80_s": judged.p80_s,
        "runs": judged.runs,
        "disturbed": judged.disturbed,
        "timer": judged.timer,
        "ratio": row["predicted_s"] / judged.median_s,
        "inside": bool(row["lo_s"] <= judged.median_s <= row["hi_s"]),
    }
    if cold is not None:
        out |= {"hot_s": own.median_s, "hot_p20_s": own.p20_s, "hot_p80_s": own.p80_s}
    if dense is not None:
        out |= {"baseline": baseline, "baseline_s": dense.median_s, "speedup": dense.median_s / judged.median_s}
    if copy is not None:
        out |= {"copy_s": copy.median_s, "copy_share": copy.median_s / judged.median_s}
    return out


def summary(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Predicted over measured of the rows that were timed: median, 10 % and 90 % quantile, errors, coverage."""
    import numpy as np

    timed = [r for r in rows if r["status"] == "ok"]
    out: dict[str, Any] = {"points": len(timed)}
    if not timed:
        return out
    ratio = np.array([r["ratio"] for r in timed])
    low, middle, high = np.quantile(ratio, [0.1, 0.5, 0.9])
    ape = np.abs(ratio - 1.0)
    both = [(r["speedup"], r["predicted_speedup"]) for r in timed]
    same = [(s > 1) == (p > 1) for s, p in both if s and p]
    return out | {
        "median_ratio": float(middle),
        "p10_ratio": float(low),
        "p90_ratio": float(high),
        "median_ape": float(np.median(ape)),
        "p90_ape": float(np.quantile(ape, 0.9)),
        "coverage_90": float(np.mean([r["inside"] for r in timed])),
        "same_verdict": float(np.mean(same)) if same else None,
        "disturbed": float(np.mean([r["disturbed"] or 0.0 for r in timed])),
    }


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """CSV in the order of `COLUMNS`, replaced in one step: an interrupt leaves the rows before."""
    with replaced(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({c: r.get(c) for c in COLUMNS} for r in rows)


NUMBERS = frozenset(
    c
    for c in COLUMNS
    if c.endswith("_s")
    or c
    in (
        *SIZES,
        "keep",
        "runs",
        "disturbed",
        "ratio",
        "speedup",
        "predicted_speedup",
        "total_bytes",
        "flop",
        "launches",
        "launched",
        "copy_share",
    )
)


def read_rows(path: Path) -> list[Row]:
    """Rows of a file that `write_rows` made."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise InputError("has other columns than this version writes", where=str(path))
            return [{c: _value(c, v) for c, v in row.items()} for row in reader]
    except OSError as error:
        raise InputError(f"cannot be read: {reason(error)}", where=str(path)) from None


def _value(column: str, text: str) -> Any:
    if text == "":
        return None
    if column == "inside":
        return text == "True"
    return float(text) if column in NUMBERS else text


KERNEL_ROWS = "kernels.csv"
"""Rows of a GPU that were committed: ``hw_profiles/measured/<device>/kernels.csv``."""


def committed(folder: Path | None = None) -> list[str]:
    """One sentence per device whose measured kernels are committed, with their date."""
    from importlib import resources

    root = folder or Path(str(resources.files("hw_profiles"))) / "measured"
    out = []
    for path in sorted(root.glob(f"*/{KERNEL_ROWS}")):
        rows = read_rows(path)
        total = summary(rows)
        if total["points"]:
            days = sorted({str(r["date"]) for r in rows})
            out.append(
                f"{path.parent.name}, {days[-1]}: {total['points']} kernels, predicted over measured median "
                f"{total['median_ratio']:.2f}, 80 % within {total['p10_ratio']:.2f}-{total['p90_ratio']:.2f}"
            )
    return out


def write_predictions(path: Path, record: Mapping[str, Any]) -> None:
    """The predictions and their hash, before anything runs."""
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def prediction_file(out: Path) -> Path:
    """Where the predictions of `out` are kept: beside it."""
    return out.with_name(out.stem + ".predictions.json")


def resumable(out: Path, digest: str) -> list[Row]:
    """Rows that an earlier run left under the same predictions; of others it refuses to go on."""
    if not out.is_file():
        return []
    rows = read_rows(out)
    other = {r["prediction_sha256"] for r in rows} - {digest}
    if other:
        raise InputError(
            f"holds rows of other predictions ({sorted(map(str, other))[0][:12]}, now {digest[:12]}): the "
            "profile, its fits or the chosen ops changed; give another --out or leave out --resume",
            where=str(out),
        )
    return rows
