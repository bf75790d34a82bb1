"""Every command line that README and docs print: run in this process, or parsed by its verb with a reason why not.

The guides' fences are run by `test_docs.py`, with what they print.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from docsite.commands import application
from docsite.printed import VARIABLE, Printed, printed
from docsite.transcripts import PAGES as GUIDES
from docsite.transcripts import lacking
from simulator import plan, serve, sweep
from simulator.__main__ import app as front
from simulator.__main__ import verbs
from simulator.api import traffic
from simulator.base import console
from simulator.serving import steady

REPO = Path(__file__).parents[2]
PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").rglob("*.md"))]

NOT_RUN = {
    "a shape: parts are left out": r"\s\.\.\.|\.\.\.$|\[-|\bVERB\b",
    "torch: their own tests run these verbs": r"python -m traces\.(fetch|collect|quality|shadow|pretrain|relufy)",
    "kernels: the tests of kernels run these verbs, timing needs a GPU": r"python -m sparse_kernels\.",
    "reads measured tables, which do not ship": r"--(data|judge) [\w.]+",
    "writes pages of the checkout": r"--docs docs",
    "asks the network": r"--from aisimulate|--cluster tcp:",
    "an engine calibrated on one's own server": r"--engine vllm@mine",
    "reads the trace of a gated model": r"--trace out/llama-2-7b",
}
"""Why a command of ours is not run; the first that fits. It is still parsed by its verb."""
LEAST_RUN = 25
"""Lines with arguments that are run; fewer would mean that the pattern misses them."""
FEWER = {"simulator.plan": 20, "simulator.serve": 20}
"""Requests in place of the page's thousands: `--count` is added, or replaced."""


@cache
def commands(page: Path) -> tuple[Printed, ...]:
    return tuple(printed(page))


def is_name(command: Printed) -> bool:
    """Whether only a verb, or a verb and its subcommand, is named: `tests/arch` runs ``--help`` of each."""
    words = command.arguments
    return not words or (len(words) == 1 and words[0] in getattr(parser(command), "commands", {}))


def why_not(command: Printed) -> str:
    return next((why for why, pattern in NOT_RUN.items() if re.search(pattern, command.text)), "")


def parser(command: Printed) -> Any:
    return typer.main.get_command(front if command.module == "simulator" else application(command.module))


