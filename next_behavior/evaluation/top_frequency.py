"""GP-TopFreq: the user's own items by how often they occur, then all others by how often they occur for anyone.

Reference: Li et al. 2023, "A Next Basket Recommendation Reality Check", where it is hard to beat on repeat purchases.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from next_behavior.data.batches import EvaluationBatch
from next_behavior.data.sequences import Sequences
from next_behavior.evaluation.counting import (
    candidate_scores,
    entry_rows,
    history_weights,
    popularity_order,
    training_item_counts,
)


class TopFrequency:
    """score(y) = events of y in the history + popularity of y, which is at most 1. There is nothing to choose."""

    note: str | None = None
    chosen: dict[str, Any] | None = None

    def fit(self, sequences: Sequences) -> TopFrequency:
        self._first, self._size = sequences.first_item_id, sequences.vocab_size
        self._order = popularity_order(training_item_counts(sequences))
        return self

    def scores(self, batch: EvaluationBatch) -> np.ndarray:
        # Just below 1: the most popular item stays behind what the user had once.
        scores = candidate_scores(batch, 0.999 * self._order, self._first)
        own = history_weights(batch, np.ones_like, self._size)
        scores[entry_rows(own), own.indices] += own.data.astype(np.float32)
        return scores
