"""The largest of many numbers are the ones that sorting finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from next_behavior.serving.top import BLOCK, best, near_best


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1, 7, BLOCK, 60 * BLOCK + 3]),
    count=st.sampled_from([1, 3, 10, 300]),
    levels=st.sampled_from([2, 50, 10**6]),
)
def test_the_largest_are_found_and_of_equal_ones_the_first(seed: int, size: int, count: int, levels: int) -> None:
    values = np.random.default_rng(seed).integers(0, levels, size).astype(np.float32)
    expected = np.argsort(-values, kind="stable")[:count]
    assert best(values, count).tolist() == sorted(expected.tolist())


@pytest.mark.parametrize("blocks", [1, 60])
@pytest.mark.parametrize("count", [1, 10, 300])
@pytest.mark.parametrize(("slack", "factor"), [(0.0, 1.0), (0.5, 1.0), (0.0, 0.9)])
def test_all_that_come_near_to_the_best_are_found(blocks: int, count: int, slack: float, factor: float) -> None:
    scores = np.random.default_rng(0).integers(0, 40, (2, blocks * BLOCK)).astype(np.float32)
    scores[1, ::2] = -np.inf
    offsets = np.array([0, 1.5], np.float32)
    maxima = scores.reshape(2, -1, BLOCK).max(axis=2)
    rows, columns = near_best(scores, offsets, maxima, count, slack, factor)
    values = scores + offsets[:, None]
    ordered = np.sort(values[values > -np.inf])[::-1]
    least = (ordered[count - 1] - slack) * factor if count <= len(ordered) else -np.inf
    expected = np.nonzero((values >= least) & (values > -np.inf))
    assert (rows.tolist(), columns.tolist()) == (expected[0].tolist(), expected[1].tolist())
