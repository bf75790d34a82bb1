"""Attention within chunks as sequences of their own, by hand and by counting."""

from __future__ import annotations

import pytest

from simulator.ops.pairs import in_chunks


def counted(new: int, context: int, chunk: int) -> int:
    """Keys that the newest `new` of `context` positions see from the start of their chunks."""
    return sum(p % chunk + 1 for p in range(context - new, context))


@pytest.mark.parametrize(
    ("new", "context", "chunk"), [(10, 10, 4), (8, 8, 8), (3, 3, 8), (5, 12, 4), (6, 9, 16), (2, 17, 16)]
)
def test_sequences_have_the_pairs_of_the_chunks(new: int, context: int, chunk: int) -> None:
    """10 tokens in chunks of 4: 10 + 10 + 3 = 23 pairs."""
    n, queries, keys = in_chunks(float(new), float(context), float(chunk))
    pairs = n * (queries * (keys - queries) + queries * (queries + 1.0) / 2.0)
    assert n * queries == pytest.approx(new)
    assert pairs == pytest.approx(counted(new, context, chunk))
    assert keys >= queries >= 1.0


def test_a_token_past_the_first_chunk_sees_half_a_chunk_on_average() -> None:
    """Chunks of 4: 1, 2, 3 and 4 keys, so 2.5; before that all there are."""
    assert in_chunks(1.0, 3.0, 4.0) == (1.0, 1.0, 3.0)
    assert in_chunks(1.0, 9.0, 4.0) == (1.0, 1.0, 2.5)
