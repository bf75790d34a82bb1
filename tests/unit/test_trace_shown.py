"""What a trace shows: the numbers of its tables and pictures, by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from simulator.trace import over_layers, picked, pictures, read_trace, tables

SHIPPED = Path("traces/shipped/tiny-opt-py/trace")


def test_the_union_of_a_batch_is_the_mean_of_the_layers_beside_independent_rows(
    opt: Path, synthetic: SimpleNamespace
) -> None:
    """d(B) = 1 - (1 - d)^(B^(3/4)) in every layer of the made trace; independent rows give 1 - (1 - d)^B."""
    trace = read_trace(opt)
    found = pictures.union(trace, "ffn.down", (0.25, 0.5), 0.5)
    assert found is not None
    first, second = found.drawn.lines
    truth = np.array([synthetic.by_depth(0.5, second.x, n) for n in range(trace.n_layers)])
    np.testing.assert_allclose(second.y, truth.mean(0), rtol=1e-9)
    np.testing.assert_allclose(second.low, truth.min(0), rtol=1e-9)
    np.testing.assert_allclose(second.beside, (1.0 - (1.0 - truth[:, :1]) ** second.x).mean(0), rtol=1e-9)
    assert (first.name, first.low) == ("25\u202f% kept", None)
    assert found.drawn.beside == "if rows were independent"


def test_a_level_that_only_repeats_the_non_zeros_is_not_drawn(repo: Path) -> None:
    """tiny-opt-py uses 11 % of its neurons: a curve called "50 % kept" would be that of the non-zeros."""
    trace = read_trace(repo / SHIPPED)
    found = pictures.union(trace, "ffn.down", picked.LEVELS, None)
    assert found is not None
    assert [line.name for line in found.drawn.lines] == ["non-zeros"]


def test_terminal_and_report_tell_the_same_numbers(repo: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib not installed")
    from reports.trace import compose

    trace = read_trace(repo / SHIPPED)
    report = {t.id: t for t in compose(repo / SHIPPED).tables()}
    for table in tables.tables(trace):
        told = report[f"tab-{table.id}"]
        assert told.title == table.title
        for row, cells in zip(table.rows, told.rows, strict=True):
            for value, cell in zip(row, cells, strict=True):
                assert cell.raw == pytest.approx(value) or (value != value and cell.raw == "")


def test_the_layers_table_holds_every_layer_at_the_rows_asked(repo: Path) -> None:
    trace = read_trace(repo / SHIPPED)
    found = tables.layers(trace)
    union = over_layers(trace, "ffn.down", "union_density")
    assert found is not None
    assert union is not None
    names = [c.name for c in found.columns]
    for row in found.rows:
        assert row[names.index("B=64")] == union.of_layer(int(row[0]), 64)


def test_nothing_is_drawn_of_zeros_that_are_not_there(repo: Path) -> None:
    assert pictures.zeros(read_trace(repo / "traces/shipped/tiny-llama-py/trace")) is None
    found = pictures.zeros(read_trace(repo / SHIPPED))
    assert found is not None
    assert [line.name for line in found.drawn.lines] == ["ffn.down"]


def test_the_best_method_is_said_and_yardsticks_stand_aside(repo: Path) -> None:
    found = pictures.loss(read_trace(repo / SHIPPED))
    assert found is not None
    assert "quest costs least" in found.said
    assert {line.name for line in found.drawn.lines if line.aside} == set(pictures.YARDSTICKS)
