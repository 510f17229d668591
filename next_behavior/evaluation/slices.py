"""Slices of the targets: by action, by length of the history, and by popularity of the item.

    slices = slices_of(sequences, positions, names)
    slices["history"]["2-4"]                          # (N,) bool

Within a slice targets differ less, so it shows whom a ranker serves well.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from next_behavior.data.sequences import Sequences
from next_behavior.evaluation.counting import training_item_counts
from next_behavior.evaluation.metrics import Metrics, ranking_metrics

# Events of the user before the target, from and to.
HISTORY_BINS = {"1": (1, 1), "2-4": (2, 4), "5-9": (5, 9), "10-49": (10, 49), "50+": (50, None)}
DECILES = 10
# Targets whose item has no training events.
UNTRAINED = "untrained"
SLICED_METRICS = ("count", "recall@10", "ndcg@10", "mrr")

Slices = dict[str, dict[str, np.ndarray]]


def popularity_deciles(counts: np.ndarray) -> np.ndarray:
    """(V,) int64: 1 for the rarest tenth of the items with training events to 10 for the most frequent; 0 without any.

    Items with the same count share the decile of the middle of their places.

    >>> popularity_deciles(np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9])).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 10]
    """
    trained = np.sort(counts[counts > 0])
    middle = (np.searchsorted(trained, counts, side="left") + np.searchsorted(trained, counts, side="right")) / 2
    decile = 1 + np.floor(DECILES * middle / max(1, len(trained))).astype(np.int64)
    return np.where(counts > 0, np.minimum(decile, DECILES), 0)


def slices_of(sequences: Sequences, positions: np.ndarray, names: Mapping[int, str]) -> Slices:
    """Which of the targets at `positions` (N,) lie in each slice.

    Args:
        names: action id -> name; targets with another action are in no slice of "action".

    Returns:
        {"action" | "history" | "popularity": {slice: (N,) bool}}, in the order to report.
    """
    users = np.searchsorted(sequences.offsets, positions, side="right") - 1
    length, actions = positions - sequences.offsets[users], sequences.actions[positions]
    deciles = popularity_deciles(training_item_counts(sequences))
    items = sequences.items[positions]
    known = items < len(deciles)
    decile = np.where(known, deciles[np.where(known, items, 0)], 0)
    return {
        "action": {name: actions == action for action, name in names.items()},
        "history": {
            name: (length >= least) & (length <= (length if most is None else most))
            for name, (least, most) in HISTORY_BINS.items()
        },
        "popularity": {UNTRAINED: decile == 0, **{str(place): decile == place for place in range(1, DECILES + 1)}},
    }


def sliced_metrics(ranks: np.ndarray, num_ids: int, masks: Mapping[str, np.ndarray]) -> dict[str, Metrics]:
    """{slice: {count, recall@10, ndcg@10, mrr}} of (N,) ranks by (N,) masks."""
    rows = {name: ranking_metrics(ranks[mask], num_ids) for name, mask in masks.items()}
    return {name: {metric: row[metric] for metric in SLICED_METRICS} for name, row in rows.items()}
