"""Recall@k, NDCG@k and MRR of next-item rankings, for `evaluate`: full catalog, ties against the prediction.

    ranking = evaluate.load("metric/next_behavior_ranking")               # this folder, or USER/next_behavior_ranking
    ranking.compute(predictions=[["84", "7", "9"]], references=["7"], k=[1, 3])
    scores = evaluate.load("metric/next_behavior_ranking", "scores")      # a score for every item of the catalog
    scores.compute(predictions=[[0.1, 0.9, 0.3]], references=[2], k=[1, 3])

The definitions are those of `behavior/metrics.py` in the repository this file comes from, and a test holds the two
equal. The file stands alone: it is also the Space that `evaluate.load("USER/next_behavior_ranking")` loads.

Ranking a few sampled negatives instead of the whole catalog would reorder rankers (Krichene and Rendle 2020, "On
Sampled Metrics for Item Recommendation").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

CUTOFFS = (1, 5, 10, 20)
# The rank of a target that no cutoff reaches and that adds nothing to the MRR.
UNRANKED = np.iinfo(np.int64).max

DESCRIPTION = """
Recall@k, NDCG@k and MRR of rankings with one right answer each, such as the next item of a user. The whole catalog is
ranked, and an item with the target's score stands before the target, so that a ranker that scores everything alike
gets nothing.
"""

CITATION = """
@inproceedings{krichene2020sampled,
  title={On Sampled Metrics for Item Recommendation},
  author={Krichene, Walid and Rendle, Steffen},
  booktitle={KDD},
  year={2020}
}
"""

INPUTS = """
Args:
    predictions: by default, for each row the ids of the recommended items, best first, without repetition; with the
        configuration "scores", for each row one score for every item of the catalog, -inf for items that were no
        candidates. NaN counts as better than the target.
    references: the id of each row's target; with "scores", its column, or a negative number for a target that is not
        in the catalog. Ids are text, so that "007" stays "007".
    k: the cutoffs, default 1, 5, 10 and 20. A list cannot say what stood beyond its end: no cutoff may be longer than
        the longest list.

Returns:
    count: number of rows. recall@k: share of targets among the first k. ndcg@k: mean of 1 / log2(rank + 1) for targets
    among the first k. mrr: mean of 1 / rank; for lists, 0 beyond their end. None where there is no row.
"""


class NextBehaviorRanking(evaluate.Metric):
    """The `evaluate` module: configuration "default" (or "lists") takes ranked ids, "scores" takes scores."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name == "scores":
            one, target = "float64", "int64"
        elif self.config_name in ("default", "lists"):
            one, target = "string", "string"
        else:
            raise ValueError(f'got the configuration {self.config_name!r}; expected "lists" (the default) or "scores".')
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value(one)), "references": datasets.Value(target)}
            ),
            reference_urls=["https://dl.acm.org/doi/10.1145/3394486.3403226"],
        )

    def _compute(
        self, predictions: Sequence[Any], references: Sequence[Any], k: Sequence[int] = CUTOFFS
    ) -> dict[str, float | int | None]:
        cutoffs = sorted({int(cutoff) for cutoff in k})
        if not cutoffs or cutoffs[0] < 1:
            raise ValueError(f"got k={list(k)}; expected cutoffs of at least 1, such as k=[1, 10].")
        if self.config_name == "scores":
            ranks = ranks_of_scores(predictions, references)
        else:
            longest = max(map(len, predictions), default=cutoffs[-1])
            if cutoffs[-1] > longest:
                raise ValueError(
                    f"got k={cutoffs[-1]} for lists of at most {longest} ids; expected lists that reach every cutoff: "
                    f"rank more items, or pass k=[{longest}]."
                )
            ranks = ranks_in_lists(predictions, references)
        return ranking_metrics(ranks, cutoffs)


def ranks_in_lists(lists: Sequence[Sequence[Any]], targets: Sequence[Any]) -> np.ndarray:
    """(N,) int64: the place of each target in its list, from 1; UNRANKED where it is missing.

    >>> ranks_in_lists([["a", "b"], ["a", "b"]], ["b", "c"]).tolist() == [2, UNRANKED]
    True
    """
    ranks = np.full(len(lists), UNRANKED, dtype=np.int64)
    for row, (ranked, target) in enumerate(zip(lists, targets, strict=True)):
        if len(set(ranked)) < len(ranked):
            raise ValueError(f"got a list that names an id twice, in row {row}; expected every id once, best first.")
        if target in ranked:
            ranks[row] = ranked.index(target) + 1
    return ranks


def ranks_of_scores(scores: Sequence[Sequence[float]], targets: Sequence[int]) -> np.ndarray:
    """(N,) int64: 1 + better items + other items with the same score; UNRANKED where the target's score is -inf or
    the target is negative.

    >>> ranks = ranks_of_scores([[0.1, 0.9, 0.5, 0.5], [0.1, 0.9, 0.5, 0.5], [1.0, 1.0, 1.0, 1.0]], [1, 2, 0])
    >>> ranks.tolist()                                                      # the best; tied for second; all alike
    [1, 3, 4]
    """
    ranks = np.full(len(scores), UNRANKED, dtype=np.int64)
    for row, (values, target) in enumerate(zip(scores, targets, strict=True)):
        if target >= len(values):
            raise ValueError(
                f"got the target {target} for {len(values)} scores, in row {row}; expected a score for every item of "
                "the catalog and the target's column among them."
            )
        if target >= 0 and values[target] != -np.inf:
            # Not "less" instead of "greater or equal": a NaN on either side counts against the target.
            ranks[row] = len(values) - np.count_nonzero(np.asarray(values) < values[target])
    return ranks


def ranking_metrics(ranks: np.ndarray, cutoffs: Sequence[int]) -> dict[str, float | int | None]:
    """count, recall@k and ndcg@k for the cutoffs, mrr.

    >>> metrics = ranking_metrics(np.array([1, 3, 11, UNRANKED]), [10])
    >>> metrics["count"], metrics["recall@10"], metrics["ndcg@10"], round(metrics["mrr"], 4)
    (4, 0.5, 0.375, 0.3561)
    """
    discounts = 1 / np.log2(ranks.astype(np.float64) + 1)
    values = {f"recall@{cutoff}": (ranks <= cutoff).astype(np.float64) for cutoff in cutoffs}
    values |= {f"ndcg@{cutoff}": np.where(ranks <= cutoff, discounts, 0.0) for cutoff in cutoffs}
    values["mrr"] = np.where(ranks < UNRANKED, 1 / ranks, 0.0)
    return {"count": len(ranks)} | {name: float(value.mean()) if len(ranks) else None for name, value in values.items()}
