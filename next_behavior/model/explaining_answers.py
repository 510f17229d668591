"""The explanations of a pipeline's answers: `predict({"events": history}, explain=True)`.

A contribution of an event to an answer is how far the answer's log-probability falls when the event is left out of the
user's list: log p(answer | the list) - log p(answer | the list without the event). The shorter list is read as any list
is: gaps, unknown items, the window and what the memory looks up are those of the shorter list. Which items may be
answered stays as it was for the whole list. Probabilities below LEAST_PROBABILITY count as that.

Events that say the same hide each other: without one of two views, the other is still there. The importance of an event
is the mean of its contribution and of how far the event by itself raises the log-probability above that for an empty
list, the last and the first term of its Shapley value. It ranks events more faithfully (benchmarks/README.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .answer_tables import AnswerTables
from .encoder import Events
from .explaining import LEAST_PROBABILITY, Parts
from .histories import Event, HistoryIds, HistoryReader, as_arrays, time_order
from .ranking import Question, RankedBehaviors, filled
from .special_ids import FIRST_NEW, PAD

LEAVE_ONE_OUT, INTEGRATED_GRADIENTS, COUNTERFACTUAL = True, "integrated_gradients", "counterfactual"
# Events that the encoder reads at once, padding included.
MAX_EVENTS_AT_ONCE = 2**14
# Short histories are read together though one is longer by so many events.
ALIKE_LENGTHS = 8
# Of the events that the memory or a text speaks of, so many are named; and texts at least so similar.
MOST_NAMED = 3
LEAST_SIMILARITY = 0.5


def check_explain(explain: Any, target: Any, of: str) -> None:
    """ValueError unless the options ask for an explanation that there is, or for none."""
    if not isinstance(explain, bool) and explain not in (INTEGRATED_GRADIENTS, COUNTERFACTUAL):
        raise ValueError(
            f'explain is {explain!r:.80}, expected True, "{INTEGRATED_GRADIENTS}", "{COUNTERFACTUAL}" or False.'
        )
    if target is not None and explain != COUNTERFACTUAL:
        raise ValueError(f'target is {target!r:.80}, expected explain="{COUNTERFACTUAL}" beside it.')
    if target is not None and of == "action":
        raise ValueError(f'target is {target!r:.80}, an item, and of="action" ranks actions: use of="item" or "pair".')


@dataclass(frozen=True)
class ReadHistory:
    """A list of events as the model reads it.

    Attributes:
        ids: of the newest events that fit.
        places: where in the user's list each of them stands.
        seen: the id of each item in it, by the user's id.
    """

    ids: HistoryIds
    places: list[int]
    seen: dict[str, int]


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
        order = time_order(events)
        seen: dict[str, int] = {}
        ids = self.reader.ids([events[place] for place in order], self.length, seen=seen)
        return ReadHistory(ids, list(order[-self.length :]), seen)

    # -- contributions -------------------------------------------------------------------------------------------------

    def leave_one_out(
        self, given: Sequence[Given], probabilities: Sequence[Sequence[float]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Contributions and importance, (k, n) float64 each, for each history of n events: of every event for each of
        the answers, whose probabilities (k,) are known."""
        pairs = [(row, at) for row, one in enumerate(given) for at in places_to_leave_out(one.events, self.length)]
        shorter = [without(given[row].events, place) for row, place in pairs]
        single: list[list[Event]] = [[given[row].events[place]] for row, place in pairs]
        lists = [*shorter, *single, *([] for _ in given)]
        owners = [*(given[row] for row, _ in pairs), *(given[row] for row, _ in pairs), *given]
        found = [logarithms(one) for one in self.probabilities(lists, owners)]
        left, alone, empty = found[: len(pairs)], found[len(pairs) : 2 * len(pairs)], found[2 * len(pairs) :]
        shapes = [(len(one.item_ids), len(one.events)) for one in given]
        explained = [(np.zeros(shape), np.zeros(shape)) for shape in shapes]
        whole = [logarithms(np.array(one)) for one in probabilities]
        for (row, place), less, by_itself in zip(pairs, left, alone, strict=True):
            contributions, importance = explained[row]
            contributions[:, place] = whole[row] - less
            importance[:, place] = (contributions[:, place] + by_itself - empty[row]) / 2
        return explained

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
            because(parts, place, read.places, lambda at: given.events[at].get("item")) if index >= FIRST_NEW else None
            for place, index in enumerate(given.item_ids)
        ]


def because(parts: Parts, answer: int, places: list[int], item_of: Callable[[int], Any]) -> dict[str, Any]:
    """The parts of one answer to the first history, in plain values.

    Args:
        places: where in the user's list the events stand that were read; item_of: what they name.
    """
    pointer = parts.pointer[0, answer].tolist()
    latest = max(range(len(pointer)), key=pointer.__getitem__)
    repeats = {"event": places[latest], "share": pointer[latest]} if pointer[latest] > 0 else None
    counted = []
    table = (parts.sources[0], parts.shares[0, answer], parts.forward[0, answer], parts.backward[0, answer])
    for source, share, forward, backward in zip(*(column.tolist() for column in table), strict=True):
        if source >= 0 and share > 0 and forward + backward > 0:
            event = {"event": places[source], "item": str(item_of(places[source]))}
            counted.append({**event, "pairs": forward, "reverse_pairs": backward, "share": share})
    similar = []
    if parts.similarity is not None:
        best: dict[str, dict[str, Any]] = {}  # the latest event of each item
        for at, similarity in zip(places, parts.similarity[0, answer].tolist(), strict=False):
            if similarity >= LEAST_SIMILARITY:
                best[str(item_of(at))] = {"event": at, "item": str(item_of(at)), "similarity": similarity}
        similar = sorted(best.values(), key=lambda one: -one["similarity"])[:MOST_NAMED]
    return {
        "repeats": repeats,
        "counted": sorted(counted, key=lambda one: -one["share"])[:MOST_NAMED],
        "popularity": float(parts.trend[0, answer]),
        "similar_texts": [] if repeats else similar,
    }


def places_to_leave_out(events: Sequence[Event], length: int) -> list[int]:
    """The places of the events whose absence can change an answer: those that are read, and the one before them, which
    tells the first gap and takes a place that is free. If one event alone has no timestamp, the list is sorted without
    it."""
    places = set(time_order(events)[-length - 1 :])
    undated = [place for place, event in enumerate(events) if event.get("timestamp") is None]
    return sorted(places | set(undated)) if len(undated) == 1 else sorted(places)


def without(events: Sequence[Event], place: int) -> list[Event]:
    return [*events[:place], *events[place + 1 :]]


def logarithms(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities.astype(np.float64), LEAST_PROBABILITY))
