"""No change may call fewer of the published losses, nor worsen the balance of wins and losses.

``python -m simulator.accuracy --claims --update hw_profiles/accuracy.json`` writes a new golden copy.
"""

import copy
import json
from pathlib import Path

import pytest

from simulator import accuracy
from simulator.base import console


@pytest.fixture(scope="module")
def now() -> dict:
    return accuracy.measure_claims()


def test_published_losses_are_called_as_often_as_in_the_golden_copy(now) -> None:
    assert accuracy.worse_claims(now, accuracy.golden()["claims"]) == []


def test_the_golden_copy_counts_the_committed_rows(now) -> None:
    for group in accuracy.GROUPS_GATED:
        then = accuracy.golden()["claims"][group]
        assert {k: now[group][k] for k in ("wins", "losses", "even")} == {
            k: then[k] for k in ("wins", "losses", "even")
        }


def test_a_loss_that_is_no_longer_called_is_noticed(now, monkeypatch, capsys) -> None:
    """One loss fewer of 35 by row is enough, and the verb ends with 2 and one line."""
    better = copy.deepcopy(now)
    better["all"]["rows"]["losses_called"] += 1.0 / now["all"]["losses"]
    (line,) = accuracy.worse_claims(now, better)
    assert line.startswith("claims, all, by rows: losses_called")
    monkeypatch.setattr(accuracy, "measure_claims", lambda: now)
    monkeypatch.setattr(accuracy, "golden", lambda: {"claims": better})
    monkeypatch.setattr("sys.argv", ["accuracy", "--claims"])
    with pytest.raises(SystemExit) as left:
        console.main(accuracy.app)
    assert left.value.code == 2
    assert "losses_called" in capsys.readouterr().err


def test_only_the_claims_of_a_copy_are_rewritten(now, monkeypatch, tmp_path: Path) -> None:
    copied = tmp_path / "accuracy.json"
    monkeypatch.setattr(accuracy, "measure_claims", lambda: now)
    monkeypatch.setattr("sys.argv", ["accuracy", "--claims", "--update", str(copied), "--date", "2026-01-01"])
    with pytest.raises(SystemExit) as left:
        console.main(accuracy.app)
    assert not left.value.code
    written, old = json.loads(copied.read_text("utf-8")), accuracy.golden()
    assert written["claims"] == {"date": "2026-01-01", **now}
    assert {k: v for k, v in written.items() if k != "claims"} == {k: v for k, v in old.items() if k != "claims"}
