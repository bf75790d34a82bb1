"""What people reported in public threads, asked again of the product: ``python tests/benchmarks/field.py``.

Every case of ``field_cases.csv`` in ``$SHADOWLINE_DATA`` is asked with its closest command (or that of ``field.toml``,
where a closer one exists today), as a user would, and its figure is printed beside the reported one and beside what was
answered when the case was collected. A speed-up is right where the answer's word is the report's own: wins, loses, or
as fast as dense; another figure where the report lies in the 90 % interval. ``--kind`` takes other kinds of question,
``--json`` prints the rows.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import io
import json
import os
import re
import shlex
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from simulator.base import console
from simulator.base.interval import Interval, ratio
from simulator.claims.tables import between, table
from simulator.results.verdict import verdict

HERE = Path(__file__).resolve().parent
WITHIN = 0.2
GIB = 2.0**30


@dataclass(frozen=True)
class Case:
    """One report and the command that asks for it.

    Attributes
    ----------
    measured, before, before_lo, before_hi : str
        As reported, and as answered on 2026-11-30 with its interval; empty where there was nothing.
    against : str
        Command of what it was compared with, where that is not dense.
    says : str
        Expression the answer must match, for a report without a figure.
    """

    name: str
    kind: str
    metric: str
    measured: str
    before: str
    before_lo: str
    before_hi: str
    setup: str
    command: str
    against: str = ""
    says: str = ""


@dataclass(frozen=True)
class Outcome:
    """A case with what is answered today."""

    name: str
    kind: str
    metric: str
    measured: float | None
    before: float | None
    now: Interval[float] | None
    right: bool | None
    right_before: bool | None
    within: bool | None
    told: str
    setup: str = field(repr=False, default="")

    @property
    def speedup(self) -> bool:
        """Whether the figure has a sign: faster, as fast, slower."""
        return self.metric.endswith("_speedup")


def read_cases(data: Path, kind: str) -> list[Case]:
    """Cases whose kind contains `kind`, with the commands of ``field.toml``."""
    closer = tomllib.loads((HERE / "field.toml").read_text("utf-8"))
    with (data / "field_cases.csv").open(encoding="utf-8", newline="") as file:
        rows = [r for r in csv.DictReader(file) if kind in r["kind"]]
    out = []
    for r in rows:
        changes = {k: v for k, v in closer.get(r["id"], {}).items() if k != "why"}
        asked = {"command": r["closest_command_2026_11_30"], **changes}
        label = (r["id"], r["kind"], r["metric"], r["measured"])
        before = (r["predicted_2026_11_30"], r["lo90"], r["hi90"], r["setup"])
        out.append(Case(*label, *before, **asked))
    return out


def ask(command: str) -> tuple[dict[str, Any] | None, str]:
    """What a verb prints with ``--json``, or None and its one line."""
    words = shlex.split(command)
    if words[:2] != ["python", "-m"] or not words[2].startswith("simulator."):
        return None, f"no command of ours: {command}"
    try:
        module = importlib.import_module(words[2])
    except ModuleNotFoundError:
        return None, f"no verb {words[2]}"
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{words[2]}.__main__")
    said, wrong, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [*words[2:], "--json"]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong):
            console.main(module.app)
    except SystemExit:
        pass
    finally:
        sys.argv = argv
    line = " ".join(wrong.getvalue().split())
    return (json.loads(said.getvalue()), line) if said.getvalue().strip() else (None, line)


def _each(row: Mapping[str, Any], name: str) -> Interval[float]:
    """``ttft_s`` with ``ttft_lo_s`` and ``ttft_hi_s``, ``tpot_speedup`` with its ``_lo`` and ``_hi``."""
    stem, _, unit = name.rpartition("_")
    ends = (f"{name}_lo", f"{name}_hi") if f"{name}_lo" in row else (f"{stem}_lo_{unit}", f"{stem}_hi_{unit}")
    mid = row[name]
    return Interval(mid, row.get(ends[0], mid), row.get(ends[1], mid))


def _rate(count: float, time: Interval[float]) -> Interval[float]:
    return Interval(count / time.mid, count / time.hi, count / time.lo)


def _e2e(row: Mapping[str, Any]) -> Interval[float]:
    ttft, tpot = _each(row, "ttft_s"), _each(row, "tpot_s")
    return Interval(*(a + (row["output_tokens"] - 1) * b for a, b in zip(ttft, tpot, strict=True)))


FIGURES: Mapping[str, Callable[[Mapping[str, Any]], Interval[float]]] = {
    "ttft_ms": lambda r: _each(r, "ttft_s").each(lambda t: 1e3 * t),
    "tpot_ms": lambda r: _each(r, "tpot_s").each(lambda t: 1e3 * t),
    "e2e_s": _e2e,
    "tps": lambda r: _rate(r["batch"] * r["output_tokens"], _e2e(r)),
    "decode_tps": lambda r: _rate(r["batch"], _each(r, "tpot_s")),
    "pp_tps": lambda r: _rate(r["batch"] * r["prompt_tokens"], _each(r, "ttft_s")),
    # A row of `claims` has one speed-up, over its own baseline.
    "thr_speedup": lambda r: _each(r, "speedup" if "speedup" in r else "throughput_speedup_same_batch"),
    "ttft_speedup": lambda r: _each(r, "ttft_speedup"),
    "tpot_speedup": lambda r: _each(r, "tpot_speedup"),
    "weights_gib": lambda r: Interval.exact(r["weights_bytes"] / GIB),
    "max_batch": lambda r: Interval.exact(r["max_batch"]),
    "kv_tokens": lambda r: _each(r, "kv_tokens"),
    "serve_tps": lambda r: Interval.exact(r["output_tokens_per_s"]),
    "capacity": lambda r: Interval.exact(r["capacity_per_s"]),
}
"""A reported metric from the row that a verb prints, beside its KV pool; weights and serving have no interval."""
BESIDE = {"thr_speedup": "tps", "ttft_speedup": "ttft_ms", "tpot_speedup": "tpot_ms"}
"""What is divided where a case has a second command."""


def outcome(case: Case) -> Outcome:
    """`case` asked again."""
    measured, before = _number(case.measured), _number(case.before)
    answer, told = ask(case.command)
    now = None
    if answer is not None:
        row = {**answer["rows"][0], **(answer.get("kv_pool") or {})}
        told = " ".join(filter(None, (str(answer.get("sentence", "")), str(row.get("software", "")), told)))
        now, why = _figure(case, row)
        told = told if now is not None else why or told
    label = (case.name, case.kind, case.metric, measured, before)
    if case.says:
        return Outcome(*label, now, bool(re.search(case.says, told)), False, None, told, case.setup)
    if measured is None:
        return Outcome(*label, now, None, None, None, told, case.setup)
    ends = (_number(case.before_lo), _number(case.before_hi))
    then = None if before is None else Interval(before, *(before if e is None else e for e in ends))
    right, right_before = (_right(case, figure, measured) for figure in (now, then))
    within = now is not None and abs(now.mid - measured) <= WITHIN * measured
    return Outcome(*label, now, right, right_before, within, told, case.setup)


def _right(case: Case, figure: Interval[float] | None, measured: float) -> bool:
    """Whether the sign of a speed-up, the interval, or 20 % around a figure without one is the report's."""
    if figure is None:
        return False
    if case.metric.endswith("_speedup"):
        return verdict(Interval.exact(figure.mid)) is verdict(Interval.exact(measured))
    if figure.lo < figure.hi:
        return figure.lo <= measured <= figure.hi
    return abs(figure.mid - measured) <= WITHIN * measured


