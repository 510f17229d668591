"""The vectors of all items, and the best answers over them.

Products of a query with every item are bound by memory, so they are taken with rows of 16-bit integers, half the bytes
of float32: row = scale * integers. A product is at most scale / 2 * sum(|query|) off, so whatever may be among the best
is known, and is multiplied again with the exact rows (`distribution.py`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from next_behavior.model.coverage import set_sizes
from next_behavior.model.special_ids import FIRST_NEW
from next_behavior.serving.bundle import Constants
from next_behavior.serving.compiled import compiled
from next_behavior.serving.distribution import TINY, ZERO, Fixed, Question, Said, Scratch, ranked
from next_behavior.serving.live_memory import LiveMemory
from next_behavior.serving.top import BLOCK, NEVER

LARGEST = np.iinfo(np.int16).max


def rounded(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, H) as integers (N, H) int16 and scales (N,) float32, filled up with rows of zeros to whole blocks."""
    rows = np.pad(rows, ((0, -len(rows) % BLOCK), (0, 0)))
    scales = np.abs(rows).max(axis=1) / np.float32(LARGEST)
    integers = np.rint(rows / np.maximum(scales, TINY)[:, None])
    return integers.astype(np.int16), scales


@compiled
def multiply(rows: Any, scales: Any, queries: Any, out: Any) -> None:
    """Writes queries (M, H) times rows (N, H) of integers times scales (N,) to out (M, N)."""
    many = len(queries)
    for item in range(len(rows)):
        place = 0
        while place + 4 <= many:  # an integer is made a float once for four queries
            a, b, c, d = ZERO, ZERO, ZERO, ZERO
            for part in range(rows.shape[1]):
                x = np.float32(rows[item, part])
                a += queries[place, part] * x
                b += queries[place + 1, part] * x
                c += queries[place + 2, part] * x
                d += queries[place + 3, part] * x
            out[place, item], out[place + 1, item] = a * scales[item], b * scales[item]
            out[place + 2, item], out[place + 3, item] = c * scales[item], d * scales[item]
            place += 4
        while place < many:
            a = ZERO
            for part in range(rows.shape[1]):
                a += queries[place, part] * np.float32(rows[item, part])
            out[place, item] = a * scales[item]
            place += 1


class Best(NamedTuple):
    """The best answers after a history.

    Attributes:
        ids: (k,) items; rows: (k,) rows of actions, -1 over all of them; probabilities: (k,) float64.
        norms, factors: (Q,), what `ranked` says for the shares of paths.
    """

    ids: np.ndarray
    rows: np.ndarray
    probabilities: np.ndarray
    norms: np.ndarray
    factors: np.ndarray


class Catalog:
    """What is the same for every history, and arrays that are used again.

    Args:
        table: (V, H) float32, the rows of all tokens; integers and scales: `rounded` of those of the items.
    """

    def __init__(self, constants: Constants, table: np.ndarray, integers: np.ndarray, scales: np.ndarray) -> None:
        self.constants = constants
        self.first = FIRST_NEW + constants.num_new_items
        self.size, self.width = constants.vocab_size - self.first, len(integers)
        self.rows = np.asarray(table)[self.first :]
        self._integers, self._scales = np.asarray(integers), np.asarray(scales)
        self._largest_scale = float(scales.max(initial=0))
        self._bias = np.full(self.width, NEVER)
        self._bias[: self.size] = 0
        self._bias_tick = -1
        self.retired = np.array(constants.retired_items, np.int64) - self.first
        self._is_retired = np.isin(np.arange(self.size), self.retired)
        self._is_seen = np.zeros(self.size, bool)
        self._products = np.empty((1, self.width), np.float32)
        self._scratch: dict[int, Scratch] = {}

    def best(self, products: np.ndarray, memory: LiveMemory, said: Said, asked: Question, limit: float | None) -> Best:
        """The best answers after one history.

        Args:
            products: (Q, N), which are changed.
            limit: of the prediction set that is asked for: the best of all answers; None for no set.
        """
        ids, rows, values = np.empty(asked.top_k, np.int64), np.empty(asked.top_k, np.int64), np.empty(asked.top_k)
        fixed, scratch = self.fixed(memory, rounded=True), self.scratch(len(products))
        found, norms, factors = ranked(products, fixed, said, asked, scratch, ids, rows, values)
        if limit is not None:
            found = int(set_sizes(values[None, :found], limit)[0])
        return Best(ids[:found], rows[:found], values[:found], norms, factors)

    def products(self, queries: np.ndarray) -> np.ndarray:
        """(M, N) float32 for queries (M, H), in an array that the next call changes."""
        out = self._room(len(queries))
        multiply(self._integers, self._scales, queries, out)
        return out

    def exact_products(self, queries: np.ndarray) -> np.ndarray:
        """(M, N) as above, of the rows themselves: faster for many queries."""
        out = self._room(len(queries))
        np.matmul(queries, self.rows.T, out=out[:, : self.size])
        out[:, self.size :] = 0
        return out

    def slack(self, queries: np.ndarray) -> float:
        """Twice what no product of a query (Q, H) is off."""
        return self._largest_scale * float(np.abs(queries).sum(axis=1).max())

    def fixed(self, memory: LiveMemory, rounded: bool) -> Fixed:
        """What `ranked` reads of the catalog, with popularity as it is now."""
        inverse, bias = float(1 / self.constants.item_temperature), self.bias(memory)
        return Fixed(self.first, self.size, self.rows, rounded, bias, self.retired, self._is_retired, inverse)

    def bias(self, memory: LiveMemory) -> np.ndarray:
        """(N,) float32, which every product gets: by popularity as it is now."""
        if self._bias_tick != memory.tick:
            trend = memory.trend()
            self._bias[: self.size] = 0 if trend is None else trend[self.first :]
            self._bias_tick = memory.tick
        return self._bias

    def scratch(self, actions: int) -> Scratch:
        scratch = self._scratch.get(actions)
        if scratch is None:
            blocks = self.width // BLOCK
            scratch = self._scratch[actions] = Scratch(
                np.empty((actions, blocks), np.float32),
                np.empty((1, self.width), np.float32),
                np.empty((1, blocks), np.float32),
                np.zeros(self.width, bool),
            )
        return scratch

    def is_whole(self, seen: np.ndarray) -> bool:
        """Whether columns (n,) of a history are the catalog."""
        return len(seen) >= self.size and len(np.unique(seen)) == self.size

    def named(
        self, memory: LiveMemory, recent: list[int], seen: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the memory adds after a history that holds the columns `seen`: see `Said`."""
        constants = self.constants
        ids, scores = memory.scores(recent)
        columns = ids - self.first
        self._is_seen[seen] = True
        unseen = ~self._is_seen[columns]
        self._is_seen[seen] = False
        columns, scores = columns[unseen], scores[unseen]
        boosts = np.float32(constants.memory_power) * np.log1p(scores / np.float32(constants.memory_unit))
        weighed = scores * np.exp(self.bias(memory)[columns])
        counted = weighed * (memory.shares(columns + self.first) / max(weighed.sum(), TINY))
        return columns.astype(np.int64), boosts, counted

    def _room(self, rows: int) -> np.ndarray:
        if len(self._products) < rows:
            self._products = np.empty((rows, self.width), np.float32)
        return self._products[:rows]
