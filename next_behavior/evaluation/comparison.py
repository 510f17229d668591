"""The model against the best baseline, with intervals that are paired: both are measured on the same drawn users."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from next_behavior.evaluation.metrics import bootstrap_means, interval
from next_behavior.evaluation.rankers import BALANCED, MODEL, UPDATED

# An evaluation as it is saved: plain dicts, lists, numbers and strings.
Result = dict[str, Any]
ACTIONS = "actions"


class Column(NamedTuple):
    """A metric of a ranker on a group of targets; `way` is kept, removed or actions, which have no group."""

    ranker: str
    way: str
    group: str | None
    metric: str


# Where the model is compared with the best baseline; a lower log-loss is better.
COMPARED = [
    ("kept", "all", "recall@10"),
    ("kept", "all", "ndcg@10"),
    ("kept", "repeat", "ndcg@10"),
    ("kept", "novel", "ndcg@10"),
    ("removed", "all", "recall@10"),
    ("removed", "all", "ndcg@10"),
    (ACTIONS, None, "accuracy"),
    (ACTIONS, None, "macro_f1"),
    (ACTIONS, None, "log_loss"),
]


class UserSums:
    """Per-user sums and counts of many metrics, for the bootstrap over users.

    Args:
        users: the index of every target's user.
    """

    def __init__(self, users: np.ndarray) -> None:
        self._users = np.unique(users)
        self._sums: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []
        self._columns: list[Column] = []

    def add(self, column: Column, users: np.ndarray, values: np.ndarray) -> None:
        """Adds a metric by its values on some targets, (N,) each, and their users."""
        index = np.searchsorted(self._users, users)
        self._columns.append(column)
        self._sums.append(np.bincount(index, weights=values, minlength=len(self._users)))
        self._counts.append(np.bincount(index, minlength=len(self._users)))

    def resampled(self, seed: int) -> dict[Column, np.ndarray]:
        """The (R,) resampled means of every column."""
        if not self._columns:
            return {}
        means = bootstrap_means(np.stack(self._sums, axis=1), np.stack(self._counts, axis=1), seed=seed)
        return {column: means[:, index] for index, column in enumerate(self._columns)}


def value_of(row: Result, way: str, group: str | None, metric: str) -> float | None:
    """One metric of a ranker's row, None if it has none."""
    if way not in row:
        return None
    value = row[way]["items"][group][metric] if group is not None else row[way][metric]
    return None if value is None else float(value)


def compare(rows: Result, resampled: Mapping[Column, np.ndarray]) -> list[Result]:
    """For each of `COMPARED`: the model's value, the best baseline and its value, the difference (positive: the model
    is better), its paired 95 % interval where it was resampled, and whether the model beats it."""
    comparison = []
    for way, group, metric in COMPARED:
        values = {name: value_of(row, way, group, metric) for name, row in rows.items()}
        known = {name: value for name, value in values.items() if value is not None}
        others = [name for name in known if name not in (MODEL, UPDATED, BALANCED)]
        if MODEL not in known or not others:
            continue
        # Macro-F1 is what the balanced answers are for, of the model and of its baseline.
        ours = BALANCED if metric == "macro_f1" and BALANCED in known else MODEL
        sign = -1.0 if metric == "log_loss" else 1.0
        best = max(others, key=lambda name: sign * known[name])
        difference = sign * (known[ours] - known[best])
        our_means, best_means = (resampled.get(Column(name, way, group, metric)) for name in (ours, best))
        comparison.append(
            {
                "where": way,
                "group": group,
                "metric": metric,
                "ranker": ours,
                "model": known[ours],
                "best_baseline": best,
                "best": known[best],
                "difference": difference,
                "difference_interval": (
                    None if our_means is None or best_means is None else interval(our_means - best_means)
                ),
                "beats": difference > 0,
            }
        )
    return comparison
