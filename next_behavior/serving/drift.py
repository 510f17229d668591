"""How far the events since the training are from it, and how well the model still predicts them, in numbers.

    drift = measure_drift(predictor, log.events, training_record(folder), source="the log")
    asdict(drift)                                   # for JSON; drift_report.py makes a page of it

Each event that is judged is predicted from the events of its user before it. The memory stands as it was trained: a
service whose memory learned from these events predicts them better. Users are drawn at random until there are enough
events to judge; shares and mixes are over all events.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import polars as pl

from next_behavior.data.columns import ACTION, ITEM, TIME, USER
from next_behavior.data.events import DEFAULT_ACTION
from next_behavior.serving.drift_predictions import (
    Calibration,
    Predictions,
    Progress,
    Sample,
    calibration_of,
    predict_sample,
    predictions_of,
)
from next_behavior.serving.drift_verdict import Verdict, verdict_of
from next_behavior.serving.event_export import event_frame
from next_behavior.serving.event_store import StoreError
from next_behavior.serving.open_store import open_store
from next_behavior.serving.predictor import Predictor
from next_behavior.serving.shift import BINS, known_mix, stability_index
from next_behavior.serving.training_record import TrainingRecord

PAGE = 10_000
# Periods are days if there are so many; otherwise so many spans of equal length.
FEWEST_DAYS, MOST_DAYS, SPANS = 3, 31, 12
# A figure of fewer predictions is not shown for a period.
FEWEST_PREDICTIONS = 20
LENGTH_EDGES = (0, 1, 2, 5, 10, 20, 50, 100)
LISTED = 8
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Period:
    """A span of time: events, the share of their items that are unknown, and Recall@10 of what was predicted there;
    None without items, and with too few predictions."""

    begin: str
    end: str
    events: int
    unknown: float | None
    predictions: int
    recall: float | None


@dataclass(frozen=True)
class ActionShare:
    """Shares of the events; `training` is None where it was not recorded."""

    action: str
    training: float | None
    now: float


@dataclass(frozen=True)
class ItemShare:
    """An item, and its share of the events with a known item in training and now; for unknown ones their events."""

    item: str
    title: str | None
    training: float
    now: float
    events: int


@dataclass(frozen=True)
class Popularity:
    """How attention moved between the known items.

    Attributes:
        psi: of ten bands of items, each with a tenth of the training events, the most popular first; None without
            known items.
        bands: share of the events in each, now.
        risen: items whose share grew most; unknown: the most frequent of those the model does not know.
    """

    psi: float | None
    bands: list[float]
    risen: list[ItemShare]
    unknown: list[ItemShare]


@dataclass(frozen=True)
class Lengths:
    """Events before each event: the median, how many events have how many (`edges`: the least of each group); and the
    median of the users' events, now and in the training log."""

    median: float
    user_median: float
    edges: list[int]
    counts: list[int]
    training_user_median: float | None


@dataclass(frozen=True)
class Drift:
    """Everything that a report says.

    Attributes:
        since: the first moment that is judged, as it was asked for; `since_training`: it is the end of the training.
        begin, end: of the judged events. All times are ISO text in UTC.
        unknown: share of the items of events that the model does not know; training_unknown: at its test.
        action_psi: None where the training's mix is not recorded.
    """

    model: str
    source: str
    known_items: int
    since: str | None
    since_training: bool
    begin: str
    end: str
    events: int
    users: int
    periods: list[Period]
    unknown: float | None
    training_unknown: float | None
    actions: list[ActionShare]
    action_psi: float | None
    popularity: Popularity
    lengths: Lengths
    predictions: Predictions
    calibration: Calibration
    verdict: Verdict


def events_in_store(address: str) -> pl.DataFrame:
    """All events of a store (`open_store`), as `EventLog.events` has them.

    Raises:
        ValueError: it cannot be read, or has none.
    """
    frames = list[pl.DataFrame]()
    try:
        with closing(open_store(address, read_only=True)) as store:
            after = 0
            while page := store.journal(after, PAGE):
                frames.append(event_frame(page, DEFAULT_ACTION))
                after = page[-1].arrival
    except StoreError as error:
        raise ValueError(f"the event store cannot be read: {error}") from error
    if not frames:
        raise ValueError("got an event store without events; expected some: has a service stored events there?")
    return pl.concat(frames).sort(USER, TIME, maintain_order=True)


