"""A file is replaced whole, or stays as it was."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from simulator.base.errors import InputError
from simulator.base.files import read_limited, refuse_overwriting, replaced
from simulator.base.parquet import read_parquet


def test_a_file_appears_whole_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.csv"
    with replaced(path) as temporary:
        temporary.write_text("a")
        assert not path.exists()
    assert path.read_text() == "a"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_block_leaves_the_old_file_alone(tmp_path: Path, error: type) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("old")

    def stopped() -> None:
        with replaced(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        stopped()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_one_line_with_its_flag(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "rows.csv"
    with pytest.raises(InputError) as caught, replaced(path, "--markdown"):
        raise AssertionError("never reached")
    assert str(caught.value).startswith(f"--markdown: cannot write {path}: ")
    assert caught.value.__cause__ is None


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize("make", [os.mkfifo, _socket])
def test_a_pipe_and_a_socket_are_neither_replaced_nor_read(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "x"
    make(path)
    mode = path.stat().st_mode
    for act in (lambda: read_limited(path, 10), lambda: read_parquet(path, 10), lambda: _replace(path)):
        with pytest.raises(InputError, match="not a file"):
            act()
    assert path.stat().st_mode == mode
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/dev/stdin", "/dev/full"])
def test_a_device_is_neither_replaced_nor_read(path: str) -> None:
    kind = Path(path).stat().st_mode
    for act in (lambda: read_limited(Path(path), 10), lambda: _replace(Path(path))):
        if stat.S_ISREG(kind):
            pytest.skip("stdin is a file here")
        with pytest.raises(InputError, match="not a file"):
            act()


@pytest.mark.parametrize("path", [".", "..", "", "a/.."])
def test_a_path_without_a_name_is_one_line(path: str) -> None:
    with pytest.raises(InputError, match="no name of its own"):
        _replace(Path(path))


def _replace(path: Path) -> None:
    with replaced(path) as temporary:
        temporary.write_text("new")


KILLED = """
import os, signal, sys
from pathlib import Path
from simulator.base.files import replaced
with replaced(Path(sys.argv[1])) as new:
    new.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_copies_of_killed_runs_go_with_the_next_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for _ in range(3):
        assert subprocess.run([sys.executable, "-c", KILLED, path], check=False).returncode == -signal.SIGKILL
        assert len(list(tmp_path.iterdir())) == 1
    with replaced(path) as alive:
        alive.write_text("first")
        _replace(path)
        assert path.read_text() == "new"
        assert set(tmp_path.iterdir()) == {path, alive.parent}
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_between_the_renames_of_a_folder_is_mended_by_the_next_run(tmp_path: Path) -> None:
    """``.old`` beside the new folder and nothing at its name: the new one is whole and takes it."""
    left = tmp_path / ".trace.abcdefgh.tmp"
    for name, text in (("trace", "new"), (".old", "old")):
        (left / name).mkdir(parents=True)
        (left / name / "a").write_text(text)

    def failing() -> None:
        with replaced(tmp_path / "trace"):
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert (tmp_path / "trace" / "a").read_text() == "new"
    assert list(tmp_path.iterdir()) == [tmp_path / "trace"]


def test_what_looks_like_a_copy_but_holds_something_else_stays(tmp_path: Path) -> None:
    mine = tmp_path / ".rows.csv.abcdefgh.tmp"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years")
    _replace(tmp_path / "rows.csv")
    assert (mine / "thesis.txt").exists()


def test_file_and_folder_are_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda h: (done.append(os.readlink(f"/proc/self/fd/{h}")), fsync(h))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), rename(a, b))[1])
    _replace(tmp_path / "rows.csv")
    assert [Path(d).name for d in done] == ["rows.csv", "rename", tmp_path.name]


def test_an_output_that_is_read_or_written_already_is_refused(tmp_path: Path) -> None:
    grid, link, folder = tmp_path / "grid.toml", tmp_path / "link.json", tmp_path / "trace"
    grid.write_text("")
    link.symlink_to(grid)
    folder.mkdir()
    (folder / "curves.parquet").write_text("")
    new, same = tmp_path / "a.json", tmp_path / "trace" / ".." / "a.json"
    reads = [("--grid", grid), ("--trace", folder)]
    refuse_overwriting([("--out", new), ("--load", None)], reads)
    inside = folder / "curves.parquet"
    for path, other in ((grid, "--grid"), (link, "--grid"), (inside, "--trace"), (folder, "--trace")):
        with pytest.raises(InputError, match=f"--out: .* is what {other} reads"):
            refuse_overwriting([("--out", path)], reads)
    with pytest.raises(InputError, match=r"--load: .* is what --out writes"):
        refuse_overwriting([("--out", new), ("--load", same)], [])
