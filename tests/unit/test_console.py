"""Tables for people: names stay whole at any width, because they are copied into the next command."""

from __future__ import annotations

import re
import sys

import pytest

from simulator.base import console

HEADS = ["policy", "what it does", "tp", "TPOT ms"]
ROWS = [
    ["double_sparsity_offload", "Double Sparsity with the full KV cache in host memory", "1", "12.5"],
    ["quest(budget=2048)", "pages of the KV cache picked by key minima and maxima", "1", "9.75"],
]


@pytest.fixture
def printed(monkeypatch, capsys):
    """What a table prints, on a terminal of `columns` characters or (0) into a pipe."""

    def run(columns: int, rows=ROWS, note="") -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns or 40))
        monkeypatch.setattr(sys.stdout, "isatty", lambda: columns > 0, raising=False)
        console.table("a title that is longer than a narrow table", HEADS, rows, left=2, note=note)
        return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()

    return run


def test_a_pipe_gets_one_uncropped_line_per_row_whatever_the_terminal(printed):
    title, heads, *body = printed(0)
    assert title == "a title that is longer than a narrow table"
    assert len(body) == len(ROWS) + 1  # the empty line that ends a table
    for row, line in zip(ROWS, body, strict=False):
        assert all(cell in line for cell in row)
    assert [heads.index(h) for h in HEADS] == sorted(heads.index(h) for h in HEADS)


def test_text_between_colons_is_no_emoji(printed):
    """``a:b:...`` of a depth came out with a picture in place of ``:b:``."""
    row = ["sparse_weights", "shares a:b:c", "1", "2"]
    assert any("shares a:b:c" in line for line in printed(0, [row]))


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_a_terminal_wraps_between_words_only(printed, columns):
    lines = printed(columns)
    text = "\n".join(lines)
    for row in ROWS:
        assert all(word in text for cell in row for word in cell.split())
    assert max(map(len, lines)) <= columns


def test_columns_of_one_value_are_said_once_where_there_is_no_room(printed):
    lines = printed(44)
    assert "in all rows: tp 1" in lines
    assert not any(line.endswith(" 1") for line in lines[2:])
    assert "in all rows" not in "".join(printed(100))
    one = "".join(printed(44, ROWS[:1]))
    assert "in all rows" not in one
    assert "12.5" in one


def test_a_missing_library_is_one_line_that_says_what_brings_it(call):
    import typer

    def needs(name: str) -> typer.Typer:
        app = typer.Typer()

        @app.command()
        def command() -> None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return app

    told = "error: vl_convert.asyncio is not installed; this needs pip install 'shadowline[app]'\n"
    assert call(needs("vl_convert.asyncio")) == (2, "", told)
    for ours in ("simulator.gone", ""):  # a bug, not an extra
        with pytest.raises(ModuleNotFoundError):
            console.main(needs(ours))
