"""What a question is asked of and what an answer says, beside the ids: the input's events, and the time until the next.

This file imports numpy alone: the pipeline uses it, and so does a process without torch and transformers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .histories import is_whole

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


def check_options(top_k: Any, of: Any, restricted: bool, balanced: bool, has_weights: bool) -> None:
    """ValueError for a question that cannot be answered.

    Args:
        restricted: an action is given, or items are left out or named.
        has_weights: the model has `action_weights`.
    """
    if of not in ("pair", "item", "action"):
        raise ValueError(f'of={of!r:.80} is not a question: use "pair", "item" or "action".')
    if not is_whole(top_k) or top_k < 1:
        raise ValueError(f"top_k is {top_k!r:.80} ({type(top_k).__name__}), expected a whole number of at least 1.")
    if of == "action" and restricted:
        raise ValueError('of="action" ranks actions: action, exclude_seen and allowed_items do not apply to it.')
    if balanced and of != "action":
        raise ValueError(f'balanced=True ranks actions, got of="{of}": use of="action".')
    if balanced and not has_weights:
        raise ValueError(
            "balanced=True needs config.action_weights, and this model has none: its training had no validation "
            "events, or one action."
        )


def allowed_ids(items: Any, encode_item: Callable[[Any], int], first_item_id: int) -> list[int]:
    """Token ids, ascending, of the items that `allowed_items` names; ValueError if the vocabulary lacks one."""
    if isinstance(items, (str, Mapping)) or not isinstance(items, Iterable):
        raise ValueError(f"allowed_items is {items!r:.80}, expected a list of item ids.")
    ids = {item: encode_item(item) for item in items}
    unknown = [item for item, index in ids.items() if index < first_item_id]
    if unknown:
        raise ValueError(
            f"allowed_items holds {unknown[:10]!r:.200}, {len(unknown)} unknown to this model, expected items of the "
            "training log: see tokenizer.item_vocabulary."
        )
    return sorted(ids.values())


class TimeUntilNext:
    """Median and horizons of distributions over the buckets of a time.

    At an edge they are exact. Within a bucket the distribution is taken as uniform in log time (in the first one, which
    begins at zero, in time), and the last bucket, which has no end, to end at twice its beginning.
    """

    def __init__(self, edges: Sequence[float]) -> None:
        """Args: edges: ascending, positive; bucket i lies between `edges[i - 1]` and `edges[i]`, in seconds."""
        self.bounds = [0.0, *edges, 2 * edges[-1]]
        buckets = list(itertools.pairwise(self.bounds))
        self._below = np.array([[share_below(*bucket, horizon) for bucket in buckets] for horizon in HORIZONS.values()])

    def __call__(self, probabilities: np.ndarray) -> dict[str, float]:
        """`median_seconds` and the probabilities of `HORIZONS`, for those of the buckets (G,)."""
        probabilities = np.asarray(probabilities, np.float64)
        median = self.bounds[-1]
        total = probabilities.cumsum()
        place = int(np.searchsorted(total, 0.5, side="left"))
        if place < len(total):
            begin, end = self.bounds[place : place + 2]
            share = (0.5 - (total[place] - probabilities[place])) / probabilities[place]
            median = float(begin * (end / begin) ** share if begin else end * share)
        within = np.minimum(self._below @ probabilities, 1.0).tolist()
        return {"median_seconds": median, **dict(zip(HORIZONS, within, strict=True))}


def share_below(begin: float, end: float, horizon: float) -> float:
    """The share of a bucket that lies before `horizon`."""
    if horizon >= end:
        return 1.0
    if horizon <= begin:
        return 0.0
    return math.log(horizon / begin) / math.log(end / begin) if begin else horizon / end