def measure_drift(
    predictor: Predictor,
    events: pl.DataFrame,
    record: TrainingRecord,
    source: str,
    since: float | None = None,
    max_predictions: int = 2000,
    seed: int = 0,
    progress: Progress = lambda steps, total, what: steps,
) -> Drift:
    """Compares events with the training of a model.

    Args:
        events: `EventLog.events`, sorted by user and time; earlier ones are histories of those that are judged.
        source: what to call them.
        since: seconds since 1970 UTC: events after it are judged. None: after the end of the training, if it is
            recorded, else all.
        max_predictions: events that are predicted, about.
        progress: wraps steps, their number and what they are (`tqdm`).

    Raises:
        ValueError: no event is left to judge, or events have no time.
    """
    moment = record.until if since is None else since
    info, record_mix = predictor.info, known_mix(record.actions or {}, predictor.info.actions)
    items = vocabulary_counts(predictor)
    judged = with_known(judged_events(events, moment, source), items)
    sample = predict_sample(predictor, judged, events, max_predictions, seed, progress)
    now_mix = known_mix(dict(judged[ACTION].value_counts().iter_rows()), info.actions)
    named = judged.filter(pl.col(ITEM).is_not_null())
    unknown = unknown_share(named)
    action_psi = stability_index(record_mix, now_mix) if record_mix else None
    popularity = popularity_of(named, items)
    predictions, calibration = predictions_of(sample, record), calibration_of(sample, record)
    verdict = verdict_of(
        judged.height, predictions.recall, predictions.interval, record, unknown, action_psi, popularity.psi,
        calibration.error,
    )  # fmt: skip
    return Drift(
        model=info.revision,
        source=source,
        known_items=info.items,
        since=None if moment is None else iso(datetime.fromtimestamp(moment, timezone.utc)),
        since_training=since is None and moment is not None,
        begin=iso(judged[TIME].min()),
        end=iso(judged[TIME].max()),
        events=judged.height,
        users=judged[USER].n_unique(),
        periods=periods_of(judged, sample),
        unknown=unknown,
        training_unknown=record.unknown,
        actions=action_shares(record_mix, now_mix),
        action_psi=action_psi,
        popularity=popularity,
        lengths=lengths_of(judged, record),
        predictions=predictions,
        calibration=calibration,
        verdict=verdict,
    )


def judged_events(events: pl.DataFrame, moment: float | None, source: str) -> pl.DataFrame:
    """The events after a moment, with their row in the log as `at` and their `place` in their user's history."""
    if events.height and events[TIME].null_count() == events.height:
        raise ValueError(f"got {source} without times; expected times: drift is a change over time (--time_column)")
    events = events.with_row_index("at").with_columns(place=pl.int_range(pl.len()).over(USER))
    events = events.filter(pl.col(TIME).is_not_null())
    judged = events
    if moment is not None:
        judged = events.filter(pl.col(TIME).cast(pl.Int64) > round(moment * 1_000_000))
    if judged.is_empty():
        last = "" if events.is_empty() else f"; the last one is at {iso(events[TIME].max())}"
        until = "" if moment is None else f" after {iso(datetime.fromtimestamp(moment, timezone.utc))}"
        raise ValueError(
            f"got {source} with no event{until}{last}; expected newer events, or an earlier moment: --since 1970-01-01 "
            "takes all"
        )
    return judged


