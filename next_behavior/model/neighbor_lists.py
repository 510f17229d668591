"""The neighbor lists of the associative memory: for every item the items that it makes more probable, with scores.

    lists = NeighborLists(config, tables)               # from all counts
    lists = lists.updated(tables, pairs, items)         # after a few more: the same lists, most of them untouched
    ids, scores = lists.rows(recent_items)

A neighbor y of x scores (C[x, y] + backward * C[y, x]) / total(x)^degree_power / count(y)^count_power. C holds the
decayed counts of ordered pairs, and the `memory_neighbors` best are in the list. Item text adds links between items
with similar texts. Lists are replaced and never changed, so a thread that reads the old ones goes on with them.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch.nn import functional as F

from .configuration_behavior import BehaviorConfig
from .pair_tables import (
    LOW,
    among_best,
    best_of_group,
    entries_of,
    find,
    list_bounds,
    mirrored,
    place_in_group,
    replaced,
    summed,
    union,
    with_keys,
)

# The memory counts in whole numbers of 1 / COUNT_UNIT, so that sums do not depend on the order of updates.
COUNT_UNIT = 1024
# An item without counts borrows so many entries of each list of the items with the most similar texts.
LENT_NEIGHBORS = 16
# An item without counts has UNCOUNTED_LIST * text_strength of the lists of the items with the most similar texts. A
# link of it adds UNCOUNTED_LINK * text_strength, where others add `memory_text` (benchmarks/README.md).
UNCOUNTED_LIST, UNCOUNTED_LINK = 4.0, 1.8
# A count below this is what rounding left of zero.
LEAST_COUNT = 1e-3


class MemoryTables(NamedTuple):
    """What a memory has counted; `AssociativeMemory` says how.

    Attributes:
        pair_keys, pair_counts: (P,) int64, keys ascending.
        item_counts: (V,) int64.
        borrow_ids, borrow_weights: (L, 2) and (L,) int64, links between items with similar texts.
    """

    pair_keys: torch.Tensor
    pair_counts: torch.Tensor
    item_counts: torch.Tensor
    borrow_ids: torch.Tensor
    borrow_weights: torch.Tensor


class NeighborLists:
    """Neighbor lists of every item, scored with the configuration's constants and cut to `memory_neighbors`.

    Items with similar texts stand in each other's lists. The link weighs more where one of them has no counts, because
    then text is all there is. An item without counts also takes its place beside them: it stands in the lists that they
    stand in, and has their lists together, each weighted by the similarity.
    """

    def __init__(self, config: BehaviorConfig, tables: MemoryTables) -> None:
        self.config = config
        counts = tables.pair_counts.float() / COUNT_UNIT
        # All pairs, each from both sides; `memory_neighbors` of an item are in its list.
        self.pair_keys, self.pair_strength = summed(
            torch.cat([tables.pair_keys, mirrored(tables.pair_keys)]),
            torch.cat([counts, config.memory_backward * counts]),
        )
        self.totals = counts[:0]
        self._take_counts(tables)
        self._counted = self._best(torch.arange(len(self.pair_keys), device=self.pair_keys.device))
        self._add_item_text(tables)

    def updated(self, tables: MemoryTables, pairs: torch.Tensor, items: torch.Tensor) -> NeighborLists:
        """The lists after pairs (N,) and items (M,) were counted into `tables`. They are those that would be made anew,
        in a small part of the time, since most stay as they are."""
        new = copy.copy(self)
        pairs = torch.cat([pairs, mirrored(pairs)]).unique()
        new.pair_keys, known = with_keys(self.pair_keys, self.pair_strength, pairs)
        strength = pair_strength(tables, pairs, self.config.memory_backward)
        new.pair_strength = known.index_copy(0, torch.searchsorted(new.pair_keys, pairs), strength)
        new._take_counts(tables)
        # Lists change that a pair is in, and those that name an item whose count has changed: it names them, too.
        named = new.pair_keys[entries_of(new.pair_keys, items.unique())] & LOW
        changed = torch.cat([pairs >> 32, named]).unique()
        best = new._best(entries_of(new.pair_keys, changed))
        begins, ends = list_bounds(self._counted[0], changed)
        pieces = [slice(*bounds) for bounds in zip(*list_bounds(best[0], changed), strict=True)]
        new._counted = [
            replaced(old, begins, ends, [table[piece] for piece in pieces])
            for old, table in zip(self._counted, best, strict=True)
        ]
        new._add_item_text(tables)
        return new

    def rows(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ids and scores (..., M) of the neighbors of items (...); score 0 beyond a list's end."""
        if not len(self.keys):
            shape = (*items.shape, 1)
            return items.new_zeros(shape), torch.zeros(shape, device=items.device)
        offset = torch.arange(self.longest, device=items.device)
        inside = offset < self.lengths[items][..., None]
        entry = (self.starts[items][..., None] + offset).clamp(max=len(self.keys) - 1)
        return (self.keys[entry] & LOW) * inside, self.value[entry] * inside

    def leave_one_out(self, recent: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The lists of recent items without the pairs that the target event itself has added: the target's score in
        each, and the factor by which the other scores change; (N, K) float32 both.

        Args:
            recent: (N, K) int64, the newest first; target: (N,) int64.
        """
        if not len(self.keys):
            return torch.zeros(recent.shape, device=recent.device), torch.ones(recent.shape, device=recent.device)
        y = (target * (target < len(self.counts)))[:, None].expand_as(recent)
        key = (recent << 32) + y
        entry = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
        is_listed = (self.keys[entry] == key) & (recent > 0)
        # A target that continues the newest run has added nothing.
        added = (y != recent) & (y != recent[:, :1]) & (y > 0) & (recent > 0)
        distance = torch.arange(recent.shape[1], device=recent.device)
        added &= distance < self.config.memory_distance
        own = torch.where(added, torch.round(COUNT_UNIT * self.config.memory_decay**distance) / COUNT_UNIT, 0.0)
        left = (self.strength[entry] - own).clamp(min=0)
        left = torch.where(left > LEAST_COUNT, left, 0.0) * (self.counts[y] > 1)
        discount = self._for_total(self.totals[recent] - own) * self._for_count(self.counts[y] - 1)
        left = (left * discount + self.from_text[entry]) * is_listed
        # What links add does not change with the counts, but links are few and the factor is near one.
        totals = self.totals[recent].clamp(min=1e-6)
        return left, ((totals - own).clamp(min=1e-6) / totals) ** -self.config.memory_degree_power

    # -- how the lists are made ----------------------------------------------------------------------------------------

    def _take_counts(self, tables: MemoryTables) -> None:
        borrowers = int(tables.borrow_ids.max()) + 1 if len(tables.borrow_ids) else 0
        self.size = max(len(tables.item_counts), borrowers)
        self.counts = F.pad(tables.item_counts, (0, self.size - len(tables.item_counts))).float()  # (V,)
        self.totals = F.pad(self.totals, (0, self.size - len(self.totals)))  # (V,), a copy

    def _best(self, entries: torch.Tensor) -> list[torch.Tensor]:
        """Keys, strengths and scores of the lists of some items, of whose pairs `entries` are all."""
        keys, strength = self.pair_keys[entries], self.pair_strength[entries]
        x = keys >> 32
        self.totals[x] = 0
        self.totals.index_add_(0, x, strength)
        # Powers of whole tables: in an array of another length the same power may differ in its last bit.
        value = strength * (self._for_total(self.totals)[x] * self._for_count(self.counts)[keys & LOW])
        kept = among_best(x, value, self.config.memory_neighbors).nonzero()[:, 0]
        return [keys[kept], strength[kept], value[kept]]

    def _add_item_text(self, tables: MemoryTables) -> None:
        """Completes the counted lists by what the links between similar texts add."""
        config = self.config
        self.keys, self.strength, self.value = self._counted
        self.mean_sum = float(self.value.sum() / (self.counts > 0).sum().clamp(min=1))
        linked = tables.borrow_weights > 0
        links, weight = tables.borrow_ids[linked], tables.borrow_weights[linked].float() / COUNT_UNIT  # (L, 2), (L,)
        # An item that has been counted since stands for itself.
        uncounted = self.counts[links] == 0  # (L, 2)
        lends = uncounted[:, 0] & ~uncounted[:, 1]
        if lends.any():
            self._lend(links[lends], UNCOUNTED_LIST * config.text_strength * weight[lends])
        self.from_text = torch.zeros_like(self.value)  # the part of `value` that links add
        strength = torch.where(uncounted.any(dim=1), UNCOUNTED_LINK * config.text_strength, config.memory_text)  # (L,)
        if strength.any():
            self._link(links, self.mean_sum * strength * weight)
        bounds = torch.searchsorted(self.keys, torch.arange(self.size + 1, device=self.keys.device) << 32)
        self.starts, self.lengths = bounds[:-1], bounds.diff()
        self.longest = int(self.lengths.max()) if self.size else 0

    def _lend(self, ids: torch.Tensor, weight: torch.Tensor) -> None:
        """Adds what the borrowers `ids[:, 0]` take from the lists of the lenders `ids[:, 1]`, at `weight` (L,)."""
        borrower, lender = ids.unbind(-1)
        rows, columns = self.keys >> 32, self.keys & LOW
        keys, values = [], []
        for own, other, shift_own, shift_other in ((rows, columns, 32, 0), (columns, rows, 0, 32)):
            entries = best_of_group(own, self.value, LENT_NEIGHBORS)  # by own, the best first
            lengths = own[entries].bincount(minlength=self.size)
            starts = lengths.cumsum(0) - lengths
            link = torch.repeat_interleave(lengths[lender])
            entry = entries[starts[lender][link] + place_in_group(link)]
            keys.append((borrower[link] << shift_own) + (other[entry] << shift_other))
            values.append(weight[link] * self.value[entry])
        borrowed, value = summed(torch.cat(keys), torch.cat(values))
        kept = among_best(borrowed >> 32, value, self.config.memory_neighbors)
        self.keys, old, new = union(self.keys, borrowed[kept])
        empty = self.value.new_zeros(len(self.keys))
        self.value = empty.index_copy(0, old, self.value).index_add_(0, new, value[kept])
        self.strength = empty.index_copy(0, old, self.strength)

    def _link(self, ids: torch.Tensor, value: torch.Tensor) -> None:
        """Adds `value` (L,) to the lists of both items of every link (L, 2)."""
        x, y = ids.unbind(-1)
        linked, added = summed(torch.cat([(x << 32) + y, (y << 32) + x]), value.repeat(2))
        keys, old, new = union(self.keys, linked)
        empty = self.value.new_zeros(len(keys))
        from_text = empty.index_copy(0, new, added)
        total = from_text.index_add(0, old, self.value)
        kept = among_best(keys >> 32, total, self.config.memory_neighbors).nonzero()[:, 0]
        self.strength = empty.index_copy(0, old, self.strength)[kept]
        self.keys, self.value, self.from_text = keys[kept], total[kept], from_text[kept]

    def _for_total(self, total: torch.Tensor) -> torch.Tensor:
        return total.clamp(min=1e-6) ** -self.config.memory_degree_power

    def _for_count(self, count: torch.Tensor) -> torch.Tensor:
        return count.clamp(min=1) ** -self.config.memory_count_power


def pair_strength(tables: MemoryTables, keys: torch.Tensor, backward: float) -> torch.Tensor:
    """(N,) float32: how often the pairs (N,) have been counted, plus `backward` times how often the other way round."""
    total = torch.zeros(len(keys), device=keys.device)
    for asked, weight in ((keys, 1.0), (mirrored(keys), backward)):
        entry, missing = find(tables.pair_keys, asked)
        counts = tables.pair_counts[entry.clamp(max=len(tables.pair_keys) - 1)].float() / COUNT_UNIT
        total += weight * counts * ~missing
    return total
