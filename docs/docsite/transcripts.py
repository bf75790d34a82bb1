"""The commands of the guides and what they print: `--update` runs them and writes their outputs in again.

A fence `sh` or `python` is run from an empty folder in which `traces` is the checkout's: verbs in this process, what is
more shell than that by bash. What follows it says what is shown, in a fence `text` (a table, scrolls) or `output` (a
sentence, wraps): these lines of stdout and stderr, or all.

    <!-- output [1-3 7 ...][, exit 3] -->

A comment `<!-- not run: why -->` before a fence says why it is not run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from unittest import mock

DOCS = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(DOCS))

from docsite.commands import EXTRA, application  # noqa: E402
from simulator.__main__ import verbs  # noqa: E402
from simulator.base import console  # noqa: E402
from simulator.base.extras import requirements  # noqa: E402

PAGES = ("tutorial.md", *(f"howto/{p.name}" for p in sorted((DOCS / "howto").glob("*.md"))))
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<kind>sh|python)\n(?P<code>.*?)^```\n"
    r"(?:<!-- output(?P<lines>[ \d-]*)(?:, exit (?P<exit>\d+))? -->\n```(?:text|output)\n(?P<shown>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*\.?\d*")
OUTSIDE = "strided_kv"
VERB = re.compile(
    r"python -m (?P<module>(?:simulator|traces|reports|sparse_kernels)[\w.]*)"
    r"(?P<args>(?: +(?:'[^']*'|[^\s'\"|;&<>$`]+))*)"
    r"(?: > (?P<file>[\w./-]+))? *"
)
TOLERANCE = 0.02
"""A number may differ by this share: another processor rounds the last printed digit otherwise."""


@dataclass(frozen=True)
class Example:
    """One fence: what is run, and what the page says it prints."""

    kind: str
    code: str
    why_not: str | None
    lines: str
    exit_code: int
    shown: str | None
    span: tuple[int, int]


def examples(text: str) -> Iterator[Example]:
    """Fences of a page, in order."""
    for m in FENCE.finditer(text):
        shown = None if m["shown"] is None else m["shown"].rstrip("\n")
        yield Example(
            m["kind"], m["code"].rstrip("\n"), m["why"], m["lines"] or "", int(m["exit"] or 0), shown, m.span("shown")
        )


def lacking(code: str) -> set[str]:
    """Libraries that the commands in `code` need and that are not installed."""
    modules = re.findall(r"python -m (\w+)", code)
    extras = {EXTRA[module] for module in modules if module in EXTRA}
    wanted = {r.name for r in requirements() if r.extra in extras}
    return {name for name in wanted if not list(metadata.distributions(name=name))}


def environment(folder: Path) -> dict[str, str]:
    """Environment of the commands, in which the example package of the policy guide is installed."""
    home, site = folder / "home", folder / "site"
    for path in (home, site / "strided_kv-0.1.dist-info"):
        path.mkdir(parents=True, exist_ok=True)
    source = DOCS / "howto" / "strided_kv" / "strided_kv.py"
    (site / source.name).write_bytes(source.read_bytes())
    info = site / "strided_kv-0.1.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strided-kv\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[shadowline.policies]\nstrided_kv = strided_kv\n")
    tools = Path(sys.executable).parent
    return {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(site),
        "SHADOWLINE_HOME": str(home),
        "COLUMNS": "200",
        "NO_COLOR": "1",
        "HF_HUB_OFFLINE": "1",
    }


def prepare(folder: Path) -> Path:
    """Folder the commands are run in, with the checkout's traces."""
    work = folder / "work"
    (work / "out").mkdir(parents=True)
    (work / "traces").symlink_to(DOCS.parent / "traces")
    return work


