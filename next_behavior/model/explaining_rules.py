"""What an explanation is, whoever computes it: the pipeline in torch, or a service without it.

A contribution of an event to an answer is how far the answer's log-probability falls when the event is left out of the
user's list: log p(answer | the list) - log p(answer | the list without the event). The shorter list is read as any list
is: gaps, unknown items, the window and what the memory looks up are those of the shorter list. Which items may be
answered stays as it was for the whole list. Probabilities below LEAST_PROBABILITY count as that.

Events that say the same hide each other: without one of two views, the other is still there. The importance of an event
is the mean of its contribution and of how far the event by itself raises the log-probability above that for an empty
list, the last and the first term of its Shapley value. It ranks events more faithfully (benchmarks/README.md).

This file imports numpy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .histories import Event, HistoryIds, HistoryReader, time_order

LEAVE_ONE_OUT, INTEGRATED_GRADIENTS, COUNTERFACTUAL = True, "integrated_gradients", "counterfactual"
# A probability below this counts as this, so that leaving out an event that an answer is impossible without has a
# finite value.
LEAST_PROBABILITY = 1e-12
# Of the events that the memory or a text speaks of, so many are named; and texts at least so similar.
MOST_NAMED = 3
LEAST_SIMILARITY = 0.5


def check_explain(explain: Any, target: Any, of: str, coverage: Any) -> None:
    """ValueError unless the options ask for an explanation that there is, or for none."""
    if not isinstance(explain, bool) and explain not in (INTEGRATED_GRADIENTS, COUNTERFACTUAL):
        raise ValueError(
            f'explain is {explain!r:.80}, expected True, "{INTEGRATED_GRADIENTS}", "{COUNTERFACTUAL}" or False.'
        )
    if target is not None and explain != COUNTERFACTUAL:
        raise ValueError(f'target is {target!r:.80}, expected explain="{COUNTERFACTUAL}" beside it.')
    if target is not None and of == "action":
        raise ValueError(f'target is {target!r:.80}, an item, and of="action" ranks actions: use of="item" or "pair".')
    if explain and coverage is not None:
        raise ValueError("coverage asks for a whole set, which is not explained: ask again with explain and top_k.")


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

    @classmethod
    def of(cls, events: Sequence[Event], reader: HistoryReader, length: int) -> ReadHistory:
        order = time_order(events)
        seen: dict[str, int] = {}
        ids = reader.ids([events[place] for place in order], length, seen=seen)
        return cls(ids, list(order[-length:]), seen)


def places_to_leave_out(events: Sequence[Event], length: int) -> list[int]:
    """The places of the events whose absence can change an answer: those that are read, and the one before them, which
    tells the first gap and takes a place that is free. If one event alone has no timestamp, the list is sorted without
    it."""
    places = set(time_order(events)[-length - 1 :])
    undated = [place for place, event in enumerate(events) if event.get("timestamp") is None]
    return sorted(places | set(undated)) if len(undated) == 1 else sorted(places)


def lists_to_ask(events: Sequence[Event], places: Sequence[int]) -> list[Sequence[Event]]:
    """What contributions and importance are computed from: the list without each of the events at `places`, each of
    these events by itself, and the empty list."""
    return [*(without(events, place) for place in places), *([events[place]] for place in places), []]


def without(events: Sequence[Event], place: int) -> list[Event]:
    return [*events[:place], *events[place + 1 :]]


def effects_of(
    probabilities: np.ndarray, found: Sequence[np.ndarray], places: Sequence[int], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Contributions and importance, (k, n) float64 each, of n = `count` events for k answers.

    Args:
        probabilities: (k,) of the answers after the whole list; found: (k,) of them after each of `lists_to_ask`.
    """
    contributions, importance = np.zeros((len(probabilities), count)), np.zeros((len(probabilities), count))
    whole, (*others, empty) = logarithms(probabilities), [logarithms(one) for one in found]
    for place, less, by_itself in zip(places, others[: len(places)], others[len(places) :], strict=True):
        contributions[:, place] = whole - less
        importance[:, place] = (contributions[:, place] + by_itself - empty) / 2
    return contributions, importance


def logarithms(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities.astype(np.float64), LEAST_PROBABILITY))


# ----------------------------------------------------------------------------------------------------------------------
# The parts of the model that named an answer
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """What the parts of a model say of one answer to a history of T events.

    Attributes:
        pointer: (T,) p(event is repeated | an item is repeated), at the events with the answer's item.
        memory: of up to K events that the memory looks up, the newest first: the place among the T, -1 for none; the
            part of the memory's score that comes from it; counted pairs "its item, then the answer's"; and the other
            way round.
        trend: how many times as probable recent popularity makes the item.
        similarity: (T,) cosines of the texts of the events' items and the answer's; None without item text.
    """

    pointer: Sequence[float]
    memory: Iterable[tuple[int, float, float, float]]
    trend: float
    similarity: Sequence[float] | None


def because(said: Said, places: Sequence[int], item_of: Callable[[int], Any]) -> dict[str, Any]:
    """The parts of one answer in plain values.

    Args:
        places: where in the user's list the events stand that were read; item_of: what they name.
    """
    pointer = said.pointer
    latest = max(range(len(pointer)), key=pointer.__getitem__)
    repeats = {"event": places[latest], "share": pointer[latest]} if pointer[latest] > 0 else None
    counted: list[dict[str, Any]] = []
    for source, share, forward, backward in said.memory:
        if source >= 0 and share > 0 and forward + backward > 0:
            event = {"event": places[source], "item": str(item_of(places[source]))}
            counted.append({**event, "pairs": forward, "reverse_pairs": backward, "share": share})
    best: dict[str, Mapping[str, Any]] = {}  # the latest event of each item
    for at, similarity in zip(places, said.similarity or (), strict=False):
        if similarity >= LEAST_SIMILARITY:
            best[str(item_of(at))] = {"event": at, "item": str(item_of(at)), "similarity": similarity}
    similar = sorted(best.values(), key=lambda one: -one["similarity"])[:MOST_NAMED]
    return {
        "repeats": repeats,
        "counted": sorted(counted, key=lambda one: -one["share"])[:MOST_NAMED],
        "popularity": said.trend,
        "similar_texts": [] if repeats else similar,
    }
