"""Action baselines: a Markov chain of actions, and answers that are weighted so that rare actions are named too."""

from __future__ import annotations

from typing import Any

import numpy as np

from next_behavior.data.batches import EvaluationBatch, evaluation_batches, target_positions
from next_behavior.data.sequences import TRAIN, VALIDATION, Sequences
from next_behavior.evaluation.metrics import balancing_weights
from next_behavior.evaluation.rankers import ActionRanker
from next_behavior.model.special_ids import FIRST_ACTION

# Validation targets that weights are fitted on, about, and rows at once.
BALANCE_TARGETS, BALANCE_ROWS = 10_000, 256


class LastActionMarkov:
    """p(next action | last action) from counts of the training events plus one.

    After an action that training never saw, and at a user's first event, the actions' overall shares are given.
    """

    note: str | None = None
    chosen: dict[str, Any] | None = None

    def __init__(self, num_actions: int) -> None:
        """`num_actions` counts the ids of the action vocabulary, the three specials included."""
        self.num_actions = num_actions

    def fit(self, sequences: Sequences) -> LastActionMarkov:
        training = sequences.parts == TRAIN
        actions, users = sequences.actions[training].astype(np.int64), sequences.user_of_event()[training]
        follows = users[1:] == users[:-1]
        size = self.num_actions
        pairs = actions[:-1][follows] * size + actions[1:][follows]
        counts = np.bincount(pairs, minlength=size * size).reshape(size, size)[:, FIRST_ACTION:]
        overall = np.bincount(actions, minlength=size)[FIRST_ACTION:]
        smoothed = np.where(counts.sum(axis=1, keepdims=True) > 0, counts, overall) + 1.0
        self._probabilities = np.zeros((size, size))
        self._probabilities[:, FIRST_ACTION:] = smoothed / smoothed.sum(axis=1, keepdims=True)
        return self

    def action_probabilities(self, batch: EvaluationBatch) -> np.ndarray:
        return self._probabilities[batch.token_type_ids[:, -1]]


class BalancedActions:
    """Another ranker's probabilities, weighted so that naming the largest one has a high macro-F1.

    The weighted probabilities are not calibrated any more. See `balancing_weights`.
    """

    note: str | None = None

    def __init__(self, ranker: ActionRanker, weights: np.ndarray) -> None:
        """`weights`: (A,) log-weights."""
        self.ranker = ranker
        self.weights = np.exp(weights)
        self.chosen = {"weights": [round(float(weight), 2) for weight in weights[FIRST_ACTION:]]}

    @classmethod
    def fit(cls, ranker: ActionRanker, sequences: Sequences) -> BalancedActions:
        """Chooses the weights on validation events."""
        positions = target_positions(sequences, VALIDATION, BALANCE_TARGETS, seed=0)
        batches = list(evaluation_batches(sequences, VALIDATION, 1, BALANCE_ROWS, positions=positions))
        if not batches:
            balanced = cls(ranker, np.zeros(1))
            balanced.note = "no validation targets: not balanced"
            return balanced
        probabilities = np.concatenate([ranker.action_probabilities(batch) for batch in batches])
        return cls(ranker, balancing_weights(sequences.actions[positions], probabilities))

    def action_probabilities(self, batch: EvaluationBatch) -> np.ndarray:
        weighted = self.ranker.action_probabilities(batch) * self.weights
        return weighted / weighted.sum(axis=1, keepdims=True)
