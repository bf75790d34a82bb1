"""Tables and text as Markdown."""

import re
from collections.abc import Iterable, Sequence


def cell(value: object) -> str:
    """`value` as the text of one table cell."""
    return " ".join(str(value).split()).replace("|", r"\|")


_NUMBER = re.compile(r"[-+±]?[\d.,]+(e[-+]?\d+)? ?[%x]?")


def table(headers: Sequence[str], body: Iterable[Sequence[object]]) -> str:
    """A table; columns of numbers are set right."""
    rows = [[cell(c) for c in row] for row in body]
    rule = [
        "---:" if any(column) and all(_NUMBER.fullmatch(c) for c in column if c) else "---"
        for column in zip(*rows, strict=True)
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in [[*headers], rule, *rows]) + "\n"


def number(value: float | None) -> str:
    """Four significant digits with thousands separators; nothing for None."""
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def code(text: object) -> str:
    """`text` in backticks; nothing for an empty one."""
    return f"`{text}`" if str(text) else ""


def svg(drawing: str, kind: str = "") -> str:
    """An inline drawing: one raw block without empty lines, which would end it."""
    body = "\n".join(line for line in drawing.splitlines() if line.strip())
    return f'```{{raw}} html\n<div class="figure-svg {kind}">{body}</div>\n```\n'
