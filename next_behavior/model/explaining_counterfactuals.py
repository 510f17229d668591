"""What would have to be different: `predict({"events": history}, explain="counterfactual", target=None)`.

Without a target: a small set of events without which another answer comes first. With a target, an item: a few events
that would bring it among the answers, were they to follow the history. Both searches are greedy: each step tries every
single change, in batches, and keeps the best one.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.nn import functional as F

from .explaining_answers import Explainer, Given
from .explaining_rules import logarithms, places_to_leave_out, without
from .histories import Event, as_seconds, time_order
from .ranking import RankedBehaviors
from .special_ids import FIRST_ACTION, FIRST_NEW, PAD

# Events that are removed, or added, at most.
MOST_REMOVED, MOST_ADDED = 10, 5
# Items that are tried as an added event: those whose memory lists name the target, and those with similar rows.
MOST_NEIGHBORS, MOST_ALIKE = 24, 8
# Actions that are tried with them, the most frequent ones.
MOST_ACTIONS = 4
# The log-probability by which an answer is behind another one at least.
LEAST_LEAD = 1e-9


class Counterfactuals:
    """Searches for changes of one history.

    Args:
        given: the history, with its first answer in front.
        tokenizer: names ids.
    """

    def __init__(self, explainer: Explainer, given: Given, tokenizer: Any) -> None:
        self.explainer, self.given, self.tokenizer = explainer, given, tokenizer

    # -- events without which another answer comes first ---------------------------------------------------------------

    def removed(self) -> dict[str, Any]:
        """`removed`: places in the user's list, or None if no set of at most MOST_REMOVED was found; and `answer`: what
        comes first without them."""
        first = self.first_of([self.given.events])[0]
        kept = list(range(len(self.given.events)))
        removed: list[int] = []
        while len(removed) < MOST_REMOVED and kept:
            best, changes = self._best_removal(kept, first)
            removed.append(kept.pop(best))
            if changes:
                removed = self._needed(sorted(removed), first)
                return {"removed": removed, "answer": self._named(self.first_of([self._without(removed)])[0])}
        return {"removed": None, "answer": None}

    def _best_removal(self, kept: list[int], first: tuple[str, ...]) -> tuple[int, bool]:
        """Which of the kept events to remove next, and whether the first answer then is another."""
        events = [self.given.events[place] for place in kept]
        places = places_to_leave_out(events, self.explainer.length)
        leads = self.leads([without(events, place) for place in places], first)
        best = min(range(len(places)), key=lambda index: (leads[index], -index))  # the latest of equals
        return places[best], leads[best] < 0

    def _needed(self, removed: list[int], first: tuple[str, ...]) -> list[int]:
        """The set without the events that need not be in it, oldest first."""
        for place in removed.copy():
            smaller = [other for other in removed if other != place]
            if smaller and self.first_of([self._without(smaller)])[0] != first:
                removed = smaller
        return removed

    def _without(self, removed: Sequence[int]) -> list[Event]:
        return [event for place, event in enumerate(self.given.events) if place not in set(removed)]

    def leads(self, lists: Sequence[Sequence[Event]], first: tuple[str, ...]) -> list[float]:
        """How far the log-probability of the answer `first` is above the best other one after each list; below 0 where
        another comes first."""
        one_answer = [Given(self.given.events, self.given.item_ids[:1], self.given.action_ids[:1],
                            self.given.new_items, self.given.left_out)] * len(lists)  # fmt: skip
        own = self.explainer.probabilities(lists, one_answer)
        leads = []
        for row, ranked in enumerate(self.ranked(lists, 2)):
            others = [probability for name, probability in ranked if name != first]
            lead = float((logarithms(own[row][:1]) - logarithms(np.array(others[:1] or [1.0])))[0])
            # Of equal probabilities the ranking says which comes first.
            leads.append(lead if not ranked or ranked[0][0] == first else min(lead, -LEAST_LEAD))
        return leads

    def first_of(self, lists: Sequence[Sequence[Event]]) -> list[tuple[str, ...]]:
        return [ranked[0][0] if ranked else () for ranked in self.ranked(lists, 1)]

    def ranked(self, lists: Sequence[Sequence[Event]], top_k: int) -> list[list[tuple[tuple[str, ...], float]]]:
        """The best answers after each list, each with its probability; an answer is (action id, item id, user's id)."""
        read = [self.explainer.read(events) for events in lists]
        found: list[list[tuple[tuple[str, ...], float]]] = [[] for _ in lists]
        for rows in self.explainer.in_batches(read):
            ranked = self.explainer.ranked([self.given] * len(rows), [read[row] for row in rows], top_k)
            for row, answers in zip(rows, plain(ranked), strict=True):
                names = {index: item for item, index in read[row].seen.items()}
                for item_id, action_id, probability in answers:
                    # An unknown item has another id in another list.
                    is_new = FIRST_NEW <= item_id < self.explainer.tables.first_item_id
                    name = names[item_id] if is_new else str(item_id)
                    found[row].append(((str(action_id), "new" if is_new else "known", name), probability))
        return found

    def _named(self, answer: tuple[str, ...]) -> dict[str, Any] | None:
        if not answer:
            return None
        action_id, kind, name = answer
        item = name if kind == "new" else self.tokenizer.decode_item(int(name)) if int(name) != PAD else None
        action = None if int(action_id) == PAD else self.tokenizer.decode_action(int(action_id))
        return {"action": action, "item": item}

    # -- events that would bring an item among the answers -------------------------------------------------------------

    def added(self, target: int, top_k: int) -> dict[str, Any]:
        """`added`: events that would follow the history, or None if no MOST_ADDED were found; `rank`, from 1, and
        `probability` of the target then, None where it is not among the answers."""
        order = time_order(self.given.events)
        events = [self.given.events[place] for place in order]
        added: list[Event] = []
        while True:
            rank, probability = self._rank_of(target, [*events, *added], top_k)
            if rank is not None or len(added) == MOST_ADDED:
                break
            candidates = self._candidates(target, [*events, *added])
            if not candidates:
                break
            lists = [[*events, *added, one] for one in candidates]
            best = max(
                zip(self._probabilities_of(target, lists), range(len(lists)), strict=True),
                key=lambda one: (one[0], -one[1]),
            )
            added.append(candidates[best[1]])
        return {"added": None if rank is None else added, "rank": rank, "probability": probability}

    def _rank_of(self, target: int, events: Sequence[Event], top_k: int) -> tuple[int | None, float | None]:
        read = self.explainer.read(events)
        answers = plain(self.explainer.ranked([self.given], [read], top_k))[0]
        for rank, (item_id, _, probability) in enumerate(answers, 1):
            if item_id == target:
                return rank, probability
        return None, None

    def _probabilities_of(self, target: int, lists: Sequence[Sequence[Event]]) -> list[float]:
        """Of the target after each list, with the action that makes it most probable."""
        question = self.explainer.question
        actions = [PAD] if question.of == "item" and question.action is None else self._actions()
        if question.action is not None:
            actions = [question.action]
        one = Given(self.given.events, [target] * len(actions), actions, self.given.new_items, self.given.left_out)
        return [float(found.max()) for found in self.explainer.probabilities(lists, [one] * len(lists))]

    def _actions(self) -> list[int]:
        return list(range(FIRST_ACTION, FIRST_ACTION + len(self.tokenizer.action_vocabulary)))

    def _candidates(self, target: int, events: Sequence[Event]) -> list[Event]:
        """Events that could follow: of items that lead to the target, with the frequent actions, after the user's
        median gap."""
        time = next_time(events)
        stamp = {} if time is None else {"timestamp": time}
        items = [self.tokenizer.decode_item(index) for index in self._leading_to(target)]
        actions = self.tokenizer.action_vocabulary[:MOST_ACTIONS]
        return [{"item": item, "action": action, **stamp} for item in items for action in actions]

    def _leading_to(self, target: int) -> list[int]:
        """Items whose lists in the memory name the target, by their scores, and those with the most similar rows."""
        tables = self.explainer.tables
        first, lists = tables.first_item_id, tables.lists
        keys, value = lists.keys, lists.value
        entries = ((keys & (2**32 - 1)) == target).nonzero()[:, 0]
        best = value[entries].topk(min(MOST_NEIGHBORS, len(entries))).indices
        neighbors = (keys[entries[best]] >> 32).tolist()
        rows = F.normalize(tables.item_table.float(), dim=-1)
        likeness = rows @ rows[target - first]
        likeness[target - first] = -1
        alike = (likeness.topk(min(MOST_ALIKE, len(likeness))).indices + first).tolist()
        return [index for index in dict.fromkeys([*neighbors, *alike]) if index != target]


def next_time(events: Sequence[Event]) -> float | None:
    """When an event would come after those in order: the median gap after the last; None if one of them has no time."""
    if not events or any(event.get("timestamp") is None for event in events):
        return None
    seconds = [as_seconds(event["timestamp"]) for event in events]
    gaps = [after - before for before, after in itertools.pairwise(seconds)]
    return seconds[-1] + (statistics.median(gaps) if gaps else 0.0)


def plain(ranked: RankedBehaviors) -> list[list[tuple[int, int, float]]]:
    """(item id, action id, probability) of each answer, without what fills the rows."""
    assert ranked.item_ids is not None
    assert ranked.action_ids is not None
    assert ranked.probabilities is not None
    columns = (ranked.item_ids.tolist(), ranked.action_ids.tolist(), ranked.probabilities.tolist())
    return [
        [one for one in zip(*row, strict=True) if one[0] != PAD or one[1] != PAD] for row in zip(*columns, strict=True)
    ]
