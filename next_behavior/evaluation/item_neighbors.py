"""Baselines of item-to-item counts: what stands near a user's recent items in the histories of others.

The model's memory counts in the same form, and the defaults of both stand in `BehaviorConfig`. The form was found on
Amazon Beauty.

References: item neighbors with recent events weighing more (Ludewig and Jannach 2018, "Evaluation of Session-based
Recommendation Algorithms"), personal frequency beside neighbors (Hu et al. 2020, "Modeling Personalized Item Frequency
Information for Next-basket Recommendation").
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import sparse

from next_behavior.data.batches import EvaluationBatch
from next_behavior.data.sequences import Sequences, starts_of_runs
from next_behavior.evaluation.choice import CHOICE_METRIC, ChoiceBatches, best_of, no_choice
from next_behavior.evaluation.counting import (
    TIE_BREAK,
    candidate_scores,
    entry_rows,
    history_weights,
    item_counts,
    item_events,
    popularity_order,
    put_entries,
    scaled_rows,
    training_events,
    training_item_counts,
)
from next_behavior.evaluation.item_baselines import DecayedRepeat
from next_behavior.model.configuration_behavior import BehaviorConfig

# Pairs counted at most; the distance shrinks for logs with more.
MAX_PAIRS = 20_000_000


@dataclass(frozen=True)
class NeighborConstants:
    """The constants of `ItemNeighbors` that are chosen on validation events.

    Attributes:
        decay: a pair at distance d counts decay^(d - 1).
        backward: weight of a pair against time.
        degree_power: an item's neighbors are divided by its summed counts to this power.
        history_decay: the k-th event from the end weighs history_decay^k.
    """

    decay: float = BehaviorConfig.memory_decay
    backward: float = BehaviorConfig.memory_backward
    degree_power: float = BehaviorConfig.memory_degree_power
    history_decay: float = BehaviorConfig.memory_history_decay


class ItemNeighbors:
    """Decayed, normalized co-occurrence counts.

    Every pair of events of one user at distance d <= MAX_DISTANCE, x before y, adds decay^(d - 1) to C[x, y] and
    `backward` times that to C[y, x]; events of one item in a row count as one. The score of y is the sum over the last
    MAX_HISTORY events, the k-th from the end weighing history_decay^k, of C[x, y] * degree(x)^-degree_power *
    count(y)^-COUNT_POWER, where degree(x) is the sum of row x; then the rest by popularity. Constants are chosen on
    validation targets that are new to their user.
    """

    note: str | None = None
    MAX_DISTANCE = BehaviorConfig.memory_distance
    MAX_HISTORY = BehaviorConfig.memory_history
    COUNT_POWER = BehaviorConfig.memory_count_power
    # Values of decay, backward, degree_power and history_decay that are tried; pairs are counted once for each decay.
    GRID = tuple(itertools.product((0.9, 0.7, 0.5), (0.3, 1.0), (0.3, 0.5), (0.5, 0.7)))

    def __init__(
        self, constants: NeighborConstants = NeighborConstants(), choose: bool = True, until: float = math.inf
    ) -> None:
        """Takes the constants, or those to begin with; `until`: when choosing stops, by `time.monotonic`."""
        self.constants, self.until = constants, until
        self.chosen: dict[str, Any] | None = None
        self._choose = choose

    def fit(self, sequences: Sequences) -> ItemNeighbors:
        training = training_events(sequences)
        self._size = sequences.vocab_size
        self._weigh_items(sequences, training)
        items, users, _ = self._runs(sequences, training)
        self.max_distance = int(np.clip(MAX_PAIRS // max(1, len(items)), 1, self.MAX_DISTANCE))
        if self._choose:
            batches = ChoiceBatches(sequences, novel=True)
            self.note = no_choice(batches)
            if batches.count:
                reached = self._search(items, users, batches)
                self.constants = best_of(reached, self.constants)
                self.chosen = {
                    **asdict(self.constants),
                    "max_distance": self.max_distance,
                    CHOICE_METRIC: reached[self.constants],
                    "validation targets": batches.count,
                    "targets": "new to their user" if batches.novel else "all",
                }
        self._pairs = self._forward(items, users, self.constants.decay)
        self._counted = training
        self._neighbors = self._normalized(self._pairs, self.constants)
        return self

    def count(self, sequences: Sequences, counted: np.ndarray) -> None:
        """Counts more events; `counted` (E,) bool holds those that are counted already, and none before them is left
        out."""
        new = counted & ~self._counted
        if not new.any():
            return
        self._weigh_items(sequences, counted)
        items, users, positions = self._runs(sequences, counted)
        self._pairs = self._pairs + self._forward(items, users, self.constants.decay, np.flatnonzero(new[positions]))
        self._counted = counted
        self._neighbors = self._normalized(self._pairs, self.constants)

    def _weigh_items(self, sequences: Sequences, counted: np.ndarray) -> None:
        self._first = sequences.first_item_id
        counts = item_counts(sequences, counted)
        self._order = popularity_order(counts)
        self._count_weight = np.maximum(counts, 1.0) ** -self.COUNT_POWER

    @staticmethod
    def _runs(sequences: Sequences, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Items, users and positions, (R,) int64 each: events of one item in a row as their first."""
        items, users, positions = item_events(sequences, counted)
        starts = starts_of_runs(items, users)
        return items[starts], users[starts], positions[starts]

    def _search(self, items: np.ndarray, users: np.ndarray, batches: ChoiceBatches) -> dict[NeighborConstants, float]:
        """Validation NDCG@10 of every form of the grid, or of those that there is time for: at least the first."""
        reached = dict[NeighborConstants, float]()
        for decay, group in itertools.groupby(self.GRID, key=lambda form: form[0]):
            if reached and time.monotonic() > self.until:
                break
            forward = self._forward(items, users, decay)
            for form in group:
                if reached and time.monotonic() > self.until:
                    break
                constants = NeighborConstants(*form)
                self._neighbors = self._normalized(forward, constants)
                reached[constants] = batches.ndcg(lambda batch, c=constants: self._sparse_scores(batch, c))  # type: ignore[misc]
        return reached

    def _forward(self, items: np.ndarray, users: np.ndarray, decay: float, later: np.ndarray | None = None) -> Any:
        """(V, V) CSR: decayed counts of pairs in the order of time, of those alone whose later event is in `later`."""
        rows, columns, values = [], [], []
        last = np.arange(len(items)) if later is None else later
        known = items < self._size
        for distance in range(1, min(self.max_distance, len(items) - 1) + 1):
            last = last[last >= distance]
            first = last - distance
            pair = (users[last] == users[first]) & known[last] & known[first]
            rows.append(items[first[pair]].astype(np.int32))
            columns.append(items[last[pair]].astype(np.int32))
            values.append(np.full(len(rows[-1]), decay ** (distance - 1), dtype=np.float32))
        if not rows:
            return sparse.csr_array((self._size, self._size), dtype=np.float32)
        entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
        return sparse.csr_array(entries, shape=(self._size, self._size))

    def _normalized(self, forward: Any, constants: NeighborConstants) -> Any:
        """(V, V) CSR: counts in both directions, with the powers of degrees and counts applied."""
        counts = (forward + constants.backward * forward.T).tocsr()
        degree = np.asarray(counts.sum(axis=1)).ravel()
        row_weight = np.where(degree > 0, degree, 1.0) ** -constants.degree_power
        counts.data = (counts.data * row_weight[entry_rows(counts)] * self._count_weight[counts.indices]).astype(
            np.float32
        )
        return counts

    def _sparse_scores(self, batch: EvaluationBatch, constants: NeighborConstants) -> Any:
        history = history_weights(
            batch,
            lambda distance: np.where(distance < self.MAX_HISTORY, constants.history_decay**distance, 0.0),
            self._size,
            runs=True,
        )
        return (history.astype(np.float32) @ self._neighbors).tocsr()

    def sparse_scores(self, batch: EvaluationBatch) -> Any:
        """(B, V) sparse, no entry for an item that is no neighbor."""
        return self._sparse_scores(batch, self.constants)

    def scores(self, batch: EvaluationBatch) -> np.ndarray:
        scores = candidate_scores(batch, TIE_BREAK * self._order, self._first)
        put_entries(scores, scaled_rows(self.sparse_scores(batch)))
        return scores


