"""Reliability: how often what was given a probability came true.

    reliability(confidence, correct)     # {"count", "confidence", "accuracy", "ece", "bins"}
    ranked_reliability(top)              # of the first ten answers, by rank, for repeats and new items apart

A model that is calibrated over all items can be miscalibrated in the first places, so each rank is measured alone
(Sato 2024, "Calibrating the Predictions for Top-N Recommendations", arXiv 2408.11596). The bins are those of
`expected_calibration_error`, for a plot of accuracy over confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from next_behavior.evaluation.metrics import CALIBRATION_BINS, expected_calibration_error
from next_behavior.evaluation.recommended import LIST_LENGTH

Numbers = dict[str, Any]


@dataclass(frozen=True)
class FirstAnswers:
    """The first answers to N questions, (N, `LIST_LENGTH`) each, best first.

    Attributes:
        probability: float64, 0 where there are fewer candidates.
        is_target: bool, the answer is the next item.
        is_repeat: bool, the answer is an item of the history.
    """

    probability: np.ndarray
    is_target: np.ndarray
    is_repeat: np.ndarray


def joined(parts: Sequence[FirstAnswers]) -> FirstAnswers:
    """The answers to all questions, in the order of the parts."""
    return FirstAnswers(*(np.concatenate(each) for each in zip(*(vars(part).values() for part in parts), strict=True)))


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = CALIBRATION_BINS) -> Numbers:
    """Of predictions with probabilities (N,) of which some, (N,) bool, are right.

    Returns:
        count; confidence and accuracy, means; ece; bins: {confidence, accuracy, count} of each that holds predictions,
        ascending. None where there are no predictions.

    >>> numbers = reliability(np.array([0.8, 0.8, 0.8, 0.8, 0.3]), np.array([1, 1, 1, 0, 0]))
    >>> [(each["count"], each["accuracy"]) for each in numbers["bins"]], round(numbers["ece"], 4)
    ([(1, 0.0), (4, 0.75)], 0.1)
    """
    if not len(confidence):
        return {"count": 0, "confidence": None, "accuracy": None, "ece": None, "bins": []}
    which = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(which, minlength=bins)
    given = np.bincount(which, weights=confidence, minlength=bins)
    right = np.bincount(which, weights=correct.astype(np.float64), minlength=bins)
    return {
        "count": len(confidence),
        "confidence": float(confidence.mean()),
        "accuracy": float(correct.mean()),
        "ece": expected_calibration_error(confidence, correct, bins),
        "bins": [
            {"confidence": total / count, "accuracy": hits / count, "count": count}
            for total, hits, count in zip(given.tolist(), right.tolist(), counts.tolist(), strict=True)
            if count
        ],
    }


def ranked_reliability(top: FirstAnswers) -> Numbers:
    """Of the first answers.

    Returns:
        ece: the mean of the ranks' errors; by_rank: `reliability` of each; repeat and new: that of all first answers
        which are items of the history, and of the others.
    """
    there = top.probability > 0
    by_rank = [
        reliability(top.probability[there[:, rank], rank], top.is_target[there[:, rank], rank])
        for rank in range(top.probability.shape[1])
    ]
    errors = [numbers["ece"] for numbers in by_rank if numbers["count"]]
    groups = {"repeat": there & top.is_repeat, "new": there & ~top.is_repeat}
    return {
        "ece": float(np.mean(errors)) if errors else None,
        "by_rank": by_rank,
        **{name: reliability(top.probability[chosen], top.is_target[chosen]) for name, chosen in groups.items()},
    }


def first_answers(probabilities: np.ndarray, target: np.ndarray, seen: list[np.ndarray]) -> FirstAnswers:
    """Of the probabilities (B, V) of all ids, targets (B,) int64, negative for none, and the ids of each history."""
    count = min(LIST_LENGTH, probabilities.shape[1])
    rows = np.arange(len(probabilities))[:, None]
    best = np.argpartition(-probabilities, count - 1, axis=1)[:, :count]
    best = np.take_along_axis(best, np.argsort(-probabilities[rows, best], axis=1, kind="stable"), axis=1)
    is_repeat = np.stack([np.isin(ids, history) for ids, history in zip(best, seen, strict=True)])
    return FirstAnswers(probabilities[rows, best].astype(np.float64), best == target[:, None], is_repeat)
