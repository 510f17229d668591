"""What is compiled computes what numpy computes, and is compiled also where nothing can be kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from next_behavior.serving import compiled as module
from next_behavior.serving.catalog import multiply, rounded
from next_behavior.serving.distribution import sum_of_exponentials
from next_behavior.serving.top import BLOCK


@pytest.mark.parametrize("value", [0.0, 1e-4, -1.0, 3.7, -20.0, -86.0, 80.0])
def test_the_exponential_is_that_of_numpy(value: float) -> None:
    row = np.full(BLOCK, -np.inf, np.float32)
    assert sum_of_exponentials(row, 0.0, 1.0) == 0
    row[5] = value
    assert sum_of_exponentials(row, 0.0, 1.0) == pytest.approx(float(np.exp(np.float64(row[5]))), rel=3e-7)
    row[6] = np.nan
    assert np.isnan(sum_of_exponentials(row, 0.0, 1.0)), "a damaged model is noticed"


@pytest.mark.parametrize("queries", [1, 3, 4, 6])
def test_products_with_rounded_rows_are_within_their_bound(queries: int) -> None:
    draw = np.random.default_rng(0)
    rows, asked = draw.normal(size=(BLOCK + 3, 24)).astype(np.float32), draw.normal(size=(queries, 24))
    rows[7] = 0
    integers, scales = rounded(rows)
    assert integers.shape == (2 * BLOCK, 24)
    out = np.empty((queries, 2 * BLOCK), np.float32)
    multiply(integers, scales, asked.astype(np.float32), out)
    off = np.abs(out[:, : len(rows)] - asked @ rows.T.astype(np.float64))
    assert (off <= scales[: len(rows)] / 2 * np.abs(asked).sum(axis=1, keepdims=True) + 1e-5).all()
    assert off.max() > 0, "they are rounded"
    assert (out[:, len(rows) :] == 0).all()


def test_where_nothing_can_be_kept_each_process_compiles(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nowhere(cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(module, "njit", nowhere)
    assert module.compiled(abs) is abs
    assert "set NUMBA_CACHE_DIR" in caplog.text
