"""What a question is asked of and what an answer says, beside the ids: the input's events, and the time until the next.

This file imports no library: the pipeline uses it, and so does a process without torch and transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

HOUR, DAY = 3600.0, 86400.0
HORIZONS = {
    "within_1_hour": HOUR,
    "within_1_day": DAY,
    "within_7_days": 7 * DAY,
    "within_30_days": 30 * DAY,
}


def events_of(one: Any, row: int) -> list[Any]:
    """The events of an input `{"events": [...]}`."""
    if not isinstance(one, Mapping) or set(one) != {"events"} or not isinstance(one["events"], (list, tuple)):
        got = f"a dict with the keys {', '.join(map(repr, one))}" if isinstance(one, Mapping) else f"{one!r:.80}"
        if isinstance(one, Mapping) and set(one) == {"events"}:
            got = f"a dict whose events are {one['events']!r:.80} ({type(one['events']).__name__})"
        raise ValueError(
            f'input {row} is {got}, expected {{"events": [...]}} with a list of events, oldest first. Options such as '
            "top_k are arguments of the call."
        )
    return list(one["events"])


def time_until_next(probabilities: list[float], edges: list[float]) -> dict[str, float]:
    """Median and horizons of a distribution over time buckets.

    Args:
        probabilities: one per bucket; bucket i lies between `edges[i - 1]` and `edges[i]`, in seconds.
        edges: ascending, positive.

    Returns:
        `median_seconds` and the probabilities of `HORIZONS`. At an edge they are exact; within a bucket the
        distribution is taken as uniform in log time (in the first one, which begins at zero, in time), and the last
        bucket, which has no end, to end at twice its beginning.
    """
    bounds = [0.0, *edges, 2 * edges[-1]]
    result = {"median_seconds": bounds[-1]}
    below = 0.0
    for begin, end, probability in zip(bounds[:-1], bounds[1:], probabilities, strict=True):
        if below < 0.5 <= below + probability:
            share = (0.5 - below) / probability
            result["median_seconds"] = begin * (end / begin) ** share if begin else end * share
        below += probability
    for name, horizon in HORIZONS.items():
        total = 0.0
        for begin, end, probability in zip(bounds[:-1], bounds[1:], probabilities, strict=True):
            if horizon >= end:
                total += probability
            elif horizon > begin:
                total += probability * (math.log(horizon / begin) / math.log(end / begin) if begin else horizon / end)
        result[name] = min(total, 1.0)
    return result
