"""The best answers for many histories at once: the predictor's, in passes over whole batches.

Between events the memory stands still, so its lists are put into one sparse matrix, and a batch of histories is a
product with it. So is a batch of queries with the catalog. The rest is `distribution.py`, history by history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from next_behavior.model.special_ids import FIRST_ACTION
from next_behavior.serving.compiled import compiled
from next_behavior.serving.distribution import TINY, Question, Said, ranked
from next_behavior.serving.predictor import NetworkAnswer, Predictor

# Scores held at once: 4 MiB stay in a core's cache.
MAX_SCORES = 2**20
SMALL_INDEX = 2**31
NO_COLUMNS = np.zeros(0, np.int64)


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
        self.shares = memory.shares(np.arange(size))
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
        catalog, first = self.catalog, self.catalog.first
        batch, width, _ = said.queries.shape
        known = (items >= first) & (mask != 0)
        starts = np.arange(batch + 1)
        rows, named, scores = self._scored(items, known)
        boosts, counted = self._added(rows, named, scores, batch)
        offset = 0 if wanted.action is None else wanted.action - FIRST_ACTION
        without = np.zeros(width, bool)
        if wanted.of == "pair":
            without[:] = np.isin(np.arange(width) + offset + FIRST_ACTION, self.constants.actions_without_item)
        over_actions = wanted.of == "item" and wanted.action is None
        restricted = wanted.allowed is not None
        allowed = NO_COLUMNS if wanted.allowed is None else wanted.allowed - first
        top_k = min(wanted.top_k, width * (catalog.width + items.shape[1] + 1))
        asked = Question(top_k, over_actions, without, wanted.exclude_seen, NO_COLUMNS, restricted, allowed)
        seen_rows, seen_columns = np.nonzero(known)[0], items[known] - first
        products = catalog.exact_products(said.queries.reshape(batch * width, -1)).reshape(batch, width, -1)
        found, ids, actions, probabilities = ranked_many(
            products,
            catalog.fixed(self.predictor.memory, rounded=False),
            NetworkAnswer(*(np.ascontiguousarray(each) for each in said)),
            items,
            (np.searchsorted(seen_rows, starts), seen_columns, self._whole(items, known)),
            (np.searchsorted(rows, starts), named.astype(np.int64), boosts, counted),
            (np.searchsorted(seen[0], starts), seen[1] - first),
            asked,
            catalog.scratch(width),
        )
        here = np.arange(top_k) < found[:, None]
        action = actions[here]
        named_actions = np.where(action < 0, 0, action + offset + FIRST_ACTION)
        return Answers(np.repeat(np.arange(batch), found), ids[here], named_actions, probabilities[here])

    def _added(
        self, rows: np.ndarray, columns: np.ndarray, scores: np.ndarray, batch: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(n,) float32 both: what the memory adds to logits, and what it alone gives."""
        constants, fixed = self.constants, self.catalog.fixed(self.predictor.memory, rounded=False)
        boosts = np.float32(constants.memory_power) * np.log1p(scores / np.float32(constants.memory_unit))
        weighed = scores * np.exp(fixed.bias[columns])
        sums = np.bincount(rows, weighed, batch).astype(np.float32)
        return boosts, weighed * (self.shares[columns + self.catalog.first] / np.maximum(sums, TINY)[rows])

    def _whole(self, items: np.ndarray, known: np.ndarray) -> np.ndarray:
        """(B,) bool: which histories hold every item of the catalog."""
        columns = (items - self.catalog.first, known)
        return np.array([self.catalog.is_whole(row[here]) for row, here in zip(*columns, strict=True)])

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


@compiled
def ranked_many(
    products: Any, fixed: Any, said: Any, items: Any, seen: Any, named: Any, excluded: Any, asked: Any, scratch: Any
) -> Any:
    """`ranked` for each history of a batch.

    Args:
        seen, named, excluded: as in `Said` and `Question`, history after history; their first array says where each
            begins, (B + 1,).

    Returns:
        (B,) how many answers there are, and (B, k) ids, rows of actions and probabilities.
    """
    batch, count = len(products), asked.top_k
    found = np.zeros(batch, np.int64)
    ids, rows = np.empty((batch, count), np.int64), np.empty((batch, count), np.int64)
    values = np.empty((batch, count))
    for row in range(batch):
        begin, end = named[0][row], named[0][row + 1]
        one = Said(
            items[row],
            seen[1][seen[0][row] : seen[0][row + 1]],
            seen[2][row],
            said.queries[row],
            0.0,
            said.pointer[row],
            said.gate[row],
            said.by_action[row],
            named[1][begin:end],
            named[2][begin:end],
            named[3][begin:end],
        )
        more = excluded[1][excluded[0][row] : excluded[0][row + 1]]
        asked_here = Question(
            count, asked.over_actions, asked.without, asked.exclude, more, asked.restricted, asked.allowed
        )
        found[row], _, _ = ranked(products[row], fixed, one, asked_here, scratch, ids[row], rows[row], values[row])
    return found, ids, rows, values
