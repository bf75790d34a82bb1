"""A change that makes the committed fits worse on the measured rows must say so.

``python -m simulator.accuracy --data DIR --update hw_profiles/accuracy.json`` writes a new golden copy.
"""

import pytest

from simulator import accuracy
from simulator.base import console
from simulator.fitting.judged import KERNEL_KINDS
from simulator.fitting.tables import paths_of


@pytest.mark.data
@pytest.mark.parametrize("kind", KERNEL_KINDS)
def test_committed_fits_are_no_worse_than_the_golden_copy(kind, data_dir, tmp_path):
    for path in paths_of(kind, data_dir):
        (tmp_path / path.name).symlink_to(path)
    now = accuracy.measure(tmp_path, None)
    then = accuracy.golden()["committed"]
    same = [k for k in then if k in now and now[k]["file_sha256"] == then[k]["file_sha256"]]
    if not same:
        pytest.skip("measured data differs from the golden copy's")
    assert accuracy.worse(now, then) == []


def test_a_worse_fit_is_noticed():
    then = {"gemm": {"file_sha256": "a", "median_ape": 0.04, "p90_ape": 0.14}}
    now = {"gemm": {"file_sha256": "a", "median_ape": 0.05, "p90_ape": 0.14}}
    assert accuracy.worse(now, then) == ["gemm: median_ape 4.00% -> 5.00%"]
    assert accuracy.worse({"gemm": {**now["gemm"], "file_sha256": "b"}}, then) == []


def test_the_readme_shows_the_golden_table():
    from pathlib import Path

    readme = Path(__file__).parents[2] / "README.md"
    assert accuracy.markdown(accuracy.golden()["held_out"]) in readme.read_text("utf-8")


def test_without_data_the_committed_table_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["accuracy"])
    with pytest.raises(SystemExit) as left:
        console.main(accuracy.app)
    assert not left.value.code
    assert capsys.readouterr().out.rstrip() == accuracy.markdown(accuracy.golden()["held_out"])
