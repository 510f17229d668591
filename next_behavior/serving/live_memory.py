"""The associative memory of a served model: it learns from each event at once, and answers from what it has learned.

It holds the counts of `model/associative_memory.py` and gives the scores of `model/neighbor_lists.py`, by the same
rules, but makes the lists of items when they are asked for. Counting an event changes a few rows and notes which lists
no longer hold, so it takes no time that grows with the catalog. This file imports numpy alone.

    memory = LiveMemory(bundle.constants, bundle.memory)
    learned = memory.count([8, 5, 9])              # the last of these runs of items is new
    ids, scores = memory.scores([9, 5, 8])         # the newest first
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from next_behavior.serving.bundle import Constants
from next_behavior.serving.text_links import TextLinks
from next_behavior.serving.top import best

# As in the model: counts are whole numbers of 1 / COUNT_UNIT, and so many recent events of an item are the unit of its
# recent popularity.
COUNT_UNIT, TREND_UNIT = 1024, 0.3
# `memory_share` of an item without counts is at least this.
UNCOUNTED_SHARE = 0.3
# Lists that are kept, and changes of the fading factor after which the numbers are brought back to size.
MOST_LISTS, LEAST_FADE = 20_000, 1e-100
NO_IDS, NO_VALUES = np.zeros(0, np.int32), np.zeros(0, np.float32)
STATE = {"items", "lengths", "neighbors", "forward", "backward", "item_counts", "recent"}


class Row(NamedTuple):
    """The pairs of one item x: neighbors (n,) ascending, how often each came after x and before x (n,), in units."""

    neighbors: np.ndarray
    forward: np.ndarray
    backward: np.ndarray


class Pair(NamedTuple):
    """What an event has added: `weight` to the count of "`first`, then `second`"."""

    first: int
    second: int
    weight: float


@dataclass(frozen=True)
class NeighborList:
    """The neighbors of an item and their scores, as they were when the memory had learned `tick` events.

    Attributes:
        ids, values: (n,) int32 and float32, without what the links between similar texts add.
        link_ids, link_weights: (m,) int32 and float32, what they add in shares of an item's mean sum of counts.
        lenders: (k,) int32, the items whose columns decide which borrowers stand in this list.
    """

    tick: int
    ids: np.ndarray
    values: np.ndarray
    link_ids: np.ndarray
    link_weights: np.ndarray
    lenders: np.ndarray


class LiveMemory:
    """Counts of pairs of items, and the scores they give."""

    def __init__(self, constants: Constants, arrays: dict[str, np.ndarray]) -> None:
        size = constants.vocab_size
        self.constants = constants
        self._starts, self._base = arrays["row_starts"], Row(*(arrays[name] for name in Row._fields))
        self._rows: dict[int, Row] = {}
        self._waiting: dict[int, list[tuple[int, int, int]]] = {}
        self._lists: dict[int, NeighborList] = {}
        self._counted: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}
        self.counts = padded(arrays["item_counts"].astype(np.int64), size)
        self.discount = self._for_count(self.counts)
        self.tick = 0
        self.changed = np.zeros(size, np.int64)
        self._recent, self._fade = padded(arrays["recent"].astype(np.float64), size), 1.0
        self._active = np.flatnonzero(self._recent)
        self._trend, self._trend_tick = np.zeros(size, np.float32), -1
        self._scratch = np.zeros(size, np.float32)
        self.links = TextLinks(self, arrays["link_ids"], arrays["link_weights"])

    # -- counting ------------------------------------------------------------------------------------------------------

    def count(self, items: Sequence[int]) -> list[Pair]:
        """Counts what the last of these items adds.

        Args:
            items: known items, the oldest first, no two equal ones in a row.
        """
        last = int(items[-1])
        pairs = added_pairs(self.constants, items)
        added = {pair.first: round(pair.weight * COUNT_UNIT) for pair in pairs}
        self.tick += 1
        for item, weight in added.items():
            self._waiting.setdefault(item, []).append((last, weight, 0))
        if added:
            self._waiting.setdefault(last, []).extend((item, 0, weight) for item, weight in added.items())
        before = self.discount[last]
        self.counts[last] += 1
        self.discount[last] = self._for_count(self.counts[last : last + 1])[0]
        self._follow(last)
        row = self.row(last)
        self.changed[row.neighbors] = self.tick
        self.changed[last] = self.tick
        if self.links:
            self.links.counted(last, row, added, before)
        return pairs

    def _follow(self, item: int) -> None:
        """Adds one event to recent popularity, and lets the others fade."""
        self._fade *= 0.5 ** (1 / self.constants.memory_half_life)
        if self._fade < LEAST_FADE:
            self._recent *= self._fade
            self._fade, self._active = 1.0, np.flatnonzero(self._recent)
            self._trend[:] = 0
        if self._recent[item] == 0:
            self._active = np.append(self._active, item)
        self._recent[item] += 1 / self._fade

    # -- scoring -------------------------------------------------------------------------------------------------------

    def scores(self, recent: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """ids (n,) ascending and scores (n,) float32 of all items that stand in a list of the recent ones.

        Args:
            recent: known items, the newest first; `memory_history` of them count.
        """
        scratch, decay = self._scratch, self.constants.memory_history_decay
        lists = [self.neighbors(item) for item in recent[: self.constants.memory_history]]
        for steps, (ids, values) in enumerate(lists):
            scratch[ids] += values * np.float32(decay**steps)
        ids = np.concatenate([ids for ids, _ in lists]) if lists else NO_IDS
        if len(ids) * 8 > len(scratch):
            ids = np.flatnonzero(scratch)
        elif len(lists) > 1:
            ids = np.unique(ids)
        scores = scratch[ids]
        scratch[ids] = 0
        return ids, scores

    def trend(self) -> np.ndarray | None:
        """(V,) float32: the logarithm of how many times as probable recent popularity makes every item; None if it does
        for none. It is changed by the next call."""
        if not self.constants.memory_trend or not len(self._active):
            return None
        if self._trend_tick != self.tick:
            mentions = self._recent[self._active] * self._fade
            self._trend[self._active] = self.constants.memory_trend * np.log1p(mentions / TREND_UNIT)
            self._trend_tick = self.tick
        return self._trend

    def shares(self, ids: np.ndarray) -> np.ndarray:
        """(n,) float32: the share of the answer that the memory alone gives to items (n,), by their scores."""
        share = np.float32(self.constants.memory_share)
        return np.where(self.counts[ids] > 0, share, max(share, np.float32(UNCOUNTED_SHARE)))

    def neighbors(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        """ids (n,) and scores (n,) float32 of the neighbors of an item."""
        kept = self._lists.pop(item, None)
        if kept is None or self.changed[item] > kept.tick or (self.links and self.links.outdated(item, kept)):
            kept = self._made(item)
            if len(self._lists) >= MOST_LISTS:
                del self._lists[next(iter(self._lists))]
        self._lists[item] = kept
        return self.links.completed(kept) if self.links else (kept.ids, kept.values)

    def _made(self, item: int) -> NeighborList:
        ids, values = self.counted(item)
        if not self.links:
            return NeighborList(self.tick, ids, values, NO_IDS, NO_VALUES, NO_IDS)
        borrowed, borrowed_values, lenders = self.links.borrowed(item, ids)
        link_ids, link_weights = self.links.of(item)
        if len(borrowed):
            ids, values = np.concatenate([ids, borrowed]), np.concatenate([values, borrowed_values])
        return NeighborList(self.tick, ids, values, link_ids, link_weights, lenders)

    # -- counts --------------------------------------------------------------------------------------------------------

    def row(self, item: int) -> Row:
        """The pairs of an item."""
        row = self._rows.get(item)
        if row is None:
            begin, end = self._starts[item : item + 2] if item + 1 < len(self._starts) else (0, 0)
            row = Row(*(table[begin:end] for table in self._base))
        waiting = self._waiting.pop(item, None)
        if waiting is not None:
            row = self._rows[item] = with_pairs(row, waiting)
        return row

    def counted(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        """ids (n,) ascending and scores (n,) float32 of the best neighbors by counts alone."""
        kept = self._counted.get(item)
        if kept is None or self.changed[item] > kept[0]:
            row = self.row(item)
            ids, values = row.neighbors, NO_VALUES
            if len(ids):
                strength = self.strength(row.forward, row.backward)
                values = strength * (self.for_total(strength.sum()) * self.discount[ids])
                if len(ids) > self.constants.memory_neighbors:
                    chosen = best(values, self.constants.memory_neighbors)
                    ids, values = ids[chosen], values[chosen]
            if not self.links:  # the list is kept itself
                return ids, values
            if len(self._counted) >= MOST_LISTS:
                del self._counted[next(iter(self._counted))]
            kept = self._counted[item] = (self.tick, ids, values)
        return kept[1], kept[2]

    def strength(self, forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
        """(n,) float32: how often a neighbor came after the item, plus a part of how often it came before."""
        unit, part = np.float32(1 / COUNT_UNIT), np.float32(self.constants.memory_backward)
        return forward.astype(np.float32) * unit + part * (backward.astype(np.float32) * unit)

    def for_total(self, total: np.ndarray | np.floating) -> np.ndarray:
        return np.maximum(total, np.float32(1e-6)) ** np.float32(-self.constants.memory_degree_power)

    def _for_count(self, counts: np.ndarray) -> np.ndarray:
        return np.maximum(counts, 1).astype(np.float32) ** np.float32(-self.constants.memory_count_power)

    def measured(self, length: np.ndarray, total: np.ndarray, kept_sum: np.ndarray) -> list[int]:
        """Writes the number of pairs of every item, the sum of their strengths and that of what its list keeps, before
        the division for its total; and returns the items that this does not hold for: long rows and changed ones."""
        rows = len(self._starts) - 1
        length[:rows] = np.diff(self._starts)
        filled = np.flatnonzero(length)
        if len(filled):
            strength = self.strength(self._base.forward, self._base.backward).astype(np.float64)
            begins = self._starts[filled]
            total[filled] = np.add.reduceat(strength, begins)
            kept_sum[filled] = np.add.reduceat(strength * self.discount[self._base.neighbors], begins)
        long = np.flatnonzero(length > self.constants.memory_neighbors).tolist()
        return sorted({*long, *self._rows, *self._waiting})

    # -- files ---------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        """What was learned since the model was exported."""
        items = sorted({*self._rows, *self._waiting})
        rows = [self.row(item) for item in items]
        lengths = np.array([len(row.neighbors) for row in rows], np.int64)
        tables = [np.concatenate([NO_IDS, *parts]) for parts in zip(*rows, strict=True)] if rows else [NO_IDS] * 3
        return {
            "items": np.array(items, np.int64),
            "lengths": lengths,
            **dict(zip(Row._fields, tables, strict=True)),
            "item_counts": self.counts,
            "recent": self._recent * self._fade,
        }

    def take_state(self, state: dict[str, np.ndarray]) -> None:
        """Takes up what a memory of the same model had learned.

        Raises:
            ValueError: it is the state of another model.
        """
        if set(state) != STATE or state["item_counts"].shape != self.counts.shape:
            raise ValueError(
                f"got a memory with the tables {', '.join(sorted(state))}, that of another model or engine; expected "
                f"one of {len(self.counts)} items. Delete it, and the memory is learned again from the stored events."
            )
        ends = np.cumsum(state["lengths"])
        self._rows = {
            int(item): Row(*(state[name][end - length : end] for name in Row._fields))
            for item, length, end in zip(state["items"], state["lengths"], ends, strict=True)
        }
        self._waiting, self._lists, self._counted = {}, {}, {}
        self.counts, self.discount = state["item_counts"].copy(), self._for_count(state["item_counts"])
        self._recent, self._fade = state["recent"].copy(), 1.0
        self._active, self._trend_tick = np.flatnonzero(self._recent), -1
        self.tick += 1
        self.links.reset()


def read_state(path: Path) -> dict[str, np.ndarray]:
    """The tables in a file of numpy's, all of them.

    Raises:
        ValueError: it is damaged; after a power failure, for one, a file may be empty.
    """
    try:
        with np.load(path) as tables:
            return {name: tables[name] for name in tables.files}
    except (EOFError, OSError, ValueError, RuntimeError, BadZipFile) as error:  # NotImplementedError is one
        raise ValueError(f"{path} is damaged: delete it, and the memory is learned again from the events.") from error


def added_pairs(constants: Constants, items: Sequence[int]) -> list[Pair]:
    """What the last of these items adds: known items, the oldest first, no two equal ones in a row."""
    last, unit = int(items[-1]), COUNT_UNIT * constants.memory_freshness
    added: dict[int, int] = {}
    for distance, item in enumerate(reversed(items[-1 - constants.memory_distance : -1])):
        if item != last:
            added[int(item)] = added.get(int(item), 0) + round(unit * constants.memory_decay**distance)
    return [Pair(item, last, weight / COUNT_UNIT) for item, weight in added.items()]


def with_pairs(row: Row, pairs: list[tuple[int, int, int]]) -> Row:
    """A row with pairs counted: (neighbor, how often more it came after, how often more before), in units."""
    if len(pairs) > 1:
        merged: dict[int, tuple[int, int]] = {}
        for neighbor, after, before in pairs:
            had = merged.get(neighbor, (0, 0))
            merged[neighbor] = (had[0] + after, had[1] + before)
        pairs = [(neighbor, *merged[neighbor]) for neighbor in sorted(merged)]
    new, after, before = np.array(pairs, np.int64).T
    place = np.searchsorted(row.neighbors, new)
    known = np.zeros(len(new), bool)
    inside = place < len(row.neighbors)
    known[inside] = row.neighbors[place[inside]] == new[inside]
    forward, backward = row.forward.astype(np.int64), row.backward.astype(np.int64)
    forward[place[known]] += after[known]
    backward[place[known]] += before[known]
    if known.all():
        return Row(row.neighbors, forward, backward)
    at, missing = place[~known], ~known
    return Row(
        np.insert(row.neighbors, at, new[missing].astype(np.int32)),
        np.insert(forward, at, after[missing]),
        np.insert(backward, at, before[missing]),
    )


def padded(table: np.ndarray, size: int) -> np.ndarray:
    """(size,): the table with zeros behind it, a copy."""
    full = np.zeros(size, table.dtype)
    full[: len(table)] = table[:size]
    return full