def run(example: Example, work: Path, env: dict[str, str]) -> str:
    """What the fence prints; another exit status than the page's is an AssertionError."""
    verbs = [VERB.fullmatch(line) for line in example.code.replace("\\\n", " ").splitlines()]
    # Plug-ins are loaded once per process: what names the outside package starts a new one.
    if example.kind == "sh" and all(verbs) and OUTSIDE not in example.code:
        with mock.patch.dict(os.environ, env), contextlib.chdir(work):
            ended = [_verb(v) for v in verbs if v]
        code, printed = ended[-1][0], "".join(text for _, text in ended)
    else:
        command = ["bash", "-c", example.code] if example.kind == "sh" else [sys.executable, "-c", example.code]
        done = subprocess.run(
            command, cwd=work, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
        )
        code, printed = done.returncode, done.stdout
    assert code == example.exit_code, f"{example.code}\nexit {code}\n{printed}"
    return "\n".join(line.rstrip() for line in printed.strip("\n").splitlines())


def _verb(line: re.Match[str]) -> tuple[int, str]:
    """Exit status of one verb and what it says, stderr in between as on a terminal."""
    module, arguments = line["module"], shlex.split(line["args"])
    if module == "simulator" and arguments and f"simulator.{arguments[0]}" in {v.module for v in verbs()}:
        module = f"simulator.{arguments.pop(0)}"
    said, written = io.StringIO(), io.StringIO()
    out = written if line["file"] else said
    with (
        mock.patch.object(sys, "argv", [module, *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(said),
    ):
        try:
            console.main(application(module))
        except SystemExit as left:
            code = int(left.code or 0)
    if line["file"]:
        Path(line["file"]).write_text(written.getvalue(), encoding="utf-8")
    return code, said.getvalue()


def cut(printed: str, lines: str) -> str:
    """The lines that a page shows, `...` where others are left out."""
    if not lines.strip():
        return printed
    every, out, last = printed.splitlines(), [], 0
    for part in lines.split():
        first, _, final = part.partition("-")
        if int(first) > last + 1:
            out.append("...")
        last = int(final or first)
        out += every[int(first) - 1 : last]
    return "\n".join([*out, "..."] if last < len(every) else out)


def differs(shown: str, printed: str) -> str:
    """First line that says something else, or ''; blanks do not count and numbers have `TOLERANCE`."""
    a, b = shown.splitlines(), printed.splitlines()
    for old, new in zip(a, b, strict=False):
        if not _alike(old, new):
            return f"shown:   {old}\nprinted: {new}"
    return "" if len(a) == len(b) else f"{len(a)} lines are shown, {len(b)} printed"


def _alike(old: str, new: str) -> bool:
    words = [" ".join(NUMBER.sub("#", line).split()) for line in (old, new)]
    values = [[float(n.replace(",", "")) for n in NUMBER.findall(line)] for line in (old, new)]
    return words[0] == words[1] and all(
        abs(x - y) <= TOLERANCE * max(abs(x), abs(y)) for x, y in zip(*values, strict=True)
    )


class Guide:
    """A page whose fences are run in order, each once."""

    def __init__(self, text: str, folder: Path):
        self.examples = list(examples(text))
        self._work, self._env = prepare(folder), environment(folder)
        self._printed: list[str] = []

    def printed(self, index: int) -> str:
        """What fence `index` prints, cut to the lines shown; those before it run first, "" where it is not run."""
        while len(self._printed) <= index:
            example = self.examples[len(self._printed)]
            self._printed.append("")
            if example.why_not is None and not lacking(example.code):
                self._printed[-1] = cut(run(example, self._work, self._env), example.lines)
        return self._printed[index]


def update(page: Path) -> int:
    """Run a page's fences and write their outputs in; how many changed."""
    text, edits = page.read_text(encoding="utf-8"), []
    with tempfile.TemporaryDirectory() as scratch:
        guide = Guide(text, Path(scratch))
        for index, example in enumerate(guide.examples):
            printed = guide.printed(index)
            if example.why_not is None and example.shown not in (None, printed):
                edits.append((example.span, printed + "\n"))
    for (start, end), new in reversed(edits):
        text = text[:start] + new + text[end:]
    page.write_text(text, encoding="utf-8")
    return len(edits)


def main() -> None:
    """Run the commands of the guides and write what they print in again."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("pages", nargs="*", default=PAGES, help="below docs/")
    parser.add_argument("--update", action="store_true", required=True, help="say that pages may change")
    for page in parser.parse_args().pages:
        print(f"{page}: {update(DOCS / page)} outputs changed")


if __name__ == "__main__":
    main()
