"""A file is replaced whole, or stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.base.errors import InputError
from simulator.base.files import replaced


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
