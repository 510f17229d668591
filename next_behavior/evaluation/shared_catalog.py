"""Models with different vocabularies, ranked by the user's own item ids.

    shared = SharedCatalog.of([tokenizer_a, tokenizer_b])
    sequences = log_in_ids(events, shared)
    ranker = SharedRanker(ModelRanker(model_a), ModelRanker(model_a), tokenizer_a, shared, events, TEST)

The shared catalog has every item that some model knows, and every action. Each model reads the histories in its own
vocabulary; what it says is moved to the shared ids. An item that it does not know is no candidate of its ranking, so as
a target it is a miss. Such an item in a history has a `[NEW_j]` slot of the model, by which the model can repeat it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl
import torch

from next_behavior.data.batches import EvaluationBatch, evaluation_batches
from next_behavior.data.sequences import Sequences, Vocabulary, tokenize_log
from next_behavior.evaluation.rankers import ActionRanker, ItemRanker
from next_behavior.model.special_ids import FIRST_ACTION, FIRST_NEW


class ModelVocabulary(Vocabulary, Protocol):
    """What a model's tokenizer says of the ids; `BehaviorTokenizer`, also of an earlier version."""

    @property
    def model_max_length(self) -> int: ...


@dataclass(frozen=True)
class SharedCatalog:
    """The union of several vocabularies: first what the first one knows, in its order, then what the second adds ...

    Attributes:
        item_vocabulary, action_vocabulary: the user's ids and names, in token order.
        first_item_id: the first id of an item: there are as many `[NEW_j]` slots as any of the models has.
        time_edges: of the first model; each model reads its own.
        model_max_length: the longest history that any of the models reads.
    """

    item_vocabulary: list[str]
    action_vocabulary: list[str]
    first_item_id: int
    time_edges: list[float]
    model_max_length: int

    @classmethod
    def of(cls, vocabularies: Sequence[ModelVocabulary]) -> SharedCatalog:
        return cls(
            item_vocabulary=union(vocabulary.item_vocabulary for vocabulary in vocabularies),
            action_vocabulary=union(vocabulary.action_vocabulary for vocabulary in vocabularies),
            first_item_id=max(vocabulary.first_item_id for vocabulary in vocabularies),
            time_edges=vocabularies[0].time_edges,
            model_max_length=max(vocabulary.model_max_length for vocabulary in vocabularies),
        )

    def __len__(self) -> int:
        """Ids of the item vocabulary, the special ones included."""
        return self.first_item_id + len(self.item_vocabulary)

    def reads_as(self, vocabulary: ModelVocabulary) -> bool:
        """Whether a model's ids are the shared ones, and its histories too."""
        return (
            self.item_vocabulary == vocabulary.item_vocabulary
            and self.action_vocabulary == vocabulary.action_vocabulary
            and self.first_item_id == vocabulary.first_item_id
            and self.time_edges == vocabulary.time_edges
            and self.model_max_length == vocabulary.model_max_length
        )


def union(lists: Any) -> list[str]:
    """The values of all lists, each once, in the order of their first place."""
    return list(dict.fromkeys(value for values in lists for value in values))


def log_in_ids(events: pl.DataFrame, vocabulary: Vocabulary) -> Sequences:
    """The log in the ids of a vocabulary."""
    size = vocabulary.first_item_id + len(vocabulary.item_vocabulary)
    dataset = tokenize_log(events, vocabulary)
    return Sequences.from_dataset(dataset, vocab_size=size, first_item_id=vocabulary.first_item_id)


