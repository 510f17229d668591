"""TGH: a training-free graph of item transitions, ranked by the likeness of item texts.

An edge x -> y counts how often y came right after x. Ring 1 around x holds the items that x points to, ring 2 those
that they point to and ring 1 does not hold. An item y in a ring around x scores

    cos(text of x, text of y) + edge_weight * ln(1 + count(x, y)) / the largest such logarithm of x's edges

and the list takes a few of the best of each ring in turn:

    TGH-1   7 of ring 1 and 2 of ring 2 around the last item, 1 of all further ones
    TGH-2   5 of ring 1 and 1 of ring 2 around the last item, 3 of ring 1 and 1 of ring 2 around the one before

Then come the rest of these rings in the same order, and all others by likeness to the last item. A ring that has fewer
items leaves its places to what follows. What the user has seen comes last: the heuristic names items new to the user.

Reference: Han et al. 2026, "An Embarrassingly Simple Graph Heuristic Reveals Shortcut-Solvable Benchmarks for
Sequential Recommendation" (arXiv 2605.07125) and its code. There the texts are read by flan-t5-xl, places that stay
empty are filled at random, and `edge_weight` is 0.5. Here the texts are the model's own, and the weight is chosen on
validation events.
"""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

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
    popularity_order,
    training_events,
)
from next_behavior.evaluation.item_baselines import transition_counts

ALL_FURTHER = 3  # the ring that holds whatever rings 1 and 2 do not
# Scores of a ring lie in [-1, 1 + edge_weight]; rings stand this far apart, and the items that are taken above all.
RING_STEP, TAKEN = 8.0, 1000.0


class Ring(NamedTuple):
    """How many items are taken of a ring around the last item (source 0) or the one before (1)."""

    source: int
    depth: int
    taken: int


TGH_1 = (Ring(0, 1, 7), Ring(0, 2, 2), Ring(0, ALL_FURTHER, 1))
TGH_2 = (Ring(0, 1, 5), Ring(0, 2, 1), Ring(1, 1, 3), Ring(1, 2, 1))


def seen_entries(batch: EvaluationBatch) -> tuple[np.ndarray, np.ndarray]:
    """Rows and ids, (N,) each, of what the users have seen."""
    return np.repeat(np.arange(len(batch)), [len(ids) for ids in batch.seen]), np.concatenate(batch.seen)


class TransitionGraph:
    """TGH-1 or TGH-2; the weight of the edges is chosen on validation targets that are new to their user."""

    note: str | None = None
    EDGE_WEIGHTS = (0.5, 1.0, 2.0, 4.0)

    def __init__(self, rings: tuple[Ring, ...], vectors: np.ndarray, until: float = math.inf) -> None:
        """Takes the (V, D) float32 text vectors of the token ids, zeros where there is no text, and when choosing
        stops, by `time.monotonic`."""
        self.rings, self.edge_weight, self.until = rings, self.EDGE_WEIGHTS[0], until
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        self._texts = (vectors / np.where(length > 0, length, 1)).astype(np.float32)
        self.chosen: dict[str, Any] | None = None

    def fit(self, sequences: Sequences) -> TransitionGraph:
        self.count(sequences, training_events(sequences))
        batches = ChoiceBatches(sequences, novel=True)
        self.note = no_choice(batches)
        if batches.count:
            reached = dict[float, float]()
            for weight in self.EDGE_WEIGHTS:
                if reached and time.monotonic() > self.until:
                    break
                reached[weight] = batches.ndcg(lambda batch, w=weight: self._ringed(batch, w))  # type: ignore[misc]
            self.edge_weight = best_of(reached, self.edge_weight)
            self.chosen = {
                "edge_weight": self.edge_weight,
                CHOICE_METRIC: reached[self.edge_weight],
                "validation targets": batches.count,
            }
        return self

    def count(self, sequences: Sequences, counted: np.ndarray) -> None:
        """Builds the graph of the `counted` (E,) bool events."""
        self._first, self._size = sequences.first_item_id, sequences.vocab_size
        self._order = popularity_order(item_counts(sequences, counted))
        edges = transition_counts(sequences, counted)
        edges.data = np.log1p(edges.data)
        largest = edges.max(axis=1).toarray().ravel()
        edges.data = (edges.data / largest[entry_rows(edges)]).astype(np.float32)
        self._edges = edges
        self._points = edges.copy()
        self._points.data = np.ones_like(edges.data)

    def _source(self, batch: EvaluationBatch, back: int) -> Any:
        """(B, V) CSR with a 1 at the last item or the one before it; items in a row count as one."""
        chosen = history_weights(batch, lambda distance: distance == back, self._size, runs=True)
        chosen.data = np.ones(len(chosen.data), dtype=np.float32)
        return chosen

    def _ring(self, source: Any, depth: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, items and weights of the edges (0 in ring 2), (N,) each, of a ring around the sources. Ring 2 holds
        ring 1, too."""
        if depth == 1:
            first = (source @ self._edges).tocsr()
            return entry_rows(first), first.indices, first.data
        second = (source @ self._points @ self._points).tocsr()
        return entry_rows(second), second.indices, np.zeros(len(second.data), dtype=np.float32)

    def _likeness(self, source: Any) -> np.ndarray:
        """(B, V) float32: the cosine of every item's text to that of the source."""
        return (source @ self._texts) @ self._texts.T

    def _ringed(self, batch: EvaluationBatch, edge_weight: float) -> Any:
        """(B, V) CSR of positive scores: the items of the rings, those that are taken above the others."""
        sources = [self._source(batch, back) for back in range(1 + max(ring.source for ring in self.rings))]
        likeness = [self._likeness(source) for source in sources]
        placed = np.zeros((len(batch), self._size), dtype=bool)  # and what is no candidate
        placed[:, : self._first] = True
        placed[seen_entries(batch)] = True
        all_rows, all_items, all_scores = [], [], []
        slot = np.zeros(len(batch))  # the next place of each list
        for number, ring in enumerate(self.rings):
            if ring.depth == ALL_FURTHER:
                items = np.where(placed, -np.inf, likeness[ring.source]).argmax(axis=1)
                rows = np.flatnonzero(~placed[np.arange(len(batch)), items])
                items, weights = items[rows], np.zeros(len(rows), dtype=np.float32)
            else:
                rows, items, weights = self._ring(sources[ring.source], ring.depth)
                new = ~placed[rows, items]
                rows, items, weights = rows[new], items[new], weights[new]
            scores = likeness[ring.source][rows, items] + edge_weight * weights
            order = np.lexsort((-scores, rows))
            rows, items, scores = rows[order], items[order], scores[order]
            count = np.bincount(rows, minlength=len(batch))
            rank = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
            left = RING_STEP * (len(self.rings) - number) + scores
            all_scores.append(np.where(rank < ring.taken, TAKEN - (slot[rows] + rank), left))
            all_rows.append(rows)
            all_items.append(items)
            slot += np.minimum(count, ring.taken)
            placed[rows, items] = True
        entries = (np.concatenate(all_scores), (np.concatenate(all_rows), np.concatenate(all_items)))
        return sparse.csr_array(entries, shape=(len(batch), self._size))

    def scores(self, batch: EvaluationBatch) -> np.ndarray:
        scores = candidate_scores(batch, TIE_BREAK * self._order, self._first)
        scores += self._likeness(self._source(batch, 0))
        ringed = self._ringed(batch, self.edge_weight)
        scores[entry_rows(ringed), ringed.indices] = ringed.data
        scores[seen_entries(batch)] -= RING_STEP
        return scores
