"""Metrics of the next item and of the next action, and their intervals.

Ranking is against the whole catalog and pessimistic: an item with the target's score stands before it, so that a
ranker that scores everything alike gets nothing. Sampled candidates would reorder rankers (Krichene and Rendle 2020,
"On Sampled Metrics for Item Recommendation"). With one target per ranking, Recall@k is the hit rate and NDCG@k is
1 / log2(rank + 1) within the first k.

Action metrics are scikit-learn's, and the expected calibration error (Naeini et al. 2015; Guo et al. 2017).
Intervals are percentile bootstraps over users, whose events hang together (Efron 1979).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

CUTOFFS = (1, 5, 10, 20)
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


def beyond_any_cutoff(ranks: np.ndarray, num_ids: int) -> np.ndarray:
    """(N,) ranks, those of targets that could not be ranked beyond every k: in a catalog smaller than k, `num_ids` + 1
    would be among the first k."""
    return np.where(ranks > num_ids, np.iinfo(np.int32).max, ranks)


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
    ranks = beyond_any_cutoff(ranks, num_ids)
    values = {f"recall@{k}": recall_at_k(ranks, k) for k in CUTOFFS}
    values |= {f"ndcg@{k}": ndcg_at_k(ranks, k) for k in CUTOFFS}
    values["mrr"] = reciprocal_rank(ranks, num_ids)
    means: Metrics = {name: float(value.mean()) if len(ranks) else None for name, value in values.items()}
    return {"count": len(ranks), **means}


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


def action_metrics(targets: np.ndarray, probabilities: np.ndarray, names: dict[int, str]) -> dict[str, Any]:
    """Metrics of the next action.

    Args:
        targets: (N,) action ids. An id without a name is an action that training never saw: it is counted as missed in
            accuracy, recall and macro-F1, and left out of log-loss and calibration.
        probabilities: (N, A) float64, rows sum to one.
        names: action id -> name, in the order to report.

    Returns:
        count; accuracy; macro_f1 over the actions that occur as targets; log_loss in nats; ece
        (`expected_calibration_error`, 15 bins); recall, precision and f1: {action: value} for the actions that occur;
        confusion: {action: {predicted action: targets}}, pairs that occur; unknown: number of targets without a name.
        Values are None where nothing can be averaged: the precision of an action that is never predicted, too.

    >>> probabilities = np.array([[0, 0, 0, 0.8, 0.2], [0, 0, 0, 0.6, 0.4], [0, 0, 0, 0.3, 0.7]])
    >>> metrics = action_metrics(np.array([3, 4, 4]), probabilities, {3: "view", 4: "buy"})
    >>> round(metrics["accuracy"], 4), round(metrics["macro_f1"], 4), metrics["recall"]
    (0.6667, 0.6667, {'view': 1.0, 'buy': 0.5})
    >>> metrics["precision"], metrics["confusion"]
    ({'view': 0.5, 'buy': 1.0}, {'view': {'view': 1}, 'buy': {'view': 1, 'buy': 1}})
    """
    known = np.isin(targets, list(names))
    report: dict[str, Any] = {"count": len(targets)}
    if not len(targets):
        means = dict.fromkeys(("accuracy", "macro_f1", "log_loss", "ece"))
        return report | means | {"recall": {}, "precision": {}, "f1": {}, "confusion": {}, "unknown": 0}
    predicted = probabilities.argmax(axis=1)
    occurring = np.unique(targets).tolist()
    report |= {
        "accuracy": float(accuracy_score(targets, predicted)),
        "macro_f1": float(f1_score(targets, predicted, labels=occurring, average="macro", zero_division=0)),
        "log_loss": None,
        "ece": None,
        **_by_action(targets, predicted, {action: name for action, name in names.items() if action in occurring}),
        "confusion": _confusion(targets, predicted, names),
        "unknown": int(np.count_nonzero(~known)),
    }
    if known.any():
        columns = list(names)
        report["log_loss"] = float(log_losses(targets[known], probabilities[known][:, columns], columns).mean())
        report["ece"] = expected_calibration_error(probabilities[known].max(axis=1), predicted[known] == targets[known])
    return report


def _by_action(targets: np.ndarray, predicted: np.ndarray, names: dict[int, str]) -> dict[str, dict[str, Any]]:
    """recall, precision and f1 of each action of `names`; None for the precision of an action never predicted."""
    if not names:
        return {"recall": {}, "precision": {}, "f1": {}}
    precision, recall, f1, _ = precision_recall_fscore_support(
        targets, predicted, labels=list(names), average=None, zero_division=0
    )
    guessed = np.isin(list(names), predicted)
    values = {"recall": recall, "precision": np.where(guessed, precision, np.nan), "f1": f1}
    return {
        metric: {
            name: None if np.isnan(value) else float(value) for name, value in zip(names.values(), column, strict=True)
        }
        for metric, column in values.items()
    }


def _confusion(targets: np.ndarray, predicted: np.ndarray, names: dict[int, str]) -> dict[str, dict[str, int]]:
    """How often an action came and which was predicted, in the order of `names`; targets without a name are left out.
    Only pairs that occur are held: a log may have thousands of actions."""
    rows: dict[str, dict[str, int]] = {}
    pairs, counts = np.unique(np.stack([targets, predicted], axis=1), axis=0, return_counts=True)
    for (target, guess), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        if target in names:
            rows.setdefault(names[target], {})[names[guess]] = count
    return rows


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


def log_losses(targets: np.ndarray, probabilities: np.ndarray, labels: list[int]) -> np.ndarray:
    """(N,) float64: -log of each target's probability, in nats, bounded as scikit-learn's `log_loss` does.

    Args:
        targets: (N,) ids among the labels; probabilities: (N, L), rows sum to one; labels: L distinct ids.

    >>> log_losses(np.array([4, 3]), np.array([[0.5, 0.5], [0.25, 0.75]]), [3, 4])
    array([0.69314718, 1.38629436])
    """
    column = np.array([labels.index(target) for target in np.unique(targets)], dtype=np.int64)
    place = column[np.unique(targets, return_inverse=True)[1]]
    bound = np.finfo(np.float64).eps
    return -np.log(np.clip(probabilities[np.arange(len(targets)), place], bound, 1.0))


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
    totals = bootstrap_totals(np.concatenate([sums, counts], axis=1), resamples, seed)
    total, count = np.split(totals, 2, axis=1)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def bootstrap_totals(values: np.ndarray, resamples: int = BOOTSTRAP_RESAMPLES, seed: int = 0) -> np.ndarray:
    """(resamples, M) float64: sums of values (U, M) over users drawn with replacement, the same draws for a seed."""
    users = len(values)
    generator = np.random.default_rng(seed)
    totals = np.zeros((resamples, values.shape[1]))
    step = max(1, RESAMPLING_CHUNK // max(1, users))
    for begin in range(0, resamples if users else 0, step):
        rows = min(step, resamples - begin)
        drawn = generator.integers(users, size=(rows, users)) + np.arange(rows)[:, None] * users
        times = np.bincount(drawn.ravel(), minlength=rows * users).reshape(rows, users)
        totals[begin : begin + rows] = times.astype(np.float64) @ values.astype(np.float64)
    return totals


def bootstrap_macro_f1(counts: np.ndarray, resamples: int = BOOTSTRAP_RESAMPLES, seed: int = 0) -> np.ndarray:
    """Macro-F1 of the targets of users drawn with replacement, over the actions that occur among those targets; the
    draws are those of `bootstrap_means`.

    Args:
        counts: (U, 3, A): for each user and action its targets that are predicted rightly, its targets, and how often
            it is predicted.

    Returns:
        (resamples,) float64; NaN where no drawn user has a target.
    """
    totals = bootstrap_totals(counts.reshape(len(counts), -1), resamples, seed)  # (R, 3 * A)
    hits, targets, predicted = totals.reshape(resamples, *counts.shape[1:]).transpose(1, 0, 2)
    occurs = targets > 0
    f1 = np.where(occurs, 2 * hits / np.maximum(targets + predicted, 1), 0.0)
    number = occurs.sum(axis=1)
    return np.divide(f1.sum(axis=1), number, out=np.full(resamples, np.nan), where=number > 0)


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
