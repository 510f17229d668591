"""The largest of many numbers. This file imports numpy and numba alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from next_behavior.serving.compiled import compiled

# Numbers whose maximum is kept: a block with a small one is passed over.
BLOCK = 128
NEVER = np.float32(-np.inf)


def best(values: np.ndarray, count: int) -> np.ndarray:
    """Places, ascending, of the `count` largest of values (n,); of equal ones the first."""
    if len(values) <= count:
        return np.arange(len(values))
    least = np.partition(values, len(values) - count)[len(values) - count]
    chosen = values >= least
    surplus = int(chosen.sum()) - count
    if surplus:
        chosen[np.flatnonzero(values == least)[-surplus:]] = False
    return np.flatnonzero(chosen)


@compiled
def near_best(scores: Any, offsets: Any, maxima: Any, count: int, slack: float, factor: float) -> Any:
    """Rows and columns (n,) of all scores (R, N) plus offsets (R,) that come near to the `count` largest: they are not
    below (the least of these - slack) * factor. -inf is no candidate.

    Args:
        maxima: (R, N / BLOCK), no score of a block is above it.
    """
    least = (least_of_best(scores, offsets, maxima, count) - slack) * factor
    room = 0
    for fill in range(2):  # counted, then written
        found = 0
        rows, columns = np.empty(room, np.int64), np.empty(room, np.int64)
        for row in range(len(scores)):
            for block in range(maxima.shape[1]):
                if maxima[row, block] + offsets[row] < least:
                    continue
                for column in range(block * BLOCK, (block + 1) * BLOCK):
                    score = scores[row, column] + offsets[row]
                    if score >= least and score > NEVER:
                        if fill:
                            rows[found], columns[found] = row, column
                        found += 1
        room = found
    return rows, columns


@compiled
def least_of_best(scores: Any, offsets: Any, maxima: Any, count: int) -> Any:
    """The least of the `count` largest scores (R, N) plus offsets (R,); -inf if there are fewer."""
    if count >= scores.size:
        return NEVER
    heap = np.full(count, NEVER)
    for row in range(len(scores)):
        for block in range(maxima.shape[1]):
            if not maxima[row, block] + offsets[row] > heap[0]:
                continue
            for column in range(block * BLOCK, (block + 1) * BLOCK):
                score = scores[row, column] + offsets[row]
                if score > heap[0]:
                    place = 0  # it takes the place of the least, and sinks
                    while 2 * place + 1 < count:
                        child = 2 * place + 1
                        if child + 1 < count and heap[child + 1] < heap[child]:
                            child += 1
                        if heap[child] >= score:
                            break
                        heap[place] = heap[child]
                        place = child
                    heap[place] = score
    return heap[0]
