"""What all baselines are made of: counts of the training events, and sparse scores of items.

Scores of a batch are (B, V) CSR matrices where a baseline knows few items of the catalog, and float32 arrays where
every item has a score.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse

from next_behavior.data.batches import EvaluationBatch
from next_behavior.data.sequences import TRAIN, Sequences
from next_behavior.model.special_ids import FIRST_NEW, NONE

# Weight of popularity (at most 1) among items that a baseline otherwise scores alike.
TIE_BREAK = 1e-5


# ----------------------------------------------------------------------------------------------------------------------
# Training events
# ----------------------------------------------------------------------------------------------------------------------


def training_events(sequences: Sequences) -> np.ndarray:
    """(E,) bool: the events that every baseline counts."""
    return sequences.parts == TRAIN


def item_counts(sequences: Sequences, counted: np.ndarray, since: int | None = None) -> np.ndarray:
    """(V,) int64: `counted` events per token id; [NONE] and what the vocabulary lacks are left out.

    Args:
        counted: (E,) bool.
        since: microseconds; only events after this time count.
    """
    named = counted & sequences.known_items()
    if since is not None:
        named &= sequences.timestamps > since
    return np.bincount(sequences.items[named], minlength=sequences.vocab_size)


def training_item_counts(sequences: Sequences, since: int | None = None) -> np.ndarray:
    """`item_counts` of the training events."""
    return item_counts(sequences, training_events(sequences), since)


def popularity_order(counts: np.ndarray) -> np.ndarray:
    """(V,) float32 from 0 to 1 in the order of the counts, equal where they are equal; 0 for a count of 0.

    >>> popularity_order(np.array([0, 7, 1, 7, 2])).tolist()
    [0.0, 1.0, 0.3333333432674408, 1.0, 0.6666666865348816]
    """
    distinct, order = np.unique(np.append(counts, 0), return_inverse=True)
    return (order[:-1] / max(1, len(distinct) - 1)).astype(np.float32)


def item_events(sequences: Sequences, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items, users and positions, (N,) int64 each, of the `counted` (E,) bool events that name an item, in order."""
    positions = np.flatnonzero(counted & (sequences.items != NONE))
    return sequences.items[positions].astype(np.int64), sequences.user_of_event()[positions], positions


# ----------------------------------------------------------------------------------------------------------------------
# Scores
# ----------------------------------------------------------------------------------------------------------------------


def candidate_scores(batch: EvaluationBatch, order: np.ndarray, first_item_id: int) -> np.ndarray:
    """(B, V) float32: `order` for the items, 0 for the history's [NEW_j], -inf for the rest."""
    base = order.astype(np.float32)
    base[:first_item_id] = -np.inf
    scores = np.broadcast_to(base, (len(batch), len(base))).copy()
    row, column = np.nonzero((batch.input_ids >= FIRST_NEW) & (batch.input_ids < first_item_id))
    scores[row, batch.input_ids[row, column]] = 0
    return scores


def history_weights(
    batch: EvaluationBatch, weight: Callable[[np.ndarray], np.ndarray], vocab_size: int, runs: bool = False
) -> Any:
    """(B, V) sparse CSR: for each item of a row's history the sum of `weight(distance)` over its events.

    Distance 0 is the last event that names an item, 1 the one before; events without an item are not counted. Weights
    that are 0 leave no entry.

    Args:
        runs: events of one item in a row count as one.
    """
    named = batch.input_ids >= FIRST_NEW
    if runs:
        position = np.arange(named.shape[1])
        latest = np.maximum.accumulate(np.where(named, position, -1), axis=1)
        before = np.pad(latest[:, :-1], ((0, 0), (1, 0)), constant_values=-1)  # (B, T): the named event before each
        same = np.take_along_axis(batch.input_ids, np.maximum(before, 0), axis=1) == batch.input_ids
        named = named & ~(same & (before >= 0))
    distance = np.cumsum(named[:, ::-1], axis=1)[:, ::-1] - 1
    rows, columns = np.nonzero(named)
    values = weight(distance[rows, columns]).astype(np.float64)
    kept = values > 0
    entries = (values[kept], (rows[kept], batch.input_ids[rows[kept], columns[kept]]))
    return sparse.csr_array(entries, shape=(len(batch), vocab_size))


def best_entries(matrix: Any, k: int) -> Any:
    """The (B, V) CSR matrix with the k largest entries of each row; which of equal ones is not defined."""
    if not len(matrix.data) or np.diff(matrix.indptr).max() <= k:
        return matrix
    kept = []
    for begin, end in zip(matrix.indptr[:-1].tolist(), matrix.indptr[1:].tolist(), strict=True):
        if end - begin <= k:
            kept.append(np.arange(begin, end))
        else:
            kept.append(begin + np.argpartition(matrix.data[begin:end], end - begin - k)[-k:])
    chosen = np.concatenate(kept)
    indptr = np.cumsum([0, *(len(part) for part in kept)])
    return sparse.csr_array((matrix.data[chosen], matrix.indices[chosen], indptr), shape=matrix.shape)


def entry_rows(matrix: Any) -> np.ndarray:
    """(nnz,) int64: the row of each entry of a CSR matrix."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def scaled_rows(matrix: Any) -> Any:
    """The CSR matrix with rows that sum to one, or are empty."""
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    scaled = matrix.copy()
    scaled.data = scaled.data / sums[entry_rows(matrix)]
    return scaled


def without_seen(matrix: Any, seen: list[np.ndarray]) -> Any:
    """The (B, V) CSR matrix with 0 at each row's `seen` ids."""
    is_seen = np.zeros(matrix.shape, dtype=bool)
    is_seen[np.repeat(np.arange(len(seen)), [len(ids) for ids in seen]), np.concatenate(seen)] = True
    kept = matrix.copy()
    kept.data[is_seen[entry_rows(kept), kept.indices]] = 0
    return kept


def sparse_ranks(matrix: Any, targets: np.ndarray) -> np.ndarray:
    """(B,) ranks as `pessimistic_ranks` would give for a (B, V) CSR matrix of positive scores, except that a target
    without one comes after everything, at V + 1."""
    rows, size = entry_rows(matrix), matrix.shape[1]
    hit = matrix.indices == targets[rows]
    target_scores = np.zeros(len(targets))
    target_scores[rows[hit]] = matrix.data[hit]
    better = matrix.data >= target_scores[rows]
    ranks = np.bincount(rows[better], minlength=len(targets))
    return np.where(target_scores > 0, ranks, size + 1)


def put_entries(scores: np.ndarray, matrix: Any) -> None:
    """Writes the entries of a (B, V) CSR matrix, each at most once, over `scores` and above `TIE_BREAK`."""
    scores[entry_rows(matrix), matrix.indices] = TIE_BREAK + matrix.data
