"""The best answers for many histories at once: the predictor's, in passes over whole batches.

Between events the memory stands still, so its lists are put into one sparse matrix, and a batch of histories is a
product with it. What is left are a few passes over (histories, actions, items). By the rules of `distribution.py`,
which a test holds it to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from next_behavior.model.special_ids import FIRST_ACTION, NONE
from next_behavior.serving.distribution import (
    GATE_NEW,
    GATE_NONE,
    GATE_REPEAT,
    LARGEST_LOGIT,
    LEAST_KEPT,
    LEAST_LEFT,
    MASKED,
    TINY,
    added,
    tempered,
)
from next_behavior.serving.predictor import NetworkAnswer, Predictor
from next_behavior.serving.top import BLOCK

# Scores held at once: 4 MiB stay in a core's cache.
MAX_SCORES = 2**20
SMALL_INDEX = 2**31


@dataclass(frozen=True)
class Wanted:
    """What is asked of every history: as `Predictor.ask` has it, ids for names.

    Attributes:
        allowed: the only items that are ranked, ids (n,) ascending; None for all.
    """

    top_k: int
    of: str
    action: int | None
    exclude_seen: bool
    allowed: np.ndarray | None


@dataclass(frozen=True)
class Answers:
    """The best answers of a batch in one table, by history, the best first.

    Attributes:
        rows: (n,) the history that each answers; items: (n,) ids, 0 where the question was not about them.
        actions: (n,) ids, 0 where the question was not about them; probabilities: (n,) float32.
    """

    rows: np.ndarray
    items: np.ndarray
    actions: np.ndarray
    probabilities: np.ndarray


class BatchScorer:
    """Answers of a predictor, whose memory must not learn in the meantime."""

    def __init__(self, predictor: Predictor, progress: Callable[[Iterable[int]], Iterable[int]] = iter) -> None:
        self.predictor, self.constants, self.catalog = predictor, predictor.constants, predictor.catalog
        memory, size = predictor.memory, self.constants.vocab_size
        lists = [memory.neighbors(item) for item in progress(range(size))]
        ends = np.cumsum([0, *(len(ids) for ids, _ in lists)])
        ids, values = (np.concatenate([*parts]) for parts in zip(*lists, strict=True))
        # Of one type that needs no check: scipy would read all indices before each product.
        self._index = np.int32 if ends[-1] < SMALL_INDEX else np.int64
        ids, ends = ids.astype(self._index), ends.astype(self._index)
        self.lists = sparse.csr_array((values, ids, ends), shape=(size, size))
        self.trend = memory.trend()
        self.shares = memory.shares(np.arange(size))
        self._most_boost = 0.0 if self.trend is None else float(self.trend.max())
        self._seen = np.zeros((1, size), bool)

    def rows_at_once(self, wanted: Wanted) -> int:
        """Histories whose scores are held at once."""
        width = 1 if wanted.action is not None else len(self.constants.actions)
        return max(1, MAX_SCORES // (width * self.catalog.width))

    def best(
        self, items: np.ndarray, actions: np.ndarray, time_gaps: np.ndarray, mask: np.ndarray, wanted: Wanted, seen: Any
    ) -> Answers:
        """The best answers for histories of ids, (B, T) int64 each, padded on the left.

        Args:
            seen: (rows, ids) of items that were seen before the windows and are left out, (n,) int64 each.
        """
        said = self.predictor.network_answer(items, actions, time_gaps, mask)
        if wanted.of == "action":
            return self._best_actions(said, wanted)
        if wanted.action is not None:
            chosen = slice(wanted.action - FIRST_ACTION, wanted.action - FIRST_ACTION + 1)
            said = NetworkAnswer(
                np.ones((len(items), 1), np.float32),
                said.times,
                np.ascontiguousarray(said.queries[:, chosen]),
                said.pointer[:, chosen],
                said.gate[:, chosen],
            )
        return self._best_items(said, items, mask, wanted, seen)

    def _best_actions(self, said: NetworkAnswer, wanted: Wanted) -> Answers:
        count = min(wanted.top_k, said.by_action.shape[1])
        order = np.argsort(-said.by_action, axis=1, kind="stable")[:, :count]
        best = np.take_along_axis(said.by_action, order, axis=1).ravel()
        rows = np.repeat(np.arange(len(order)), count)
        return Answers(rows, np.zeros_like(rows), order.ravel() + FIRST_ACTION, best)

    def _best_items(
        self, said: NetworkAnswer, items: np.ndarray, mask: np.ndarray, wanted: Wanted, seen: Any
    ) -> Answers:
        constants, catalog, first = self.constants, self.catalog, self.catalog.first
        inverse = np.float32(1 / constants.item_temperature)
        known = (items >= first) & (mask != 0)
        gate = said.gate - np.log(np.exp(said.gate).sum(axis=2, keepdims=True))
        new, scale = self._new_items(said, gate, items, known, inverse)  # (B, Q, N), (B, Q)
        can_repeat = (said.pointer.max(axis=1) > MASKED) & ~np.isin(items, catalog.retired + first)  # (B, T)
        repeated = np.exp((said.pointer + gate[:, :, GATE_REPEAT, None]) * inverse) * can_repeat[:, None]  # (B, Q, T)
        for row in np.flatnonzero(self._whole(items, known)).tolist():  # items of the history are named as new, too
            place = np.flatnonzero(can_repeat[row] & known[row])
            repeated[row][:, place] += scale[row][:, None] * new[row][:, items[row, place] - first]
            new[row] = 0
        sums = scale * new.sum(axis=2)
        none = np.exp(gate[:, :, GATE_NONE] * inverse)  # (B, Q)
        factor = said.by_action / np.maximum(sums + repeated.sum(axis=2) + none, TINY)
        weights, total = scale * factor, (sums * factor).sum(axis=1)  # (B, Q), (B,)
        if wanted.exclude_seen:
            can_repeat[:] = False
            lost = (weights[seen[0]] * new[seen[0], :, seen[1] - first]).sum(axis=1)
            kept = total - np.bincount(seen[0], lost, len(items))
            new[seen[0], :, seen[1] - first] = -1
            for row in np.flatnonzero(kept < LEAST_KEPT * total).tolist():  # the difference is not exact
                kept[row] = (weights[row] * np.maximum(new[row], 0).sum(axis=1)).sum()
            total = kept
        new[np.nonzero(known)[0], :, items[known] - first] = -1
        new[:, :, catalog.retired] = -1
        new[:, :, catalog.size :] = -1
        return self._ranked(
            new, weights, total, repeated * factor[:, :, None], none * factor, items, can_repeat, wanted
        )

    def _new_items(
        self, said: NetworkAnswer, gate: np.ndarray, items: np.ndarray, known: np.ndarray, inverse: np.float32
    ) -> tuple[np.ndarray, np.ndarray]:
        """(B, Q, N) and (B, Q), whose product is p(new item | history, action), not yet normalized."""
        constants, catalog, first, size = self.constants, self.catalog, self.catalog.first, self.catalog.size
        batch, width, _ = said.queries.shape
        rows, columns, scores = self._scored(items, known)
        boost = np.float32(constants.memory_power) * np.log1p(scores / np.float32(constants.memory_unit))
        queries = said.queries.reshape(batch * width, -1)
        logits = catalog.logits(queries).reshape(batch, width, -1)
        logits[np.nonzero(known)[0], :, items[known] - first] = MASKED
        logits[:, :, size:] = -np.inf
        if self.trend is not None:
            logits[:, :, :size] += self.trend[first:]
        for row in range(width):
            logits[rows, row, columns] += boost
        weighed = scores if self.trend is None else scores * np.exp(self.trend[columns + first])
        sums = np.bincount(rows, weighed, batch).astype(np.float32)
        counted = weighed / np.maximum(sums[rows], TINY) * self.shares[columns + first]
        left = np.maximum(1 - np.bincount(rows, counted, batch).astype(np.float32), TINY)
        apart = (left >= LEAST_LEFT) & ~self._whole(items, known)
        limit = catalog.limit(queries) + self._most_boost + float(boost.max(initial=0))
        if not apart.all() or inverse > 1 or limit > LARGEST_LOGIT:
            logits -= logits.max(axis=2, keepdims=True)
        shares = np.exp(logits, out=catalog.buffer("shares", batch * width).reshape(logits.shape))
        gate_new, ratio = gate[:, :, GATE_NEW] * inverse, left[:, None] / shares.sum(axis=2)  # (B, Q) both
        scale = np.exp(gate_new + np.log(ratio) * inverse)
        scale[~apart] = np.exp(gate_new[~apart])
        here = apart[rows] & (counted > 0)
        place = rows[here], slice(None), columns[here]
        exact = (shares[place] + counted[here, None] / ratio[rows[here]]) ** inverse
        together = {}
        for row in np.flatnonzero(~apart).tolist():
            here = rows == row
            together[row] = added(shares[row], ratio[row], columns[here], counted[here], inverse)
            together[row][:, size:] = 0
        new = tempered(shares, logits, inverse)
        new[place] = exact
        for row, table in together.items():
            new[row] = table
        new[:, :, catalog.retired] = 0
        return new, scale

    def _whole(self, items: np.ndarray, known: np.ndarray) -> np.ndarray:
        """(B,) bool: which histories hold every item of the catalog."""
        size = self.catalog.size
        if known.shape[1] < size:
            return np.zeros(len(items), bool)
        keys = np.unique(np.nonzero(known)[0] * size + items[known] - self.catalog.first)
        return np.bincount(keys // size, minlength=len(items)) == size

    def _ranked(
        self,
        new: np.ndarray,
        weights: np.ndarray,
        total: np.ndarray,
        repeated: np.ndarray,
        none: np.ndarray,
        items: np.ndarray,
        can_repeat: np.ndarray,
        wanted: Wanted,
    ) -> Answers:
        """The best of new items (B, Q, N) under weights (B, Q), of repeated ones (B, Q, T) and of none (B, Q).

        Args:
            new: -1 where a column is no candidate. total: (B,), the sum over those that are.
        """
        first, batch = self.catalog.first, len(new)
        over_actions = wanted.of == "item" and wanted.action is None
        ids_of_columns = np.arange(first, first + new.shape[2])
        if wanted.allowed is not None:
            ids_of_columns = wanted.allowed
            new = new[:, :, wanted.allowed - first]
            can_repeat = can_repeat & np.isin(items, wanted.allowed)
            total = (weights[:, :, None] * np.maximum(new, 0)).sum(axis=(1, 2))
        if over_actions:
            repeated = repeated.sum(axis=1, keepdims=True)
            if new.shape[1] > 1:
                together = np.matmul(weights[:, None, :], new)  # (B, 1, N)
                together[new[:, :1] < 0] = -1
                new, weights = together, np.ones((batch, 1), np.float32)
        tables = []
        for action in range(new.shape[1]):
            row, place = top_of_rows(new[:, action], wanted.top_k)
            value = new[row, action, place]
            row, place, value = row[value >= 0], place[value >= 0], value[value >= 0]
            tables.append((row, ids_of_columns[place], np.full(len(row), action), value * weights[row, action]))
        many = sum(len(row) for row, *_ in tables)
        row, place = np.nonzero(can_repeat)
        for action in range(repeated.shape[1]):
            tables.append((row, items[row, place], np.full(len(row), action), repeated[row, action, place]))
        offset = 0 if wanted.action is None else wanted.action - FIRST_ACTION
        for action in range(none.shape[1] if wanted.of == "pair" else 0):
            if action + offset + FIRST_ACTION in self.constants.actions_without_item:
                tables.append((np.arange(batch), np.full(batch, NONE), np.full(batch, action), none[:, action]))
        rows, ids, actions, values = (np.concatenate(parts) for parts in zip(*tables, strict=True))
        total = total + np.bincount(rows[many:], values[many:], batch)
        order = np.lexsort((-values, rows))
        begins = np.searchsorted(rows[order], np.arange(batch))
        order = order[np.arange(len(order)) - begins[rows[order]] < wanted.top_k]
        named = np.zeros(len(order), np.int64) if over_actions else actions[order] + offset + FIRST_ACTION
        probabilities = values[order] / np.maximum(total, TINY).astype(np.float32)[rows[order]]
        return Answers(rows[order], ids[order], named, probabilities)

    def _scored(self, items: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, columns and scores (n,) of the items that the memory names and the histories do not hold."""
        constants, size, batch = self.constants, self.constants.vocab_size, len(items)
        row, place = np.nonzero(known)
        item = items[row, place]
        is_run = np.ones(len(row), bool)
        is_run[1:] = (row[1:] != row[:-1]) | (item[1:] != item[:-1])
        row, item = row[is_run], item[is_run]
        back = np.searchsorted(row, row, side="right") - 1 - np.arange(len(row))  # 0 for the newest
        recent = back < constants.memory_history
        row, item, back = row[recent], item[recent], back[recent]
        weights = np.float32(constants.memory_history_decay) ** back.astype(np.float32)
        starts = np.searchsorted(row, np.arange(batch + 1)).astype(self._index)
        recent_items = sparse.csr_array((weights, item.astype(self._index), starts), shape=(batch, size))
        scores = recent_items @ self.lists
        rows = np.repeat(np.arange(batch), np.diff(scores.indptr))
        if len(self._seen) < batch:
            self._seen = np.zeros((batch, size), bool)
        self._seen[np.nonzero(known)[0], items[known]] = True
        unseen = ~self._seen[rows, scores.indices]
        self._seen[np.nonzero(known)[0], items[known]] = False
        return rows[unseen], scores.indices[unseen] - self.catalog.first, scores.data[unseen]


def top_of_rows(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of at least the `count` largest of each row of values (B, n), those equal to the least too."""
    batch, size = values.shape
    if size <= count:
        return np.repeat(np.arange(batch), size), np.tile(np.arange(size), batch)
    if size <= 4 * BLOCK * count or size % BLOCK:
        least = np.partition(values, size - count, axis=1)[:, size - count]
        rows, columns = np.nonzero(values >= least[:, None])
        return rows, columns
    blocks = values.reshape(batch, -1, BLOCK)
    maxima = blocks.max(axis=2)
    least = np.partition(maxima, maxima.shape[1] - count, axis=1)[:, maxima.shape[1] - count]
    rows, block = np.nonzero(maxima >= least[:, None])  # the largest stand in these
    near = blocks[rows, block]  # (n, BLOCK)
    place, inside = np.nonzero(near >= least[rows, None])
    return rows[place], block[place] * BLOCK + inside
