"""The tables of docs/claims.md and docs/systems.md, from the rows: ``python -m simulator.claims --docs docs``."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simulator.base.errors import InputError
from simulator.claims.judge import Judged
from simulator.claims.statistics import GROUPS, told
from simulator.results.verdict import as_times

BEGIN, END = "<!-- begin: {} -->", "<!-- end: {} -->"


def write(folder: Path, rows: Sequence[Judged], total: dict[str, Any], systems: Mapping[str, str]) -> list[Path]:
    """Rewrite the generated parts of both files in `folder`; they are read whole before either is written.

    `systems` maps papers to the policy they are about, where it is not called as the paper is.

    Raises
    ------
    InputError
        A file or one of its markers is missing.
    """
    claims, by_system = folder / "claims.md", folder / "systems.md"
    for path in (claims, by_system):
        if not path.is_file():
            raise InputError(f"no such file: {path}", where="--docs")
    text = claims.read_text(encoding="utf-8")
    for name, lines in (("result", _result(total)), ("losses", _losses(total)), ("misses", _misses(rows))):
        text = between(text, name, lines, claims)
    told = _systems(by_system.read_text(encoding="utf-8"), rows, systems)
    claims.write_text(text, encoding="utf-8")
    by_system.write_text(told, encoding="utf-8")
    return [claims, by_system]


def between(text: str, name: str, lines: Iterable[str], path: Path) -> str:
    """`text` of `path` with `lines` between the markers of `name`."""
    begin, end = BEGIN.format(name), END.format(name)
    if begin not in text or end not in text:
        raise InputError(f"{path} lacks the markers {begin} and {end}", where="--docs")
    head, rest = text.split(begin, 1)
    return "\n".join([head + begin, *lines, end + rest.split(end, 1)[1]])


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *lines)]


def _result(total: dict[str, Any]) -> list[str]:
    counts = total["counts"]
    target = ["target", "", "400", "0.9-1.1", "75 %", "", "", "0.9"]
    heads = [
        "",
        "papers",
        "rows",
        "geometric mean of predicted / published",
        "within 20 %",
        "median APE",
        "inside the 90 % interval",
        "rank correlation of speed-ups",
    ]
    papers = sorted(total["papers"].items(), key=lambda kv: -kv[1]["judged"])
    misses = [f"{n['rows']} {name} ({n['papers']} papers)" for name, n in total["misses"].items() if n["rows"]]
    counted = (
        f"{total['eligible']} eligible rows of {total['eligible_papers']} papers out of "
        f"{sum(counts.values()):,} published figures; {counts['judged']} judged, "
        f"{counts['not predicted']} not predicted, {counts['not eligible']} of secondary sources, "
        f"{counts['incomplete']:,} incomplete. Misses: {', '.join(misses)}. Disputed figures among "
        f"the judged: {total['wrong']}."
    )
    whole = ([label, str(total[k]["papers"]), *_cells(total[k])] for k, label in GROUPS.items())
    by_paper = (
        [name, *_cells(f), str(f["judged"] - f["rows"]), str(_unjudged(f))] for name, f in papers if f["judged"]
    )
    last = ["used for calibration", "not checkable"]
    words = told(total["all"]["called"])
    spoken = [f"Wins and losses over the papers' own baselines: {words}.", ""] if words else []
    return [counted, "", *spoken, *table(heads, [target, *whole]), "", *table(["paper", *heads[2:], *last], by_paper)]


def _unjudged(f: dict[str, Any]) -> int:
    return f["incomplete"] + f["not_eligible"] + f["not_predicted"]


def _cells(f: dict[str, Any]) -> list[str]:
    if not f["rows"]:
        return ["0", *[""] * 5]
    rank = f["rank_correlation"]
    return [
        str(f["rows"]),
        f"{f['geometric_mean']:.2f}",
        f"{f['within_20']:.0%}",
        f"{f['median_ape']:.0%}",
        f"{f['inside']:.0%}",
        "" if rank is None else f"{rank:.2f} ({f['speedups']})",
    ]


def _misses(rows: Sequence[Judged]) -> list[str]:
    """One line per paper and reason: rows off by more than 20 % and the geometric mean of their ratios."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for r in rows:
        if r.status == "judged" and not r.within and r.ratio is not None:
            found[r.paper, r.reason].append(r.ratio)
    lines = sorted(found.items(), key=lambda kv: (kv[0][0].casefold(), -len(kv[1])))
    return table(
        ["paper", "rows", "geometric mean", "reason"],
        ([paper, str(len(v)), f"{np.exp(np.mean(np.log(v))):.2f}", reason] for (paper, reason), v in lines),
    )


def _losses(total: dict[str, Any]) -> list[str]:
    """One line per paper and cause of published losses that are not called."""
    return table(
        ["paper", "rows", "published speed-up", "predicted", "reason"],
        (
            [m["paper"], str(m["rows"]), as_times(m["published"]), as_times(m["predicted"]), m["reason"]]
            for m in total["losses_missed"]
        ),
    )


def _systems(text: str, rows: Sequence[Judged], systems: Mapping[str, str]) -> str:
    """Last cell of each system's line: within 20 % / missed with a reason / not checkable (used for calibration)."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for r in rows:
        name = systems.get(r.paper) or re.sub("[^a-z0-9]", "", r.paper.casefold().split(" (")[0])
        kind = "not checkable" if r.status != "judged" else "within" if r.within else "missed"
        counts[_key(name)][kind] += 1
        counts[_key(name)]["calibration"] += int(r.status == "judged" and r.used_for_calibration)
    out = []
    for line in text.splitlines():
        policy = re.match(r"\|[^|]*\|[^`|]*`([^`(]+)[^|]*\|.*\|$", line)
        if policy and line.count("|") == 6:
            n = counts.get(_key(policy[1]))
            cell = f" {n['within']} / {n['missed']} / {n['not checkable']} " if n else " "
            cell += f"({n['calibration']} c) " if n and n["calibration"] else ""
            line = line.rsplit("|", 2)[0] + f"|{cell}|"
        out.append(line)
    return "\n".join(out) + "\n"


def _key(name: str) -> str:
    return name if name.startswith("-") else name.replace("_", "")
