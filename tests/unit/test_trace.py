"""Traces on disk: files that cannot lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from simulator.base.errors import InputError, UnknownNameError
from simulator.trace import (
    ROWS,
    SCHEMA_VERSION,
    STATISTICS,
    TABLES,
    TENSORS,
    ModelFacts,
    add_quality,
    read_trace,
    write_trace,
)
from simulator.trace.files import MANIFEST

KEEPS = (0.1, 0.25, 0.5)
B = np.array(ROWS, float)
FULL = 1e-8
"""A measured density closer to 1 than this counts as 1: its logarithm must stay finite."""


def test_a_trace_comes_back(opt: Path, synthetic: SimpleNamespace) -> None:
    trace = read_trace(opt)
    assert trace.manifest.facts == ModelFacts(
        n_layers=32, hidden=4096, n_heads=32, n_kv_heads=32, intermediate=16384, activation="relu"
    )
    curve = trace.curve(3, "ffn.down", "union_density", keep=0.25)
    assert curve is not None
    np.testing.assert_array_equal(curve.x, B)
    np.testing.assert_array_equal(curve.value, synthetic.by_depth(0.25, B, 3))
    np.testing.assert_array_equal(curve.n, 64)
    assert trace.keeps(3, "ffn.down", "union_density") == KEEPS
    assert trace.curve(3, "ffn.down", "union_density", keep=0.3) is None
    assert trace.curve(3, "ffn.down", "union_density") is None  # the exact non-zeros
    np.testing.assert_array_equal(trace.frequencies(0), [0.25, 0.75])
    assert len(trace.frequencies(1)) == 0


def test_equal_measurements_give_equal_files_whatever_their_order(tmp_path: Path, synthetic: SimpleNamespace) -> None:
    first = synthetic.make(tmp_path / "a")
    again = write_trace(
        tmp_path / "b",
        synthetic.manifest_of("opt-6.7b"),
        curves={k: v[::-1] for k, v in synthetic.curves_of(32).items()},
        neurons={k: v[::-1] for k, v in synthetic.neurons.items()},
    )
    for name in (MANIFEST, "curves.parquet", "neurons.parquet"):
        assert (first / name).read_bytes() == (again / name).read_bytes()


def test_a_failed_write_leaves_the_old_trace(tmp_path: Path, synthetic: SimpleNamespace) -> None:
    folder = synthetic.make(tmp_path / "t")
    before = read_trace(folder).digest
    bad = synthetic.curves_of(32)
    bad["tensor"] = ["ffn.dwon"] * len(bad["tensor"])
    with pytest.raises(UnknownNameError, match=r"tensor of union_density 'ffn.dwon'.*ffn.down"):
        write_trace(folder, synthetic.manifest_of("opt-6.7b"), curves=bad, neurons=synthetic.neurons)
    short = {k: v for k, v in synthetic.curves_of(1).items() if k != "x"}
    with pytest.raises(InputError, match="lacks the column 'x'"):
        write_trace(folder, synthetic.manifest_of("opt-6.7b"), curves=short, neurons=synthetic.neurons)
    with pytest.raises(InputError, match="columns have lengths"):
        write_trace(
            folder,
            synthetic.manifest_of("opt-6.7b"),
            curves=synthetic.curves_of(1) | {"n": [1]},
            neurons=synthetic.neurons,
        )
    assert read_trace(folder).digest == before
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_a_folder_with_other_files_is_not_overwritten(tmp_path: Path, synthetic: SimpleNamespace) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(InputError, match="holds files that are no trace"):
        synthetic.make(tmp_path / "t")
    assert (tmp_path / "t" / "thesis.tex").read_text() == "irreplaceable"


def truncate(folder: Path) -> None:
    path = folder / "curves.parquet"
    path.write_bytes(path.read_bytes()[:-100])


def flip(folder: Path) -> None:
    path = folder / "neurons.parquet"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def change(key: str, value: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest[key] = value
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return edit


def layers(n: int) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["facts"]["n_layers"] = n
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return edit


def half_manifest(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text[: len(text) // 2])


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, r"curves\.parquet: was truncated or changed"),
    "one bit": (flip, r"neurons\.parquet: was truncated or changed"),
    "missing": (lambda f: (f / "neurons.parquet").unlink(), r"neurons\.parquet: cannot read"),
    "schema": (change("schema", 2), rf"schema 2 is unknown; this version reads schema {SCHEMA_VERSION}"),
    "no schema": (change("schema", None), "schema None is unknown"),
    "kind": (change("kind", "recipe"), "is not the manifest of a trace"),
    "tokens": (change("tokens", 0), "tokens: input should be greater than or equal to 1"),
    "unknown key": (change("temperature", 1), "temperature: extra inputs"),
    "no tables": (change("files", {}), r"does not list curves\.parquet"),
    "other table": (
        change("files", {"curve.parquet": {"sha256": "0" * 64, "rows": 1}}),
        r"unknown table 'curve.parquet'; did you mean 'curves\.parquet'",
    ),
    "endless layers": (layers(10**400), r"facts\.n_layers: input should be less than or equal to 10000"),
    "layers": (layers(1), r"says 1 layers, but curves\.parquet goes on to layer \d"),
    "half": (half_manifest, r"manifest\.json:\d+: is not JSON"),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), "is no trace"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_trace_is_one_line(how: str, tmp_path: Path, synthetic: SimpleNamespace) -> None:
    damage, message = DAMAGE[how]
    folder = synthetic.make(tmp_path / "t", keeps=(0.5,))
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        read_trace(folder)
    assert "\n" not in str(caught.value)


def test_adding_quality_keeps_the_curves(tmp_path: Path, synthetic: SimpleNamespace) -> None:
    folder = synthetic.make(tmp_path / "t")
    before = read_trace(folder)
    add_quality(folder, synthetic.quality)
    after = read_trace(folder)
    assert before.quality is None
    assert after.quality is not None
    assert after.manifest.files["curves.parquet"] == before.manifest.files["curves.parquet"]
    np.testing.assert_array_equal(after.quality["seed"], [0, 0, 0, 1, 0])  # sorted by policy


def test_every_statistic_and_tensor_is_documented(repo: Path) -> None:
    text = (repo / "docs" / "traces.md").read_text("utf-8")
    for name in (*STATISTICS, *TENSORS, *(c for table in TABLES.values() for c in table)):
        assert f"`{name}`" in text, name
    for s in STATISTICS.values():
        assert s.equation.replace("|", "\\|") in text, s.equation
        assert set(s.tensors) <= set(TENSORS)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("manifest.json", '{"name": "my extension", "version": 3}', "holds no trace of ours"),
        ("manifest.json", "[]", "holds no trace of ours"),
        ("manifest.json", "", "holds no trace of ours"),
        ("curves.parquet", None, "lacks 'curves.parquet'"),
        ("notes.txt", "months", "also holds 'notes.txt'"),
        (".git", "", "also holds '.git'"),
        ("quality.parquet", "judged", "also holds 'quality.parquet'"),
    ],
)
def test_only_a_whole_trace_of_ours_is_replaced(
    tmp_path: Path, synthetic: SimpleNamespace, name: str, text: str | None, words: str
) -> None:
    """Any folder with a manifest.json was deleted, with all that lay in it."""
    folder = synthetic.make(tmp_path / "t")
    path = folder / name
    path.unlink() if text is None else path.write_text(text)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(InputError, match=words):
        synthetic.make(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]
