"""VMIS-kNN: items of the past sessions that resemble the running one.

    r(s)  = sum of place(x) over the items x that the session s shares with the running one, where place rises from
            1/n for the first of its n items to 1 for the last
    score = sum over the `neighbors` sessions s with the largest r(s) that hold y, of
            r(s) * (1 - 0.1 * p(s)) * ln(sessions / sessions with y)

p(s) is the place, counted from the end and from 1, of the last item of the running session that s shares. Only the
MOST_RECENT sessions of an item are searched. The session index is built from the counted events.
A batch must be of the log that the index was built from: its times tell where the running session begins.

References: Kersbergen et al. 2022, "Serenade - Low-Latency Session-Based Recommendation in e-Commerce at Scale";
Ludewig and Jannach 2018, "Evaluation of Session-based Recommendation Algorithms" (V-SKNN). In one point this differs:
the last item stays a candidate, because here a repeat may be the target.
"""

from __future__ import annotations

import itertools
import math
import time
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
    item_counts,
    popularity_order,
    put_entries,
    scaled_rows,
    training_events,
)

# Sessions of an item that are searched, the most recent ones; items of the running session that count.
MOST_RECENT, LONGEST = 500, 10
MINUTE = 60_000_000  # microseconds


def sessions_of(sequences: Sequences, gap: int | None) -> np.ndarray:
    """(E,) int64: each event's session. One begins at a user's first event and after `gap` microseconds without any;
    None makes each user one session."""
    users = sequences.user_of_event()
    begins = np.ones(len(users), dtype=bool)
    begins[1:] = users[1:] != users[:-1]
    if gap is not None:
        begins[1:] |= np.diff(sequences.timestamps) > gap
    return np.cumsum(begins) - 1


