"""How well the time until the next event is predicted, beside simple rules.

    time_metrics(sequences, positions, gaps, by_bucket, edges)

    model             the distribution over the buckets, and its median
    training_gaps     the same for every history: the gaps between the training events
    user_median_gap   the median of the user's own gaps so far, no distribution; that of the training gaps before there
                      is one

Each has log_loss (nats), ece and bins of the most probable bucket, and two errors of the median: log_error, the mean of
|ln(predicted / true)|, both at least a second, and hours_error, the median of the absolute error in hours. An error of
0.7 in the logarithm is a factor of two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from next_behavior.data.sequences import TRAIN, Sequences
from next_behavior.evaluation.reliability import Numbers, reliability
from next_behavior.model.answers import TimeUntilNext
from next_behavior.model.special_ids import FIRST_GAP

SHORTEST = 1.0  # seconds
HOUR = 3600.0
LEAST_PROBABILITY = 1e-12


def time_metrics(
    sequences: Sequences, positions: np.ndarray, gaps: np.ndarray, by_bucket: np.ndarray, edges: Sequence[float]
) -> Numbers | None:
    """The metrics over the targets at positions (N,); None where no time is known.

    Args:
        gaps: (N,) int64, ids of the true buckets.
        by_bucket: (N, G) float64, the model's probabilities of the buckets.
        edges: of the buckets, in seconds.
    """
    timed = gaps >= FIRST_GAP
    positions, bucket, by_bucket = positions[timed], gaps[timed] - FIRST_GAP, by_bucket[timed]
    if not len(positions):
        return None
    seconds = (sequences.timestamps[positions] - sequences.timestamps[positions - 1]) / 1e6
    median_of = TimeUntilNext(edges)
    medians = np.array([median_of(row)["median_seconds"] for row in by_bucket])
    training_buckets, training_median = gaps_of_training(sequences, by_bucket.shape[1])
    everywhere = np.broadcast_to(training_buckets, by_bucket.shape)
    own = user_medians(sequences, positions, training_median)
    return {
        "count": len(positions),
        "model": {**bucket_metrics(bucket, by_bucket), **median_errors(medians, seconds)},
        "training_gaps": {
            **bucket_metrics(bucket, everywhere),
            **median_errors(np.full(len(seconds), training_median), seconds),
        },
        "user_median_gap": {"log_loss": None, "ece": None, **median_errors(own, seconds)},
    }


def bucket_metrics(bucket: np.ndarray, by_bucket: np.ndarray) -> Numbers:
    """log_loss, ece and bins of probabilities (N, G) for the true buckets (N,)."""
    given = by_bucket[np.arange(len(bucket)), bucket]
    numbers = reliability(by_bucket.max(axis=1), by_bucket.argmax(axis=1) == bucket)
    loss = float(-np.log(given.clip(min=LEAST_PROBABILITY)).mean())
    return {"log_loss": loss, "ece": numbers["ece"], "bins": numbers["bins"]}


def median_errors(predicted: np.ndarray, seconds: np.ndarray) -> Numbers:
    """log_error and hours_error of the predicted (N,) for the true seconds (N,).

    >>> errors = median_errors(np.array([7200.0, 3600.0]), np.array([3600.0, 3600.0]))
    >>> round(errors["log_error"], 4), errors["hours_error"]
    (0.3466, 0.5)
    """
    logarithm = np.log(predicted.clip(min=SHORTEST) / seconds.clip(min=SHORTEST))
    hours = np.abs(predicted - seconds) / HOUR
    return {"log_error": float(np.abs(logarithm).mean()), "hours_error": float(np.median(hours))}


def gaps_of_training(sequences: Sequences, num_buckets: int) -> tuple[np.ndarray, float]:
    """The shares (G,) of the buckets among the training events, each counted once more than it occurs, and the median
    gap in seconds."""
    place = np.flatnonzero((sequences.parts == TRAIN) & (sequences.time_gaps >= FIRST_GAP))
    counts = np.bincount(sequences.time_gaps[place] - FIRST_GAP, minlength=num_buckets) + 1.0
    seconds = (sequences.timestamps[place] - sequences.timestamps[place - 1]) / 1e6
    return counts / counts.sum(), float(np.median(seconds)) if len(seconds) else 0.0


def user_medians(sequences: Sequences, positions: np.ndarray, otherwise: float) -> np.ndarray:
    """(N,) seconds: the median gap between the events of the user before each position; `otherwise` before there are
    two."""
    begin = sequences.offsets[np.searchsorted(sequences.offsets, positions, side="right") - 1]
    medians = np.full(len(positions), otherwise)
    for row, (first, last) in enumerate(zip(begin.tolist(), positions.tolist(), strict=True)):
        if last - first > 1:
            medians[row] = np.median(np.diff(sequences.timestamps[first:last])) / 1e6
    return medians
