"""An event log in token ids with its split, and what training wants to know of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from next_behavior.data.sequences import TRAIN, VALIDATION, Sequences
from next_behavior.data.splits import Split
from next_behavior.model.special_ids import FIRST_ACTION, NONE


@dataclass(frozen=True)
class TokenizedLog:
    """Every user's token ids, which events are held out and how, and the events of the longest history; (E,) bool
    which of them the model that the run goes on with has learned, None for a new model."""

    sequences: Sequences
    split: Split
    max_length: int
    learned: np.ndarray | None = None


def training_token_counts(sequences: Sequences) -> np.ndarray:
    """(vocab_size,) int64: training events of each token id, [NONE] included."""
    counted = (sequences.parts == TRAIN) & (sequences.items < sequences.vocab_size)
    return np.bincount(sequences.items[counted], minlength=sequences.vocab_size)


def actions_without_item(sequences: Sequences) -> list[int]:
    """The ids of the actions that some training event has without an item, such as a search."""
    actions = np.unique(sequences.actions[(sequences.parts == TRAIN) & (sequences.items == NONE)])
    return [int(action) for action in actions if action >= FIRST_ACTION]


def novel_share(sequences: Sequences) -> float:
    """Of the training events with an item, the share whose user has not met the item before."""
    counted = (sequences.parts == TRAIN) & (sequences.items != NONE)
    pairs = (sequences.user_of_event()[counted].astype(np.int64) << 32) + sequences.items[counted]
    return len(np.unique(pairs)) / max(1, len(pairs))


def expected_unknown_share(log: TokenizedLog) -> float:
    """The share of the events to come whose item will not be in the vocabulary: as in the validation events."""
    if log.split.how == "none":  # every item of the log is in the vocabulary, but new ones will come
        return 0.1
    sequences = log.sequences
    to_come = sequences.items[(sequences.parts == VALIDATION) & (sequences.items != NONE)]
    share = float(np.mean(to_come >= sequences.vocab_size)) if len(to_come) else 0.0
    return float(np.clip(share, 0.02, 0.5))
