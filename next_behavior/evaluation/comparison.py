"""Models against the best baseline and against each other.

Intervals are paired: both sides are measured on the same drawn users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from next_behavior.evaluation.metrics import bootstrap_macro_f1, bootstrap_means, interval
from next_behavior.evaluation.rankers import MODEL, UPDATED, UPDATED_SUFFIX, balanced

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
# Macro-F1 has an interval for up to so many actions that occur: it needs three numbers of each for every user.
MOST_ACTIONS = 50
# What is said in words of two models, and how.
TOLD = {
    ("kept", "all", "recall@10"): ("Next item", "among the first ten"),
    (ACTIONS, None, "accuracy"): ("Next action", "predicted rightly"),
}


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
        self._by_action: dict[Column, np.ndarray] = {}

    def add(self, column: Column, users: np.ndarray, values: np.ndarray) -> None:
        """Adds a metric by its values on some targets, (N,) each, and their users."""
        index = np.searchsorted(self._users, users)
        self._columns.append(column)
        self._sums.append(np.bincount(index, weights=values, minlength=len(self._users)))
        self._counts.append(np.bincount(index, minlength=len(self._users)))

    def add_macro_f1(self, column: Column, users: np.ndarray, targets: np.ndarray, predicted: np.ndarray) -> None:
        """Adds the macro-F1 of some targets, by their users, actions and predicted actions, (N,) each; nothing where
        more than `MOST_ACTIONS` occur."""
        occurring = np.unique(targets)
        if not 0 < len(occurring) <= MOST_ACTIONS:
            return
        index = np.searchsorted(self._users, users)
        size = (len(self._users), len(occurring))

        def counted(actions: np.ndarray, chosen: np.ndarray) -> np.ndarray:
            place = index[chosen] * size[1] + np.searchsorted(occurring, actions[chosen])
            return np.bincount(place, minlength=size[0] * size[1]).reshape(size)

        known = np.isin(predicted, occurring)
        kinds = [(targets, targets == predicted), (targets, np.ones_like(known)), (predicted, known)]
        self._by_action[column] = np.stack([counted(*kind) for kind in kinds], axis=1)

    def resampled(self, seed: int) -> dict[Column, np.ndarray]:
        """The (R,) resampled means of every column."""
        if not self._columns:
            return {}
        means = bootstrap_means(np.stack(self._sums, axis=1), np.stack(self._counts, axis=1), seed=seed)
        by_action = {column: bootstrap_macro_f1(counts, seed=seed) for column, counts in self._by_action.items()}
        return {column: means[:, index] for index, column in enumerate(self._columns)} | by_action


def value_of(row: Result, way: str, group: str | None, metric: str) -> float | None:
    """One metric of a ranker's row, None if it has none."""
    if way not in row:
        return None
    value = row[way]["items"][group][metric] if group is not None else row[way][metric]
    return None if value is None else float(value)


def comparisons(rows: Result, resampled: Mapping[Column, np.ndarray], models: Sequence[str]) -> Result:
    """What a result says of its models beyond their rows.

    Args:
        rows: of all rankers.
        models: names of rows; those that are missing are passed over.

    Returns:
        `comparison`, the first model beside the best baseline, and `comparison_updated`, the updated model beside the
        best updated baseline. With several models also `models`, their names;
        `comparisons`, the same for each of them; and `pairs`, each model beside each other one. Nothing without a
        model.
    """
    models = [name for name in models if name in rows]
    if not models:
        return {}
    beside = {name: compare(rows, resampled, name, models) for name in models}
    first: Result = {"comparison": beside[models[0]]}
    if updated := compare(rows, resampled, UPDATED, [UPDATED]):
        first["comparison_updated"] = updated
    if len(models) == 1:
        return first
    pairs = [compare_pair(rows, resampled, *pair) for pair in combinations(models, 2)]
    return {**first, "models": models, "comparisons": beside, "pairs": pairs}


def is_lower_better(metric: str) -> bool:
    return metric == "log_loss"


def difference_interval(
    resampled: Mapping[Column, np.ndarray], first: str, second: str, where: tuple[str, str | None, str]
) -> list[float] | None:
    """The paired 95 % interval of how much better the first ranker is; None where it was not resampled."""
    ours, theirs = (resampled.get(Column(name, *where)) for name in (first, second))
    if ours is None or theirs is None:
        return None
    return interval(theirs - ours if is_lower_better(where[2]) else ours - theirs)


