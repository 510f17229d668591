"""What links between items with similar texts add to the lists of a live memory.

By the rules of `model/neighbor_lists.py`: a linked pair stand in each other's lists, and an item without counts (a
borrower) takes the place of the similar items that have some (its lenders), in their lists and with their lists. A link
adds a share of the mean sum of counts over all lists, so that sum is kept up to date with every event.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from next_behavior.serving.bundle import Constants
from next_behavior.serving.top import best

# As in the model: entries of a lender's list that are borrowed, and how strongly an item without counts stands.
LENT_NEIGHBORS = 16
UNCOUNTED_LIST, UNCOUNTED_LINK = 4.0, 1.8
NO_IDS, NO_VALUES = np.zeros(0, np.int32), np.zeros(0, np.float32)


class Pairs(Protocol):
    """Rows of pairs, as `live_memory.Row`."""

    @property
    def neighbors(self) -> np.ndarray: ...
    @property
    def forward(self) -> np.ndarray: ...
    @property
    def backward(self) -> np.ndarray: ...


class Kept(Protocol):
    """A list that was made, as `live_memory.NeighborList`."""

    @property
    def tick(self) -> int: ...
    @property
    def ids(self) -> np.ndarray: ...
    @property
    def values(self) -> np.ndarray: ...
    @property
    def link_ids(self) -> np.ndarray: ...
    @property
    def link_weights(self) -> np.ndarray: ...
    @property
    def lenders(self) -> np.ndarray: ...


class Counts(Protocol):
    """The counts that the links stand beside, as `live_memory.LiveMemory`."""

    constants: Constants
    counts: np.ndarray
    discount: np.ndarray
    changed: np.ndarray
    tick: int

    def row(self, item: int) -> Pairs: ...
    def counted(self, item: int) -> tuple[np.ndarray, np.ndarray]: ...
    def strength(self, forward: np.ndarray, backward: np.ndarray) -> np.ndarray: ...
    def for_total(self, total: np.ndarray | np.floating) -> np.ndarray: ...
    def measured(self, length: np.ndarray, total: np.ndarray, kept_sum: np.ndarray) -> list[int]: ...


class Groups(NamedTuple):
    """Links by one of their items: those of item x are starts[x] to starts[x + 1]."""

    starts: np.ndarray
    ids: np.ndarray
    weights: np.ndarray

    def of(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        begin, end = self.starts[item : item + 2]
        return self.ids[begin:end], self.weights[begin:end]


class TextLinks:
    """The links of a model's items; false where there are none."""

    def __init__(self, memory: Counts, ids: np.ndarray, weights: np.ndarray) -> None:
        self.memory = memory
        size = len(memory.counts)
        used = weights > 0
        borrower, lender, weights = ids[used, 0], ids[used, 1], weights[used].astype(np.float32)
        self.lenders, self.borrowers = (
            grouped(borrower, lender, weights, size),
            grouped(lender, borrower, weights, size),
        )
        both = np.concatenate([borrower, lender]), np.concatenate([lender, borrower]), np.tile(weights, 2)
        self.partners = merged(grouped(*both, size))
        self._any = bool(len(weights))
        if self._any:
            self.reset()

    def __bool__(self) -> bool:
        return self._any

    def reset(self) -> None:
        """Reads everything anew from the counts."""
        if not self._any:
            return
        memory = self.memory
        size = len(memory.counts)
        self.column_changed = np.full(size, memory.tick, np.int64)
        self._columns: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}
        # Of each row: its length, the sum of its strengths, the sum of what its list keeps, and the best of what it
        # leaves out; the last two before the division by the power of the total.
        self.length, self.total = np.zeros(size, np.int64), np.zeros(size, np.float64)
        self.kept_sum, self.left_out = np.zeros(size, np.float64), np.zeros(size, np.float32)
        for item in memory.measured(self.length, self.total, self.kept_sum):
            self._measure(item)
        self._sum = float((memory.for_total(self.total.astype(np.float32)) * self.kept_sum).sum())
        self._num_counted = int((memory.counts > 0).sum())
        ends = np.repeat(np.arange(size), np.diff(self.partners.starts))
        uncounted = memory.counts == 0
        self._uncounted_links = int((uncounted[ends] | uncounted[self.partners.ids]).sum())

    # -- lists ---------------------------------------------------------------------------------------------------------

    def of(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        """ids (m,) that an item is linked to, and what each link adds, in shares of the mean sum."""
        ids, weights = self.partners.of(item)
        constants, counts = self.memory.constants, self.memory.counts
        uncounted = (counts[ids] == 0) | (counts[item] == 0)
        strength = np.where(uncounted, UNCOUNTED_LINK * constants.text_strength, constants.memory_text)
        added = strength.astype(np.float32) * weights
        return ids[added > 0], added[added > 0]

    def borrowed(self, item: int, listed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ids and scores (n,) that an item's list has from lenders, and the lenders (k,) among those `listed`."""
        counts, lent = self.memory.counts, UNCOUNTED_LIST * self.memory.constants.text_strength
        ids, values = [NO_IDS], [NO_VALUES]
        lenders = listed[self.borrowers.starts[listed + 1] > self.borrowers.starts[listed]]
        if not lent:
            return NO_IDS, NO_VALUES, NO_IDS
        if counts[item] == 0:
            for lender, weight in zip(*self.lenders.of(item), strict=True):
                if counts[lender] > 0:
                    row, scores = self.memory.counted(int(lender))
                    chosen = best(scores, LENT_NEIGHBORS)
                    ids.append(row[chosen])
                    values.append(np.float32(lent) * weight * scores[chosen])
        for lender in lenders.tolist():
            rows, scores = self.column(lender)
            here = scores[rows == item]
            if len(here) and counts[lender] > 0:
                borrowers, weights = self.borrowers.of(lender)
                takes = counts[borrowers] == 0
                ids.append(borrowers[takes])
                values.append(np.float32(lent) * weights[takes] * here)
        found, sums = summed(ids, values)
        chosen = best(sums, self.memory.constants.memory_neighbors)
        return found[chosen], sums[chosen], lenders

    def column(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        """ids (n,) of the items in whose lists an item stands best by counts, and its scores there."""
        kept = self._columns.get(item)
        if kept is None or self.column_changed[item] > kept[0]:
            memory, row = self.memory, self.memory.row(item)
            ids = row.neighbors
            strength = memory.strength(row.backward, row.forward)
            undivided = strength * memory.discount[item]
            most = memory.constants.memory_neighbors
            listed = (self.length[ids] <= most) | (undivided > self.left_out[ids])
            for place in np.flatnonzero(~listed & (undivided == self.left_out[ids])):
                listed[place] = item in memory.counted(int(ids[place]))[0]
            ids = ids[listed]
            values = strength[listed] * (memory.for_total(self.total[ids].astype(np.float32)) * memory.discount[item])
            chosen = best(values, LENT_NEIGHBORS)
            kept = self._columns[item] = (memory.tick, ids[chosen], values[chosen])
        return kept[1], kept[2]

    def outdated(self, item: int, kept: Kept) -> bool:
        """Whether a list that its counts have not changed since no longer holds."""
        if len(kept.lenders) and self.column_changed[kept.lenders].max() > kept.tick:
            return True
        if self.memory.counts[item] > 0:
            return False
        lenders, _ = self.lenders.of(item)
        return bool(len(lenders)) and int(self.memory.changed[lenders].max()) > kept.tick

    def completed(self, kept: Kept) -> tuple[np.ndarray, np.ndarray]:
        """A list with what its links add today."""
        mean_sum = np.float32(self._sum / max(self._num_counted, 1))
        return self.cut(*summed([kept.ids, kept.link_ids], [kept.values, mean_sum * kept.link_weights]))

    def cut(self, ids: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The best entries of a list, where links add anything to any list; else all."""
        constants = self.memory.constants
        adds = constants.memory_text or (constants.text_strength and self._uncounted_links)
        if not adds or len(ids) <= constants.memory_neighbors:
            return ids, values
        chosen = best(values, constants.memory_neighbors)
        return ids[chosen], values[chosen]

    # -- counting ------------------------------------------------------------------------------------------------------

    def counted(self, item: int, row: Pairs, added: Mapping[int, int], before: np.float32) -> None:
        """Takes note of an event.

        Args:
            item: what was counted; `row`: its pairs, the new ones among them.
            added: by how much "the key came before `item`" was raised.
            before: `discount` of the item before.
        """
        memory, ids = self.memory, row.neighbors
        most = memory.constants.memory_neighbors
        more = np.array([added.get(int(neighbor), 0) for neighbor in ids] if added else [0] * len(ids), np.int64)
        new, old = memory.strength(row.backward, row.forward), memory.strength(row.backward - more, row.forward)
        is_new = (row.backward == more) & (row.forward == 0) & (more > 0)
        undivided, was = new * memory.discount[item], old * before
        affected = np.append(ids, item)
        self._sum -= self._part(affected)
        self.length[ids] += is_new
        self.total[ids] += new.astype(np.float64) - old
        short = self.length[ids] <= most
        stays = short | ((was > self.left_out[ids]) & (undivided > self.left_out[ids]))
        out = ~short & (was < self.left_out[ids]) & (undivided < self.left_out[ids]) & ~is_new
        self.kept_sum[ids] += np.where(stays, undivided.astype(np.float64) - was, 0.0)
        for neighbor in [*ids[~stays & ~out].tolist(), item]:
            self._measure(neighbor)
        self._sum += self._part(affected)
        self.column_changed[item] = memory.tick
        for neighbor in (*added, item):
            self.column_changed[memory.row(neighbor).neighbors] = memory.tick
        if memory.counts[item] == 1:
            self._num_counted += 1
            partners, _ = self.partners.of(item)
            self._uncounted_links -= 2 * int((memory.counts[partners] > 0).sum())
            memory.changed[partners] = memory.tick
            lenders, _ = self.lenders.of(item)
            self.column_changed[lenders] = memory.tick

    def _part(self, ids: np.ndarray) -> float:
        """What the lists of some items are in the sum over all."""
        return float((self.memory.for_total(self.total[ids].astype(np.float32)) * self.kept_sum[ids]).sum())

    def _measure(self, item: int) -> None:
        """Reads an item's row: see `reset`."""
        memory, row = self.memory, self.memory.row(item)
        strength = memory.strength(row.forward, row.backward)
        undivided = strength * memory.discount[row.neighbors]
        most = memory.constants.memory_neighbors
        self.length[item], self.total[item] = len(strength), strength.sum(dtype=np.float64)
        self.kept_sum[item], self.left_out[item] = undivided.sum(dtype=np.float64), 0
        if len(undivided) > most:
            place = len(undivided) - most
            ordered = np.partition(undivided, (place - 1, place))
            self.kept_sum[item], self.left_out[item] = ordered[place:].sum(dtype=np.float64), ordered[place - 1]


def summed(ids: list[np.ndarray], values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct ids (n,) int32, ascending, and the sum (n,) float32 of the values of each."""
    all_ids, all_values = np.concatenate(ids), np.concatenate(values)
    order = np.argsort(all_ids, kind="stable")
    all_ids, all_values = all_ids[order], all_values[order]
    is_first = np.ones(len(all_ids), bool)
    is_first[1:] = all_ids[1:] != all_ids[:-1]
    begins = np.flatnonzero(is_first)
    sums = np.add.reduceat(all_values, begins) if len(begins) else all_values
    return all_ids[begins].astype(np.int32, copy=False), sums.astype(np.float32, copy=False)


def grouped(by: np.ndarray, ids: np.ndarray, weights: np.ndarray, size: int) -> Groups:
    """Links (L,) by one of their items, below `size`."""
    order = np.lexsort((ids, by))
    starts = np.searchsorted(by[order], np.arange(size + 1))
    return Groups(starts, ids[order].astype(np.int32), weights[order])


def merged(links: Groups) -> Groups:
    """Links with the weights of equal ones added."""
    size = len(links.starts) - 1
    by = np.repeat(np.arange(size), np.diff(links.starts))
    keys, inverse = np.unique(by * size + links.ids, return_inverse=True)
    weights = np.bincount(inverse, links.weights, len(keys)).astype(np.float32)
    return grouped(keys // size, keys % size, weights, size)
