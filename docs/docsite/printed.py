"""Every command line that a page prints: in a fence, indented, or in a sentence."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from docsite.transcripts import DOCS, PAGES, examples

PROGRAMS = re.compile(r"(?:python3?|make|streamlit|pip|pytest|hf|dask|git clone)\s")
SHELL = ("", "sh", "bash")
"""Languages of a fence whose lines are commands; `text` and `output` show what they print."""
COMMENT = re.compile(r"(?:^|\s+)#(?:\s.*)?$")
VARIABLE = re.compile(r"(\w+)=(\S+)$")
OURS = re.compile(r"(?:simulator|traces|reports|sparse_kernels)(?:\.\w+)?\Z")


@dataclass(frozen=True)
class Printed:
    """One command: its page, its line there, and its text without a comment, continued lines joined."""

    page: str
    line: int
    text: str

    @property
    def words(self) -> list[str]:
        """Words as the shell splits them."""
        return shlex.split(self.text)

    @property
    def module(self) -> str:
        """Our module that it runs, or ''."""
        words = self.words
        if words[:2] != ["python", "-m"] or len(words) < 3 or not OURS.match(words[2]):
            return ""
        named = words[2] == "simulator" and len(words) > 3 and words[3].isalpha() and words[3].islower()
        return f"simulator.{words[3]}" if named else words[2]

    @property
    def arguments(self) -> list[str]:
        """Words after the module, without where its output goes."""
        words = self.words[4 if self.module != self.words[2] else 3 :]
        return words[: words.index(">")] if ">" in words else words

    @property
    def target(self) -> str:
        """File its output goes to, or ''."""
        words = self.words
        return words[words.index(">") + 1] if ">" in words else ""


def printed(page: Path) -> Iterator[Printed]:
    """Commands of a page in order; what `transcripts` runs of a guide is left out."""
    text = page.read_text(encoding="utf-8")
    name = page.name if page.parent in (DOCS, DOCS.parent) else f"{page.parent.name}/{page.name}"
    ran = {e.code for e in examples(text) if e.why_not is None} if name in PAGES else set()
    fence, start, block = None, 0, []
    rest: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        rest.append("" if line.startswith("```") or fence is not None else line)
        if not line.startswith("```"):
            if fence is not None:
                block.append(line)
        elif fence is None:
            fence, start, block = line[3:].strip(), number + 1, []
        else:
            if fence in SHELL and not (block and block[0].startswith(":")) and "\n".join(block).rstrip() not in ran:
                yield from _lines(name, start, block, any_program=fence != "")
            fence = None
    for number, line in enumerate(rest, start=1):
        if line.startswith("    ") and PROGRAMS.match(line.strip()):
            yield from _lines(name, number, _continued(rest, number - 1), any_program=False)
    whole = "\n".join(rest)
    for span in re.finditer(r"(?<!`)`([^`]+)`(?!`)", whole):
        code = " ".join(span[1].split())
        if PROGRAMS.match(code):
            yield Printed(name, whole.count("\n", 0, span.start()) + 1, code)


def _continued(lines: list[str], at: int) -> list[str]:
    last = at
    while lines[last].endswith("\\"):
        last += 1
    return lines[at : last + 1]


def _lines(name: str, start: int, block: list[str], *, any_program: bool) -> Iterator[Printed]:
    at = 0
    while at < len(block):
        whole = _continued(block, at)
        text = COMMENT.sub("", " ".join(line.rstrip("\\").strip() for line in whole))
        if text and (any_program or PROGRAMS.match(text) or VARIABLE.match(text)):
            yield Printed(name, start + at, text)
        at += len(whole)
