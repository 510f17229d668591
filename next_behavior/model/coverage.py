"""Prediction sets: the most probable answers that hold the next one with a wanted probability, by split conformal
prediction.

The answers are ranked by probability. The score of an answer is the probability of all that stand before it. The set
are the answers whose score is within a limit. It always holds the first one. The limit for a coverage is that quantile
of the scores of held-out next events, with the correction for their finite number, so no assumption about the
probabilities is needed. It needs events like those that the limits were fitted on: under drift, coverage drifts.

References: Angelopoulos and Bates 2021 (split conformal prediction); Romano et al. 2020 (sets by cumulative
probability). This file imports numpy alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

# The coverages that have a limit, in percent.
PERCENT = range(1, 100)
LOWEST, HIGHEST = PERCENT[0] / 100, PERCENT[-1] / 100
# A sum of a catalog's float32 probabilities is not exact: scores this much above the limit are within it.
SLACK = 1e-6


def limits_of(scores: np.ndarray) -> list[float]:
    """(99,) ascending limits for `PERCENT`, from the scores (N,) of held-out events; empty where N is too small for the
    highest coverage (fewer than 99)."""
    scores = np.sort(np.asarray(scores, np.float64))
    count = len(scores)
    if math.ceil((count + 1) * HIGHEST - 1e-9) > count:
        return []
    places = [math.ceil((count + 1) * percent / 100 - 1e-9) - 1 for percent in PERCENT]
    return [round(float(scores[place]), 8) for place in places]


def limit_for(coverage: Any, of: str, restricted: bool, limits: Sequence[float]) -> float:
    """The limit of the sets with a coverage, that of the next higher whole percent.

    Args:
        of: the question.
        restricted: an action is given, items are left out or named, or answers are weighed.
        limits: of the model for this question; empty for a model without.

    Raises:
        ValueError: the coverage is no number in range, the question has no sets, or the model has no limits.
    """
    if isinstance(coverage, bool) or not isinstance(coverage, (int, float)) or not LOWEST <= coverage <= HIGHEST:
        raise ValueError(
            f"coverage is {coverage!r:.80} ({type(coverage).__name__}), expected a probability from {LOWEST} to "
            f"{HIGHEST}."
        )
    if of not in ("item", "action"):
        raise ValueError(
            f'coverage asks for a set of items or of actions, got of="{of}": use of="item" or of="action".'
        )
    if restricted:
        raise ValueError(
            "coverage holds for all candidates: action, exclude_seen, allowed_items and balanced do not apply to it."
        )
    if not limits:
        raise ValueError(
            f'coverage needs config.{of}_set_limits, and this model has none: fit them with "next-behavior calibrate '
            '--model DIR --events EVENTS", on a log with at least 99 validation events.'
        )
    return limits[math.ceil(coverage * 100 - 1e-9) - 1]


def set_sizes(probabilities: np.ndarray, limit: float) -> np.ndarray:
    """(B,) int64: how many of the first answers are in the set, at least one where there is one, for the probabilities
    (B, N) of all candidates, descending, 0 for what is none."""
    table = np.asarray(probabilities, np.float64)
    before = table.cumsum(axis=1) - table
    return ((before <= limit + SLACK) & (table > 0)).sum(axis=1)


def score_of(probabilities: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(B,) float64: the score of the candidate `target` (B,) for probabilities (B, N) in any order."""
    table = np.asarray(probabilities, np.float64)
    own = np.take_along_axis(table, np.asarray(target)[:, None], axis=1)
    return np.where(table >= own, table, 0.0).sum(axis=1) - own[:, 0]
