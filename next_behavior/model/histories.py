"""Histories of events to aligned ids: one position per event, one channel per property of it.

    reader = HistoryReader(lookup, action_ids, time_edges, has_time, num_new_items)
    items, actions, time_gaps = reader.ids([{"item": "84", "action": "view", "timestamp": 1700000000}], length=200)

Items are looked up whole and never split. Items that the vocabulary does not know stay apart within a history as
[NEW_1], [NEW_2] ..., as in pointer-generator networks (See et al. 2017). This file imports numpy alone: the tokenizer
uses it, and so can a process without torch and transformers.
"""

from __future__ import annotations

import difflib
import numbers
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

from .special_ids import FIRST_ACTION, FIRST_GAP, FIRST_NEW, NO_GAP, NONE, PAD, START, START_ACTION, UNK, UNKNOWN_ACTION
from .times import TOO_LARGE, micros_of_number, micros_of_text
from .vocabulary import known_item

Event = Mapping[str, Any]

EVENT_KEYS = frozenset({"item", "action", "timestamp"})
# Larger numbers are no seconds.
LARGEST_TIMESTAMP = TOO_LARGE["s"]
# Unknown actions that are warned of, at most.
MOST_WARNED = 5


class HistoryIds(NamedTuple):
    """Ids of one history, equally long lists: items, actions, time gaps."""

    items: list[int]
    actions: list[int]
    time_gaps: list[int]


@dataclass(frozen=True)
class HistoryReader:
    """Reads histories with a vocabulary.

    Attributes:
        lookup: the id of an item's key, None if the vocabulary does not hold it.
        action_ids: {action: id}.
        time_edges: ascending edges, in seconds, of the time-gap buckets; a gap equal to an edge lies above it.
        has_time: whether gaps are told apart; if not, every gap id is 1.
        num_new_items: slots [NEW_j] for unknown items.
        warned: unknown actions that were warned of: each is once, the first few.
    """

    lookup: Callable[[str], int | None]
    action_ids: Mapping[str, int]
    time_edges: Sequence[float]
    has_time: bool
    num_new_items: int
    warned: set[str] = field(default_factory=set)

    def ids(
        self, history: Sequence[Event], length: int, row: int = 0, seen: dict[str, int] | None = None
    ) -> HistoryIds:
        """Ids of the newest `length` events; `seen` is filled with the ids of their items.

        Args:
            history: events, oldest first; an empty one is one [START].
            row: which history it is, for messages.

        Raises:
            ValueError: an event, or one of its values, is not what is documented. Only the events that are kept, and
                the one before them, are looked at.
        """
        if not history:
            return HistoryIds([START], [START_ACTION], [NO_GAP])
        begin = max(0, len(history) - length)
        # One event more than is kept: the gap of the first one kept is the time since it.
        window = history[max(0, begin - 1) :]
        for position, event in enumerate(window, start=max(0, begin - 1)):
            if type(event) is not dict or not event or not EVENT_KEYS.issuperset(event):
                check_event(event, position, row)
        try:
            gaps = self._time_gaps(window)
            if begin:
                window, gaps = window[1:], gaps[1:]
            return HistoryIds(self._items(window, {} if seen is None else seen), self._actions(window), gaps)
        except ValueError as error:
            raise ValueError(f"history {row}: {error}") from error

    def new_items(self, history: Sequence[Event], length: int) -> list[str]:
        """The user's ids behind [NEW_1], [NEW_2] ... of a history, in that order, after truncation."""
        seen: dict[str, int] = {}
        self.ids(history, length, seen=seen)
        slots = range(FIRST_NEW, FIRST_NEW + self.num_new_items)
        return [item for item, index in seen.items() if index in slots]

    def known_items(self, events: Sequence[Event]) -> list[int]:
        """The ids of the events' items that the vocabulary holds."""
        items = (as_text(event["item"], "item") for event in events if event.get("item") is not None)
        found = (known_item(self.lookup, item) for item in items)
        return [index for index in found if index is not None]

    def _items(self, events: Sequence[Event], seen: dict[str, int]) -> list[int]:
        ids = []
        lookup = self.lookup
        unused, end = FIRST_NEW, FIRST_NEW + self.num_new_items
        for event in events:
            item = event.get("item")
            if item is None:
                ids.append(NONE)
                continue
            if type(item) is not str:
                item = as_text(item, "item")
            index = seen.get(item)
            if index is None:
                index = known_item(lookup, item)
                if index is None and item == "":
                    index = NONE  # as in a log: an empty field names no item
                elif index is None and unused < end:
                    index = unused
                    unused += 1
                elif index is None:
                    index = UNK
                seen[item] = index
            ids.append(index)
        return ids

    def _actions(self, events: Sequence[Event]) -> list[int]:
        known = self.action_ids
        unsaid = FIRST_ACTION if len(known) == 1 else UNKNOWN_ACTION
        ids = []
        for event in events:
            action = event.get("action")
            if action is None:
                ids.append(unsaid)
                continue
            index = known.get(action if type(action) is str else as_text(action, "action"))
            if index is None:
                self._warn_of(str(action))
                index = UNKNOWN_ACTION
            ids.append(index)
        return ids

    def _warn_of(self, action: str) -> None:
        if action in self.warned or len(self.warned) >= MOST_WARNED:
            return
        self.warned.add(action)
        warnings.warn(
            f"a history has the action {action!r:.80}, which is unknown and read as such, expected one of "
            f"{names_of(self.action_ids)}: spelling counts.",
            stacklevel=6,
        )

    def _time_gaps(self, events: Sequence[Event]) -> list[int]:
        edges, has_time = self.time_edges, self.has_time
        ids = []
        before = None
        for event in events:
            now = event.get("timestamp")
            if now is not None:
                kind = type(now)
                if (kind is not int and kind is not float) or not -LARGEST_TIMESTAMP <= now <= LARGEST_TIMESTAMP:
                    now = as_seconds(now)
            if now is None or before is None or not has_time:
                ids.append(NO_GAP)
            else:
                ids.append(FIRST_GAP + bisect_right(edges, now - before))
            before = now
        return ids