def compare(
    rows: Result, resampled: Mapping[Column, np.ndarray], model: str = MODEL, models: Sequence[str] = (MODEL,)
) -> list[Result]:
    """For each of `COMPARED`: the model's value, the best baseline and its value, the difference (positive: the model
    is better), its paired 95 % interval where it was resampled, and whether the model beats it.

    Args:
        model: the row that is compared. UPDATED is compared with baselines that are updated, others with those that
            are not.
        models: the rows that are no baselines.
    """
    comparison = []
    no_baselines = {UPDATED, *models, *map(balanced, models)}
    for way, group, metric in COMPARED:
        values = {name: value_of(row, way, group, metric) for name, row in rows.items()}
        known = {name: value for name, value in values.items() if value is not None}
        others = [name for name in known if name not in no_baselines]
        others = [name for name in others if name.endswith(UPDATED_SUFFIX) == (model == UPDATED)]
        if model not in known or not others:
            continue
        # Macro-F1 is what the balanced answers are for, of the model and of its baseline.
        ours = balanced(model) if metric == "macro_f1" and balanced(model) in known else model
        sign = -1.0 if is_lower_better(metric) else 1.0
        best = max(others, key=lambda name: sign * known[name])
        difference = sign * (known[ours] - known[best])
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
                "difference_interval": difference_interval(resampled, ours, best, (way, group, metric)),
                "beats": difference > 0,
            }
        )
    return comparison


def compare_pair(rows: Result, resampled: Mapping[Column, np.ndarray], first: str, second: str) -> Result:
    """Two models: `models`, their names, and `metrics`: for each of `COMPARED` where both have a value, the values
    `first` and `second`, the difference (positive: the first is better), its paired 95 % interval, and `better`: the
    name of the better one, None where the interval holds 0 or there is none. `sentences` say in words which model is
    better at the next item and at the next action."""
    metrics = []
    for where in COMPARED:
        ours, theirs = (value_of(rows[name], *where) for name in (first, second))
        if ours is None or theirs is None:
            continue
        difference = theirs - ours if is_lower_better(where[2]) else ours - theirs
        ends = difference_interval(resampled, first, second, where)
        is_certain = ends is not None and not ends[0] <= 0 <= ends[1]
        metrics.append(
            {
                **dict(zip(("where", "group", "metric"), where, strict=True)),
                "first": ours,
                "second": theirs,
                "difference": difference,
                "difference_interval": ends,
                "better": (first if difference > 0 else second) if is_certain else None,
            }
        )
    occurring = rows[first].get(ACTIONS, {}).get("recall", {})
    told = [row for row in metrics if (row["where"], row["group"], row["metric"]) in TOLD]
    if len(occurring) < 2:  # nothing to predict
        told = [row for row in told if row["where"] != ACTIONS]
    return {
        "models": [first, second],
        "metrics": metrics,
        "sentences": [pair_sentence(row, first, second) for row in told],
    }


def pair_sentence(row: Result, first: str, second: str) -> str:
    """Which of two models is better by one of the metrics in `TOLD`, in plain words.

    >>> row = {"where": "kept", "group": "all", "metric": "recall@10", "first": 0.2, "second": 0.25,
    ...        "difference": -0.05, "difference_interval": [-0.06, -0.04], "better": "b"}
    >>> pair_sentence(row, "a", "b")[:70]
    'Next item: b is better than a. It is among the first ten in 25.0 % of '
    >>> pair_sentence(row | {"better": None}, "a", "b")[:59]
    'Next item: this log cannot tell which of a and b is better.'
    """
    what, how = TOLD[(row["where"], row["group"], row["metric"])]
    values = {first: row["first"], second: row["second"]}
    ends = row["difference_interval"]
    if row["better"] is None or ends is None:
        points = f"the difference of {100 * row['difference']:+.1f} points has "
        points += (
            "no interval"
            if ends is None
            else (f"the 95 % interval {100 * ends[0]:+.1f} to {100 * ends[1]:+.1f}, which holds 0")
        )
        return (
            f"{what}: this log cannot tell which of {first} and {second} is better. It is {how} in "
            f"{100 * values[first]:.1f} % and {100 * values[second]:.1f} % of events; {points}."
        )
    better = row["better"]
    worse = second if better == first else first
    low, high = sorted(abs(100 * end) for end in ends)
    return (
        f"{what}: {better} is better than {worse}. It is {how} in {100 * values[better]:.1f} % of events, against "
        f"{100 * values[worse]:.1f} %: {100 * abs(row['difference']):.1f} points more (95 %: {low:.1f} to {high:.1f})."
    )