class SharedRanker:
    """A model's answers in the ids of the shared catalog.

    The scores of the last batch are kept: an ensemble asks for them again.

    Args:
        items, actions: the model's own rankers.
        vocabulary: the model's own.
        events: the log with its parts, as the batches of the shared catalog were made from.
        part: the part that is ranked.

    Attributes:
        item_ids: (I,) int64, the shared ids of the items that the model knows, in the order of its own ids.
    """

    def __init__(
        self,
        items: ItemRanker,
        actions: ActionRanker,
        vocabulary: ModelVocabulary,
        shared: SharedCatalog,
        events: pl.DataFrame,
        part: int,
    ) -> None:
        self._items, self._actions, self._part = items, actions, part
        self._size, self._num_actions = len(shared), FIRST_ACTION + len(shared.action_vocabulary)
        self._first, self._max_length = vocabulary.first_item_id, vocabulary.model_max_length
        # None where the ids are the shared ones.
        self._own = None if shared.reads_as(vocabulary) else log_in_ids(events, vocabulary)
        places = {item: place for place, item in enumerate(shared.item_vocabulary)}
        named = {action: place for place, action in enumerate(shared.action_vocabulary)}
        self.item_ids = np.array([shared.first_item_id + places[item] for item in vocabulary.item_vocabulary])
        self._action_ids = np.array([FIRST_ACTION + named[action] for action in vocabulary.action_vocabulary])
        self._kept: tuple[EvaluationBatch, torch.Tensor] | None = None

    def moved_rows(self, rows: np.ndarray) -> np.ndarray:
        """(V, D): rows of the model's own ids in the order of the shared ones, zeros for what it does not know."""
        moved = np.zeros((self._size, rows.shape[1]), dtype=rows.dtype)
        moved[self.item_ids] = rows[self._first :]
        return moved

    def own_batch(self, batch: EvaluationBatch) -> EvaluationBatch:
        """The same targets in the model's own ids, in the same order."""
        if self._own is None:
            return batch
        (own,) = evaluation_batches(self._own, self._part, self._max_length, len(batch), positions=batch.position)
        places = np.empty(len(batch), dtype=np.int64)
        places[np.argsort(batch.position)] = np.argsort(own.position)
        return own.rows(places)

    def scores(self, batch: EvaluationBatch) -> torch.Tensor:
        """(B, V) float32 in the shared ids; -inf for what the model does not know."""
        if self._kept is None or self._kept[0] is not batch:
            self._kept = (batch, self._moved(batch))
        return self._kept[1].clone()

    def _moved(self, batch: EvaluationBatch) -> torch.Tensor:
        own = self.own_batch(batch)
        scores = torch.as_tensor(self._items.scores(own))
        if self._own is None:
            return scores
        moved = scores.new_full((len(batch), self._size), -torch.inf)
        moved[:, torch.from_numpy(self.item_ids).to(scores.device)] = scores[:, self._first :]
        # Both windows end before the target, so that equal columns from the right are the same event.
        width = min(own.input_ids.shape[1], batch.input_ids.shape[1])
        own_ids, shared_ids = own.input_ids[:, -width:], batch.input_ids[:, -width:]
        rows, columns = np.nonzero((own_ids >= FIRST_NEW) & (own_ids < self._first))
        slots, targets = own_ids[rows, columns], shared_ids[rows, columns]
        index, slot, target = (torch.from_numpy(ids).to(scores.device) for ids in (rows, slots, targets))
        moved[index, target] = scores[index, slot]
        moved[:, :FIRST_NEW] = -torch.inf
        return moved

    def action_probabilities(self, batch: EvaluationBatch) -> np.ndarray:
        """(B, A) float64 in the shared ids; 0 for what the model does not know."""
        probabilities = self._actions.action_probabilities(self.own_batch(batch))
        if self._own is None:
            return probabilities
        moved = np.zeros((len(batch), self._num_actions))
        moved[:, self._action_ids] = probabilities[:, FIRST_ACTION:]
        return moved


class Ensemble:
    """The mean of the calibrated probabilities of several models, each weighing the same (a linear opinion pool).

    An item that a model does not know has the probability 0 there.

    Args:
        members: rankers whose scores are log-probabilities, in shared ids.
    """

    def __init__(self, members: Sequence[SharedRanker]) -> None:
        if len(members) < 2:
            raise ValueError(f"got {len(members)} models for an ensemble; expected at least two")
        self.members = members

    def scores(self, batch: EvaluationBatch) -> torch.Tensor:
        """(B, V) float32 log-probabilities."""
        total = self.members[0].scores(batch).exp_()
        for member in self.members[1:]:
            total += member.scores(batch).exp_()
        return (total / len(self.members)).log_()

    def action_probabilities(self, batch: EvaluationBatch) -> np.ndarray:
        """(B, A) float64, rows sum to one."""
        return np.mean([member.action_probabilities(batch) for member in self.members], axis=0)