def in_time_order(histories: Sequence[Sequence[Event]]) -> list[list[Event]]:
    """Each history sorted by time, equal times in the order given; as it is if one of its events has no timestamp.

    Raises:
        ValueError: an event is not what is documented.
    """
    return [[history[position] for position in time_order(history, row)] for row, history in enumerate(histories)]


def time_order(history: Sequence[Event], row: int = 0) -> Sequence[int]:
    """The places of a history's events in the order of time; as they are if one of them has no timestamp.

    Raises:
        ValueError: an event is not what is documented; `row` names the history.
    """
    for position, event in enumerate(history):
        if type(event) is not dict or not event or not EVENT_KEYS.issuperset(event):
            check_event(event, position, row)
    moments = [event.get("timestamp") for event in history]
    order: Sequence[int] = range(len(history))
    if are_ascending_seconds(moments) or any(moment is None for moment in moments):
        return order
    try:
        seconds = [as_seconds(moment) for moment in moments]
    except ValueError as error:
        raise ValueError(f"history {row}: {error}") from error
    return sorted(order, key=seconds.__getitem__)


def are_ascending_seconds(moments: Sequence[Any]) -> bool:
    """Whether timestamps are plain numbers of seconds, none less than the one before: what a service gets."""
    before = -LARGEST_TIMESTAMP
    for moment in moments:
        kind = type(moment)
        if (kind is not int and kind is not float) or not before <= moment <= LARGEST_TIMESTAMP:
            return False
        before = moment
    return True


def as_arrays(rows: Sequence[HistoryIds], width: int) -> list[np.ndarray]:
    """Items, actions, time gaps and attention mask, each (B, width) int64, padded on the left."""
    arrays = [np.full((len(rows), width), PAD, dtype=np.int64) for _ in range(4)]
    for index, channels in enumerate(rows):
        begin = width - len(channels.items)
        for array, channel in zip(arrays, channels, strict=False):
            array[index, begin:] = channel
        arrays[3][index, begin:] = 1
    return arrays


