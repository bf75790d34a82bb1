"""Inputs that once crashed a parser, each with what it is told now; `run.py` looks for more."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from fuzz_case import Case, ended  # noqa: E402
from fuzz_targets import TARGETS  # noqa: E402
from fuzz_verbs import VERBS  # noqa: E402

CASES = [
    pytest.param(entry, id=f"{path.stem}-{i}")
    for path in sorted((HERE / "corpus").glob("*.json"))
    for i, entry in enumerate(json.loads(path.read_text("utf-8")))
]
EXTRAS = {
    "report": "typst",
    "link": "streamlit",
    "own_model": "streamlit",
    "own_device": "streamlit",
}


@pytest.mark.parametrize("entry", CASES)
def test_what_once_crashed_is_answered_or_refused(
    entry: dict[str, Any], monkeypatch, tmp_path
) -> None:
    if entry["verb"] in EXTRAS:
        pytest.importorskip(EXTRAS[entry["verb"]], reason="the extra is not installed")
    monkeypatch.setenv("SHADOWLINE_HOME", str(tmp_path))
    found = ended(Case.from_json(entry), VERBS)
    assert found.problem is None, (entry["was"], found)
    assert found.code == entry["exit"], (entry["was"], found)
    assert entry["says"] in found.out + found.err, (entry["was"], found)


def test_every_parser_has_its_corpus_named_after_it():
    assert {p.stem for p in (HERE / "corpus").glob("*.json")} <= set(TARGETS)
