"""Metrics of the next item, the next action, and of what is recommended besides being right.

Ranking is against the whole catalog and pessimistic: an item with the target's score stands before it, so that a
ranker that scores everything alike gets nothing. Sampled candidates would reorder rankers (Krichene and Rendle 2020,
"On Sampled Metrics for Item Recommendation"). With one target per ranking, Recall@k is the hit rate and NDCG@k is
1 / log2(rank + 1) within the first k.

Action metrics are scikit-learn's, and the expected calibration error (Naeini et al. 2015; Guo et al. 2017).
Intervals are percentile bootstraps over users, whose events hang together (Efron 1979).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss, recall_score

CUTOFFS = (1, 5, 10, 20)
# Length of the lists that coverage, novelty and popularity bias are computed on; what fills a list that is shorter.
LIST_LENGTH = 10
NO_CANDIDATE = -1
CALIBRATION_BINS = 15
# Log-weights tried for an action, how often around, and the targets an action needs.
BALANCING_GRID = np.linspace(-3, 3, 61)
BALANCING_ROUNDS = 4
FEWEST_BALANCED = 10
BOOTSTRAP_RESAMPLES = 1000
CONFIDENCE = 0.95
# Resampled user counts held at once, in numbers.
RESAMPLING_CHUNK = 2**22

Metrics = dict[str, float | int | None]


# ----------------------------------------------------------------------------------------------------------------------
# One target per ranking
# ----------------------------------------------------------------------------------------------------------------------


def pessimistic_ranks(scores: np.ndarray | torch.Tensor, targets: np.ndarray | torch.Tensor) -> np.ndarray:
    """The rank of each row's target: 1 + better candidates + other candidates with the same score.

    Args:
        scores: (B, V) floats; -inf for ids that are no candidates. NaN counts as better than everything.
        targets: (B,) integer ids; a negative one cannot be ranked.

    Returns:
        (B,) int64 from 1 to V; V + 1 where the target cannot be ranked or is no candidate.

    >>> scores = np.array([[0.1, 0.9, 0.5, 0.5], [0.1, 0.9, 0.5, 0.5], [0.1, 0.9, 0.5, -np.inf], [1, 1, 1, 1]])
    >>> pessimistic_ranks(scores, np.array([1, 2, 3, 0]))       # the best; tied for second; no candidate; all alike
    array([1, 3, 5, 4])
    """
    rows, size = scores.shape
    if len(targets) != rows:
        raise ValueError(f"got {len(targets)} targets for scores of shape {(rows, size)}; expected one for each row")
    if rows and int(targets.max()) >= size:
        raise ValueError(f"got the target {int(targets.max())} for {size} scores a row; expected an id below {size}")
    if isinstance(scores, torch.Tensor) and scores.device.type != "cpu":
        on_device = torch.as_tensor(targets, device=scores.device)
        score = scores.gather(1, on_device.clamp(min=0)[:, None])
        ranks = (~(scores < score)).sum(dim=1).cpu().numpy()
        missing = ((on_device < 0) | (score[:, 0] == -torch.inf)).cpu().numpy()
    else:
        # numpy compares and counts ten times faster than torch on a CPU.
        values, ids = np.asarray(scores), np.asarray(targets)
        target_scores = values[np.arange(rows), np.maximum(ids, 0)]
        # Not "less" instead of "greater or equal": a NaN on either side counts against the target.
        ranks = size - np.count_nonzero(values < target_scores[:, None], axis=1)
        missing = (ids < 0) | (target_scores == -np.inf)
    return np.where(missing, size + 1, ranks).astype(np.int64)


def recall_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    """(N,) float64: 1 where the target is among the first `k`.

    >>> recall_at_k(np.array([1, 3, 11]), 10)
    array([1., 1., 0.])
    """
    return (ranks <= k).astype(np.float64)


def ndcg_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    """(N,) float64: 1 / log2(rank + 1) where the target is among the first `k`, else 0.

    The ideal ranking has the one target first, so the normalizer is 1.

    >>> ndcg_at_k(np.array([1, 3, 11]), 10)
    array([1. , 0.5, 0. ])
    """
    return np.where(ranks <= k, 1 / np.log2(ranks + 1), 0.0)


def reciprocal_rank(ranks: np.ndarray, num_ids: int) -> np.ndarray:
    """(N,) float64: 1 / rank; 0 for a target that could not be ranked (rank above `num_ids`).

    >>> reciprocal_rank(np.array([1, 4, 101]), num_ids=100)
    array([1.  , 0.25, 0.  ])
    """
    return np.where(ranks <= num_ids, 1 / ranks, 0.0)


def ranking_metrics(ranks: np.ndarray, num_ids: int) -> Metrics:
    """count, recall@k and ndcg@k for the `CUTOFFS`, mrr: means over the targets, None where there are none.

    Args:
        ranks: (N,) from `pessimistic_ranks`.
        num_ids: columns of the scores they came from.

    >>> metrics = ranking_metrics(np.array([1, 3, 11, 101]), num_ids=100)
    >>> metrics["count"], metrics["recall@10"], metrics["ndcg@10"], round(metrics["mrr"], 4)
    (4, 0.5, 0.375, 0.3561)
    >>> ranking_metrics(np.array([], dtype=int), num_ids=100)["mrr"] is None
    True
    """
    # In a catalog smaller than k even a rank beyond its end would be among the first k.
    ranks = np.where(ranks > num_ids, np.iinfo(np.int32).max, ranks)
    values = {f"recall@{k}": recall_at_k(ranks, k) for k in CUTOFFS}
    values |= {f"ndcg@{k}": ndcg_at_k(ranks, k) for k in CUTOFFS}
    values["mrr"] = reciprocal_rank(ranks, num_ids)
    means: Metrics = {name: float(value.mean()) if len(ranks) else None for name, value in values.items()}
    return {"count": len(ranks), **means}


# ----------------------------------------------------------------------------------------------------------------------
# What is recommended
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ItemPopularity:
    """How often the training events name each item.

    Attributes:
        first_item_id: the first id that is a real item.
        information: (V,) float64, self-information in bits, -log2 of the item's share of the training events, every
            item counted once more than it occurs.
        percentile: (V,) float64 from 0 to 1: the share of real items that are rarer, ties by half; 0 for ids that are
            no real items.

    >>> popularity = ItemPopularity.from_counts(np.array([0, 0, 5, 1, 1, 1]), first_item_id=2)
    >>> popularity.percentile
    array([0.   , 0.   , 0.875, 0.375, 0.375, 0.375])
    >>> popularity.information[[2, 3]]
    array([1.       , 2.5849625])
    """

    first_item_id: int
    information: np.ndarray
    percentile: np.ndarray

    @classmethod
    def from_counts(cls, counts: np.ndarray, first_item_id: int) -> ItemPopularity:
        """From (V,) counts of the training events per id."""
        real = counts[first_item_id:]
        ordered = np.sort(real)
        percentile = np.zeros(len(counts))
        rarer, not_commoner = (np.searchsorted(ordered, real, side=side) for side in ("left", "right"))
        percentile[first_item_id:] = (rarer + not_commoner) / 2 / max(1, len(real))
        information = -np.log2((counts + 1) / (real.sum() + max(1, len(real))))
        return cls(first_item_id, information, percentile)


class RankingAccumulator:
    """Collects ranks and recommended lists batch by batch; holds a number per target and a flag per item.

    >>> popularity = ItemPopularity.from_counts(np.array([0, 0, 5, 1, 1, 1]), first_item_id=2)
    >>> lists = RankingAccumulator(popularity)
    >>> lists.add(ranks=np.array([1, 4]), targets=np.array([2, 5]), top=np.array([[2, 3], [2, -1]]))
    >>> lists.ranks()
    array([1, 4])
    >>> lists.list_metrics()["coverage@10"]        # two of four items were ever recommended
    0.5
    """

    def __init__(self, popularity: ItemPopularity) -> None:
        self.popularity = popularity
        self._ranks: list[np.ndarray] = []
        self._recommended = np.zeros(len(popularity.percentile), dtype=bool)
        self._information = self._percentile = self._target_percentile = 0.0
        self._lists = self._targets = 0

    def add(self, ranks: np.ndarray, targets: np.ndarray, top: np.ndarray) -> None:
        """Args:
        ranks: (B,) int64.
        targets: (B,) int64 ids, negative where the target has none.
        top: (B, `LIST_LENGTH`) int64 ids of the best candidates, `NO_CANDIDATE` where there were fewer.
        """
        self._ranks.append(ranks)
        is_item = top != NO_CANDIDATE
        self._recommended[top[is_item]] = True
        length = np.count_nonzero(is_item, axis=1)
        listed = length > 0

        def total_of_means(values: np.ndarray) -> float:
            return float((np.where(is_item, values[top], 0.0).sum(axis=1)[listed] / length[listed]).sum())

        self._information += total_of_means(self.popularity.information)
        self._percentile += total_of_means(self.popularity.percentile)
        self._lists += int(listed.sum())
        named = targets >= self.popularity.first_item_id
        self._target_percentile += float(self.popularity.percentile[targets[named]].sum())
        self._targets += int(named.sum())

    def ranks(self) -> np.ndarray:
        """(N,) int64, in the order they were added."""
        return np.concatenate(self._ranks) if self._ranks else np.zeros(0, dtype=np.int64)

    def list_metrics(self) -> Metrics:
        """Of the first ten recommended:

        - coverage@10: share of the catalog that was recommended to anyone;
        - novelty@10: mean self-information in bits (Zhou et al. 2010): the higher, the less known;
        - popularity_percentile@10: mean popularity percentile, 0 the rarest, 1 the most frequent;
        - popularity_bias@10: that, less the mean popularity percentile of the known targets: above 0 the ranker
          recommends more popular items than users took.
        """
        first = self.popularity.first_item_id
        real = self._recommended[first:]
        percentile = self._percentile / self._lists if self._lists else None
        targets = self._target_percentile / self._targets if self._targets else None
        return {
            f"coverage@{LIST_LENGTH}": float(real.mean()) if len(real) else None,
            f"novelty@{LIST_LENGTH}": self._information / self._lists if self._lists else None,
            f"popularity_percentile@{LIST_LENGTH}": percentile,
            f"popularity_bias@{LIST_LENGTH}": None if percentile is None or targets is None else percentile - targets,
        }


# ----------------------------------------------------------------------------------------------------------------------
# Actions
# ----------------------------------------------------------------------------------------------------------------------


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """How far the probability of the predicted class is from how often it is right.

    Predictions fall into `bins` equally wide bins of confidence; the error is the gap between mean confidence and
    accuracy in a bin, averaged over predictions. An edge belongs to the bin below it.

    Args:
        confidence: (N,) probability of the predicted class.
        correct: (N,) bool.

    >>> # Four predictions at 0.8 of which three are right (gap 0.05), one at 0.3 that is wrong (gap 0.3).
    >>> confidence, correct = np.array([0.8, 0.8, 0.8, 0.8, 0.3]), np.array([1, 1, 1, 0, 0])
    >>> round(expected_calibration_error(confidence, correct), 4)
    0.1
    """
    if not len(confidence):
        return float("nan")
    which = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(which, weights=correct.astype(np.float64) - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def action_metrics(
    targets: np.ndarray, probabilities: np.ndarray, names: dict[int, str]
) -> dict[str, float | int | dict[str, float] | None]:
    """Metrics of the next action.

    Args:
        targets: (N,) action ids. An id without a name is an action that training never saw: it is counted as missed in
            accuracy, recall and macro-F1, and left out of log-loss and calibration.
        probabilities: (N, A) float64, rows sum to one.
        names: action id -> name, in the order to report.

    Returns:
        count; accuracy; macro_f1 over the actions that occur as targets; log_loss in nats; ece
        (`expected_calibration_error`, 15 bins); recall: {action: value} for the actions that occur; unknown: number of
        targets without a name. Values are None where nothing can be averaged.

    >>> probabilities = np.array([[0, 0, 0, 0.8, 0.2], [0, 0, 0, 0.6, 0.4], [0, 0, 0, 0.3, 0.7]])
    >>> metrics = action_metrics(np.array([3, 4, 4]), probabilities, {3: "view", 4: "buy"})
    >>> round(metrics["accuracy"], 4), round(metrics["macro_f1"], 4), metrics["recall"]
    (0.6667, 0.6667, {'view': 1.0, 'buy': 0.5})
    """
    known = np.isin(targets, list(names))
    report: dict[str, float | int | dict[str, float] | None] = {"count": len(targets)}
    if not len(targets):
        return report | {"accuracy": None, "macro_f1": None, "log_loss": None, "ece": None, "recall": {}, "unknown": 0}
    predicted = probabilities.argmax(axis=1)
    occurring = np.unique(targets).tolist()
    named = [action for action in names if action in occurring]
    recalls = recall_score(targets, predicted, labels=named, average=None, zero_division=0) if named else []
    report |= {
        "accuracy": float(accuracy_score(targets, predicted)),
        "macro_f1": float(f1_score(targets, predicted, labels=occurring, average="macro", zero_division=0)),
        "log_loss": None,
        "ece": None,
        "recall": {names[action]: float(value) for action, value in zip(named, recalls, strict=True)},
        "unknown": int(np.count_nonzero(~known)),
    }
    if known.any():
        columns = list(names)
        report["log_loss"] = _log_loss(targets[known], probabilities[known][:, columns], columns)
        report["ece"] = expected_calibration_error(probabilities[known].max(axis=1), predicted[known] == targets[known])
    return report


def balancing_weights(targets: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Log-weights of the actions under which naming argmax(log p + weight) has a high macro-F1 on these targets.

    The most probable action is the best guess, and never a rare action: macro-F1 is higher when a rare one is named
    before its probability reaches the others' (Lipton et al. 2014, "Optimal Thresholding of Classifiers to Maximize F1
    Measure"). Found by coordinate ascent over a grid; probabilities stay what they are.

    Args:
        targets: (N,) action ids; probabilities: (N, A) float64.

    Returns:
        (A,) float64; 0 for actions that occur fewer than `FEWEST_BALANCED` times.

    >>> probabilities = np.array([[0.8, 0.2]] * 20 + [[0.6, 0.4]] * 10)
    >>> weights = balancing_weights(np.repeat([0, 1], [20, 10]), probabilities)
    >>> (np.log(probabilities) + weights).argmax(axis=1).tolist() == [0] * 20 + [1] * 10
    True
    """
    size = probabilities.shape[1]
    occurring, counts = np.unique(targets[targets < size], return_counts=True)
    logs = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))

    def macro_f1(weights: np.ndarray) -> float:
        predicted = (logs + weights).argmax(axis=1)
        hits = np.bincount(targets[predicted == targets], minlength=size)[occurring]
        return float(np.mean(2 * hits / (counts + np.bincount(predicted, minlength=size)[occurring])))

    weights = np.zeros(size)
    best = macro_f1(weights) if len(occurring) else 0.0
    for _ in range(BALANCING_ROUNDS):
        for action in occurring[counts >= FEWEST_BALANCED]:
            for weight in BALANCING_GRID:
                changed = weights.copy()
                changed[action] = weight
                reached = macro_f1(changed)
                if reached > best:
                    weights, best = changed, reached
    return weights