# ----------------------------------------------------------------------------------------------------------------------
# What callers may pass
# ----------------------------------------------------------------------------------------------------------------------


def as_histories(histories: Any) -> Sequence[Sequence[Mapping[str, Any]]]:
    """One history or several, as several; ValueError for anything else."""
    if isinstance(histories, (list, tuple)):
        if not histories or isinstance(histories[0], Mapping):
            return [histories]
        if all(isinstance(history, (list, tuple)) for history in histories):
            return histories
    got = type(histories).__name__
    if isinstance(histories, (list, tuple)):
        wrong = next(history for history in histories if not isinstance(history, (list, tuple)))
        got = f"a list that holds {wrong!r:.80}"
    remedy = 'an event looks like {"item": "84", "action": "view", "timestamp": 1700000000}'
    if isinstance(histories, Mapping):
        remedy = "pass the list of events in it"
    raise ValueError(
        f"got {got}, expected a history (a list of events, oldest first) or a list of histories: {remedy}."
    )


def check_event(event: Any, position: int, row: int) -> None:
    """ValueError unless `event` is a mapping with some of the known keys and no other."""
    where = f"event {position} of history {row}"
    if not isinstance(event, Mapping) or not event:
        raise ValueError(
            f"{where} is {event!r:.80} ({type(event).__name__}), expected a dict with at least one of the keys item, "
            "action and timestamp."
        )
    for key in event:
        if key not in EVENT_KEYS:
            close = difflib.get_close_matches(str(key), EVENT_KEYS, n=1, cutoff=0.5)
            remedy = f"did you mean {close[0]!r}?" if close else "remove it."
            raise ValueError(f"{where} has the key {key!r}, expected item, action and timestamp: {remedy}")


def is_whole(value: object) -> bool:
    """Whether a value is a whole number; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def names_of(actions: Iterable[str]) -> str:
    """Actions as a message names them: what cannot be seen is escaped, and long ones are cut."""
    return ", ".join(f"{action!r:.80}" for action in actions)


def as_text(value: Any, name: str) -> str:
    """An item or an action as text; whole numbers become their digits."""
    if isinstance(value, str):
        return str(value)
    if is_whole(value):
        return str(int(value))
    raise ValueError(
        f"{name} is {value!r:.80} ({type(value).__name__}), expected text or a whole number: write it as text, as in "
        f"the log, and a missing {name} as None."
    )


def known_action(action_ids: Mapping[str, int], action: Any) -> int:
    """The id of an action; ValueError if it is unknown. (In a history, an unknown action is UNKNOWN_ACTION.)"""
    text = as_text(action, "action")
    if text not in action_ids:
        raise ValueError(f"action {text!r:.80} is unknown, expected one of {names_of(action_ids)}.")
    return action_ids[text]


def as_seconds(value: Any) -> float:
    """A timestamp as seconds since 1970 UTC, by the rules of `times.py`, which a log is read by as well."""
    remedy = 'ISO text such as "2024-05-17T08:30:00+00:00", a datetime or seconds since 1970 as a number'
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    if isinstance(value, str):
        micros = micros_of_text(value)
        if micros is None:
            hint = " (a date in digits alone may be a number: write 2024-05-17)" if value.strip().isdigit() else ""
            raise ValueError(f"timestamp is {value!r:.80}, expected {remedy}{hint}.")
        return micros / 1_000_000
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, datetime) and value == value:  # pandas' NaT is a datetime, and not equal to itself
        return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).timestamp()
    if isinstance(value, (numbers.Real, Decimal)) and not isinstance(value, bool):
        number = int(value) if isinstance(value, numbers.Integral) else float(value)
        if abs(number) <= LARGEST_TIMESTAMP:
            return float(number)
        micros = micros_of_number(number)
        if micros is not None:
            return micros / 1_000_000
        if isinstance(number, int):
            raise ValueError(f"timestamp is {value!r:.80}, a date in digits alone, expected {remedy}.")
    raise ValueError(
        f"timestamp is {value!r:.80} ({type(value).__name__}), expected {remedy}: write an unknown time as None."
    )
