"""The associative memory: which items stand near each other in users' histories, and what that says of the next item.

Stored are whole-numbered counts of ordered pairs (x before y) and of items, in tables of their own size. Runs of the
same item count as one item; events without a known item are passed over. The score of y after the recent items x_0
(newest), x_1 ... is

    sum over k of decay^k * (C[x_k, y] + backward * C[y, x_k]) / total(x_k)^degree_power / count(y)^count_power

and makes y (1 + score / unit)^power times as probable as the network alone does. A share of the answer can be the
scores themselves. Recent popularity makes an item more probable, too. The constants are in the configuration. No
weights are trained, so counting an event is all that learning takes.

Relatives: nonparametric memories (Khandelwal et al. 2020), item neighbors (Ludewig and Jannach 2018).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .answer_tables import CHANGE_LOCK, TABLES_LOCK
from .configuration_behavior import BehaviorConfig
from .item_text import ItemText
from .neighbor_lists import COUNT_UNIT, MemoryTables, NeighborLists
from .pair_tables import LOW, among_best, summed, with_keys
from .special_ids import PAD

# Lists of neighbors are made anew if more than one in so many pairs is counted at once.
FEW_PAIRS = 1000
# Recent popularity counts in whole numbers of 1 / RECENT_UNIT. In units of 1 / COUNT_UNIT, as it was saved before,
# rounding would stop an item's last events from fading when events are counted one by one.
RECENT_UNIT = 2**40
# Recent events of an item from which on its recent popularity counts.
TREND_UNIT = 0.3
# How sharply an item prefers the most similar texts, by cosine. They are looked for among the most counted items.
TEXT_TEMPERATURE = 0.1
MOST_LINKED = 65_536
# Similarities held at once: 2**24 floats are 64 MiB.
MAX_CHUNK_ELEMENTS = 2**24
# The `memory_share` of an item without counts is at least this: validation, which chooses that of the others, has no
# such items.
UNCOUNTED_SHARE = 0.3


class AssociativeMemory(nn.Module):
    """Counts of item pairs, and the scores they give; see the top of this file."""

    pair_keys: torch.Tensor  # (P,) int64, ascending: x * 2**32 + y
    pair_counts: torch.Tensor  # (P,) int64, in units of 1 / COUNT_UNIT
    item_counts: torch.Tensor  # (memory_vocab_size,) int64
    recent_counts: torch.Tensor  # (memory_vocab_size,) int64, fading, in units of 1 / config.memory_recent_unit
    borrow_ids: torch.Tensor  # (L, 2) int64: an item, and one with a similar text
    borrow_weights: torch.Tensor  # (L,) int64, in units of 1 / COUNT_UNIT

    def __init__(self, config: BehaviorConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("pair_keys", torch.zeros(config.memory_size, dtype=torch.long))
        self.register_buffer("pair_counts", torch.zeros(config.memory_size, dtype=torch.long))
        self.register_buffer("item_counts", torch.zeros(config.memory_vocab_size, dtype=torch.long))
        self.register_buffer("recent_counts", torch.zeros(config.memory_vocab_size, dtype=torch.long))
        self.register_buffer("borrow_ids", torch.zeros(config.memory_borrowed, 2, dtype=torch.long))
        self.register_buffer("borrow_weights", torch.zeros(config.memory_borrowed, dtype=torch.long))
        self._neighbors: NeighborLists | None = None

    # -- counting ------------------------------------------------------------------------------------------------------

    def runs(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers the runs of equal known items of each row.

        Returns:
            (B, T) int64: the run that each position belongs to or follows, from 1; 0 before the first; and
            (B, T + 1) int64: the item of each run, 0 where there is none.
        """
        known = (input_ids >= self.config.first_item_id) & (attention_mask != 0)
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        latest = torch.where(known, position, -1).cummax(dim=1).values  # (B, T): last known item up to here
        before = F.pad(latest[:, :-1], (1, 0), value=-1)
        item_before = input_ids.gather(1, before.clamp(min=0)).masked_fill(before < 0, PAD)
        starts = known & (input_ids != item_before)
        run = starts.long().cumsum(dim=1)
        items = input_ids.new_zeros(input_ids.shape[0], input_ids.shape[1] + 1)
        items.scatter_(1, run.masked_fill(~starts, 0), input_ids)
        items[:, 0] = PAD
        return run, items

    @torch.no_grad()
    def count(self, items: torch.Tensor, owner: torch.Tensor, only_last: bool = False, trained: bool = False) -> None:
        """Adds the pairs of histories to the memory.

        Args:
            items, owner: (N,) int64, known items in order with runs removed, and the history each belongs to.
            only_last: count only what each history's last item adds.
            trained: the weights are trained on these events too. Pairs of other events count `memory_freshness` times,
                and their items add to recent popularity.
        """
        if not len(items):
            return
        with CHANGE_LOCK:
            self._count(items, owner, only_last, trained)

    def _count(self, items: torch.Tensor, owner: torch.Tensor, only_last: bool, trained: bool) -> None:
        is_last = F.pad(owner[1:] != owner[:-1], (0, 1), value=True)
        unit = COUNT_UNIT * (1.0 if trained else self.config.memory_freshness)
        pairs, added = self._pairs(items, owner, is_last if only_last else None, unit)
        few = len(pairs) * FEW_PAIRS < len(self.pair_keys)
        if few:
            keys, known = with_keys(self.pair_keys, self.pair_counts, pairs)
            counts = known.index_add(0, torch.searchsorted(keys, pairs), added)
        else:
            keys, counts = summed(torch.cat([self.pair_keys, pairs]), torch.cat([self.pair_counts, added]))
        counted = items[is_last] if only_last else items
        size = max(len(self.item_counts), int(items.max()) + 1)
        item_counts = F.pad(self.item_counts, (0, size - len(self.item_counts))) + counted.bincount(minlength=size)
        recent_counts = F.pad(self.recent_counts, (0, size - len(self.recent_counts)))
        if not trained:
            recent_counts = self.followed(recent_counts, counted)
        tables, lists = (
            self.tables()._replace(pair_keys=keys, pair_counts=counts, item_counts=item_counts),
            self._neighbors,
        )
        if lists is not None and (not few or lists.keys.device != keys.device):
            lists = None
        lists = None if lists is None else lists.updated(tables, pairs, counted)
        with TABLES_LOCK:
            self.pair_keys, self.pair_counts, self.item_counts = keys, counts, item_counts
            self.recent_counts = recent_counts
            if not trained:
                self.config.memory_recent_unit = RECENT_UNIT
            self.changed(lists)

    def _pairs(
        self, items: torch.Tensor, owner: torch.Tensor, ends: torch.Tensor | None, unit: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys, ascending, and counts (M,) int64 of the pairs in histories; with `ends` (N,) bool only of the pairs
        that end there."""
        keys, counts = [self.pair_keys[:0]], [self.pair_counts[:0]]
        for distance in range(1, self.config.memory_distance + 1):
            near = owner[distance:] == owner[:-distance]
            if ends is not None:
                near = near & ends[distance:]
            if not near.any():
                break
            first, second = items[:-distance][near], items[distance:][near]
            other = first != second
            pair = (first[other] << 32) + second[other]
            weight = round(unit * self.config.memory_decay ** (distance - 1))
            merged, occurrences = pair.unique(return_counts=True)
            keys.append(merged)
            counts.append(occurrences * weight)
        return summed(torch.cat(keys), torch.cat(counts))

    @torch.no_grad()
    def follow(self, items: torch.Tensor) -> None:
        """Adds to recent popularity: items (N,) int64 that are counted, the oldest first."""
        with TABLES_LOCK:
            self.recent_counts = self.followed(self.recent_counts, items)
            self.config.memory_recent_unit = RECENT_UNIT

    def followed(self, recent_counts: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Recent counts (V,) int64, in units of 1 / RECENT_UNIT, after items (N,) were counted, the oldest first."""
        scale, half_life = RECENT_UNIT // self.config.memory_recent_unit, self.config.memory_half_life
        precise = torch.float32 if items.device.type == "mps" else torch.float64  # there is no float64 on MPS
        age = torch.arange(len(items) - 1, -1, -1, device=items.device).to(precise)
        added = items.bincount(RECENT_UNIT * 0.5 ** (age / half_life), minlength=len(recent_counts))
        faded = recent_counts.to(precise) * (scale * 0.5 ** (len(items) / half_life))
        return (faded + added).round().long()

    @torch.no_grad()
    def prune(self, neighbors: int) -> None:
        """Keeps the pairs that are among the `neighbors` most counted of either item."""
        first, second = self.pair_keys >> 32, self.pair_keys & LOW
        keep = among_best(first, self.pair_counts, neighbors) | among_best(second, self.pair_counts, neighbors)
        self.pair_keys, self.pair_counts = self.pair_keys[keep], self.pair_counts[keep]
        self.changed()

    def changed(self, neighbors: NeighborLists | None = None) -> None:
        """Notes new tables: their sizes go to the configuration, and the lists are `neighbors` or made when needed."""
        self.config.memory_size, self.config.memory_vocab_size = len(self.pair_keys), len(self.item_counts)
        self.config.memory_borrowed = len(self.borrow_ids)
        self._neighbors = neighbors

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        applied = super()._apply(fn, recurse)
        if self._neighbors is not None and self._neighbors.keys.device != self.pair_keys.device:
            self._neighbors = None
        return applied

    def tables(self) -> MemoryTables:
        """What the neighbor lists are made of."""
        return MemoryTables(self.pair_keys, self.pair_counts, self.item_counts, self.borrow_ids, self.borrow_weights)

    def load_tables(self, other: AssociativeMemory) -> None:
        """Takes over what another memory has counted."""
        for name, table in other.named_buffers(recurse=False):
            setattr(self, name, table.clone())
        self.changed()

    @torch.no_grad()
    def borrow(self, item_text: ItemText, trained: bool = True, progress: Callable[[Any], Any] = iter) -> None:
        """Links every item that has a text and no links yet to the items with the most similar texts.

        Args:
            trained: what training has learned of item text counts for similarity, too.
            progress: wraps the chunks of items that the work is done in (`tqdm`): a million items take minutes.
        """
        with CHANGE_LOCK:
            ids, weights = self.links(item_text, trained, progress)
            with TABLES_LOCK:
                self.borrow_ids, self.borrow_weights = ids, weights
                self.changed()

    @torch.no_grad()
    def links(
        self, item_text: ItemText, trained: bool = True, progress: Callable[[Any], Any] = iter
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`borrow_ids` and `borrow_weights` with those of the items that have none; arguments as for `borrow`."""
        size, first = len(item_text.vectors), self.config.first_item_id
        counts = F.pad(self.item_counts, (0, max(0, size - len(self.item_counts))))[:size]
        has_text = item_text.vectors.any(dim=-1)
        has_text[:first] = False
        linked = torch.zeros_like(has_text)
        linked[self.borrow_ids[self.borrow_weights > 0, 0]] = True
        others = has_text.nonzero()[:, 0]  # (L,)
        others = others[counts[others].argsort(descending=True, stable=True)[:MOST_LINKED]]
        # A link of weight 0 where there is none: Accelerate takes two empty tensors for one and saves one of them.
        ids, weights = [self.borrow_ids], [self.borrow_weights]
        texts = item_text.comparable(others, trained)  # (L, D)
        rows = max(1, MAX_CHUNK_ELEMENTS // max(1, len(others)))
        for part in progress((has_text & ~linked).nonzero()[:, 0].split(rows)):
            similarity = item_text.comparable(part, trained) @ texts.T  # (b, L)
            similarity = similarity.masked_fill(part[:, None] == others, -1)
            best, place = similarity.topk(min(self.config.text_neighbors, len(others)), dim=-1)
            likeness = best.clamp(min=0)
            weight = (likeness / TEXT_TEMPERATURE).softmax(dim=-1) * likeness
            pair = torch.stack([part[:, None].expand_as(place), others[place]], dim=-1)  # (b, n, 2)
            ids.append(pair.flatten(0, 1))
            weights.append((weight * COUNT_UNIT).round().long().flatten())
        return torch.cat(ids), torch.cat(weights)

    # -- scoring -------------------------------------------------------------------------------------------------------

    @property
    def made_neighbors(self) -> NeighborLists | None:
        """The neighbor lists if they are made and belong to the tables."""
        return self._neighbors

    def neighbors(self) -> NeighborLists:
        """The neighbor lists, made when first asked for, and again after more than a few new counts."""
        lists = self._neighbors
        if lists is None or lists.keys.device != self.pair_keys.device:
            with TABLES_LOCK:
                lists = self._neighbors = NeighborLists(self.config, self.tables())
        return lists

    def recent_items(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        query_index: torch.Tensor,
        lists: NeighborLists | None = None,
    ) -> torch.Tensor:
        """(B, Q, K) int64: the item of the newest run, of the one before ...; 0 where there are fewer.

        Args:
            lists: those that the items will be looked up in; None for the memory's as they are now.
        """
        run, items = self.runs(input_ids, attention_mask)
        back = run.gather(1, query_index)[:, :, None] - torch.arange(self.config.memory_history, device=run.device)
        recent = items.gather(1, back.clamp(min=0).flatten(1)).view_as(back)  # (B, Q, K)
        return recent * (recent < (self.neighbors() if lists is None else lists).size)

    def weights(self, recent: torch.Tensor) -> torch.Tensor:
        """(..., K) float32 history weights for recent items (..., K)."""
        steps = torch.arange(recent.shape[-1], device=recent.device)
        return self.config.memory_history_decay**steps * (recent > 0)

    def score(
        self,
        recent: torch.Tensor,
        seen: torch.Tensor,
        rescale: torch.Tensor | None = None,
        lists: NeighborLists | None = None,
    ) -> torch.Tensor:
        """(B, V) float32 scores of all items after recent items (B, K) int64, 0 for items that no list holds.

        Args:
            seen: (B, V) bool, items that get no score.
            rescale: (B, K) factors of the recent items' lists.
            lists: the lists; None for the memory's as they are now.
        """
        ids, values = (self.neighbors() if lists is None else lists).rows(recent)  # (B, K, M)
        weights = self.weights(recent) if rescale is None else self.weights(recent) * rescale
        values = (values * weights[..., None]).flatten(1)
        return torch.zeros(seen.shape, device=ids.device).scatter_add_(1, ids.flatten(1), values).masked_fill_(seen, 0)

    def boost(self, scores: torch.Tensor, trend: torch.Tensor) -> torch.Tensor:
        """The logarithm of how many times as probable scores (..., V - first) and the trend make every item."""
        boost = self.config.memory_power * torch.log1p(scores / self.config.memory_unit)
        return boost + trend if self.config.memory_trend else boost

    def share(self) -> torch.Tensor:
        """(V - first,) float32: the share of the answer that the memory alone gives to an item, by its scores."""
        first, size = self.config.first_item_id, self.config.vocab_size
        counts = self.neighbors().counts[first:size]
        counts = F.pad(counts, (0, size - first - len(counts)))
        return torch.where(counts > 0, self.config.memory_share, max(self.config.memory_share, UNCOUNTED_SHARE))

    def trend(self, less: float = 0.0) -> torch.Tensor:
        """(V - first,) float32: the logarithm of how many times as probable recent popularity makes every item, when
        `less` recent events of it are left out."""
        first, size = self.config.first_item_id, self.config.vocab_size
        if not self.config.memory_trend:
            return torch.zeros(size - first, device=self.recent_counts.device)
        mentions = (self.recent_counts[first:size].float() / self.config.memory_recent_unit - less).clamp(min=0)
        boost = self.config.memory_trend * torch.log1p(mentions / TREND_UNIT)
        return F.pad(boost, (0, size - first - len(boost)))