def _log_loss(targets: np.ndarray, probabilities: np.ndarray, labels: list[int]) -> float:
    if len(labels) == 1:  # scikit-learn wants two classes; one that is certain loses nothing
        return float(-np.log(np.clip(probabilities[:, 0], np.finfo(np.float64).eps, 1)).mean())
    return float(log_loss(targets, probabilities, labels=labels))


# ----------------------------------------------------------------------------------------------------------------------
# Intervals
# ----------------------------------------------------------------------------------------------------------------------


def bootstrap_means(
    sums: np.ndarray, counts: np.ndarray, resamples: int = BOOTSTRAP_RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Means over the targets of users drawn with replacement; the same draws for every column, so that differences of
    columns are paired.

    Args:
        sums, counts: (U, M): for each user and metric the sum over its targets, and their number.
        seed: of the draws.

    Returns:
        (resamples, M) float64; NaN where no drawn user has a target.
    """
    users = len(sums)
    generator = np.random.default_rng(seed)
    stacked = np.concatenate([sums, counts], axis=1).astype(np.float64)
    totals = np.zeros((resamples, stacked.shape[1]))
    step = max(1, RESAMPLING_CHUNK // max(1, users))
    for begin in range(0, resamples if users else 0, step):
        rows = min(step, resamples - begin)
        drawn = generator.integers(users, size=(rows, users)) + np.arange(rows)[:, None] * users
        times = np.bincount(drawn.ravel(), minlength=rows * users).reshape(rows, users)
        totals[begin : begin + rows] = times.astype(np.float64) @ stacked
    total, count = np.split(totals, 2, axis=1)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def interval(means: np.ndarray, confidence: float = CONFIDENCE) -> list[float] | None:
    """[low, high] that hold `confidence` of the (R,) resampled means; None where there are none.

    >>> [round(end, 3) for end in interval(np.arange(101) / 100)]
    [0.025, 0.975]
    """
    means = means[~np.isnan(means)]
    if not len(means):
        return None
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return [float(low), float(high)]
