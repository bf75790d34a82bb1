"""Docstrings as the site shows them: equations that are set off by indentation stay as they are written."""

import re
from inspect import isbuiltin
from typing import get_origin


def _process(app, what, name, obj, options, lines):
    if what == "module":
        lines[:] = literal(lines)


def literal(lines: list[str]) -> list[str]:
    """Indented blocks as literal ones, headings as rubrics: a module's text has no sections of its own."""
    out: list[str] = []
    inside = False
    for i, line in enumerate(lines):
        indented = line.startswith("    ") and not line.lstrip().startswith(("..", "- "))
        if indented and not inside and out and not out[-1].strip() and not _continues(out):
            out += [".. code-block:: none", ""]
            inside = True
        elif line.strip() and not indented:
            inside = False
        if re.fullmatch(r"-{4,}", line) and i and out[-1].strip():
            out[-1] = f".. rubric:: {out[-1]}"
            out.append("")
            continue
        out.append(line)
    return out


def _continues(out: list[str]) -> bool:
    """Whether the last text is a list or a directive, whose own text is indented."""
    last = next((line for line in reversed(out) if line.strip()), "")
    return last.lstrip().startswith(("- ", "..", ">>>"))


def _skip(app, what, name, obj, skip, options):
    """Whether to leave out a member.

    A named tuple's fields, whose text is "Alias for field number 0", are told in its own docstring; what Python brings,
    or an alias of it, would get a signature from numpydoc that Sphinx cannot set.
    """
    return True if type(obj).__name__ == "_tuplegetter" or get_origin(obj) or isbuiltin(obj) else None


def setup(app):
    # Before numpydoc, which reads what is left.
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
