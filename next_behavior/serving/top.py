"""The largest of many numbers."""

from __future__ import annotations

import numpy as np

# Numbers whose maximum is looked at together: 100 maxima of 128 are found faster than 12,800 numbers are partitioned.
BLOCK = 128


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


def top(values: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` largest of values (n,), the largest first; of equal ones the first."""
    size = len(values)
    if size > 4 * BLOCK * count and size % BLOCK == 0:
        blocks = values.reshape(-1, BLOCK)
        maxima = blocks.max(axis=1)
        least = np.partition(maxima, len(maxima) - count)[len(maxima) - count]
        near = np.flatnonzero(maxima >= least)  # at least `count` blocks, and each has one
        block, inside = np.nonzero(blocks[near] >= least)
        places = near[block] * BLOCK + inside
    else:
        places = np.arange(size)
    if len(places) > 4 * count:
        places = places[best(values[places], count)]
    return places[np.argsort(-values[places], kind="stable")[:count]]
