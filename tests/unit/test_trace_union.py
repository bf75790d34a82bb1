"""Union over rows as a trace measured it, and the law it follows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from simulator.base import console
from simulator.base.errors import InputError
from simulator.model.hub import find_model
from simulator.ops.union import PUBLISHED, UnionTable, beta_density, frequency_density, union_density
from simulator.trace import KIND, ROWS, ModelFacts, read_trace, write_trace
from simulator.trace import __main__ as trace_verb
from simulator.trace.law import TOLERANCE, check_curve, check_published, check_trace

KEEPS = (0.1, 0.25, 0.5)
B = np.array(ROWS, float)
FULL = 1e-8
"""A measured density closer to 1 than this counts as 1: its logarithm must stay finite."""


def run(app: Any, *arguments: str, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> Any:
    patch.setattr(sys, "argv", ["verb", *arguments])
    with pytest.raises(SystemExit) as left:
        console.main(app)
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def test_a_measured_point_comes_back_exactly(opt: Path, synthetic: SimpleNamespace) -> None:
    table = read_trace(opt).union(1, "ffn.down")
    for keep in KEEPS:
        np.testing.assert_allclose(union_density(keep, B, table), synthetic.by_depth(keep, B, 1), rtol=1e-12, atol=FULL)


def test_between_and_beyond_the_measured_shares_and_rows(opt: Path, synthetic: SimpleNamespace) -> None:
    """r(B) = B^(3/4) at every share, so the truth is known where nothing was measured too."""
    table = read_trace(opt).union(1, "ffn.down")
    rows = np.array([3.0, 24.0, 40.0, 1024.0])
    for keep in (0.02, 0.17, 0.4):
        np.testing.assert_allclose(
            union_density(keep, rows, table), synthetic.by_depth(keep, rows, 1), rtol=1e-9, atol=FULL
        )


def test_more_keep_or_rows_never_touch_less_whatever_was_measured() -> None:
    rng = np.random.default_rng(0)
    density = np.sort(np.sort(rng.uniform(0.01, 1.0, (4, len(B))), axis=0), axis=1)
    table = UnionTable(B, density)
    keep, rows = np.linspace(0.001, 1.0, 300), np.geomspace(1, 1e4, 100)
    d = union_density(keep[:, None], rows[None, :], table)
    assert np.all(np.diff(d, axis=0) >= -1e-12)
    assert np.all(np.diff(d, axis=1) >= -1e-9)
    np.testing.assert_allclose(d[:, 0], keep, rtol=1e-9)
    np.testing.assert_array_equal(d[-1], 1.0)


def test_exact_zeros_are_one_more_measured_share(tmp_path: Path, synthetic: SimpleNamespace) -> None:
    """A ReLU layer with 4 % non-zeros: thresholds of zero at larger shares keep the same 4 %."""
    curves = synthetic.curves_of(1, lambda k, b, _: synthetic.power_law(min(k, 0.04), b, 0), keeps=(0.02, 0.04, 0.1))
    curves["keep"] = [np.nan if k == 0.04 else k for k in curves["keep"]]
    facts = ModelFacts.of(find_model("opt-6.7b")).model_copy(update={"n_layers": 1})
    folder = write_trace(
        tmp_path / "t", synthetic.manifest_of("opt-6.7b", facts=facts), curves=curves, neurons=synthetic.neurons
    )
    table = read_trace(folder).union(0, "ffn.down")
    assert table is not None
    np.testing.assert_allclose(table.density[:, 0], [0.02, 0.04])
    np.testing.assert_allclose(union_density(0.1, B, table), synthetic.power_law(0.1, B, 0))


@pytest.mark.parametrize(
    ("rows", "density"),
    [([2.0, 4.0], [[0.1, 0.2]]), ([1.0, 1.0], [[0.1, 0.2]]), ([1.0, 2.0], [[0.1, 1.1]]), ([1.0], [[0.1]])],
)
def test_a_table_that_is_no_union_curve_is_refused(rows: list[float], density: Any) -> None:
    with pytest.raises(InputError):
        UnionTable(np.array(rows), np.array(density))


def test_the_laws_find_the_truth_they_were_drawn_from() -> None:
    """Equal, Beta and two-valued frequencies: each law within rounding of its own, the others not."""
    rng = np.random.default_rng(1)
    equal = check_curve(B, frequency_density(np.full(50, 0.1), B))[0]
    assert max(equal["independent"], equal["beta"]) < 1e-3

    errors, spread = check_curve(B, beta_density(0.1, 2.0, B))
    assert errors["beta"] < 1e-3
    assert spread == pytest.approx(2.0, rel=1e-2)
    assert errors["independent"] > 0.5

    p = np.where(rng.random(4000) < 0.3, 0.6, 0.001)
    used = rng.random((256, 4000)) < p
    density = np.array([used[: int(b)].any(axis=0).mean() for b in B])
    errors, _ = check_curve(B, density, p)
    # 4000 neurons: the share of one token has a standard error of 4 %, and more rows have less.
    assert errors["frequency"] < TOLERANCE < min(errors["independent"], errors["beta"])


def test_no_law_stands_for_the_published_tables() -> None:
    """Mean curves of router tables: Beta constrained to d(1) misses by 13-40 %, so the table is used."""
    checks = list(check_published())
    assert [c.use for c in checks] == ["table"] * 3
    assert all(TOLERANCE < c.errors["beta"] < c.errors["independent"] for c in checks)
    for c in checks:
        model = c.source.split(",")[0]
        table = UnionTable(B, PUBLISHED[model][None])
        np.testing.assert_allclose(union_density(c.density_1, B, table), PUBLISHED[model], rtol=1e-9)


SHIPPED = [
    path.parent
    for path in sorted((Path(__file__).parents[2] / "traces" / "shipped").glob("**/manifest.json"))
    if json.loads(path.read_text("utf-8")).get("kind") == KIND
]


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda p: str(p.relative_to(p.parents[1])))
def test_what_the_simulator_answers_is_what_the_shipped_models_do(folder: Path) -> None:
    """Within 10 % at every measured B by the table, also where a point is left out; and where the exact
    non-zeros were counted, tokens of different sequences are independent given the frequencies.
    """
    trace = read_trace(folder)
    checks = list(check_trace(trace))
    assert checks
    heads = trace.manifest.facts.n_heads
    for c in checks:
        # Leaving a point out doubles the gap; three or four KV heads, and less than one query head, scatter the most.
        few = c.tensor == "attn.kv_head" or (c.tensor == "attn.head" and c.keep * heads < 1)
        assert c.table_error <= (0.125 if few else TOLERANCE), c
        assert c.errors.get("frequency", 0.0) <= TOLERANCE, c
        curve = trace.curve(c.layer, c.tensor, "union_density", keep=None if c.keep != c.keep else c.keep)
        answer = union_density(c.density_1, curve.x, trace.union(c.layer, c.tensor))
        np.testing.assert_allclose(answer, curve.value, rtol=TOLERANCE)


def test_every_curve_of_a_trace_is_judged(
    opt: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = list(check_trace(read_trace(opt)))
    assert len(checks) == 32 * 2 * len(KEEPS)
    # r(B) is a power of B: the table interpolates it, whatever is left out; at 10 % independence is far off.
    assert all(c.table_error < 1e-6 for c in checks)
    assert all(c.errors["independent"] > TOLERANCE and c.use != "independent" for c in checks if c.keep == 0.1)
    status, out, _ = run(trace_verb.app, "union", str(opt), "--json", capsys=capsys, patch=monkeypatch)
    rows = json.loads(out)["rows"]
    assert status == 0
    assert len(rows) == len(checks) + len(PUBLISHED)
    status, out, _ = run(trace_verb.app, "check", str(opt), capsys=capsys, patch=monkeypatch)
    assert status == 0
    assert read_trace(opt).digest[:12] in out
