"""What every compared system is given, and how it is scored and timed. numpy alone: it runs in any environment.

    task = Task.load("task.npz")
    score(rows, task, task.test)       # rows(positions) -> (B, V) scores of the catalog for the events at `positions`

The catalog is the items of the training events. Every target is ranked among all of it, ties against the system:
once with the items that its user has seen as candidates (kept), once without (removed; then only targets new to the
user count). A target outside the catalog is a miss for everyone. With one target per ranking, Recall@10 is the hit
rate and NDCG@10 is 1 / log2(rank + 1) within the first ten.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CUTOFF = 10
CHUNK = 256
# A training stops after this many validations without a better NDCG@10, and, where it counts its batches, not before
# this many of them: with few batches in an epoch, five epochs are too short to tell.
PATIENCE = 5
PATIENCE_BATCHES = 500
# The first batches of a training, which pay for allocation, are left out of its throughput.
WARM_UP_BATCHES = 5
NO_ITEM = -1
TRAIN, VALIDATION, TEST = 0, 1, 2

ScoreRows = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Task:
    """A log, how it is split, and what is to be predicted.

    Attributes:
        offsets: (U + 1,) int64; user u owns the events `offsets[u]:offsets[u + 1]`, in time order.
        items: (E,) int64, 0 to V - 1 for the catalog, from V on for items without a training event, -1 for no item.
        times: (E,) int64 microseconds, or the place in the file where the log has no times.
        parts: (E,) int8, 0 train, 1 validation, 2 test.
        user_ids, item_ids: U and V strings.
        validation, test: (N,) int64, the events to predict. The validation targets decide when a system stops, and are
            those of a random draw of users.
        way: "removed" or "kept", the ranking that validation looks at.
    """

    offsets: np.ndarray
    items: np.ndarray
    times: np.ndarray
    parts: np.ndarray
    user_ids: np.ndarray
    item_ids: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    way: str

    @property
    def num_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @classmethod
    def load(cls, path: str | Path) -> Task:
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{name: arrays[name] for name in arrays.files if name != "way"}, way=str(arrays["way"]))

    def save(self, path: str | Path) -> None:
        np.savez(path, **vars(self))

    def users(self, positions: np.ndarray) -> np.ndarray:
        """(N,) int64: whose the events are."""
        return np.searchsorted(self.offsets, positions, side="right") - 1

    def history(self, position: int) -> np.ndarray:
        """The catalog's items that the user of an event had before it, oldest first."""
        begin = self.offsets[np.searchsorted(self.offsets, position, side="right") - 1]
        items = self.items[begin:position]
        return items[(items >= 0) & (items < self.num_items)]

    def training(self) -> tuple[np.ndarray, np.ndarray]:
        """Users and items, (N,) int64 each, of the training events that name an item, in order."""
        named = (self.parts == TRAIN) & (self.items != NO_ITEM)
        users = np.repeat(np.arange(self.num_users), np.diff(self.offsets))
        return users[named], self.items[named]

    def next_item_targets(self) -> int:
        """Training events with an earlier one of their user: what a next-item model learns from in one epoch."""
        users, _ = self.training()
        return len(users) - len(np.unique(users))