class SessionNeighbors:
    """VMIS-kNN; what ends a session and the number of neighbors are chosen on validation events."""

    note: str | None = None
    GAPS = (30 * MINUTE, 24 * 60 * MINUTE, None)
    NEIGHBORS = (100, 500)

    def __init__(self, until: float = math.inf) -> None:
        """`until`: when choosing stops, by `time.monotonic`."""
        self.gap: int | None = None  # microseconds without an event that end a session; None: a user's history is one
        self.neighbors, self.until = 100, until
        self.chosen: dict[str, Any] | None = None

    def fit(self, sequences: Sequences) -> SessionNeighbors:
        training = training_events(sequences)
        batches = ChoiceBatches(sequences, novel=True)
        self.note = no_choice(batches)
        if batches.count:
            timed = not (sequences.timestamps < 0).any()
            reached = dict[tuple[int | None, int], float]()
            for gap, neighbors in itertools.product(self.GAPS if timed else (None,), self.NEIGHBORS):
                if reached and time.monotonic() > self.until:
                    break
                self.gap, self.neighbors = gap, neighbors
                self.count(sequences, training)
                reached[gap, neighbors] = batches.ndcg(self.sparse_scores)
            self.gap, self.neighbors = best = best_of(reached, None)
            self.chosen = {
                "minutes_that_end_a_session": None if self.gap is None else self.gap // MINUTE,
                "neighbors": self.neighbors,
                CHOICE_METRIC: reached[best],
                "validation targets": batches.count,
            }
        self.count(sequences, training)
        return self

    def count(self, sequences: Sequences, counted: np.ndarray) -> None:
        """Builds the index of the sessions of the `counted` (E,) bool events."""
        self._first, self._size = sequences.first_item_id, sequences.vocab_size
        self._order = popularity_order(item_counts(sequences, counted))
        self._session = sessions_of(sequences, self.gap)
        events = np.flatnonzero(counted & sequences.known_items())
        # Rows of the index in the order of the sessions' last events, so that a later row is more recent.
        ended = np.full(int(self._session.max(initial=-1)) + 1, np.iinfo(np.int64).min)
        np.maximum.at(ended, self._session[events], sequences.timestamps[events])
        present = np.unique(self._session[events])
        self._row = np.full(len(ended), -1)
        self._row[present[np.argsort(ended[present], kind="stable")]] = np.arange(len(present))
        keys = np.unique(self._row[self._session[events]] * self._size + sequences.items[events].astype(np.int64))
        rows, items = np.divmod(keys, self._size)
        shape = (len(present), self._size)
        self._items_of = sparse.csr_array((np.ones(len(keys), dtype=np.float32), (rows, items)), shape=shape)
        counts = np.bincount(items, minlength=self._size)
        idf = np.log(np.maximum(len(present), 1) / np.maximum(counts, 1))
        self._idf = np.where(idf > 0, idf, 1.0)  # an item of every session keeps its weight, as in Serenade
        by_item = np.lexsort((rows, items))  # per item, the most recent session last
        from_end = np.repeat(np.cumsum(counts), counts) - np.arange(len(keys))
        kept = by_item[from_end <= MOST_RECENT]
        self._sessions_of = sparse.csr_array(
            (np.ones(len(kept), dtype=np.int8), (items[kept], rows[kept])), shape=shape[::-1]
        )

    def _similar(self, batch: EvaluationBatch) -> Any:
        """(B, S) CSR: r(s) * (1 - 0.1 * p(s)) of the nearest sessions."""
        row, item, place = self._running(batch)
        length = np.bincount(row, minlength=len(batch))
        starts, ends = self._sessions_of.indptr[item], self._sessions_of.indptr[item + 1]
        counts = ends - starts
        entry = np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        session, owner = self._sessions_of.indices[entry], np.repeat(row, counts)
        running = self._row[self._session[batch.position - 1]]  # the index may hold the beginning of the running one
        other = session != running[owner]
        keys = owner[other].astype(np.int64) * max(1, len(self._items_of.indptr) - 1) + session[other]
        places = np.repeat(place, counts)[other]
        weights = (1.0 - places / np.maximum(length[owner[other]], 1)).astype(np.float64)
        order = np.argsort(keys, kind="stable")
        keys, places, weights = keys[order], places[order], weights[order]
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        if not len(first):
            return sparse.csr_array((len(batch), self._items_of.shape[0]))
        rows, columns = np.divmod(keys[first], self._items_of.shape[0])
        # Of equally similar sessions the more recent is nearer.
        likeness = np.add.reduceat(weights, first) + 1e-9 * columns
        match = 1.0 - 0.1 * (np.minimum.reduceat(places, first) + 1)
        shape = (len(batch), self._items_of.shape[0])
        nearest = best_entries(sparse.csr_array((likeness, (rows, columns)), shape=shape), self.neighbors)
        by_match = sparse.csr_array((match, (rows, columns)), shape=shape)
        return nearest.multiply(by_match).tocsr()

    def _running(self, batch: EvaluationBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, items and places (0 for the last), (N,) each: the distinct known items of the running sessions."""
        rows, columns = np.nonzero(batch.input_ids >= self._first)
        event = batch.position[rows] - batch.input_ids.shape[1] + columns
        inside = self._session[event] == self._session[batch.position - 1][rows]
        rows, items = rows[inside][::-1], batch.input_ids[rows[inside], columns[inside]][::-1]  # the last first
        _, latest = np.unique(rows * self._size + items, return_index=True)
        latest = np.sort(latest)
        rows, items = rows[latest], items[latest]
        starts = np.flatnonzero(np.diff(rows, prepend=-1))
        place = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
        kept = place < LONGEST
        return rows[kept], items[kept], place[kept]

    def sparse_scores(self, batch: EvaluationBatch) -> Any:
        """(B, V) CSR, no entry for an item of no similar session."""
        scores = (self._similar(batch) @ self._items_of).tocsr()
        scores.data = scores.data * self._idf[scores.indices]
        return scores

    def scores(self, batch: EvaluationBatch) -> np.ndarray:
        scores = candidate_scores(batch, TIE_BREAK * self._order, self._first)
        put_entries(scores, scaled_rows(self.sparse_scores(batch)))
        return scores
