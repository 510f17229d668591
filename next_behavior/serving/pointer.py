"""The pointer over a user's own events, but for its dot products: by the rules of `model/repeat_path.py`.

This file imports numpy and numba alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from next_behavior.model.special_ids import FIRST_ACTION, FIRST_NEW
from next_behavior.serving.bundle import POINTER_ARRAYS, Constants
from next_behavior.serving.compiled import compiled

MASKED = np.float32(-1e4)
# As in the model: exact recencies, then three buckets an octave; counts 0, 1, 2, 3-4, 5-8, 9 and more.
EXACT_RECENCIES = 16


class Biases(NamedTuple):
    """(Q, n) float32 by an event's action, its recency, how often its item occurred and had the action, and the time
    since; and which column of the second a number of events has (n,), and of the next two (n,)."""

    action: np.ndarray
    recency: np.ndarray
    occurrence: np.ndarray
    done: np.ndarray
    gap: np.ndarray
    recencies: np.ndarray
    counts: np.ndarray


@compiled
def add_biases(scores: Any, items: Any, actions: Any, time_gaps: Any, mask: Any, biases: Any) -> None:
    """Makes scores (Q, T) of one history (T,) logarithms of probabilities; MASKED where an event is not the latest of
    its item, or has none."""
    width, length = scores.shape
    elapsed, done = np.zeros(width, np.float32), np.zeros(width, np.int64)
    more_recent = 0
    for place in range(length - 1, -1, -1):
        count, is_latest = 0, items[place] >= FIRST_NEW and mask[place] != 0
        done[:] = 0
        if is_latest:
            for other in range(length):
                if items[other] == items[place]:
                    is_latest = is_latest and other <= place
                    count += 1
                    if actions[other] >= FIRST_ACTION:
                        done[actions[other] - FIRST_ACTION] += 1
        for row in range(width):
            if is_latest:
                scores[row, place] += (
                    biases.action[row, actions[place]]
                    + biases.recency[row, biases.recencies[more_recent]]
                    + biases.occurrence[row, biases.counts[count]]
                    + biases.done[row, biases.counts[done[row]]]
                    + elapsed[row]
                )
            else:
                scores[row, place] = MASKED
            elapsed[row] += biases.gap[row, time_gaps[place]]
        more_recent += is_latest
    for row in range(width):
        if more_recent:
            most = scores[row].max()
            norm = most + np.log(np.exp(scores[row] - most).sum())
            for place in range(length):
                if scores[row, place] > MASKED:
                    scores[row, place] -= norm


@compiled
def add_all_biases(scores: Any, items: Any, actions: Any, time_gaps: Any, mask: Any, biases: Any) -> None:
    for row in range(len(scores)):
        add_biases(scores[row], items[row], actions[row], time_gaps[row], mask[row], biases)


class Pointer:
    """Biases by an event's action, its recency, how often its item occurred and had the action, and the time since."""

    def __init__(self, constants: Constants, arrays: dict[str, np.ndarray]) -> None:
        action, recency, occurrence, done, gap = (arrays[name] for name in POINTER_ARRAYS)
        events = np.arange(constants.max_events + 1)
        with np.errstate(divide="ignore"):
            rare = EXACT_RECENCIES + 3 * np.log2(np.maximum(events, 1).astype(np.float32) / EXACT_RECENCIES)
            often = np.ceil(np.log2(np.maximum(events.astype(np.float32), 0.5)))
        last_recency, last_count = recency.shape[1] - 1, occurrence.shape[1] - 1
        recencies = np.clip(np.where(events < EXACT_RECENCIES, events, rare.astype(np.int64)), 0, last_recency)
        counts = np.clip(often, -1, last_count - 1).astype(np.int64) + 1
        self._biases = Biases(action, recency, occurrence, done, gap, recencies, counts)

    def log_probabilities(
        self, scores: np.ndarray, items: np.ndarray, actions: np.ndarray, time_gaps: np.ndarray, mask: np.ndarray
    ) -> np.ndarray:
        """(B, Q, T) float32 log p(event is repeated), MASKED where no item can be named again.

        Args:
            scores: (B, Q, T) float32 of the network, which are changed; the others (B, T) int64.
        """
        add_all_biases(scores, items, actions, time_gaps, mask, self._biases)
        return scores
