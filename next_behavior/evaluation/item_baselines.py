"""Item baselines that need no pairs of items far apart: popularity, repeats, and what came right after the last item.

A [NEW_j] of the history is an item that training never saw: popularity and the like rank it last, baselines that repeat
rank it as any other item.

References: repeat consumption (Anderson et al. 2014; Reiter-Haas et al. 2021), Markov chains for the next item (Rendle
et al. 2010).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from next_behavior.data.batches import EvaluationBatch
from next_behavior.data.sequences import Sequences
from next_behavior.evaluation.choice import CHOICE_METRIC, ChoiceBatches, best_of, no_choice
from next_behavior.evaluation.counting import (
    TIE_BREAK,
    candidate_scores,
    entry_rows,
    history_weights,
    item_counts,
    item_events,
    popularity_order,
    scaled_rows,
    training_events,
    training_item_counts,
)
from next_behavior.model.special_ids import FIRST_NEW

# Recent popularity looks this far back from the last training event.
RECENT_DAYS = 7
DAY = 86_400_000_000  # microseconds
# Histories' log-weights are raised by this, so that what was repeated stands above the popularity of the rest.
REPEAT_OFFSET = 64.0


def transition_counts(sequences: Sequences, counted: np.ndarray) -> Any:
    """(V, V) CSR: how often the second item came right after the first among the `counted` (E,) bool events."""
    items, users, _ = item_events(sequences, counted)
    size = sequences.vocab_size
    known = items < size
    follows = (users[1:] == users[:-1]) & known[1:] & known[:-1]
    ones = np.ones(int(follows.sum()))
    return sparse.csr_array((ones, (items[:-1][follows], items[1:][follows])), shape=(size, size))


class Popularity:
    """Items by their number of training events."""

    note: str | None = None
    chosen: dict[str, Any] | None = None

    def fit(self, sequences: Sequences) -> Popularity:
        self._first = sequences.first_item_id
        self._order = popularity_order(training_item_counts(sequences))
        return self

    def scores(self, batch: EvaluationBatch) -> np.ndarray:
        return candidate_scores(batch, self._order, self._first)


class RecentPopularity:
    """Items by their events of the last seven days that were counted, then by all. Without times: by all."""

    note: str | None = None
    chosen: dict[str, Any] | None = None

    def fit(self, sequences: Sequences) -> RecentPopularity:
        self.count(sequences, training_events(sequences))
        return self

    def count(self, sequences: Sequences, counted: np.ndarray) -> None:
        self._first = sequences.first_item_id
        self._order = popularity_order(item_counts(sequences, counted))
        times = sequences.timestamps[counted]
        if not len(times) or (times < 0).any():
            self.note = "the log has no times: the same as popularity"
        else:
            since = int(times.max()) - RECENT_DAYS * DAY
            recent = popularity_order(item_counts(sequences, counted, since))
            self._order = recent + TIE_BREAK * self._order

    def scores(self, batch: EvaluationBatch) -> np.ndarray:
        return candidate_scores(batch, self._order, self._first)


class RepeatLast:
    """The user's own items, the most recent first; then the rest by popularity."""

    note: str | None = None
    chosen: dict[str, Any] | None = None

    def fit(self, sequences: Sequences) -> RepeatLast:
        self._first = sequences.first_item_id
        self._order = popularity_order(training_item_counts(sequences))
        return self

    def scores(self, batch: EvaluationBatch) -> np.ndarray:
        scores = candidate_scores(batch, self._order, self._first)
        rows, columns = np.nonzero(batch.input_ids >= FIRST_NEW)
        # Columns ascend in time, popularity stays at or below 1: the largest of an item's columns is its last event.
        np.maximum.at(scores, (rows, batch.input_ids[rows, columns]), (columns + 2).astype(np.float32))
        return scores


class DecayedRepeat:
    """The user's own items by the sum of decay^distance over their events; then the rest by popularity.

    Distance counts events that name an item. The decay is chosen on validation events.
    """

    note: str | None = None
    DECAYS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)

    def __init__(self, decay: float = 0.8) -> None:
        self.decay = decay
        self.chosen: dict[str, Any] | None = None

    def fit(self, sequences: Sequences) -> DecayedRepeat:
        self._first, self._size = sequences.first_item_id, sequences.vocab_size
        self._order = popularity_order(training_item_counts(sequences))
        batches = ChoiceBatches(sequences, novel=False)
        self.note = no_choice(batches)
        if batches.count:
            # Each validation target counts once: the score of a history does not depend on the training events.
            reached = {decay: batches.ndcg(lambda batch, d=decay: self.weights(batch, d)) for decay in self.DECAYS}  # type: ignore[misc]
            self.decay = best_of(reached, self.decay)
            self.chosen = {"decay": self.decay, CHOICE_METRIC: reached[self.decay], "validation targets": batches.count}
        return self

    def weights(self, batch: EvaluationBatch, decay: float | None = None) -> Any:
        """(B, V) sparse: the sums of decay^distance."""
        base = self.decay if decay is None else decay
        return history_weights(batch, lambda distance: base**distance, self._size)

    def scores(self, batch: EvaluationBatch) -> np.ndarray:
        scores = candidate_scores(batch, self._order, self._first)
        weights = self.weights(batch)
        # On a log scale, where float32 keeps small values apart; never as low as the popularities.
        raised = np.maximum(np.log(weights.data) + REPEAT_OFFSET, 2.0)
        scores[entry_rows(weights), weights.indices] = raised
        return scores


class ItemTransition:
    """First-order Markov chain: how often an item came right after the user's last one, normalized; ties by popularity.

    Events that name no item are passed over, in counting and in a history.
    """

    note: str | None = None
    chosen: dict[str, Any] | None = None

    def fit(self, sequences: Sequences) -> ItemTransition:
        self.count(sequences, training_events(sequences))
        return self

    def count(self, sequences: Sequences, counted: np.ndarray) -> None:
        self._first, self._size = sequences.first_item_id, sequences.vocab_size
        self._order = popularity_order(item_counts(sequences, counted))
        self._transitions = scaled_rows(transition_counts(sequences, counted))

    def scores(self, batch: EvaluationBatch) -> np.ndarray:
        scores = candidate_scores(batch, TIE_BREAK * self._order, self._first)
        last = history_weights(batch, lambda distance: distance == 0, self._size)
        followers = last @ self._transitions
        scores[entry_rows(followers), followers.indices] += followers.data.astype(np.float32)
        return scores
