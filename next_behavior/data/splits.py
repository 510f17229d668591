"""Which events train, which validate and which test.

    split = make_split(events, "time")          # or "leave_one_out", "none"
    events = assign_parts(events, split)        # adds `part`: 0 train, 1 validation, 2 test

A split by time is the default: what is tested happened after everything that trained. Leave-one-out exists for
comparison with published tables; it lets a model train on events later than the ones it is tested on (Meng et al. 2020,
"Exploring Data Splitting Strategies for the Evaluation of Recommendation Models"; Ji et al. 2023, "A Critical Study on
Data Leakage in Recommender System Offline Evaluation").
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from next_behavior.data.read_options import SPLITS
from next_behavior.data.sequences import TEST, TRAIN, VALIDATION

# A user's events that leave-one-out needs: one to train on, one to validate, one to test.
LEAVE_ONE_OUT_EVENTS = 3


@dataclass(frozen=True)
class Split:
    """How a log is cut; `assign_parts` applies it, to other logs too.

    Attributes:
        how: "time", "leave_one_out" or "none".
        validation_cut, test_cut: microseconds since 1970 UTC, both inclusive: events up to `validation_cut` train,
            later ones up to `test_cut` validate, the rest tests. None unless `how` is "time".
        validation_quantile, test_quantile: the shares of events that the cuts were made from.
    """

    how: str
    validation_cut: int | None = None
    test_cut: int | None = None
    validation_quantile: float = 0.8
    test_quantile: float = 0.9

    def __post_init__(self) -> None:
        if self.how not in SPLITS:
            raise ValueError(f"got the split {self.how!r}; expected one of {', '.join(SPLITS)}")
        if not 0 < self.validation_quantile <= self.test_quantile < 1:
            raise ValueError(
                f"got validation_quantile={self.validation_quantile} and test_quantile={self.test_quantile}; expected "
                "0 < validation_quantile <= test_quantile < 1"
            )
        cuts = (self.validation_cut, self.test_cut)
        if self.how == "time" and (cuts[0] is None or cuts[1] is None or cuts[0] > cuts[1]):
            raise ValueError(
                f"got the cuts {cuts} for a split by time; expected validation_cut <= test_cut in microseconds: let "
                "make_split find them"
            )
        if self.how != "time" and cuts != (None, None):
            raise ValueError(f"got the cuts {cuts} for the split {self.how!r}; expected None: only time has cuts")

    def to_dict(self) -> dict[str, Any]:
        """The fields, JSON-able."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Split:
        """The inverse of `to_dict`; an unknown or a missing field raises ValueError."""
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise ValueError(
                f"got a split with the fields {sorted(values)}; expected {sorted(names)}: was it written by another "
                "version? Name the split with --split"
            )
        return cls(**values)

    def __str__(self) -> str:
        if self.validation_cut is None or self.test_cut is None:
            return self.how
        return f"time, validation after {moment(self.validation_cut)}, test after {moment(self.test_cut)}"


