"""The documentation: everything that ships is on a page, commands are real, outputs are true, the site builds."""

from __future__ import annotations

import atexit
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from docsite.generated import PARTS, expand
from docsite.transcripts import PAGES, Example, Guide, cut, differs, examples, lacking
from simulator.__main__ import verbs
from simulator.device.catalogue import list_devices
from simulator.policies import POLICIES

DOCS = Path(__file__).parents[2] / "docs"


@cache
def written(name: str) -> str:
    """A page of the site as Sphinx reads it."""
    return expand((DOCS / f"{name}.md").read_text(encoding="utf-8"))


def test_every_command_and_flag_is_documented():
    from docsite.commands import application

    for verb in verbs():
        page = written(f"reference/commands/{verb.module.partition('.')[0]}")
        section = page.partition(f"## `python -m {verb.module}`\n")[2].partition("\n## ")[0]
        cells = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
        spelled = {word.strip(",") for cell in cells for word in cell.split()}
        root = typer.main.get_command(application(verb.module))
        for command in getattr(root, "commands", {"": root}).values():
            for parameter in command.params:
                if parameter.name != "help" and parameter.param_type_name == "option":
                    assert parameter.help, f"{verb.module} {parameter.opts[0]} has no help"
                    assert set(parameter.opts) <= spelled, f"{verb.module} {parameter.opts}"


def test_every_command_is_in_the_list():
    listed = written("reference/index")
    assert all(f"`python -m {verb.module}`" in listed for verb in verbs())


def test_every_policy_with_every_parameter_is_documented():
    page = written("reference/policies")
    for name in POLICIES:
        section = page.partition(f"### `{name}`\n")[2].partition("\n### ")[0]
        assert POLICIES[name].citation in section, name
        for parameter in POLICIES[name].model_fields:
            assert f"| `{parameter}` |" in section, f"{name}: {parameter}"


def test_every_policy_is_in_the_systems_table():
    """By its own name, or a mechanism without a paper of its own by a system that uses it."""
    text = (DOCS / "systems.md").read_text(encoding="utf-8")
    named = {name for name in POLICIES if f"`{name}" in text}
    covered = named | {POLICIES[name].alias_of for name in named}
    absent = sorted(set(POLICIES) - covered - {"dense"})
    assert not absent, f"docs/systems.md: no row for {absent}; say what is modelled and what is not"


def test_every_device_is_documented():
    page = written("reference/devices")
    assert [name for name in list_devices() if f"| `{name}` |" not in page] == []


def test_every_mark_is_known_and_used():
    marks = [m for p in DOCS.rglob("*.md") for m in re.findall(r"<!-- generated: (.+?) -->", p.read_text("utf-8"))]
    assert set(marks) == set(PARTS)
    assert len(marks) == len(set(marks))


@pytest.mark.parametrize("name", PARTS)
def test_every_generated_part_is_written(name: str):
    """`make docs` sets the pages; what the code has to say for them is asked here."""
    try:
        text = expand(f"<!-- generated: {name} -->")
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} not installed")
    assert len(text) > 150


def test_an_unknown_mark_fails_the_build():
    with pytest.raises(KeyError):
        expand("<!-- generated: nonsense -->")


def test_equations_of_modules_stay_as_written():
    from docsite.docstrings import literal

    text = ["What it is.", "", "    t = a * b", "      + c", "", "Notes", "-----", "- an item", "", "    its text"]
    assert literal(text) == [
        "What it is.",
        "",
        ".. code-block:: none",
        "",
        "    t = a * b",
        "      + c",
        "",
        ".. rubric:: Notes",
        "",
        "- an item",
        "",
        "    its text",
    ]


def test_tables_set_numbers_right():
    from docsite.markdown import table

    lines = table(["a", "b", "c"], [["x|y", "1,024", "5 of 6"], ["z", "-3%", ""]]).splitlines()
    assert lines[1:3] == ["| --- | ---: | --- |", "| x\\|y | 1,024 | 5 of 6 |"]


def test_a_transcript_that_says_something_else_is_found():
    assert differs("TTFT 10.0 ms, 3x", "TTFT  10.1 ms, 3x") == ""
    assert "printed" in differs("TTFT 10.0 ms", "TTFT 10.3 ms")
    assert "printed" in differs("10 ms slower", "10 ms faster")
    assert "2 lines are shown" in differs("a\nb", "a")
    assert cut("a\nb\nc\nd\ne", " 1 3-4") == "a\n...\nc\nd\n..."


def test_every_fence_of_a_guide_is_read():
    """A fence the pattern missed would be neither run nor excused."""
    for name in PAGES:
        text = (DOCS / name).read_text(encoding="utf-8")
        assert len(list(examples(text))) == len(re.findall(r"^```(?:sh|python)$", text, re.MULTILINE)), name
        assert text.count("<!-- output") == sum(e.shown is not None for e in examples(text)), name


@cache
def guide(name: str) -> Guide:
    """A guide of which this process runs each fence once, in a folder that goes with it."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Guide((DOCS / name).read_text(encoding="utf-8"), Path(folder.name))


def fences() -> list[Any]:
    """Fences that are run; one worker takes a page where pytest-xdist is told to heed groups, as `make test` does."""
    return [
        pytest.param(name, i, id=f"{name}-{i + 1}", marks=pytest.mark.xdist_group(name))
        for name in PAGES
        for i, example in enumerate(examples((DOCS / name).read_text(encoding="utf-8")))
        if example.why_not is None
    ]


@pytest.mark.parametrize(("name", "index"), fences())
def test_commands_of_the_guides_print_what_is_shown(name: str, index: int):
    """Run anew with `python docs/docsite/transcripts.py --update` where a prediction was meant to move."""
    example: Example = guide(name).examples[index]
    if absent := lacking(example.code):
        pytest.skip(f"{', '.join(sorted(absent))} not installed")
    printed = guide(name).printed(index)
    problem = "" if example.shown is None else differs(example.shown, printed)
    assert not problem, f"{example.code}\n{problem}"


def test_a_page_that_asks_the_network_is_found(tmp_path: Path):
    """`make docs` asks this of every page it built."""
    from docsite.offline import asked

    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "page.html").write_text(
        '<img alt="" src="https://a.example/x.png"><a href="https://b.example">'
    )
    (tmp_path / "index.html").write_text('<script src="_static/x.js"></script>')
    assert asked(tmp_path) == ["sub/page.html asks https://a.example/x.png"]