def parse(command: Printed) -> None:
    """As the verb would; of a shape only the flags can be looked up."""
    root, words = parser(command), command.arguments
    if why_not(command).startswith("a shape"):
        options = [o for c in getattr(root, "commands", {"": root}).values() for p in c.params for o in p.opts]
        assert set(re.findall(r"(?<!\S)--[a-z-]+", command.text)) <= {*options, "--help"}
    else:
        named = getattr(root, "commands", {}).get(words[0]) if words else None
        (named or root).make_context(command.module, words[1:] if named else words)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_each_command_is_one_of_ours_or_of_a_program(page: Path):
    known = {v.module for v in verbs()} | {"simulator", "simulator.VERB"}
    targets = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for command in commands(page):
        place = f"{command.page}:{command.line}: {command.text}"
        if command.module:
            assert command.module in known, place
            if command.module != "simulator.VERB" and not is_name(command):
                parse(command)
        elif command.text.startswith("make "):
            assert {w for w in command.words[1:] if "=" not in w} <= targets, place
        elif command.text.startswith(("python ", "streamlit run ")):
            files = [w for w in command.words[1:3] if w.endswith(".py")]
            assert all((REPO / f).is_file() for f in files), place


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory, opt: Path) -> Path:
    """A folder with what pages name by a placeholder or have made by a command that is not run."""
    folder = tmp_path_factory.mktemp("printed")
    (folder / "traces").symlink_to(REPO / "traces")
    (folder / "out").mkdir()
    (folder / "out" / "tiny-opt").symlink_to(REPO / "traces" / "shipped" / "tiny-opt-py" / "trace")
    (folder / "DIR").symlink_to(opt)
    arriving = traffic(rate=5, prompt_tokens="lognormal(mean=400,cv=1)", output_tokens=20, count=60)
    rows = zip(arriving.arrival_s, arriving.prompt, arriving.output, strict=True)
    lines = [f"{t:.3f},{p},{o}" for t, p, o in rows]
    (folder / "CONV.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + "\n".join(lines) + "\n")
    hashed = '{{"timestamp": {}, "input_length": 700, "output_length": 20, "hash_ids": [1, {}]}}\n'
    (folder / "MOONCAKE.jsonl").write_text("".join(hashed.format(200 * i, 2 + i % 5) for i in range(60)))
    base = ("--model", "opt-125m", "--device", "l40s")
    load = ("--rate", "5", "--prompt-tokens", "100", "--output-tokens", "20", "--count", "60", "--quiet")
    run(sweep.app, *base, "--batch", "1,8", "--out", folder / "sweep.parquet", "--quiet")
    run(serve.app, *base, *load, "--out", folder / "requests.parquet")
    (folder / "out" / "requests.parquet").symlink_to(folder / "requests.parquet")
    printed = run(plan.app, *base, *load, "--slo", "ttft:p99<1s", "--tp", "1", "--json")
    (folder / "plan.json").write_text(printed, encoding="utf-8")
    return folder


def run(app: typer.Typer, *words: object) -> str:
    """What a verb prints, which must end well."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["verb", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            console.main(app)
    assert not left.value.code, f"{words}\nexit {left.value.code}: {err.getvalue()}"
    return out.getvalue()


STAND_FOR = {"CONV": "CONV.csv", "MOONCAKE": "MOONCAKE.jsonl", "A,B": "opt-6.7b", "DIR_A": "DIR"}
NAMES = {"simulator.devices": "l40s", "simulator.models": "opt-125m", "simulator.policies": "quest"}


def arguments(command: Printed, variables: dict[str, str]) -> list[str]:
    """Words to hand to the verb."""
    words = [STAND_FOR.get(w, NAMES.get(command.module, w) if w == "NAME" else w) for w in command.arguments]
    words = [variables.get(w.removeprefix("$"), w) if w.startswith("$") else w for w in words]
    if "DIR_B" in words:  # one model and its trace stand for both
        at = words.index("DIR_B")
        words = words[: at - 1] + words[at + 1 :]
    most = FEWER.get(command.module)
    if most is not None and "--help" not in words:
        if "--count" in words:
            del words[words.index("--count") : words.index("--count") + 2]
        words += ["--count", str(most), "--quiet"]
    return words


OURS = {v.module for v in verbs()}


def to_run() -> list[Any]:
    """Commands that are run; one worker takes a page where pytest-xdist is told to heed groups, as `make test` does."""
    return [
        pytest.param(page, i, id=f"{page.stem}:{c.line}", marks=pytest.mark.xdist_group(f"printed {page.stem}"))
        for page in PAGES
        for i, c in enumerate(commands(page))
        if c.module in OURS and not is_name(c) and not why_not(c)
    ]


DONE: set[Printed] = set()
"""What this process has run: a command may need the files of those above it."""


@pytest.mark.parametrize(("page", "index"), to_run())
def test_each_command_is_run(page: Path, index: int, stand_ins: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(stand_ins)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # A plan lengthens its traffic until the tail is known; what is shown here is only that it runs.
    monkeypatch.setattr(steady, "BEYOND", 1)
    if absent := lacking(commands(page)[index].text):
        pytest.skip(f"{', '.join(sorted(absent))} not installed")
    above = [p.values[1] for p in to_run() if p.values[0] == page and p.values[1] <= index]
    variables = dict(m.groups() for c in commands(page) if (m := VARIABLE.match(c.text)))
    for command in (commands(page)[i] for i in above):
        if command not in DONE and not lacking(command.text):
            text = run(application(command.module), *arguments(command, variables))
            if command.target:
                Path(command.target).write_text(text, encoding="utf-8")
            DONE.add(command)


def python_fences() -> list[Any]:
    """Python on pages that are no guides; those of guides are run with what they print."""
    return [
        pytest.param(code, id=f"{page.stem}-{i + 1}")
        for page in PAGES
        if str(page.relative_to(REPO)).removeprefix("docs/") not in GUIDES
        for i, code in enumerate(
            re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
        )
    ]


@pytest.mark.parametrize("code", python_fences())
def test_python_on_a_page_runs(code: str, stand_ins: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(stand_ins)
    if absent := lacking("python -m reports" if "reports" in code else ""):
        pytest.skip(f"{', '.join(sorted(absent))} not installed")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, {"__name__": "page"})
    assert bool(out.getvalue()) == ("print(" in code)


def test_how_many_are_run_and_why_the_others_are_not(record_property):
    every = [c for page in PAGES for c in commands(page) if c.module in OURS and not is_name(c)]
    fate = Counter(why_not(c) or "run" for c in every)
    record_property("printed_commands", dict(fate))
    assert fate["run"] >= LEAST_RUN
    assert set(fate) == {"run", *NOT_RUN}, "a reason that no command has"


def test_commands_are_found_however_they_are_written(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        "Say `python -m simulator.models` or `make\ndemo`, not `python` alone.\n\n"
        "```sh\n# a remark\nM=x\npython -m simulator.predict --model $M \\\n    --device 'a b'   # why\nls\n```\n"
        "```text\npython -m simulator.sweep\n```\n\n"
        "    python -m simulator doctor > x.txt   # indented\n    t = a * b\n"
    )
    found = [(c.line, c.text) for c in printed(page)]
    assert found == [
        (6, "M=x"),
        (7, "python -m simulator.predict --model $M --device 'a b'"),
        (9, "ls"),
        (15, "python -m simulator doctor > x.txt"),
        (1, "python -m simulator.models"),
        (1, "make demo"),
    ]
    doctor = next(c for c in printed(page) if "doctor" in c.text)
    assert (doctor.module, doctor.arguments, doctor.target) == ("simulator.doctor", [], "x.txt")
