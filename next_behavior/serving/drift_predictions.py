"""How well a model predicts a sample of events, each from the events of its user before it.

    sample = predict_sample(predictor, judged, events, most=2000, seed=0, progress=lambda steps, total, what: steps)
    predictions_of(sample, record), calibration_of(sample, record)

`judged` are rows of `events` with their row there as `at` and the place in their user's history as `place` (drift.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from next_behavior.data.columns import ACTION, ITEM, TIME, USER
from next_behavior.serving.predictor import Predictor
from next_behavior.serving.shift import BIN_NAMES, BINS, UNKNOWN, bin_of, known_action
from next_behavior.serving.training_record import TrainingRecord

TOP = 10
# Events of one user that are predicted at most, evenly spaced: nobody decides the figures alone.
MOST_OF_USER = 50
QUESTIONS_AT_ONCE = 32
RESAMPLES = 400

Progress = Callable[[Iterable[int], int, str], Iterable[int]]


@dataclass(frozen=True)
class Predictions:
    """How well the sampled events were predicted: Recall@10 with a 95 % interval over users, NDCG@10, and both at the
    training; None where nothing could be measured or is recorded."""

    users: int
    events: int
    item_events: int
    recall: float | None
    interval: tuple[float, float] | None
    ndcg: float | None
    training_recall: float | None
    training_ndcg: float | None


@dataclass(frozen=True)
class Bin:
    """Probabilities of next actions in a tenth of [0, 1]: how many, their sum, and how many of the actions happened."""

    name: str
    predictions: int
    expected: float
    happened: int


@dataclass(frozen=True)
class Calibration:
    """Of the next action. `error` is the expected calibration error of the most probable action, over ten bins."""

    bins: list[Bin]
    error: float | None
    training_error: float | None


@dataclass(frozen=True)
class Sample:
    """Events that were predicted, in order of time.

    Attributes:
        users: (n,) a number for each user; times: (n,) microseconds.
        ranks: (n,) of the item among the first ten, 0 if it is not there, -1 without an item.
        actions: (n, Q) probabilities; happened: (n,) the column of the action, -1 for an unknown one.
    """

    users: np.ndarray
    times: np.ndarray
    ranks: np.ndarray
    actions: np.ndarray
    happened: np.ndarray


def predict_sample(
    predictor: Predictor, judged: pl.DataFrame, events: pl.DataFrame, most: int, seed: int, progress: Progress
) -> Sample:
    """Predicts events of users drawn at random, about `most`."""
    chosen = drawn(judged, most, seed)
    names = predictor.info.actions
    at, before = chosen["at"].to_list(), chosen["place"].clip(upper_bound=predictor.info.max_events + 1).to_list()
    items, actions = chosen[ITEM].to_list(), [known_action(action, names) for action in chosen[ACTION].to_list()]
    ranks, probabilities = np.zeros(len(at), np.int64), np.zeros((len(at), len(names)))
    by_length = sorted(range(len(at)), key=before.__getitem__)  # a pass is as long as its longest history
    steps = range(0, len(at), QUESTIONS_AT_ONCE)
    for begin in progress(steps, len(steps), "predicting"):
        part = by_length[begin : begin + QUESTIONS_AT_ONCE]
        asked = []
        for row in part:
            history = history_of(events.slice(at[row] - before[row], before[row]))
            asked.append(predictor.ask(history, of="item", top_k=TOP))
            asked.append(predictor.ask(history, of="action", top_k=len(names)))
        answers = predictor.answers(asked)
        for row, of_items, of_actions in zip(part, answers[::2], answers[1::2], strict=True):
            found = [answer["item"] for answer in of_items]
            item = items[row]
            ranks[row] = -1 if item is None else found.index(item) + 1 if item in found else 0
            said = {answer["action"]: answer["probability"] for answer in of_actions}
            probabilities[row] = [said[name] for name in names]
    return Sample(
        users=chosen[USER].rank("dense").to_numpy().astype(np.int64),
        times=chosen[TIME].cast(pl.Int64).to_numpy(),
        ranks=ranks,
        actions=probabilities,
        happened=np.array([-1 if action == UNKNOWN else names.index(action) for action in actions], np.int64),
    )


def history_of(events: pl.DataFrame) -> list[dict[str, Any]]:
    """Events as a predictor reads them."""
    times = events[TIME].cast(pl.Int64) / 1_000_000
    columns = zip(events[ITEM].to_list(), events[ACTION].to_list(), times.to_list(), strict=True)
    return [{"item": item, "action": action, "timestamp": time} for item, action, time in columns]


def drawn(judged: pl.DataFrame, most: int, seed: int) -> pl.DataFrame:
    """Events of users drawn at random, at most `MOST_OF_USER` of each, evenly spaced, in order of time.

    A user's first event is left out, as in the evaluation that the sample is compared with.
    """
    judged = judged.filter(pl.col("place") > 0)
    nth = pl.int_range(pl.len()).over(USER)
    step = (pl.len().over(USER) / MOST_OF_USER).ceil().cast(pl.Int64)
    spaced = judged.filter(nth % step == 0)
    users = spaced.group_by(USER, maintain_order=True).len().sample(fraction=1.0, shuffle=True, seed=seed)
    enough = users.filter(pl.col("len").cum_sum() - pl.col("len") < most)
    return spaced.join(enough.select(USER), on=USER, how="semi").sort(TIME, "at").head(most)


def predictions_of(sample: Sample, record: TrainingRecord) -> Predictions:
    """Recall and NDCG of a sample."""
    named = sample.ranks >= 0
    ranks = sample.ranks[named]
    recall = ndcg = interval = None
    if len(ranks):
        hits = ranks > 0
        recall, interval = float(hits.mean()), interval_over_users(sample.users[named], hits)
        ndcg = float(np.where(hits, 1 / np.log2(ranks + 1.0, where=hits, out=np.ones(len(ranks))), 0.0).mean())
    return Predictions(
        users=len(np.unique(sample.users)),
        events=len(sample.ranks),
        item_events=len(ranks),
        recall=recall,
        interval=interval,
        ndcg=ndcg,
        training_recall=record.recall,
        training_ndcg=record.ndcg,
    )


def interval_over_users(users: np.ndarray, hits: np.ndarray) -> tuple[float, float]:
    """A 95 % percentile bootstrap of the mean: events of one user hang together."""
    _, index = np.unique(users, return_inverse=True)
    counts, sums = np.bincount(index), np.bincount(index, hits)
    draws = np.random.default_rng(0).integers(0, len(counts), (RESAMPLES, len(counts)))
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def calibration_of(sample: Sample, record: TrainingRecord) -> Calibration:
    """What was said of the next action against what it was, of events whose action the model knows."""
    known = sample.happened >= 0
    probabilities, happened = sample.actions[known], sample.happened[known]
    if not len(happened):
        return Calibration([], None, record.calibration_error)
    came = np.arange(probabilities.shape[1]) == happened[:, None]
    place = np.vectorize(bin_of, otypes=[np.int64])(probabilities)
    bins = [
        Bin(name, int((place == at).sum()), float(probabilities[place == at].sum()), int(came[place == at].sum()))
        for at, name in enumerate(BIN_NAMES)
    ]
    best = probabilities.argmax(axis=1)
    rows = np.arange(len(best))
    sure, right, of_best = probabilities[rows, best], came[rows, best], place[rows, best]
    gaps = [abs(float(sure[of_best == at].sum() - right[of_best == at].sum())) for at in range(BINS)]
    return Calibration(bins, sum(gaps) / len(best), record.calibration_error)
