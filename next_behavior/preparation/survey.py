"""The first pass over a log: what its rows have in common, and where it can be divided.

    survey = survey_log(open_source("events.parquet", options, notes), options)
    survey.bounds(partitions)

Sums, types and a sample of users are kept, so memory does not grow with the log.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
class _Counts:
    """What is summed over the pieces of a log."""

    totals: list[int]
    times: TimeSurvey = field(default_factory=TimeSurvey)
    first_time_type: tuple[pl.DataType, str] | None = None
    types: pl.DataFrame = field(default_factory=pl.DataFrame)  # no rows: the columns' types
    numbers_order: bool = True
    markers: dict[str, dict[str, int]] = field(default_factory=dict)
    whole_rows: int = 0
    users: pl.Series = field(default_factory=lambda: pl.Series(dtype=pl.String))
    every: int = SAMPLED_EVERY


def survey_log(log: LogSource, options: ReadOptions) -> Survey:
    """Reads the users, the times and the order of a log.

    Raises:
        ValueError: it has no rows, its times cannot be read, or too many users are texts such as NA.
    """
    counts = _Counts([0] * max(1, len(log.files)))
    asked = AskedTimes(str(log.columns[TIME]), options.time_unit, options.latest(), options.time_format)
    light = _only_users_and_times(log)
    for file, rows in log.blocks(light.read()):
        counts.totals[file] += rows.total
        _count(counts, light, file, as_roles(rows, light, options.missing(), 0, []), asked)
    ends = [sum(counts.totals[: file + 1]) for file in range(len(counts.totals))]
    if ends[-1] == 0:
        raise ValueError(f"got {log.name} with a header and no rows; expected events: check how the log was written")
    counts.markers.setdefault(USER, {})
    check_user_markers(counts.markers, counts.whole_rows, log.columns, log.present, options.max_reject_ratio)
    reading = None
    if log.times:
        reading = counts.times.decide(asked)
    else:
        check_untimed(options)
    return Survey(
        ends=ends,
        reading=reading,
        time_type=counts.types.schema.get(TIME),
        order_type=counts.types.schema.get(ORDER),
        numbers_order=counts.numbers_order and counts.types.schema.get(ORDER) == pl.String,
        users=counts.users.sort(),
        markers=counts.markers,
    )


def _only_users_and_times(log: LogSource) -> LogSource:
    """The log without its items and actions: the user stands for the item, which every log has."""
    columns = {**log.columns, ITEM: log.columns[USER], ACTION: None}
    return LogSource(log.name, log.files, log.present, columns, log.times, log.order, iter(()), log.blocks)


def _count(counts: _Counts, log: LogSource, file: int, frame: pl.DataFrame, asked: AskedTimes) -> None:
    names = log.files or [log.name]
    counts.markers = add_counts(
        counts.markers, count_markers(frame, {USER: log.columns[USER], ITEM: None, ACTION: None})
    )
    counts.whole_rows += frame.height
    counts.users = pl.concat([counts.users, frame[USER].gather_every(counts.every).drop_nulls()])
    while len(counts.users) > MOST_SAMPLED:
        counts.users, counts.every = counts.users.gather_every(2), 2 * counts.every
    if log.times:
        kind = frame.schema[TIME]
        if counts.first_time_type is None:
            counts.first_time_type = (kind, names[file])
        check_time_types(*counts.first_time_type, kind, names[file], log.columns[TIME])
        counts.times += TimeSurvey.of(ParsedTimes.of(frame[TIME], asked), asked)
    if log.order is not None:
        # Text stays text where a file holds numbers as such.
        counts.numbers_order &= frame.schema[ORDER] != pl.String or is_number_text(frame[ORDER])
    empty = frame.head(0).select(name for name in (TIME, ORDER) if name in frame.columns)
    counts.types = empty if counts.types.width == 0 else pl.concat([counts.types, empty], how="vertical_relaxed")
