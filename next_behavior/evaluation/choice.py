"""How a baseline chooses its constants.

    batches = ChoiceBatches(sequences, novel=False)
    reached = {decay: batches.ndcg(lambda batch: scores(batch, decay)) for decay in DECAYS}
    decay = best_of(reached, default=0.8)

The best are those with the highest NDCG@10 on validation events. Only training events are counted for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from next_behavior.data.batches import EvaluationBatch, evaluation_batches, novel_positions, target_positions
from next_behavior.data.sequences import VALIDATION, Sequences
from next_behavior.evaluation.counting import sparse_ranks, without_seen
from next_behavior.evaluation.metrics import ndcg_at_k
from next_behavior.model.special_ids import NONE

# Validation targets that constants are chosen on, and the longest history then.
CHOICE_TARGETS, CHOICE_WINDOW, CHOICE_ROWS = 2000, 200, 256
CHOICE_METRIC = "validation NDCG@10"


class ChoiceBatches:
    """The validation targets that constants are chosen on: named, known items, drawn at random from all users.

    Args:
        novel: only targets that are new to their user, ranked among what is new to the user. Where there are none, all.
    """

    def __init__(self, sequences: Sequences, novel: bool) -> None:
        positions = target_positions(sequences, VALIDATION)
        positions = positions[sequences.items[positions] != NONE]
        if len(positions) > CHOICE_TARGETS:
            positions = np.sort(np.random.default_rng(0).choice(positions, CHOICE_TARGETS, replace=False))
        window = (sequences, VALIDATION, CHOICE_WINDOW, CHOICE_ROWS)
        new = novel_positions(*window, positions) if novel else positions[:0]
        self.novel = len(new) > 0
        if self.novel:
            positions = new
        self.count = len(positions)
        self._batches = list(evaluation_batches(*window, positions=positions))

    def __iter__(self) -> Iterator[EvaluationBatch]:
        return iter(self._batches)

    def ndcg(self, score: Callable[[EvaluationBatch], Any]) -> float:
        """NDCG@10 of sparse (B, V) scores over the targets."""
        gains = []
        for batch in self._batches:
            matrix = score(batch)
            if self.novel:
                matrix = without_seen(matrix, batch.seen)
            gains.append(ndcg_at_k(sparse_ranks(matrix, batch.target_item), 10))
        return float(np.concatenate(gains).mean())


def best_of(reached: dict[Any, float], default: Any) -> Any:
    """The key with the highest value; the default unless another is better."""
    best = max(reached, key=lambda key: reached[key])
    return best if default not in reached or reached[best] > reached[default] else default


def no_choice(batches: ChoiceBatches) -> str | None:
    """The note of a baseline that keeps its default constants, None where there is something to choose on."""
    return None if batches.count else "no validation targets: default constants"
