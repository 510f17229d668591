"""The first pass over a log: what its rows have in common, and where it can be divided.

    survey = survey_log(open_source("events.parquet", options, notes), options)
    survey.bounds(partitions)

Sums, types and a sample of users are kept, so memory does not grow with the log.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import polars as pl

from next_behavior.data.columns import ACTION, ITEM, TIME, USER
from next_behavior.data.events import (
    ORDER,
    as_roles,
    check_time_types,
    check_untimed,
    is_number_text,
    number_key,
    split_usable,
    text_key,
)
from next_behavior.data.markers import add_counts, check_user_markers, count_markers
from next_behavior.data.read_options import ReadOptions
from next_behavior.data.sources import LogSource
from next_behavior.data.tables import Rows
from next_behavior.data.time_survey import TimeSurvey
from next_behavior.data.times import AskedTimes, ParsedTimes, TimeReading

# Users that the bounds of partitions are chosen from: every so many rows one, fewer when there are too many.
SAMPLED_EVERY, MOST_SAMPLED = 64, 1 << 17


@dataclass
class Survey:
    """What is known of a log before its rows are cleaned.

    Attributes:
        ends: rows up to the end of each file, unusable ones included.
        reading: how times are read; None for a log without.
        time_type, order_type: of the time and the order column, as all files together have them.
        numbers_order: whether the order column is text that holds numbers.
        users: of some rows, in the order of their ids.
        markers: rows whose user is a text such as NA.
    """

    ends: list[int]
    reading: TimeReading | None
    time_type: pl.DataType | None
    order_type: pl.DataType | None
    numbers_order: bool
    users: pl.Series
    markers: dict[str, dict[str, int]]

    @property
    def rows(self) -> int:
        return self.ends[-1]

    def bounds(self, partitions: int) -> pl.Series:
        """Ascending user ids that divide the log into so many parts of about as many rows, or into fewer."""
        places = [len(self.users) * part // partitions for part in range(1, partitions)]
        return self.users.gather(places).unique().sort() if len(self.users) else self.users

    def usable(
        self, rows: Rows, log: LogSource, file: int, missing: list[str], notes: list[str]
    ) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        """Rows of a file -> all of them by role, events, unusable rows with their rule; in the order of the file."""
        start = self.ends[file - 1] if file else 0
        raw = as_roles(rows, log, missing, start, notes)
        times, rules = None, None
        if self.time_type is not None and self.reading is not None:
            raw = raw.with_columns(pl.col(TIME).cast(self.time_type))
            times, rules = self.reading.read(raw[TIME])
        if self.order_type is not None:
            values = raw[ORDER].cast(self.order_type)
            raw = raw.with_columns((number_key if self.numbers_order else text_key)(values).alias(ORDER))
        return raw, *split_usable(raw, times, rules, has_action=log.columns[ACTION] is not None)


@dataclass
class SurveyCounts:
    """What is summed over the rows of a log; `+` adds those of later rows.

    Attributes:
        totals: rows of each file.
        times: of the time column.
        numbers_order: whether what is text in the order column is numbers.
        markers, whole_rows: users that are texts such as NA; rows that are not malformed.
        users, every: of every so many rows one.
    """

    totals: list[int]
    times: TimeSurvey = field(default_factory=TimeSurvey)
    numbers_order: bool = True
    markers: dict[str, dict[str, int]] = field(default_factory=dict)
    whole_rows: int = 0
    users: list[str] = field(default_factory=list)
    every: int = SAMPLED_EVERY

    def __add__(self, later: SurveyCounts) -> SurveyCounts:
        every = max(self.every, later.every)
        return SurveyCounts(
            totals=[one + other for one, other in zip(self.totals, later.totals, strict=True)],
            times=self.times + later.times,
            numbers_order=self.numbers_order and later.numbers_order,
            markers=add_counts(self.markers, later.markers) if later.markers else self.markers,
            whole_rows=self.whole_rows + later.whole_rows,
            users=[*self.users[:: every // self.every], *later.users[:: every // later.every]],
            every=every,
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields, JSON-able."""
        return {**vars(self), "times": self.times.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SurveyCounts:
        return cls(**{**values, "times": TimeSurvey.from_dict(values["times"])})


def survey_log(log: LogSource, options: ReadOptions) -> Survey:
    """Reads the users, the times and the order of a log.

    Raises:
        ValueError: it has no rows, its times cannot be read, or too many users are texts such as NA.
    """
    counts, light = SurveyCounts([0] * max(1, len(log.files))), only_users_and_times(log)
    names, first, types = log.files or [log.name], None, pl.DataFrame()
    for file, rows in log.blocks(light.read()):
        empty = count_rows(counts, light, file, rows, options)
        if log.times:
            first = first or (empty.schema[TIME], names[file])
            check_time_types(*first, empty.schema[TIME], names[file], log.columns[TIME])
        types = empty if types.width == 0 else pl.concat([types, empty], how="vertical_relaxed")
    return decide(counts, log, options, types)


def only_users_and_times(log: LogSource) -> LogSource:
    """The log without its items and actions: the user stands for the item, which every log has."""
    columns = {**log.columns, ITEM: log.columns[USER], ACTION: None}
    return LogSource(log.name, log.files, log.present, columns, log.times, log.order, iter(()), log.blocks)


def asked_times(log: LogSource, options: ReadOptions) -> AskedTimes:
    return AskedTimes(str(log.columns[TIME]), options.time_unit, options.latest(), options.time_format)


def count_rows(counts: SurveyCounts, log: LogSource, file: int, rows: Rows, options: ReadOptions) -> pl.DataFrame:
    """Counts rows of a log as `only_users_and_times` gives it; returns its time and order without rows."""
    frame = as_roles(rows, log, options.missing(), 0, [])
    counts.totals[file] += rows.total
    found = count_markers(frame, {USER: log.columns[USER], ITEM: None, ACTION: None})
    counts.markers = add_counts(counts.markers, found)
    counts.whole_rows += frame.height
    counts.users += frame[USER].gather_every(counts.every).drop_nulls().to_list()
    while len(counts.users) > MOST_SAMPLED:
        counts.users, counts.every = counts.users[::2], 2 * counts.every
    if log.times:
        asked = asked_times(log, options)
        counts.times += TimeSurvey.of(ParsedTimes.of(frame[TIME], asked), asked)
    if log.order is not None:
        # Text stays text where a file holds numbers as such.
        counts.numbers_order &= frame.schema[ORDER] != pl.String or is_number_text(frame[ORDER])
    return frame.head(0).select(name for name in (TIME, ORDER) if name in frame.columns)


def decide(counts: SurveyCounts, log: LogSource, options: ReadOptions, types: pl.DataFrame) -> Survey:
    """What holds for the whole log; `types` are those of the columns `timestamp` and `order`.

    Raises:
        ValueError: as `survey_log`.
    """
    ends = [sum(counts.totals[: file + 1]) for file in range(len(counts.totals))]
    if ends[-1] == 0:
        raise ValueError(f"got {log.name} with a header and no rows; expected events: check how the log was written")
    counts.markers.setdefault(USER, {})
    check_user_markers(counts.markers, counts.whole_rows, log.columns, log.present, options.max_reject_ratio)
    if not log.times:
        check_untimed(options)
    return Survey(
        ends=ends,
        reading=counts.times.decide(asked_times(log, options)) if log.times else None,
        time_type=types.schema.get(TIME),
        order_type=types.schema.get(ORDER),
        numbers_order=counts.numbers_order and types.schema.get(ORDER) == pl.String,
        users=pl.Series(counts.users, dtype=pl.String).sort(),
        markers=counts.markers,
    )