def with_known(judged: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Events with `known`: whether they name an item of the vocabulary."""
    vocabulary = items.select(ITEM, pl.lit(True).alias("known"))
    joined = judged.join(vocabulary, on=ITEM, how="left", maintain_order="left")
    return joined.with_columns(pl.col("known").fill_null(False))


def unknown_share(named: pl.DataFrame) -> float | None:
    """Of events that name an item, those whose item the model does not know; None without events."""
    return None if named.is_empty() else 1 - int(named["known"].sum()) / named.height


def vocabulary_counts(predictor: Predictor) -> pl.DataFrame:
    """item_id, title and count in the training events, of every item the model knows."""
    items = predictor.item_vocabulary()
    fields = [predictor.vocabulary.fields(line) for line in range(1, len(items) + 1)]
    counts = [int(each[2]) if each[2] else 0 for each in fields]
    columns = {ITEM: items, "title": [each[3] or None for each in fields], "count": counts}
    return pl.DataFrame(columns, schema_overrides={ITEM: pl.String, "title": pl.String, "count": pl.Int64})


def action_shares(before: dict[str, int], now: dict[str, int]) -> list[ActionShare]:
    """The actions of both, the most frequent now first."""
    old, new = sum(before.values()), sum(now.values())
    names = sorted({*before, *now}, key=lambda name: (-now.get(name, 0), name))
    return [ActionShare(name, before.get(name, 0) / old if old else None, now.get(name, 0) / new) for name in names]


def popularity_of(named: pl.DataFrame, items: pl.DataFrame) -> Popularity:
    """How the events that name an item (with `known`) spread over items, against the counts of the training."""
    now = named.group_by(ITEM, "known").agg(pl.len().alias("events"))
    total, known = max(int(items["count"].sum()), 1), max(int(now.filter("known")["events"].sum()), 1)
    strange = now.filter(~pl.col("known")).sort("events", ITEM, descending=[True, False]).head(LISTED)
    both = items.join(now.filter("known").drop("known"), on=ITEM, how="left").with_columns(
        pl.col("events").fill_null(0)
    )
    both = both.with_columns(training=pl.col("count") / total, now=pl.col("events") / known)
    both = both.sort("count", ITEM, descending=[True, False])
    both = both.with_columns(
        band=((pl.col("training").cum_sum() - pl.col("training")) * BINS).floor().clip(0, BINS - 1)
    )
    bands = {int(band): (then, today) for band, then, today in
             both.group_by("band").agg(pl.col("count").sum(), pl.col("events").sum()).iter_rows()}  # fmt: skip
    psi = None
    if both["events"].sum() and both["count"].sum():
        old, new = ({str(band): pair[which] for band, pair in bands.items()} for which in range(2))
        psi = stability_index(old, new)
    gain = pl.col("now") - pl.col("training")
    risen = both.filter(gain > 0).sort(gain, descending=True).head(LISTED)
    return Popularity(
        psi=psi,
        bands=[bands.get(band, (0, 0))[1] / known for band in range(BINS)],
        risen=[ItemShare(*row) for row in risen.select(ITEM, "title", "training", "now", "events").iter_rows()],
        unknown=[ItemShare(item, None, 0.0, count / max(named.height, 1), count)
                 for item, count in strange.select(ITEM, "events").iter_rows()],
    )  # fmt: skip


def lengths_of(judged: pl.DataFrame, record: TrainingRecord) -> Lengths:
    """How many events stand before each event that is judged."""
    before = judged["place"].to_numpy()
    group = np.searchsorted(LENGTH_EDGES, before, side="right") - 1
    counts = np.bincount(group, minlength=len(LENGTH_EDGES)).tolist()
    of_users = judged.group_by(USER).agg(pl.col("place").max() + 1)["place"].to_numpy()
    return Lengths(
        float(np.median(before)), float(np.median(of_users)), list(LENGTH_EDGES), counts, record.median_events
    )


def periods_of(judged: pl.DataFrame, sample: Sample) -> list[Period]:
    """Days, or spans of equal length."""
    begin, end = judged[TIME].min(), judged[TIME].max()
    assert isinstance(begin, datetime)
    assert isinstance(end, datetime)
    edges = edges_of(begin, end)
    ticks = np.array([round(edge.timestamp() * 1_000_000) for edge in edges])
    times = judged[TIME].cast(pl.Int64).to_numpy()
    is_named, known = judged[ITEM].is_not_null().to_numpy(), judged["known"].to_numpy()
    found = []
    for low, high, first, last in zip(edges[:-1], edges[1:], ticks[:-1], ticks[1:], strict=True):
        inside = (times >= first) & (times < last)
        named = inside & is_named
        ranks = sample.ranks[(sample.times >= first) & (sample.times < last) & (sample.ranks >= 0)]
        found.append(Period(
            begin=iso(low), end=iso(high), events=int(inside.sum()),
            unknown=float(1 - known[named].mean()) if named.any() else None,
            predictions=len(ranks),
            recall=float((ranks > 0).mean()) if len(ranks) >= FEWEST_PREDICTIONS else None,
        ))  # fmt: skip
    return found


def edges_of(begin: datetime, end: datetime) -> Sequence[datetime]:
    """Where periods begin, and the end of the last one."""
    first = begin.replace(hour=0, minute=0, second=0, microsecond=0)
    days = (end - first) // DAY + 1
    if FEWEST_DAYS <= days <= MOST_DAYS:
        return [first + DAY * day for day in range(days + 1)]
    span = max((end - begin) / SPANS, timedelta(seconds=1))
    return [*(begin + span * number for number in range(SPANS)), max(end, begin + span * SPANS) + timedelta(seconds=1)]


def iso(moment: Any) -> str:
    """ISO text of a time in UTC, to the second."""
    return moment.astimezone(timezone.utc).isoformat(timespec="seconds")
