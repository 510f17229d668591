"""The places of times in a log that is not held in memory.

    CountedTimes(count, first, last, histogram, before).at(round(0.8 * count))

A time at a place is found by counting: the span of the times is cut into bins, then the bin that holds the place, until
a bin is one microsecond. Three passes suffice for any log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

BINS = 1 << 20


class CountedTimes:
    """Times in ascending order (`OrderedTimes` of data/splits.py), known by two ways of counting them.

    Args:
        count, first, last: of all times.
        histogram: (low, width, bins) -> (bins,) int64, how many times are in each interval from `low` on.
        latest_before: (time) -> the latest time under it.
    """

    def __init__(
        self,
        count: int,
        first: int,
        last: int,
        histogram: Callable[[int, int, int], np.ndarray],
        latest_before: Callable[[int], int],
    ) -> None:
        self._count, self._first, self._last = count, first, last
        self._histogram, self._latest_before = histogram, latest_before

    def __len__(self) -> int:
        return self._count

    def at(self, place: int) -> int:
        if place in (0, self._count - 1):
            return self._last if place else self._first
        low, high, before = self._first, self._last, 0
        while low < high:
            width = -(-(high - low + 1) // BINS)
            counts = self._histogram(low, width, -(-(high - low + 1) // width))
            ends = before + np.cumsum(counts)
            chosen = int(np.searchsorted(ends, place, side="right"))
            before = int(ends[chosen] - counts[chosen])
            low, high = low + chosen * width, min(high, low + (chosen + 1) * width - 1)
        return low

    def before(self, time: int) -> int:
        return self._latest_before(time)


def histogram_of(pieces: Iterable[np.ndarray], low: int, width: int, bins: int) -> np.ndarray:
    """(bins,) int64: how many times of all pieces, (N,) int64 each, are in each interval."""
    counts = np.zeros(bins, dtype=np.int64)
    for times in pieces:
        inside = times[(times >= low) & (times < low + width * bins)]
        counts += np.bincount((inside - low) // width, minlength=bins)
    return counts


def latest_before(pieces: Iterable[np.ndarray], time: int) -> int:
    """The latest of all times under `time`."""
    return max(int(earlier.max()) for times in pieces if len(earlier := times[times < time]))