def moment(microseconds: int) -> str:
    """A time since 1970 for people, in UTC."""
    return datetime.fromtimestamp(microseconds / 1e6, tz=timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def recorded_split(model_dir: Path) -> Split | None:
    """The split in `split.json` beside a model, None if there is none."""
    path = model_dir / "split.json"
    return Split.from_dict(json.loads(path.read_text())) if path.exists() else None


class OrderedTimes(Protocol):
    """The times of all events in ascending order, in microseconds since 1970."""

    def __len__(self) -> int: ...
    def at(self, place: int) -> int:
        """The time at a place, from 0."""
        ...

    def before(self, time: int) -> int:
        """The latest time under `time`, which is not the first one."""
        ...


class SortedTimes:
    """(N,) int64 microseconds, in any order, held in memory."""

    def __init__(self, times: np.ndarray) -> None:
        self._ordered = np.sort(times)

    def __len__(self) -> int:
        return len(self._ordered)

    def at(self, place: int) -> int:
        return int(self._ordered[place])

    def before(self, time: int) -> int:
        return int(self._ordered[np.searchsorted(self._ordered, time, side="left") - 1])


def make_split(
    events: pl.DataFrame, how: str = "time", validation_quantile: float = 0.8, test_quantile: float = 0.9
) -> Split:
    """`split_of_times` of a log: user_id String, timestamp Datetime("us", "UTC"), sorted by user and time."""
    times, untimed = SortedTimes(np.zeros(0, dtype=np.int64)), 0
    if how == "time":
        untimed = events["timestamp"].null_count()
        times = SortedTimes(events["timestamp"].drop_nulls().dt.epoch("us").to_numpy())
    return split_of_times(how, times, untimed, validation_quantile, test_quantile)


def split_of_times(
    how: str, times: OrderedTimes, untimed: int, validation_quantile: float = 0.8, test_quantile: float = 0.9
) -> Split:
    """The split of a log.

    Args:
        how: "time" cuts the whole log at two moments; "leave_one_out" tests each user's last event and validates on
            the one before (it leaks the future, and warns so); "none" trains on everything.
        times: of all events; only a split by time looks at them.
        untimed: events without a time.
        validation_quantile, test_quantile: the test cut is the latest time such that no more than this share of the
            events happened up to it, ties at the cut apart: events at the very time of a cut lie on its early side.
            In a log with coarse times a cut moves down to the time before rather than leave a part empty.

    Raises:
        ValueError: a split by time of a log without times, or with one single time.
    """
    if how != "time":
        if how == "leave_one_out":
            warnings.warn(
                "leave_one_out leaks the future: the model trains on events later than the ones it is tested on. Use "
                "it to compare with published tables only; --split time measures what a user of the model would see.",
                stacklevel=3,
            )
        return Split(how, None, None, validation_quantile, test_quantile)
    if untimed:
        raise ValueError(
            f"got {untimed:,} of {untimed + len(times):,} events without a time; a split by time needs one for each: "
            "name the column with --time_column, or use --split leave_one_out or --split none"
        )
    Split(how, 0, 0, validation_quantile, test_quantile)  # checks the quantiles
    count = len(times)
    if count == 0 or times.at(0) == times.at(count - 1):
        raise ValueError(
            f"got {count:,} events at one single time; a split by time needs earlier and later ones: use "
            "--split leave_one_out or --split none"
        )
    test_cut = _cut(times, test_quantile, below=times.at(count - 1))
    if test_cut == times.at(0):
        warnings.warn("too few distinct times for validation events: all events up to the test cut train", stacklevel=3)
        validation_cut = test_cut
    else:
        validation_cut = _cut(times, validation_quantile, below=test_cut)
    return Split(how, validation_cut, test_cut, validation_quantile, test_quantile)


def late_cut(times: OrderedTimes, untimed: int, quantile: float = 0.9) -> int | None:
    """The time after which the latest events of a log begin, as the test cut of a split by time; None for a log whose
    events have no times, or one single time.

    Args:
        times: of all events; untimed: events without a time.
    """
    if untimed or not len(times) or times.at(0) == times.at(len(times) - 1):
        return None
    return _cut(times, quantile, below=times.at(len(times) - 1))


def _cut(times: OrderedTimes, quantile: float, below: int) -> int:
    """The time of the event at `quantile` of the ascending times, or the latest time under `below`."""
    # The small term keeps 0.8 * 10 from falling to 7.
    return min(times.at(max(0, int(quantile * len(times) + 1e-9) - 1)), times.before(below))


def assign_parts(events: pl.DataFrame, split: Split) -> pl.DataFrame:
    """`events` with the column `part` Int8: 0 train, 1 validation, 2 test; rows and their order stay.

    A user's events must stand together in time order, as `read_events` gives them. In leave-one-out the events of a
    user with fewer than three all train.
    """
    if split.validation_cut is not None and split.test_cut is not None:
        if events["timestamp"].null_count():
            raise ValueError(
                "got events without a time for a split by time: name the column with --time_column, or use --split "
                "leave_one_out"
            )
        time = pl.col("timestamp").dt.epoch("us")
        part = (
            pl.when(time > split.test_cut)
            .then(TEST)
            .when(time > split.validation_cut)
            .then(VALIDATION)
            .otherwise(TRAIN)
        )
    elif split.how == "leave_one_out":
        count = pl.len().over("user_id")
        from_end = count - 1 - pl.int_range(pl.len()).over("user_id")
        enough = count >= LEAVE_ONE_OUT_EVENTS
        part = (
            pl.when(enough & (from_end == 0))
            .then(TEST)
            .when(enough & (from_end == 1))
            .then(VALIDATION)
            .otherwise(TRAIN)
        )
    else:
        part = pl.lit(TRAIN)
    return events.with_columns(part.cast(pl.Int8).alias("part"))
