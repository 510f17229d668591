"""Questions about histories, read and checked: from events and options to ids. By the rules of the pipeline.

    questions = Questions(constants, tokenizer.token_to_id)
    asked = questions.ask([{"item": "84", "action": "view", "timestamp": 1700000000}], top_k=10)

This file imports numpy alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from next_behavior.model.answers import allowed_ids, check_options
from next_behavior.model.coverage import limit_for
from next_behavior.model.explaining_rules import COUNTERFACTUAL, INTEGRATED_GRADIENTS, ReadHistory, check_explain
from next_behavior.model.histories import HistoryIds, HistoryReader, as_text, in_time_order, known_action
from next_behavior.model.special_ids import FIRST_ACTION, FIRST_NEW, UNK
from next_behavior.model.vocabulary import known_item
from next_behavior.serving.bundle import Constants

# An explanation asks about two lists for each event that is read. So much may be read in all: events, and scores of
# items. It takes a second or two of one core.
MOST_EVENTS_READ, MOST_SCORES = 2**16, 2**27


@dataclass(frozen=True)
class Asked:
    """A question that was read and checked.

    Attributes:
        ids: the history.
        new_items: the user's ids behind [NEW_1] ...
        runs: known items of the history, equal neighbors as one, the oldest first.
        top_k, of, action (an id), balanced, paths: as the pipeline's.
        limit: of the prediction set that is asked for, in place of `top_k`; None for no set.
        largest_set: of a larger set, one answer more than this is given; None for every size.
        exclude: ids (n,) that are left out; None for none. allowed: the only ones (n,); None for all.
        events: how many the history has; unknown_items: how many of those read have an item that the vocabulary lacks.
        truncated: whether the history is longer than is read.
        cold_start: whether nothing known is in it: neither an item nor an action.
        history: the user's list, of a question whose answers are explained; else None.
    """

    ids: HistoryIds
    new_items: list[str]
    runs: list[int]
    top_k: int
    of: str
    action: int | None
    balanced: bool
    limit: float | None
    largest_set: int | None
    paths: bool
    exclude: np.ndarray | None
    allowed: np.ndarray | None
    events: int
    unknown_items: int
    truncated: bool
    cold_start: bool
    history: list[Mapping[str, Any]] | None

    @property
    def most_answers(self) -> int | None:
        """How many are given of a prediction set; None for all."""
        return None if self.limit is None or self.largest_set is None else self.largest_set + 1


class Questions:
    """Reads questions with a model's vocabulary."""

    def __init__(self, constants: Constants, token_to_id: Callable[[str], int | None]) -> None:
        self.constants = constants
        self.first_item_id = FIRST_NEW + constants.num_new_items
        self._token_to_id = token_to_id
        self._action_ids = {action: index for index, action in enumerate(constants.actions, start=FIRST_ACTION)}
        self._reader = HistoryReader(
            token_to_id,
            self._action_ids,
            constants.time_edges,
            constants.has_time,
            constants.num_new_items,
        )

    def ask(
        self,
        events: Sequence[Mapping[str, Any]],
        *,
        top_k: int = 10,
        of: str = "pair",
        action: str | None = None,
        exclude_seen: bool = False,
        allowed_items: Sequence[str] | None = None,
        balanced: bool = False,
        coverage: float | None = None,
        largest_set: int | None = None,
        paths: bool = False,
        explain: bool = False,
    ) -> Asked:
        """Reads and checks a question; events and options as for the pipeline, and `largest_set` of `Asked`.

        Raises:
            ValueError: an event or an option is not what is documented.
        """
        constants = self.constants
        if explain in (INTEGRATED_GRADIENTS, COUNTERFACTUAL):
            raise ValueError(
                f'explain="{explain}" is for the pipeline: a predictor takes explain=True and leaves events out.'
            )
        check_explain(explain, None, of, coverage)
        restricted = action is not None or exclude_seen or allowed_items is not None
        check_options(top_k, of, restricted, balanced, bool(constants.action_weights))
        limit = None
        if coverage is not None:
            limits = constants.action_set_limits if of == "action" else constants.item_set_limits
            limit = limit_for(coverage, of, restricted or balanced, limits)
        history = in_time_order([list(events)])[0]
        if explain:
            check_cost(len(history), constants)
        names: dict[str, int] = {}
        ids = self._reader.ids(history, constants.max_events, seen=names)
        slots = range(FIRST_NEW, self.first_item_id)
        exclude = None
        if exclude_seen:
            older = history[: max(0, len(history) - constants.max_events)]
            exclude = np.array(sorted({*ids.items, *self._reader.known_items(older)}), np.int64)
        return Asked(
            ids=ids,
            new_items=[item for item, index in names.items() if index in slots],
            runs=self._runs(ids.items),
            top_k=int(top_k),
            of=of,
            action=None if action is None else known_action(self._action_ids, action),
            balanced=balanced,
            limit=limit,
            largest_set=largest_set,
            paths=paths or explain,
            exclude=exclude,
            allowed=None if allowed_items is None else self._allowed(allowed_items),
            events=len(history),
            unknown_items=sum(index == UNK or index in slots for index in ids.items),
            truncated=len(history) > constants.max_events,
            cold_start=max(ids.items) < self.first_item_id and max(ids.actions) < FIRST_ACTION,
            history=list(events) if explain else None,
        )

    def about(self, one: Asked, events: Sequence[Mapping[str, Any]]) -> tuple[Asked, ReadHistory]:
        """The same question about another list of the user's. What may be answered stays as it is."""
        read = ReadHistory.of(events, self._reader, self.constants.max_events)
        return replace(one, ids=read.ids, runs=self._runs(read.ids.items), paths=False), read

    def id_of(self, item: str, new_items: Sequence[str]) -> int:
        """The id of an item in answers; `new_items` as of the question."""
        index = self._item_id(item)
        return FIRST_NEW + new_items.index(item) if index == UNK else index

    def _item_id(self, item: Any) -> int:
        index = known_item(self._token_to_id, as_text(item, "item"))
        return UNK if index is None else index

    def _allowed(self, items: Any) -> np.ndarray:
        return np.array(allowed_ids(items, self._item_id, self.first_item_id), np.int64)

    def _runs(self, items: Sequence[int]) -> list[int]:
        known = [item for item in items if item >= self.first_item_id]
        return [item for place, item in enumerate(known) if place == 0 or item != known[place - 1]]

    def new_run(self, history: Sequence[Mapping[str, Any]]) -> list[int]:
        """Known items of a history, equal neighbors as one, if its last event adds one to them; else nothing."""
        items = self._reader.ids(in_time_order([list(history)])[0], self.constants.max_events).items
        runs = self._runs(items)
        return [] if items[-1] < self.first_item_id or runs == self._runs(items[:-1]) else runs


def most_explained(constants: Constants) -> int:
    """Events of the longest history whose answers are explained: less than are read, if there are many items."""
    scores = len(constants.actions) * max(1, constants.vocab_size - FIRST_NEW - constants.num_new_items)
    return min(constants.max_events, math.isqrt(MOST_EVENTS_READ), max(1, (MOST_SCORES // scores - 1) // 2))


def check_cost(events: int, constants: Constants) -> None:
    """ValueError if a history of so many events is too long to be explained."""
    most = most_explained(constants)
    if most < constants.max_events and events > most:
        raise ValueError(
            f"explain got a history of {events} events, expected at most {most} for a model of this size: it asks the "
            f"model again without each event. Ask about the newest {most} events, or without explain."
        )
