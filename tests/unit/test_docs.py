"""The documentation: everything that ships is on a page, commands are real, outputs are true, the site builds."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
import typer

from simulator.__main__ import verbs
from simulator.base.extras import requirements
from simulator.device.catalogue import list_devices
from simulator.policies import POLICIES

DOCS = Path(__file__).parents[2] / "docs"
COMMAND = re.compile(r"python -m ((?:simulator|traces|reports|sparse_kernels)(?:\.\w+)*)([^\n`|;)>]*)")


@pytest.fixture(scope="module", autouse=True)
def _importable():
    sys.path.insert(0, str(DOCS))
    yield
    sys.path.remove(str(DOCS))


def pages() -> list[Path]:
    root = DOCS.parent
    return [*sorted(DOCS.rglob("*.md")), root / "README.md", root / "CONTRIBUTING.md"]


@cache
def written(name: str) -> str:
    """A page of the site as Sphinx reads it."""
    from docsite.generated import expand

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
    assert set(POLICIES) - covered == {"dense"}


def test_every_device_is_documented():
    page = written("reference/devices")
    assert [name for name in list_devices() if f"| `{name}` |" not in page] == []


def test_every_mark_is_known_and_used():
    from docsite.generated import PARTS

    marks = [m for p in DOCS.rglob("*.md") for m in re.findall(r"<!-- generated: (.+?) -->", p.read_text("utf-8"))]
    assert set(marks) == set(PARTS)
    assert len(marks) == len(set(marks))


def test_an_unknown_mark_fails_the_build():
    from docsite.generated import expand

    with pytest.raises(KeyError):
        expand("<!-- generated: nonsense -->")


@pytest.mark.parametrize("page", pages(), ids=lambda p: p.stem)
def test_commands_on_a_page_exist_with_their_flags(page: Path):
    """Also of commands that are not run: `--flag` must be one of the verb's."""
    from docsite.commands import application

    known = {verb.module for verb in verbs()}
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for module, rest in COMMAND.findall(text):
        word = (rest.split() or [""])[0]
        if module == "simulator" and f"simulator.{word}" in known:
            module = f"simulator.{word}"
        if module == "simulator" or module.endswith((".X", ".VERB")):  # the list, or any verb
            continue
        assert module in known, f"{page.name}: python -m {module}"
        root = typer.main.get_command(application(module))
        commands = list(getattr(root, "commands", {"": root}).values())
        flags = {o for c in commands for p in c.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        used = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", rest))
        assert used <= flags, f"{page.name}: python -m {module} has no {used - flags}"


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
    from docsite.transcripts import cut, differs

    assert differs("TTFT 10.0 ms, 3x", "TTFT  10.1 ms, 3x") == ""
    assert "printed" in differs("TTFT 10.0 ms", "TTFT 10.3 ms")
    assert "printed" in differs("10 ms slower", "10 ms faster")
    assert "2 lines are shown" in differs("a\nb", "a")
    assert cut("a\nb\nc\nd\ne", " 1 3-4") == "a\n...\nc\nd\n..."


def test_every_fence_of_a_guide_is_read():
    """A fence the pattern missed would be neither run nor excused."""
    from docsite.transcripts import PAGES, examples

    for name in PAGES:
        text = (DOCS / name).read_text(encoding="utf-8")
        assert len(list(examples(text))) == len(re.findall(r"^```(?:sh|python)$", text, re.MULTILINE)), name
        assert text.count("<!-- output") == sum(e.shown is not None for e in examples(text)), name


def _guides() -> list[str]:
    return ["tutorial.md", *(f"howto/{p.name}" for p in sorted((DOCS / "howto").glob("*.md")))]


@pytest.mark.slow
@pytest.mark.parametrize("name", _guides())
def test_commands_of_the_guides_print_what_is_shown(name: str, tmp_path: Path):
    """Run anew with `python docs/docsite/transcripts.py --update` where a prediction was meant to move."""
    from docsite.transcripts import cut, differs, environment, examples, prepare, run

    work, env = prepare(tmp_path), environment(tmp_path)
    lacking: set[str] = set()
    for example in examples((DOCS / name).read_text(encoding="utf-8")):
        lacking |= (absent := _absent(example.code))
        if example.why_not is None and not absent:
            printed = run(example, work, env)
            if example.shown is not None:
                problem = differs(example.shown, cut(printed, example.lines))
                assert not problem, f"{example.code}\n{problem}"
    if lacking:
        pytest.skip(f"{', '.join(sorted(lacking))} not installed")


def _absent(code: str) -> set[str]:
    """Libraries that commands of a guide need and that are not here."""
    from docsite.commands import EXTRA

    extras = {EXTRA.get(module.partition(".")[0]) for module, _ in COMMAND.findall(code)}
    wanted = {r.name for r in requirements() if r.extra in extras}
    return {name for name in wanted if not list(metadata.distributions(name=name))}


@pytest.mark.slow
def test_the_site_builds_offline_without_a_warning(tmp_path: Path):
    if importlib.util.find_spec("sphinx") is None or importlib.util.find_spec("furo") is None:
        pytest.skip("sphinx not installed")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", tmp_path / "trees", DOCS, tmp_path / "site"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    built = list((tmp_path / "site").rglob("*.html"))
    assert len(built) > 50
    for page in built:
        asked = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]+)"', page.read_text("utf-8"))
        assert asked == [], f"{page.name} asks {asked}"
