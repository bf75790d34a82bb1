"""Tables of `traffic` and `compile` for docs/kernels.md, written between two comment lines of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from simulator.base.errors import InputError, reason
from simulator.base.files import replaced

Row = Mapping[str, Any]


def replace_section(path: Path, name: str, text: str) -> None:
    """Put `text` between ``<!-- NAME -->`` and ``<!-- /NAME -->`` of the file at `path`."""
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    try:
        whole = path.read_text(encoding="utf-8")
        head, rest = whole.split(first)
        tail = rest.split(last)[1]
    except OSError as error:
        raise InputError(f"{path}: {reason(error)}", where="--markdown") from None
    except (ValueError, IndexError):
        raise InputError(f"{path} needs one line {first} and one {last}", where="--markdown") from None
    with replaced(path, "--markdown") as temporary:
        temporary.write_text(f"{head}{first}\n{text}\n{last}{tail}", encoding="utf-8")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """A Markdown table; the first `left` columns are words."""
    rule = ["---" if i < left else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def traffic(rows: Sequence[Row]) -> str:
    """Bytes, sectors and lines per kernel, summed over its cases and operands."""
    body = []
    for op, mine in _by(rows, "op"):
        recorded = sum(r["recorded_bytes"] for r in mine)
        expected = sum(r["predicted_bytes"] + r["explained_bytes"] for r in mine)
        explained = sum(r["explained_bytes"] for r in mine)
        body.append(
            [
                op,
                str(len({r["case"] for r in mine})),
                f"{sum(r['agrees'] for r in mine)} of {len(mine)}",
                f"{expected - explained:,.0f}" + (f" {explained:+,.0f}" if explained else ""),
                f"{recorded:,}",
                f"{sum(r['requested_bytes'] for r in mine) / recorded:.2f}",
                f"{sum(r['sectors'] for r in mine):,}",
                f"{sum(r['predicted_sectors'] for r in mine):,}",
                f"{sum(r['lines'] for r in mine):,}",
            ]
        )
    header = [
        "kernel",
        "cases",
        "operands that agree",
        "predicted B (+ explained)",
        "recorded B",
        "requested / recorded",
        "sectors",
        "predicted",
        "lines",
    ]
    return table(header, body, 1)


def compiled(rows: Sequence[Row]) -> str:
    """Per function and compute capability the worst of its hot cases; loads and products as on cc 90."""
    hot = [r for r in rows if r["hot"] and not r["error"]]
    targets = sorted({r["cc"] for r in hot})
    body = []
    for op, mine in _by(hot, "op"):
        for function, those in _by(sorted(mine, key=lambda r: r["kernel"]), "kernel"):
            cells = []
            for cc in targets:
                here = [r for r in those if r["cc"] == cc]
                cells.append(
                    f"{max(r['registers'] for r in here)} / {max(r['shared_bytes'] for r in here) / 1024:.0f} / "
                    f"{min(r['occupancy'] for r in here):.0%}"
                    if here
                    else "-"
                )
            shown = [r for r in those if r["cc"] == (90 if 90 in targets else targets[0])] or those
            loads, wide = (sum(r[c] for r in shown) for c in ("loads", "wide_loads"))
            kinds = sorted({r["tensor_kinds"] for r in shown} - {""})
            spills = max(r["spilled_bytes"] for r in those)
            body.append(
                [
                    op,
                    function,
                    *cells,
                    str(spills),
                    f"{wide} of {loads}",
                    f"{sum(r['tensor_instructions'] for r in shown)} {' '.join(kinds)}".strip(),
                ]
            )
    header = ["kernel", "function", *(f"cc {cc}" for cc in targets), "spilled B", "wide loads", "tensor"]
    return table(header, body, 2)


def _by(rows: Iterable[Row], column: str) -> list[tuple[str, list[Row]]]:
    ordered = sorted(rows, key=lambda r: r[column])
    return [(key, list(group)) for key, group in groupby(ordered, key=lambda r: r[column])]
