"""Counts the log into a model's associative memory.

    fill_memory(model, sequences, TRAIN)          # before training
    fill_memory(model, sequences, VALIDATION)     # in the end, where nothing is evaluated any more

A large memory is pruned, so that a saved model stays small.
"""

from __future__ import annotations

import numpy as np
import torch

from next_behavior.data.sequences import TRAIN, Sequences
from next_behavior.evaluation.rankers import count_events
from next_behavior.model.associative_memory import AssociativeMemory
from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.training.pairs_in_parts import PAIRS_AT_ONCE, count_in_parts

# Item pairs a saved memory holds, about: 16 bytes each.
MEMORY_PAIRS = 4_000_000
# The memory's unit in shares of an item's mean sum of scores, until it is fitted on validation events.
MEMORY_UNIT = 0.003
# Recent popularity: an event counts half after this share of the training events.
TREND_HALF_LIFE = 0.05


def fill_memory(model: BertForNextBehavior, sequences: Sequences, part: int, learned: np.ndarray | None = None) -> None:
    """Counts the events of `part` into the memory, and the recent popularity at its end: zeros where events have no
    times. The weights are trained on the part TRAIN. Another part follows those that are counted already, and so do the
    events that are not among the `learned` (E,) bool."""
    memory = model.associate_path
    neighbors = neighbors_kept(model.config)
    items, users, positions = sequences.runs(sequences.parts <= part)
    if learned is not None:
        chosen = np.flatnonzero((sequences.parts[positions] == part) & ~learned[positions])
        count_events(memory, items, users, chosen, trained=part == TRAIN)
    elif part == TRAIN and not len(memory.pair_keys) and is_large(memory, items):
        tensors = (torch.from_numpy(items).to(model.device), torch.from_numpy(users).to(model.device))
        count_in_parts(memory, *tensors, neighbors, MEMORY_PAIRS)
    elif part == TRAIN:
        memory.count(torch.from_numpy(items).to(model.device), torch.from_numpy(users).to(model.device), trained=True)
    else:
        count_events(memory, items, users, np.flatnonzero(sequences.parts[positions] == part))
    if len(memory.pair_keys) > MEMORY_PAIRS:
        memory.prune(neighbors)
    counted = np.flatnonzero((sequences.parts <= part) & sequences.known_items() & (sequences.timestamps >= 0))
    counted = counted[np.argsort(sequences.timestamps[counted], kind="stable")]
    memory.recent_counts.zero_()
    model.config.memory_half_life = max(1, round(TREND_HALF_LIFE * len(counted)))
    memory.follow(torch.from_numpy(sequences.items[counted].astype(np.int64)).to(model.device))


def neighbors_kept(config: BehaviorConfig) -> int:
    """Neighbors of each item that a large memory keeps."""
    return int(np.clip(MEMORY_PAIRS // max(1, config.vocab_size), 16, config.memory_neighbors))


def is_large(memory: AssociativeMemory, items: np.ndarray) -> bool:
    """Whether the pairs of (N,) items are counted in parts."""
    return len(items) * memory.config.memory_distance > PAIRS_AT_ONCE


def set_memory_unit(model: BertForNextBehavior) -> None:
    """Sets the memory's unit by its counts: a start for the fit on validation events."""
    model.config.memory_unit = max(1e-6, MEMORY_UNIT * model.associate_path.neighbors().mean_sum)
