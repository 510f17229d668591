"""Whatever ranks items or gives action probabilities: what evaluation asks of it, and the model in both roles.

`ModelRanker` is a model as it is. `UpdatedModelRanker` is the model as it would be served: its memory counts the events
before each target, without training.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from next_behavior.data.batches import EvaluationBatch
from next_behavior.data.sequences import TRAIN, Sequences
from next_behavior.data.splits import Split
from next_behavior.model.encoder import Events
from next_behavior.model.special_ids import FIRST_ACTION, FIRST_NEW

# Names of the model's rows in a result.
MODEL = "model"
UPDATED = "model, memory updated"
ENSEMBLE = "ensemble"
UPDATED_SUFFIX = ", updated"  # of baselines that have counted what the updated model has


def balanced(model: str) -> str:
    """Name of the row of a model whose actions are named by its `action_weights`.

    >>> balanced("model")
    'model, balanced'
    """
    return f"{model}, balanced"


BALANCED = balanced(MODEL)

# Events whose histories are laid out at once when a memory counts them.
COUNTED_AT_ONCE = 2**18


class ItemRanker(Protocol):
    """Scores items: a baseline, or the model."""

    def scores(self, batch: EvaluationBatch) -> Any:
        """(B, V) float32 array or tensor that the caller may change; -inf for what is no candidate."""
        ...


class ActionRanker(Protocol):
    """Gives probabilities of the next action: a baseline, or the model."""

    def action_probabilities(self, batch: EvaluationBatch) -> np.ndarray:
        """(B, A) float64, rows sum to one, 0 for the three special ids."""
        ...


def text_vectors(model: PreTrainedModel) -> np.ndarray | None:
    """(V, D) float32: the text vectors of a `BertForNextBehavior`, zeros for ids without text; None without any."""
    behavior: Any = model
    item_text = behavior.bert.embeddings.item_text
    if item_text is None or not item_text.vectors.any():
        return None
    ids = torch.arange(len(item_text.vectors), device=item_text.vectors.device)
    vectors: np.ndarray = item_text.read(ids).float().cpu().numpy()
    return vectors


class ModelRanker:
    """A trained model as a ranker; leaves the model in evaluation mode.

    Args:
        model: a `BertForNextBehavior`, on any device.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()

    def events(self, batch: EvaluationBatch) -> Events:
        """The batch's histories, on the model's device."""
        channels = (batch.input_ids, batch.token_type_ids, batch.time_gap_ids, batch.attention_mask)
        return Events(*(torch.from_numpy(channel).to(self.model.device) for channel in channels))

    @torch.no_grad()
    def scores(self, batch: EvaluationBatch) -> torch.Tensor:
        """(B, V) float32: log p(item | history, the next event names an item)."""
        scores = self.model.item_log_probabilities(*self.events(batch)).float()
        scores[:, :FIRST_NEW] = -torch.inf
        return scores

    @torch.no_grad()
    def action_probabilities(self, batch: EvaluationBatch) -> np.ndarray:
        """(B, A) float64, rows sum to one."""
        size = self.model.config.num_actions
        ranked = self.model.predict(*self.events(batch), top_k=size, of="action")
        probabilities = torch.zeros((len(batch), size), dtype=torch.float64)
        probabilities.scatter_(1, ranked.action_ids.cpu(), ranked.probabilities.double().cpu())
        probabilities[:, :FIRST_ACTION] = 0
        return (probabilities / probabilities.sum(dim=1, keepdim=True)).numpy()


def count_events(memory: Any, items: np.ndarray, users: np.ndarray, chosen: np.ndarray, trained: bool = False) -> None:
    """Counts what some events add to the history before them, as `update_memory` does for one.

    Args:
        memory: of a model, which may have been saved by an earlier version: only `count` is asked of it.
        items, users: (R,) int64, the runs of items of a log (`Sequences.runs`).
        chosen: (N,) int64, which of the runs are counted.
        trained: the weights are trained on these events, too.
    """
    how = {"trained": True} if trained else {}
    back = np.arange(memory.config.memory_distance, -1, -1)
    device = memory.pair_keys.device
    for begin in range(0, len(chosen), COUNTED_AT_ONCE):
        last = chosen[begin : begin + COUNTED_AT_ONCE, None]
        history = np.maximum(last - back, 0)  # (N, distance + 1), the oldest first
        inside = (last >= back) & (users[history] == users[last])
        known, owner = torch.from_numpy(items[history][inside]), torch.from_numpy(np.nonzero(inside)[0])
        memory.count(known.to(device), owner.to(device), only_last=True, **how)


class UpdatedModelRanker(ModelRanker):
    """A copy of a model whose memory counts the events before the targets, without training.

    It counts in a few steps what calling `update_memory` for every new event would count. In a split by time the
    targets are ranked in blocks of time. When a block begins, the memory has counted all earlier events of all users.
    In leave-one-out there is one block. The memory has counted the parts between training and `part` (every user's
    validation event), and nothing of `part`.

    Args:
        model: a `BertForNextBehavior` whose memory has counted the training events; it stays unchanged.
        sequences, part: the log, and the part that is ranked.
        split: how the log is split.
        updates: number of blocks of a split by time.
    """

    def __init__(self, model: PreTrainedModel, sequences: Sequences, part: int, split: Split, updates: int) -> None:
        super().__init__(copy.deepcopy(model))
        self.memory: Any = self.model.associate_path
        self._trained: Any = model.associate_path
        by_time = split.how == "time"
        self.updates = updates if by_time else 1
        self._by_time, self._times = by_time, sequences.timestamps
        # As in training, runs of one item count once and events without a known item are passed over.
        self._items, self._users, self._positions = sequences.runs(np.ones(len(sequences.items), dtype=bool))
        parts = sequences.parts[self._positions]
        self._new = np.flatnonzero((parts > TRAIN) & (by_time | (parts < part)))  # runs that training did not count

    def blocks(self, positions: np.ndarray) -> Iterator[np.ndarray]:
        """`positions` block by block; when a block is yielded, the memory has counted what precedes it."""
        self.memory.load_tables(self._trained)
        if not len(positions):
            return
        new = self._new[np.argsort(self._times[self._positions[self._new]], kind="stable")]
        if not self._by_time:
            count_events(self.memory, self._items, self._users, new)
            yield positions
            return
        new_times = self._times[self._positions[new]]
        ordered = positions[np.argsort(self._times[positions], kind="stable")]
        counted = 0
        for block in np.array_split(ordered, min(self.updates, len(ordered))):
            before = int(np.searchsorted(new_times, self._times[block[0]], side="left"))
            count_events(self.memory, self._items, self._users, new[counted:before])
            counted = before
            yield block
