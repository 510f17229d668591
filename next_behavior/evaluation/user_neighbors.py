"""TIFU-kNN: the user's own items by decayed frequency, mixed with those of the users that are most alike.

    vector(u) = mean over the events of u, cut into GROUPS groups of equal length from the end, of
                group_decay^(groups after its own) * decay^(events after it in its group) * item
    score     = own_weight * vector(u) + (1 - own_weight) * mean of vector(v) over the NEIGHBORS users v nearest to u

Here each event is a basket, and nearness is the Euclidean distance among the users who share an item with u.

Reference: Hu et al. 2020, "Modeling Personalized Item Frequency Information for Next-basket Recommendation".
"""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

import numpy as np
from scipy import sparse

from next_behavior.data.batches import EvaluationBatch
from next_behavior.data.sequences import Sequences
from next_behavior.evaluation.choice import CHOICE_METRIC, ChoiceBatches, best_of, no_choice
from next_behavior.evaluation.counting import (
    TIE_BREAK,
    best_entries,
    candidate_scores,
    entry_rows,
    item_counts,
    popularity_order,
    put_entries,
    training_events,
)
from next_behavior.model.special_ids import FIRST_NEW

GROUPS, NEIGHBORS = 7, 100
# Items that the neighbors name: beyond these, the mean over them is not ranked.
MOST_NAMED = 500


def event_weights(from_end: np.ndarray, length: np.ndarray, decay: float, group_decay: float) -> np.ndarray:
    """Weights of events by their distance from the end of a history of `length` events, (N,) each.

    >>> event_weights(np.array([0, 1, 2, 3]), np.full(4, 4), decay=0.5, group_decay=0.1).round(5).tolist()
    [0.25, 0.025, 0.0025, 0.00025]
    """
    size = -(-length // GROUPS)
    groups = -(-length // size)
    return group_decay ** (from_end // size) * decay ** (from_end % size) / (size * groups)


class UserNeighbors:
    """TIFU-kNN; the decays and the weight of the own items are chosen on validation events."""

    note: str | None = None
    DECAYS = ((0.9, 0.7), (1.0, 0.6), (0.7, 0.3))  # decay within a group, and from group to group
    OWN_WEIGHTS = (0.5, 0.05, 0.2, 0.8, 0.95, 0.99)

    def __init__(self, until: float = math.inf) -> None:
        """`until`: when choosing stops, by `time.monotonic`."""
        (self.decay, self.group_decay), self.own_weight = self.DECAYS[0], self.OWN_WEIGHTS[0]
        self.until = until
        self.chosen: dict[str, Any] | None = None

    def fit(self, sequences: Sequences) -> UserNeighbors:
        training = training_events(sequences)
        batches = ChoiceBatches(sequences, novel=False)
        self.note = no_choice(batches)
        if batches.count:
            reached = dict[tuple[float, float, float], float]()
            for decays in self.DECAYS:
                if reached and time.monotonic() > self.until:
                    break
                self.decay, self.group_decay = decays
                self.count(sequences, training)
                parts = {id(batch): self._parts(batch) for batch in batches}
                for weight in self.OWN_WEIGHTS:
                    reached[decays[0], decays[1], weight] = batches.ndcg(partial(self._of_parts, parts, weight))
            best = best_of(reached, None)
            self.decay, self.group_decay, self.own_weight = best
            self.chosen = {
                "decay": self.decay,
                "group_decay": self.group_decay,
                "own_weight": self.own_weight,
                CHOICE_METRIC: reached[best],
                "validation targets": batches.count,
            }
        self.count(sequences, training)
        return self

    def count(self, sequences: Sequences, counted: np.ndarray) -> None:
        """Builds the vectors of all users from the `counted` (E,) bool events."""
        self._first, self._size = sequences.first_item_id, sequences.vocab_size
        self._order = popularity_order(item_counts(sequences, counted))
        events = np.flatnonzero(counted & sequences.known_items())
        users = sequences.user_of_event()[events]
        length = np.bincount(users, minlength=sequences.num_users)
        from_end = np.repeat(np.cumsum(length), length) - 1 - np.arange(len(events))
        weights = event_weights(from_end, length[users], self.decay, self.group_decay)
        shape = (sequences.num_users, self._size)
        self._vectors = sparse.csr_array((weights, (users, sequences.items[events].astype(np.int64))), shape=shape)
        self._holders = self._vectors.T.tocsr()  # (V, U)
        self._squares = np.asarray(self._vectors.multiply(self._vectors).sum(axis=1)).ravel()

    def _own(self, batch: EvaluationBatch) -> Any:
        """(B, V) CSR: the vectors of the histories."""
        named = batch.input_ids >= FIRST_NEW
        rows, columns = np.nonzero(named)
        from_end = (np.cumsum(named[:, ::-1], axis=1)[:, ::-1] - 1)[rows, columns]
        weights = event_weights(from_end, named.sum(axis=1)[rows], self.decay, self.group_decay)
        entries = (weights, (rows, batch.input_ids[rows, columns]))
        return sparse.csr_array(entries, shape=(len(batch), self._size))

    def _parts(self, batch: EvaluationBatch) -> tuple[Any, Any]:
        """The own vectors and the neighbors' mean ones, (B, V) CSR each."""
        own = self._own(batch)
        near = (own @ self._holders).tocsr()  # (B, U): products of the vectors
        rows = entry_rows(near)
        # |u - v|^2 = |u|^2 + |v|^2 - 2 uv, raised above 0, so that the nearest users have the largest entries.
        squares = np.asarray(own.multiply(own).sum(axis=1)).ravel()
        distance = squares[rows] + self._squares[near.indices] - 2 * near.data
        itself = near.indices == batch.user[rows]
        near.data = np.where(itself, 0.0, 1 / (1e-9 + np.maximum(distance, 0)))
        near.eliminate_zeros()
        nearest = best_entries(near, NEIGHBORS)
        found = np.diff(nearest.indptr)
        nearest.data = 1 / found[entry_rows(nearest)]
        return own, best_entries((nearest @ self._vectors).tocsr(), MOST_NAMED)

    def _of_parts(self, parts: dict[int, tuple[Any, Any]], own_weight: float, batch: EvaluationBatch) -> Any:
        return self._mixed(*parts[id(batch)], own_weight)

    @staticmethod
    def _mixed(own: Any, others: Any, own_weight: float) -> Any:
        return (own_weight * own + (1 - own_weight) * others).tocsr()

    def sparse_scores(self, batch: EvaluationBatch) -> Any:
        """(B, V) CSR, no entry for an item of neither the user nor the neighbors."""
        return self._mixed(*self._parts(batch), self.own_weight)

    def scores(self, batch: EvaluationBatch) -> np.ndarray:
        scores = candidate_scores(batch, TIE_BREAK * self._order, self._first)
        put_entries(scores, self.sparse_scores(batch))
        return scores