def ranks(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(B,) int64: 1 + better items + other items with the target's score; V + 1 where the target is no candidate.

    >>> ranks(np.array([[0.1, 0.9, 0.5, 0.5], [0.1, 0.9, 0.5, -np.inf], [1, 1, 1, 1]]), np.array([2, 3, 9]))
    array([3, 5, 5])
    """
    size = scores.shape[1]
    inside = (targets >= 0) & (targets < size)
    of_target = scores[np.arange(len(targets)), np.where(inside, targets, 0)]
    # Not "less" instead of "greater or equal": a NaN counts against the target.
    found = size - np.count_nonzero(scores < of_target[:, None], axis=1)
    return np.where(inside & (of_target != -np.inf), found, size + 1).astype(np.int64)


def ranking_metrics(found: np.ndarray, num_items: int) -> dict[str, float | int | None]:
    """count, recall@10 and ndcg@10 of ranks.

    >>> ranking_metrics(np.array([1, 3, 11, 101]), num_items=100)
    {'count': 4, 'recall@10': 0.5, 'ndcg@10': 0.375}
    """
    hit = (found <= CUTOFF) & (found <= num_items)
    gain = np.where(hit, 1 / np.log2(found + 1), 0.0)
    means = {f"recall@{CUTOFF}": hit, f"ndcg@{CUTOFF}": gain}
    return {"count": len(found), **{name: float(v.mean()) if len(v) else None for name, v in means.items()}}


def chunks(positions: np.ndarray, size: int = CHUNK) -> Iterator[np.ndarray]:
    for begin in range(0, len(positions), size):
        yield positions[begin : begin + size]


def score(rows: ScoreRows, task: Task, positions: np.ndarray) -> dict[str, dict[str, Any]]:
    """`kept` and `removed` metrics of the targets at `positions` that name an item.

    Args:
        rows: from (B,) positions to (B, V) float scores, which are changed here.
    """
    found: dict[str, list[np.ndarray]] = {"kept": [], "removed": []}
    for part in chunks(positions[task.items[positions] != NO_ITEM]):
        scores, targets = rows(part), task.items[part]
        if scores.shape != (len(part), task.num_items):
            raise ValueError(f"got scores of shape {scores.shape}; expected {(len(part), task.num_items)}")
        found["kept"].append(ranks(scores, targets))
        begins = task.offsets[task.users(part)]
        novel = np.ones(len(part), dtype=bool)
        for row, (begin, position) in enumerate(zip(begins.tolist(), part.tolist(), strict=True)):
            history = task.items[begin:position]
            novel[row] = not (history == targets[row]).any()
            scores[row, history[(history >= 0) & (history < task.num_items)]] = -np.inf
        found["removed"].append(ranks(scores, targets)[novel])
    none = [np.zeros(0, dtype=np.int64)]
    return {way: ranking_metrics(np.concatenate(found[way] or none), task.num_items) for way in found}


def top_items(scores: np.ndarray, k: int = CUTOFF) -> np.ndarray:
    """The k best items of one row of scores, best first.

    >>> top_items(np.array([0.1, 0.9, 0.5, 0.7]), 2)
    array([1, 3])
    """
    best = np.argpartition(-scores, min(k, len(scores)) - 1)[:k]
    return best[np.argsort(-scores[best], kind="stable")]


# ----------------------------------------------------------------------------------------------------------------------
# Time
# ----------------------------------------------------------------------------------------------------------------------


class OutOfTime(Exception):
    """The time limit was reached within an epoch."""


class Clock:
    """Seconds, targets, validations and the end of one training.

    Seconds are those that the process has computed, imports and reading included, this scoring left out: with one
    thread they are those of a core that nobody else uses, also on a busy machine.

    Args:
        limit: seconds that training may take.
    """

    def __init__(self, task: Task, limit: float) -> None:
        self.task, self.limit = task, limit
        self.scoring_seconds = 0.0
        self.epoch = self.best_epoch = 0
        self.best = -1.0
        self.curve: list[dict[str, float]] = []
        self.training_seconds: float | None = None  # where not all the time is training
        self._batches, self._best_batches, self._targets, self._seconds = 0, 0, 0, 0.0
        self._batch_ended: float | None = None

    def add(self, targets: int, seconds: float) -> None:
        """Counts a training of so many targets."""
        self._targets += targets
        self._seconds += seconds

    def elapsed(self) -> float:
        return time.process_time() - self.scoring_seconds

    def is_over(self) -> bool:
        return self.elapsed() > self.limit

    def batch(self, targets: int) -> None:
        """Call at the end of each training batch. Counts the time since the end of the one before, reading included."""
        now = time.process_time()
        if self._batch_ended is not None and self._batches >= WARM_UP_BATCHES:
            self.add(targets, now - self._batch_ended)
        self._batches += 1
        self._batch_ended = now

    def targets_per_second(self) -> float | None:
        return self._targets / self._seconds if self._seconds else None

    def validate(self, rows: ScoreRows) -> bool:
        """Scores the validation targets after an epoch; whether this is the best so far."""
        seconds, before = self.elapsed(), time.process_time()
        ndcg = float(score(rows, self.task, self.task.validation)[self.task.way][f"ndcg@{CUTOFF}"])
        self.scoring_seconds += time.process_time() - before
        self._batch_ended = None
        self.epoch += 1
        self.curve.append({"epoch": self.epoch, "seconds": round(seconds, 2), "ndcg@10": ndcg})
        print(f"epoch {self.epoch}  {seconds:.1f} s  validation NDCG@10 {ndcg:.4f}", flush=True)
        if ndcg > self.best:
            self.best, self.best_epoch, self._best_batches = ndcg, self.epoch, self._batches
            return True
        return False

    def is_finished(self) -> bool:
        enough = self._batches == 0 or self._batches - self._best_batches >= PATIENCE_BATCHES
        return self.is_over() or (enough and self.epoch - self.best_epoch >= PATIENCE)
