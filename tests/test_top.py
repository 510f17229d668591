"""The largest of many numbers are the ones that sorting finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from next_behavior.serving.batch_scoring import top_of_rows
from next_behavior.serving.top import BLOCK, best, top


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1, 7, BLOCK, 60 * BLOCK, 60 * BLOCK + 3]),
    count=st.sampled_from([1, 3, 10, 300]),
    levels=st.sampled_from([2, 50, 10**6]),
)
def test_the_largest_are_found_and_of_equal_ones_the_first(seed: int, size: int, count: int, levels: int) -> None:
    values = np.random.default_rng(seed).integers(0, levels, size).astype(np.float32)
    expected = np.argsort(-values, kind="stable")[:count]
    assert best(values, count).tolist() == sorted(expected.tolist())
    assert top(values, count).tolist() == expected.tolist()


@pytest.mark.parametrize("size", [4, 9 * BLOCK, 60 * BLOCK])
def test_rows_keep_at_least_their_largest(size: int) -> None:
    values = np.random.default_rng(0).random((5, size)).astype(np.float32)
    rows, columns = top_of_rows(values, 8)
    assert (np.diff(rows) >= 0).all()
    for row, expected in enumerate(np.argsort(-values, axis=1)[:, :8]):
        assert set(expected.tolist()) <= set(columns[rows == row].tolist())
