"""Baselines that go on counting, as the model whose memory is updated does: both have seen the same events.

    updated = updated_copies(baselines, sequences, TEST, split)      # "item_neighbours, updated" and others
    for ranker in updated.values():
        ranker.advance(block)                                        # before a block of targets is ranked

Their constants stay as they were chosen.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from next_behavior.data.batches import EvaluationBatch
from next_behavior.data.sequences import TRAIN, Sequences
from next_behavior.data.splits import Split
from next_behavior.evaluation.rankers import UPDATED_SUFFIX


class CountingBaseline(Protocol):
    """A baseline that can count other events than those of training."""

    def scores(self, batch: EvaluationBatch) -> np.ndarray: ...

    def count(self, sequences: Sequences, counted: np.ndarray) -> None:
        """Counts the events of `counted` (E,) bool in place of those before; a history begins with its first event."""
        ...


class UpdatedBaseline:
    """A baseline that has counted the events before the targets.

    In a split by time these are the earlier events of all users, in leave-one-out the parts before `part`.
    """

    def __init__(self, baseline: CountingBaseline, sequences: Sequences, part: int, split: Split) -> None:
        self._baseline, self._sequences, self._part = baseline, sequences, part
        self._by_time = split.how == "time"

    def advance(self, block: np.ndarray) -> None:
        """Counts what precedes a block of targets, (N,) int64 positions, at least one."""
        parts, times = self._sequences.parts, self._sequences.timestamps
        before = times < times[block].min() if self._by_time else parts < self._part
        self._baseline.count(self._sequences, (parts == TRAIN) | before)

    def scores(self, batch: EvaluationBatch) -> np.ndarray:
        return self._baseline.scores(batch)


def updated_copies(
    baselines: Mapping[str, CountingBaseline], sequences: Sequences, part: int, split: Split
) -> dict[str, UpdatedBaseline]:
    """Copies of fitted baselines that go on counting, by their names with `UPDATED_SUFFIX`."""
    # One copy of all: a part that two baselines share is counted once.
    copies: dict[str, Any] = copy.deepcopy(dict(baselines))
    return {f"{name}{UPDATED_SUFFIX}": UpdatedBaseline(made, sequences, part, split) for name, made in copies.items()}
