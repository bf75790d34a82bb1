"""Inputs that once crashed a parser, each with what it is told now; `run.py` looks for more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fuzz_case import Case, ended
from fuzz_targets import TARGETS
from fuzz_valid import AZURE, BURST, CLAIMS, GRID, MEASURED, MOONCAKE, OWN, SERVED, config_trees, profile_texts, split
from fuzz_verbs import VERBS

HERE = Path(__file__).resolve().parent
CASES = [
    pytest.param(entry, id=f"{path.stem}-{i}")
    for path in sorted((HERE / "corpus").glob("*.json"))
    for i, entry in enumerate(json.loads(path.read_text("utf-8")))
]
NEEDS = {
    "report": "typst",
    "compose": "matplotlib",
    "link": "streamlit",
    "own_model": "streamlit",
    "own_device": "streamlit",
    "page": "streamlit",
}


@pytest.mark.parametrize("entry", CASES)
def test_what_once_crashed_is_answered_or_refused(entry: dict[str, Any], monkeypatch, tmp_path) -> None:
    if library := NEEDS.get(entry["verb"]):
        pytest.importorskip(library, reason=f"{library} not installed")
    monkeypatch.setenv("SHADOWLINE_HOME", str(tmp_path))
    found = ended(Case.from_json(entry), VERBS)
    assert found.problem is None, (entry["was"], found)
    assert found.code == entry["exit"], (entry["was"], found)
    assert entry["says"] in found.out + found.err, (entry["was"], found)


VALID = {
    "profile": ("devices", "@/d.toml", lambda: profile_texts()[0]),
    "config": ("models", "@/c.json", lambda: json.dumps(config_trees()[-1])),
    "grid": ("sweep", "--grid @/g.toml --quiet", lambda: GRID),
    "azure": ("serve", f"{' '.join(SERVED)} --requests @/r.csv", lambda: AZURE),
    "burst": ("serve", f"{' '.join(SERVED)} --requests @/r.csv", lambda: BURST),
    "own": ("serve", f"{' '.join(SERVED)} --requests @/r.csv", lambda: OWN),
    "mooncake": ("serve", f"{' '.join(SERVED)} --requests @/r.jsonl", lambda: MOONCAKE),
    "claims": ("claims", "@/c.toml", lambda: CLAIMS),
    "measured": ("validate", "--kind gemm --data @/m.csv", lambda: MEASURED["gemm"]),
}


@pytest.mark.parametrize("name", VALID)
def test_what_is_edited_is_valid_to_begin_with(name):
    verb, args, text = VALID[name]
    file = args.partition("@/")[2].split()[0]
    found = ended(Case(verb, split(args), {file: text().encode()}), VERBS)
    assert (found.problem, found.code) == (None, 0), found


def test_every_parser_has_its_corpus_named_after_it():
    assert {p.stem for p in (HERE / "corpus").glob("*.json")} <= set(TARGETS)
