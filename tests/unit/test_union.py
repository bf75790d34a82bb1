"""How many neurons a batch touches: the published tables, and never the law of independent draws."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.ops.union import PUBLISHED, ROWS, frequency_density, published, union_density

KEEPS = np.array([0.01, 0.05, 0.1, 0.25, 0.5, 0.9, 0.99])


@pytest.mark.parametrize("model", [*PUBLISHED, "llama-2-7b", ""])
def test_one_row_keeps_what_it_keeps_and_all_is_all(model: str) -> None:
    np.testing.assert_allclose(union_density(KEEPS, 1.0, published(model)), KEEPS, rtol=1e-12)
    np.testing.assert_array_equal(union_density(1.0, ROWS, published(model)), 1.0)


@pytest.mark.parametrize("model", PUBLISHED)
def test_a_published_table_comes_back(model: str) -> None:
    """At the table's own density of one row, every row of the table is met exactly."""
    table = PUBLISHED[model]
    np.testing.assert_allclose(union_density(table[0], ROWS, published(model)), table, rtol=1e-9)


def test_opt_66b_touches_half_at_64_rows_not_99_percent() -> None:
    """0.4899 in the released router configuration; 1 - (1 - 0.0751)^64 would be 0.993."""
    assert union_density(0.0751, 64.0, published("opt-66b")) == pytest.approx(0.4899, abs=1e-4)


@pytest.mark.parametrize("model", [*PUBLISHED, ""])
def test_more_rows_or_more_keep_never_touch_less(model: str) -> None:
    rows = np.geomspace(1, 1e6, 200)
    d = union_density(KEEPS[:, None], rows[None, :], published(model))
    assert np.all(np.diff(d, axis=1) >= -1e-12)
    assert np.all(np.diff(d, axis=0) >= -1e-12)
    assert np.all((d >= KEEPS[:, None] - 1e-12) & (d <= 1.0))


@pytest.mark.parametrize("model", [*PUBLISHED, ""])
def test_rows_that_share_touch_less_than_independent_ones(model: str) -> None:
    """Strictly below 1 - (1 - keep)^B from two rows on."""
    rows = ROWS[1:]
    independent = 1.0 - (1.0 - 0.1) ** rows
    assert np.all(union_density(0.1, rows, published(model)) < independent)


def test_batches_beyond_the_table_go_on_growing() -> None:
    """256 rows touch 0.641 of OPT-66B; four times as many touch more, and still not all."""
    assert 0.66 < float(union_density(0.0751, 1024.0, published("opt-66b"))) < 0.9


def test_fractional_and_huge_batches_stay_finite() -> None:
    d = union_density(0.3, np.array([0.5, 1.5, 1e12]), published())
    assert np.all(np.isfinite(d))
    assert d[0] == pytest.approx(0.3)


def test_frequencies_by_hand() -> None:
    """p = (0, 1/2, 1), two rows: mean of 0, 3/4, 1."""
    p = np.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(frequency_density(p, np.array([1.0, 2.0])), [0.5, 1.75 / 3])


def test_equal_frequencies_are_the_binomial_law_and_unequal_ones_touch_less() -> None:
    """Jensen: at the same mean, a spread of frequencies touches fewer neurons."""
    rows = np.array([1.0, 4.0, 64.0])
    equal = frequency_density(np.full(100, 0.1), rows)
    np.testing.assert_allclose(equal, 1 - 0.9**rows)
    spread = frequency_density(np.concatenate([np.full(50, 0.19), np.full(50, 0.01)]), rows)
    assert np.all(spread[1:] < equal[1:])
    assert spread[0] == pytest.approx(equal[0])