class RepeatNeighbors:
    """Decayed repeat and item neighbors, each scaled to sum to one, mixed: the user's own items and their neighbors.

    The weight of repeating is chosen on validation events.
    """

    note: str | None = None
    WEIGHTS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.99, 0.999)

    def __init__(self, repeat: DecayedRepeat, neighbors: ItemNeighbors, weight: float = 0.5) -> None:
        """Takes the two parts; they must be fitted on the same sequences."""
        self._repeat = repeat
        self._neighbors = neighbors
        self.weight = weight
        self.chosen: dict[str, Any] | None = None

    def fit(self, sequences: Sequences) -> RepeatNeighbors:
        self._first = sequences.first_item_id
        self._order = popularity_order(training_item_counts(sequences))
        batches = ChoiceBatches(sequences, novel=False)
        self.note = no_choice(batches)
        if batches.count:
            parts = {id(batch): self._parts(batch) for batch in batches}
            reached = {}
            for weight in self.WEIGHTS:
                reached[weight] = batches.ndcg(lambda batch, w=weight: self._mixed(*parts[id(batch)], w))  # type: ignore[misc]
            self.weight = best_of(reached, self.weight)
            self.chosen = {
                "weight_of_repeating": self.weight,
                CHOICE_METRIC: reached[self.weight],
                "validation targets": batches.count,
            }
        return self

    def count(self, sequences: Sequences, counted: np.ndarray) -> None:
        self._order = popularity_order(item_counts(sequences, counted))
        self._neighbors.count(sequences, counted)

    def _parts(self, batch: EvaluationBatch) -> tuple[Any, Any]:
        return scaled_rows(self._repeat.weights(batch)), scaled_rows(self._neighbors.sparse_scores(batch))

    @staticmethod
    def _mixed(repeated: Any, neighbors: Any, weight: float) -> Any:
        return (weight * repeated + (1 - weight) * neighbors).tocsr()

    def scores(self, batch: EvaluationBatch) -> np.ndarray:
        scores = candidate_scores(batch, TIE_BREAK * self._order, self._first)
        put_entries(scores, self._mixed(*self._parts(batch), self.weight))
        return scores