def _figure(case: Case, row: Mapping[str, Any]) -> tuple[Interval[float] | None, str]:
    try:
        if not case.against:
            return FIGURES[case.metric](row), ""
        other, told = ask(case.against)
        if other is None:
            return None, told
        here, there = (FIGURES[BESIDE[case.metric]](r) for r in (row, other["rows"][0]))
    except (KeyError, TypeError):
        return None, str(row.get("reason") or f"the answer has no {case.metric}")
    return (ratio(here, there) if case.metric == "thr_speedup" else ratio(there, here)), ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


HEADS = ["case", "metric", "reported", "2026-11-30", "right", "now", "90 %", "right", "setup"]


def cells(o: Outcome) -> list[str]:
    """One line of a table, under `HEADS`."""

    def text(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    def yes(value: bool | None) -> str:
        return "-" if value is None else "yes" if value else "NO"

    interval = f"{o.now.lo:.4g}-{o.now.hi:.4g}" if o.now is not None and o.now.lo < o.now.hi else "-"
    figures = [text(o.measured), text(o.before), yes(o.right_before)]
    return [o.name, o.metric, *figures, text(None if o.now is None else o.now.mid), interval, yes(o.right), o.setup]


def counts(found: list[Outcome]) -> list[str]:
    """What is right, by kind, in one sentence each."""
    lines = []
    for kind in dict.fromkeys(o.kind for o in found):
        own = [o for o in found if o.kind == kind]
        now, then = (Counter(getattr(o, name) for o in own) for name in ("right", "right_before"))
        signed = [bool(o.right) for o in own if o.speedup and o.measured is not None]
        close = [o.within for o in own if o.within is not None]
        judged = now[True] + now[False]
        lines.append(
            f"{kind}: right {now[True]} of {judged} (on 2026-11-30: {then[True]}), among them the sign of a speed-up"
            f" {sum(signed)} of {len(signed)}; within 20 % {sum(close)} of {len(close)}; {now[None]} without a figure"
        )
    return lines


def show(found: list[Outcome]) -> None:
    """One line a case, why there is no answer, then counts by kind."""
    lines = [[*cells(o)[:-1], o.told[:60] if o.now is None else "", o.setup[:60]] for o in found]
    console.table("reported in public against predicted", [*HEADS[:-1], "no answer", HEADS[-1]], lines, left=2)
    for line in counts(found):
        console.out(line)


def write(folder: Path, found: list[Outcome]) -> None:
    """Rewrite the table of field cases in ``claims.md`` of `folder`."""
    path = folder / "claims.md"
    lines = [*counts(found), "", *table(HEADS, map(cells, found))]
    path.write_text(between(path.read_text("utf-8"), "field", lines, path), "utf-8")


def main() -> None:
    """Ask, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="sparsity", help="memory, speed, sparsity, capacity; '' for all")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--docs", type=Path, help="rewrite the table of field cases in claims.md of this folder")
    chosen = parser.parse_args()
    data = Path(os.environ.get("SHADOWLINE_DATA") or HERE.parents[2].parent / "shared" / "data")
    if not (data / "field_cases.csv").is_file():
        sys.exit(f"no field_cases.csv in {data}; point SHADOWLINE_DATA at the folder that has it")
    found = [outcome(case) for case in read_cases(data, chosen.kind)]
    if chosen.docs:
        write(chosen.docs, found)
    elif chosen.json:
        console.out_json({"rows": [asdict(o) for o in found]})
    else:
        show(found)


if __name__ == "__main__":
    main()
