"""The pointer over a user's own events, but for its dot products: by the rules of `model/repeat_path.py`.

This file imports numpy alone.
"""

from __future__ import annotations

import numpy as np

from next_behavior.model.special_ids import FIRST_ACTION, FIRST_NEW
from next_behavior.serving.bundle import POINTER_ARRAYS, Constants

MASKED = np.float32(-1e4)
# As in the model: exact recencies, then three buckets an octave; counts 0, 1, 2, 3-4, 5-8, 9 and more.
EXACT_RECENCIES = 16


class Pointer:
    """Biases by an event's action, its recency, how often its item occurred and had the action, and the time since."""

    def __init__(self, constants: Constants, arrays: dict[str, np.ndarray]) -> None:
        self.action_bias, self.recency_bias, self.count_bias, self.done_bias, self.gap_bias = (
            arrays[name] for name in POINTER_ARRAYS
        )
        events = np.arange(constants.max_events + 1)
        with np.errstate(divide="ignore"):
            rare = EXACT_RECENCIES + 3 * np.log2(np.maximum(events, 1).astype(np.float32) / EXACT_RECENCIES)
            often = np.ceil(np.log2(np.maximum(events.astype(np.float32), 0.5)))
        last_recency, last_count = self.recency_bias.shape[1] - 1, self.count_bias.shape[1] - 1
        self._recencies = np.clip(np.where(events < EXACT_RECENCIES, events, rare.astype(np.int64)), 0, last_recency)
        self._counts = np.clip(often, -1, last_count - 1).astype(np.int64) + 1
        self._next_actions = np.arange(FIRST_ACTION, constants.num_actions)
        self._later = np.triu(np.ones((constants.max_events, constants.max_events), bool), 1)

    def log_probabilities(
        self, scores: np.ndarray, items: np.ndarray, actions: np.ndarray, time_gaps: np.ndarray, mask: np.ndarray
    ) -> np.ndarray:
        """(B, Q, T) float32 log p(event is repeated), MASKED where no item can be named again.

        Args:
            scores: (B, Q, T) float32 of the network; the others (B, T) int64.
        """
        length = items.shape[1]
        same = items[:, :, None] == items[:, None, :]  # (B, T, T)
        comes_again = (same & self._later[:length, :length]).any(axis=2)
        latest = (items >= FIRST_NEW) & (mask != 0) & ~comes_again  # (B, T)
        more_recent = np.cumsum(latest[:, ::-1], axis=1)[:, ::-1] - 1  # (B, T): distinct items after an event
        numbers = same.astype(np.float32)
        count = numbers.sum(axis=1).astype(np.int64)  # (B, T)
        with_action = actions[:, None, :] == self._next_actions[:, None]  # (B, Q, T)
        done = (with_action.astype(np.float32) @ numbers).astype(np.int64)  # (B, Q, T)
        elapsed = np.cumsum(self.gap_bias[:, time_gaps], axis=2)  # (Q, B, T)
        bias = self.action_bias[:, actions] + self.recency_bias[:, self._recencies[np.maximum(more_recent, 0)]]
        bias += self.count_bias[:, self._counts[count]]
        bias += elapsed[:, :, -1:] - elapsed
        bias = bias.transpose(1, 0, 2)  # (B, Q, T)
        row = np.arange(len(self._next_actions))[:, None]
        values = scores + bias + self.done_bias[row, self._counts[done]]
        hidden = ~latest[:, None, :]  # (B, 1, T)
        np.copyto(values, MASKED, where=hidden)
        values -= values.max(axis=2, keepdims=True)
        values -= np.log(np.exp(values).sum(axis=2, keepdims=True))
        np.copyto(values, MASKED, where=hidden)
        return values
