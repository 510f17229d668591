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
from typing import Any

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


def make_split(
    events: pl.DataFrame, how: str = "time", validation_quantile: float = 0.8, test_quantile: float = 0.9
) -> Split:
    """The split of a log.

    Args:
        events: user_id String, timestamp Datetime("us", "UTC"), sorted by user and time.
        how: "time" cuts the whole log at two moments; "leave_one_out" tests each user's last event and validates on
            the one before (it leaks the future, and warns so); "none" trains on everything.
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
                stacklevel=2,
            )
        return Split(how, None, None, validation_quantile, test_quantile)
    times = events["timestamp"]
    if times.null_count():
        raise ValueError(
            f"got {times.null_count():,} of {len(times):,} events without a time; a split by time needs one for each: "
            "name the column with --time_column, or use --split leave_one_out or --split none"
        )
    Split(how, 0, 0, validation_quantile, test_quantile)  # checks the quantiles
    ordered = np.sort(times.dt.epoch("us").to_numpy())
    if len(ordered) == 0 or ordered[0] == ordered[-1]:
        raise ValueError(
            f"got {len(ordered):,} events at one single time; a split by time needs earlier and later ones: use "
            "--split leave_one_out or --split none"
        )
    test_cut = _cut(ordered, test_quantile, below=int(ordered[-1]))
    if test_cut == ordered[0]:
        warnings.warn("too few distinct times for validation events: all events up to the test cut train", stacklevel=2)
        validation_cut = test_cut
    else:
        validation_cut = _cut(ordered, validation_quantile, below=test_cut)
    return Split(how, validation_cut, test_cut, validation_quantile, test_quantile)


def _cut(ordered: np.ndarray, quantile: float, below: int) -> int:
    """The time of the event at `quantile` of the ascending times, or the latest time under `below`."""
    # The small term keeps 0.8 * 10 from falling to 7.
    time = int(ordered[max(0, int(quantile * len(ordered) + 1e-9) - 1)])
    return min(time, int(ordered[np.searchsorted(ordered, below, side="left") - 1]))


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
