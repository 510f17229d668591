"""The explanations of a pipeline's answers: `predict({"events": history}, explain=True)`.

What the numbers mean is in explaining_rules.py; here a model is asked about the changed lists, in batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .answer_tables import AnswerTables
from .encoder import Events
from .explaining import Parts
from .explaining_rules import ReadHistory, Said, because, effects_of, lists_to_ask, places_to_leave_out
from .histories import Event, HistoryReader, as_arrays
from .ranking import Question, RankedBehaviors, filled
from .special_ids import FIRST_NEW, PAD

# Events that the encoder reads at once, padding included.
MAX_EVENTS_AT_ONCE = 2**14
# Short histories are read together though one is longer by so many events.
ALIKE_LENGTHS = 8


@dataclass(frozen=True)
class Given:
    """The answers to one history that are explained.

    Attributes:
        events: the user's list.
        item_ids, action_ids: k each; PAD for both where there are fewer answers.
        new_items: the user's ids behind [NEW_1] ...
        left_out: ids of known items that may not be answered.
    """

    events: Sequence[Event]
    item_ids: list[int]
    action_ids: list[int]
    new_items: list[str]
    left_out: list[int]


class Explainer:
    """Asks a model about changed histories.

    Args:
        model: a `BertForNextBehavior`.
        reader, tables: what the answers were made with.
        length: events that the model reads.
        question: that of the answers.
    """

    def __init__(
        self, model: Any, reader: HistoryReader, tables: AnswerTables, length: int, question: Question
    ) -> None:
        self.model, self.reader, self.tables, self.length = model, reader, tables, length
        # What was seen in the whole list is left out of every shorter one by name.
        self.question = replace(question, exclude_seen=False, left_out=None)
        self.excludes_seen = question.exclude_seen

    def seen_in(self, events: Sequence[Event], before: list[int]) -> list[int]:
        """Known items that may not be answered: with `exclude_seen` those of the list, `before` those of events that
        are too old to be read."""
        if not self.excludes_seen:
            return []
        return sorted(
            {*before, *(index for index in self.read(events).ids.items if index >= self.tables.first_item_id)}
        )

    def read(self, events: Sequence[Event]) -> ReadHistory:
        return ReadHistory.of(events, self.reader, self.length)

    # -- contributions -------------------------------------------------------------------------------------------------

    def leave_one_out(
        self, given: Sequence[Given], probabilities: Sequence[Sequence[float]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Contributions and importance, (k, n) float64 each, for each history of n events: of every event for each of
        the answers, whose probabilities (k,) are known."""
        places = [places_to_leave_out(one.events, self.length) for one in given]
        lists = [lists_to_ask(one.events, at) for one, at in zip(given, places, strict=True)]
        owners = [one for one, of_one in zip(given, lists, strict=True) for _ in of_one]
        found = iter(self.probabilities([each for of_one in lists for each in of_one], owners))
        return [
            effects_of(np.array(whole), [next(found) for _ in of_one], at, len(one.events))
            for one, whole, at, of_one in zip(given, probabilities, places, lists, strict=True)
        ]

    def probabilities(self, lists: Sequence[Sequence[Event]], given: Sequence[Given]) -> list[np.ndarray]:
        """(k,) for each list of events: the probabilities of the answers that are given for it."""
        read = [self.read(events) for events in lists]
        found: list[np.ndarray] = [np.zeros(0)] * len(read)
        for rows in self.in_batches(read):
            answers = [self.renamed(given[row], read[row]) for row in rows]
            item_ids, action_ids = torch.tensor(answers, device=self.device).unbind(1)  # (b, k) each
            question = self.question_for([given[row] for row in rows], [read[row] for row in rows])
            events = self.events_of([read[row] for row in rows])
            asked = self.model.answer_probabilities(events, question, item_ids, action_ids, self.tables)
            for row, probability in zip(rows, asked.cpu().numpy(), strict=True):
                found[row] = probability
        return found

    def integrated_gradients(self, given: Sequence[Given]) -> list[np.ndarray]:
        """(k, n) float64 for each history of n events, from the gradients of the network alone."""
        found = []
        for one in given:
            read = self.read(one.events)
            asked = (torch.tensor([ids], device=self.device) for ids in (one.item_ids, one.action_ids))
            question = self.question_for([one], [read])
            given_by = self.model.integrated_gradients(self.events_of([read]), question, *asked, self.tables)
            contributions = np.zeros((len(one.item_ids), len(one.events)))
            if read.places:
                contributions[:, read.places] = given_by[0].cpu().numpy()
            found.append(contributions)
        return found

    def ranked(self, given: Sequence[Given], read: Sequence[ReadHistory], top_k: int) -> RankedBehaviors:
        """The best answers after lists that are read, (b, k)."""
        question = self.question_for(given, read)
        events = self.events_of(read)
        left_out = None if question.left_out is None else question.left_out.tolist()
        return self.model.answers(
            *events,
            top_k=top_k,
            of=question.of,
            action=question.action,
            exclude_seen=False,
            allowed_items=question.allowed,
            balanced=question.balanced,
            tables=self.tables,
            left_out=left_out,
        ).ranked

    # -- pieces --------------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.tables.nameable.device

    def in_batches(self, read: Sequence[ReadHistory]) -> Iterator[list[int]]:
        """The rows in batches of histories of about the same length."""
        lengths = [len(one.ids.items) for one in read]
        rows = sorted(range(len(read)), key=lengths.__getitem__)
        begin = 0
        for end in range(1, len(rows) + 1):
            longest = lengths[rows[end]] if end < len(rows) else 0
            is_longer = longest > 2 * lengths[rows[begin]] + ALIKE_LENGTHS
            if end == len(rows) or is_longer or (end + 1 - begin) * longest > MAX_EVENTS_AT_ONCE:
                yield rows[begin:end]
                begin = end

    def events_of(self, read: Sequence[ReadHistory]) -> Events:
        arrays = as_arrays([one.ids for one in read], max(len(one.ids.items) for one in read))
        return Events(*(torch.from_numpy(array).to(self.device) for array in arrays))

    def renamed(self, given: Given, read: ReadHistory) -> tuple[list[int], list[int]]:
        """The ids of the answers in another list, where an unknown item may have another [NEW_j], or none."""
        item_ids = []
        for index in given.item_ids:
            if FIRST_NEW <= index < self.tables.first_item_id:
                index = read.seen.get(given.new_items[index - FIRST_NEW], PAD)
            item_ids.append(index)
        return item_ids, given.action_ids

    def question_for(self, given: Sequence[Given], read: Sequence[ReadHistory]) -> Question:
        """The question, with what each list may not be answered by."""
        if not self.excludes_seen:
            return self.question
        first = self.tables.first_item_id
        rows = [
            sorted({*one.left_out, *(index for index in other.ids.items if FIRST_NEW <= index < first)})
            for one, other in zip(given, read, strict=True)
        ]
        return replace(self.question, left_out=filled(rows, self.device))

    # -- the model's own parts -----------------------------------------------------------------------------------------

    def because(self, given: Given) -> list[dict[str, Any] | None]:
        """What the parts of the model say of each answer; None for an answer without an item."""
        read = self.read(given.events)
        item_ids, action_ids = (torch.tensor([ids], device=self.device) for ids in (given.item_ids, given.action_ids))
        parts = self.model.parts_of_answers(self.events_of([read]), item_ids, action_ids, self.tables)
        return [
            because(said_of(parts, place), read.places, lambda at: given.events[at].get("item"))
            if index >= FIRST_NEW
            else None
            for place, index in enumerate(given.item_ids)
        ]


def said_of(parts: Parts, answer: int) -> Said:
    """The parts of one answer to the first history, in plain values."""
    memory = (parts.sources[0], parts.shares[0, answer], parts.forward[0, answer], parts.backward[0, answer])
    return Said(
        parts.pointer[0, answer].tolist(),
        zip(*(column.tolist() for column in memory), strict=True),
        float(parts.trend[0, answer]),
        None if parts.similarity is None else parts.similarity[0, answer].tolist(),
    )
