"""The explanations of a predictor's answers, in small steps: contributions, importance, and what the model's parts say.

The numbers are those of the pipeline (`model/explaining_rules.py`): the probability of each answer is asked after the
user's list without each event, after each event by itself, and after nothing. This file imports numpy alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from next_behavior.model.explaining_rules import (
    ReadHistory,
    Said,
    because,
    effects_of,
    lists_to_ask,
    places_to_leave_out,
)
from next_behavior.model.special_ids import FIRST_NEW, NONE, PAD
from next_behavior.serving.bundle import Constants
from next_behavior.serving.distribution import GATE_REPEAT, TINY
from next_behavior.serving.live_memory import COUNT_UNIT, LiveMemory
from next_behavior.serving.questions import Asked, Questions

Answers = list[dict[str, Any]]
# Of one step, which takes some milliseconds: events that the network reads, padding included, and scores of items.
EVENTS_AT_ONCE, SCORES_AT_ONCE = 512, 2**19
# An action row that stands for all of them.
ANY_ACTION = -1


class Named(NamedTuple):
    """Answers by their ids.

    Attributes:
        items: (k,) int64, PAD for an item that cannot be answered, or for none.
        rows: (k,) int64, places among the actions, ANY_ACTION where an answer names none.
    """

    items: np.ndarray
    rows: np.ndarray


class NetworkSays(Protocol):
    """Of the next event after one history, as `predictor.NetworkAnswer` for B of them."""

    @property
    def by_action(self) -> np.ndarray: ...
    @property
    def pointer(self) -> np.ndarray: ...
    @property
    def gate(self) -> np.ndarray: ...


class Explained(Protocol):
    """The predictor whose answers are explained."""

    constants: Constants
    memory: LiveMemory
    questions: Questions

    def probabilities(self, asked: Sequence[Asked], named: Sequence[Named]) -> list[np.ndarray]:
        """(k,) for each question: the probabilities of the answers that are named."""

    def said_of(self, one: Asked) -> NetworkSays: ...


class Texts:
    """The text vectors of all items, as the model keeps them: (V, D) int8 in units (D,)."""

    def __init__(self, vectors: np.ndarray, unit: np.ndarray) -> None:
        self._vectors, self._unit = vectors, unit

    def __bool__(self) -> bool:
        return bool(self._vectors.size)

    def of(self, items: np.ndarray, first: int) -> np.ndarray:
        """(n, D) float32 of length one, zeros for what is no item or has no text."""
        vectors = self._vectors[items].astype(np.float32) * self._unit * (items >= first)[:, None]
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def explaining_steps(predictor: Explained, texts: Texts, one: Asked, answers: Answers) -> Iterator[Answers | None]:
    """The answers with their explanations come last; None before that, after each step."""
    history = one.history
    assert history is not None, "asked for with the question"
    questions, constants = predictor.questions, predictor.constants
    named = named_in(answers, one, questions)
    places = places_to_leave_out(history, constants.max_events)
    lists = lists_to_ask(history, places)
    found: list[np.ndarray] = [np.zeros(0)] * len(lists)
    scores = 1 if one.of == "action" else len(constants.actions) * (constants.vocab_size - questions.first_item_id)
    for rows in in_steps([min(len(events), constants.max_events) for events in lists], scores):
        asked, read = zip(*(questions.about(one, lists[row]) for row in rows), strict=True)
        parts = predictor.probabilities(asked, [renamed(named, one, other) for other in read])
        for row, part in zip(rows, parts, strict=True):
            found[row] = part
        yield None
    probabilities = np.array([answer["probability"] for answer in answers])
    contributions, importance = effects_of(probabilities, found, places, len(history))
    reasons = reasons_of(predictor, texts, one, named)
    explained = zip(answers, contributions.tolist(), importance.tolist(), reasons, strict=True)
    yield [
        {**answer, "contributions": falls, "importance": weights, "because": reason}
        for answer, falls, weights, reason in explained
    ]


def named_in(answers: Answers, one: Asked, questions: Questions) -> Named:
    """The ids of answers to a question."""
    actions = questions.constants.actions
    items = [
        (PAD if one.of != "pair" else NONE)
        if answer["item"] is None
        else questions.id_of(answer["item"], one.new_items)
        for answer in answers
    ]
    rows = [ANY_ACTION if answer["action"] is None else actions.index(answer["action"]) for answer in answers]
    return Named(np.array(items, np.int64), np.array(rows, np.int64))


def renamed(named: Named, one: Asked, read: ReadHistory) -> Named:
    """The same answers in another list, where an unknown item may have another [NEW_j], or none."""
    items = named.items.copy()
    for place in np.flatnonzero((items >= FIRST_NEW) & (items < FIRST_NEW + len(one.new_items))):
        items[place] = read.seen.get(one.new_items[items[place] - FIRST_NEW], PAD)
    return Named(items, named.rows)


def in_steps(lengths: list[int], scores: int) -> Iterator[list[int]]:
    """The rows of histories in steps, those of about the same length together.

    Args:
        scores: of items, for each history.
    """
    rows = sorted(range(len(lengths)), key=lengths.__getitem__)
    begin = 0
    for end in range(1, len(rows) + 1):
        longest = lengths[rows[end]] if end < len(rows) else 0
        count = end + 1 - begin
        too_many = count * longest > EVENTS_AT_ONCE or count * scores > SCORES_AT_ONCE
        if end == len(rows) or longest > 2 * lengths[rows[begin]] or too_many:
            yield rows[begin:end]
            begin = end


# ----------------------------------------------------------------------------------------------------------------------
# The parts of the model that named an answer
# ----------------------------------------------------------------------------------------------------------------------


def reasons_of(predictor: Explained, texts: Texts, one: Asked, named: Named) -> list[dict[str, Any] | None]:
    """What the parts of the model say of each answer; None for an answer without an item."""
    history, first = one.history, predictor.questions.first_item_id
    assert history is not None, "asked for with the question"
    _, read = predictor.questions.about(one, history)
    events, trend = np.array(read.ids.items), predictor.memory.trend()
    pointer = pointer_of(predictor.said_of(one), events, named)
    cosines = texts.of(named.items, first) @ texts.of(events, first).T if texts else None
    places = places_of_runs(read.ids.items, first)[: predictor.constants.memory_history]
    reasons: list[dict[str, Any] | None] = []
    for place, item in enumerate(named.items.tolist()):
        if item < FIRST_NEW:
            reasons.append(None)
            continue
        popularity = 0.0 if item < first else 1.0 if trend is None else float(np.exp(trend[item]))
        said = Said(
            pointer[place].tolist(),
            counted_of(predictor, read.ids.items, places, item, first),
            popularity,
            None if cosines is None else cosines[place].tolist(),
        )
        reasons.append(because(said, read.places, lambda at: history[at].get("item")))
    return reasons


def pointer_of(said: NetworkSays, events: np.ndarray, named: Named) -> np.ndarray:
    """(k, T): how probable it is that an event is repeated, given that one is, at the events with an answer's item."""
    gate = np.exp(said.gate - said.gate.max(axis=1, keepdims=True))
    repeats = np.maximum(said.by_action * gate[:, GATE_REPEAT] / gate.sum(axis=1), TINY)  # (Q,)
    chosen = (named.rows[:, None] == ANY_ACTION) | (named.rows[:, None] == np.arange(len(repeats)))  # (k, Q)
    weight = chosen * repeats
    weight = weight / np.maximum(weight.sum(axis=1, keepdims=True), TINY)
    return (weight @ np.exp(said.pointer)) * (named.items[:, None] == events)


def places_of_runs(items: Sequence[int], first: int) -> list[int]:
    """The last event of each run of one known item, the newest first."""
    places: list[int] = []
    for place in range(len(items) - 1, -1, -1):
        if items[place] >= first and (not places or items[place] != items[places[-1]]):
            places.append(place)
    return places


def counted_of(
    predictor: Explained, items: Sequence[int], places: Sequence[int], item: int, first: int
) -> list[tuple[int, float, float, float]]:
    """What the memory says of an item after events at `places`; see `Said.memory`."""
    if item < first or item in items:
        return []
    memory, decay = predictor.memory, predictor.constants.memory_history_decay
    found = []
    for steps, place in enumerate(places):
        ids, values = memory.neighbors(items[place])
        score = float(values[ids == item].sum()) * decay**steps
        row = memory.row(items[place])
        pair = row.neighbors == item
        forward, backward = (float(table[pair].sum()) / COUNT_UNIT for table in (row.forward, row.backward))
        found.append((place, score, forward, backward))
    total = max(sum(score for _, score, _, _ in found), float(TINY))
    return [(place, score / total, forward, backward) for place, score, forward, backward in found]
