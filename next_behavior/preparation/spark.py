"""Spark's engine: executors call the functions of `partition.py`, each on its share of the log.

    session = SparkSession.builder.getOrCreate()
    prepare(session.table("shop.events"), "out/prepared")                   # or --engine spark

Rows are cleaned where they are read (mapInArrow), moved once to the partition of their user, and then worked on a
partition at a time (applyInArrow). The driver gets sums, the vocabulary, and in the end one partition of token ids
after the other, which it writes. Every step is a pure function of its rows, so Spark repeats what an executor loses.

Files of Parquet keep the order of their rows, so the result is that of one machine. A table has no order: events of a
user at one time are ordered by the order column, if there is one, then by action and item.

Executors need this package. Needs the extra [spark] and Java 17 or 21.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from next_behavior.data.cleaning import REJECT_SCHEMA
from next_behavior.data.columns import ACTION, ITEM, TIME, USER
from next_behavior.data.events import ORDER, as_rejects, as_roles
from next_behavior.data.log_statistics import LogStatistics
from next_behavior.data.markers import count_markers
from next_behavior.data.read_options import ReadOptions
from next_behavior.data.sequences import FEATURES, Coding
from next_behavior.data.sources import LogSource
from next_behavior.data.splits import OrderedTimes
from next_behavior.data.tables import Rows
from next_behavior.data.times import TIMESTAMP
from next_behavior.preparation.engine import ReadRows
from next_behavior.preparation.ordered_times import CountedTimes
from next_behavior.preparation.partition import (
    FIRST_COUNTS,
    SEQUENCE,
    PartitionCounts,
    Parts,
    clean_partition,
    count_partition,
    encode_partition,
    numbered,
)
from next_behavior.preparation.spark_rows import (
    ABOUT,
    BATCH_ROWS,
    CLEANED,
    COUNTED,
    IDS,
    MALFORMED_FIRST,
    MARKED,
    PARTITION,
    PLACE,
    RARE,
    REJECTED,
    ROW,
    TEXT,
    USERS,
    Batches,
    arrow_batches,
    as_table,
    cleaned_events,
    first_row,
    joined_batches,
    mark_rare,
    no_blocks,
    numbered_rejects,
    order_field,
    spark_schema,
    text_batches,
    usable_rows,
)  # fmt: skip
from next_behavior.preparation.survey import Survey, SurveyCounts, count_rows, decide, only_users_and_times

PARTITION_ROWS = 1 << 21  # about; of a partition, which is sorted in an executor's memory
Say = Callable[[str], None]


class Spark:
    """The engine.

    Args:
        frame: the log's columns and `row`.
        ends: rows up to the end of each file; for a table, a number that no row has.
    """

    def __init__(
        self, frame: Any, log: LogSource, ends: list[int], options: ReadOptions, partitions: int | None, say: Say
    ) -> None:
        self._frame, self._options, self._say = frame, options, say
        self._log = replace(log, parts=iter(()), blocks=no_blocks)
        self._ordered, self._ends = bool(log.files), ends
        self.survey = self._surveyed()
        wanted = partitions or 1 + self.survey.rows // PARTITION_ROWS
        self.bounds = self.survey.bounds(wanted)
        self.partitions = range(len(self.bounds) + 1)
        self._located: Any = None
        self._cleaned: Any = None
        self._counted_out: Any = None
        self._are_some_unusable = False

    def _surveyed(self) -> Survey:
        log, options = only_users_and_times(self._log), self._options
        light = self._frame.select(*[f"`{column}`" for column in log.read()])

        def survey(batches: Batches) -> Batches:
            counts = SurveyCounts([0])
            for table in joined_batches(batches):
                frame = pl.DataFrame(table)
                count_rows(counts, log, 0, Rows(frame, np.arange(frame.height), []), options)
            yield from text_batches([json.dumps(counts.to_dict())])

        found = self._mapped(light, survey, TEXT).collect()
        counts = sum((SurveyCounts.from_dict(json.loads(row[ABOUT])) for row in found), SurveyCounts([0]))
        empty = Rows(pl.DataFrame(light.limit(0).toArrow()), np.zeros(0, dtype=np.int64), [])
        return decide(counts, self._log, options, as_roles(empty, log, [], 0, []).select("^(timestamp|order)$"))

    @staticmethod
    def _mapped(frame: Any, function: Callable[[Batches], Batches], schema: pa.Schema) -> Any:
        return frame.mapInArrow(function, spark_schema(schema))

    def _applied(self, frame: Any, function: Callable[[pl.DataFrame, int], pa.Table], schema: pa.Schema) -> Any:
        """Calls a function with the rows of each partition and its number."""

        def apply(rows: pa.Table) -> pa.Table:
            number = rows.column(PARTITION)[0].as_py()
            return function(pl.DataFrame(rows), number).cast(schema)

        return frame.groupBy(PARTITION).applyInArrow(apply, spark_schema(schema))

    def of_cleaned(self, function: Callable[[pl.DataFrame], pa.Table], schema: pa.Schema) -> Any:
        """A DataFrame of what a function makes of each partition's cleaned events, which are in order."""
        return self._applied(self._cleaned, lambda rows, number: function(cleaned_events(rows)), schema)

    # -- rows into partitions

    def read(self) -> ReadRows:
        log, survey, bounds, missing = self._log, self.survey, self.bounds, self._options.missing()
        ends = self._ends
        order = {} if survey.order_type is None else {ORDER: order_field(survey)}
        schema = pa.schema({PARTITION: pa.int32(), **IDS, **order, ROW: pa.int64()})

        def locate(batches: Batches) -> Batches:
            total = ReadRows()
            for table in joined_batches(batches):
                counts = ReadRows()
                raw, events, bad = usable_rows(table, log, survey, missing, counts.notes)
                counts.markers = count_markers(raw, {**log.columns, USER: ""})
                counts.events, counts.without_item = events.height, events[ITEM].null_count()
                counts.count_rejects(as_rejects(bad, ends, log.files))
                total += counts
                places = bounds.search_sorted(events[USER], side="right").cast(pl.Int32).alias(PARTITION)
                yield from arrow_batches(events.with_columns(places, pl.col(TIME).dt.epoch("us")), schema)
            about = pl.DataFrame({PARTITION: [-1], USER: [json.dumps(total.to_dict())]})
            empty = [pl.lit(None).alias(name) for name in schema.names if name not in about.columns]
            yield from arrow_batches(about.with_columns(empty), schema)

        from pyspark import StorageLevel

        located = self._mapped(self._frame, locate, schema).repartition(len(self.partitions), PARTITION)
        self._located = located.persist(StorageLevel.DISK_ONLY)
        found = self._located.filter(f"{PARTITION} < 0").select(USER).collect()
        pieces = [ReadRows.from_dict(json.loads(row[USER])) for row in found]
        self._are_some_unusable = any(piece.unusable for piece in pieces)
        self._say(f"{sum(piece.events for piece in pieces):,} events are in {len(self.partitions):,} partitions")
        return sum(sorted(pieces, key=first_row), ReadRows())

    # -- partitions in order

    def _in_order(self) -> Callable[[pl.DataFrame], tuple[pl.DataFrame, pl.DataFrame]]:
        options, has_times, ordered = self._options, bool(self._log.times), self._ordered

        def clean(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
            events = rows.drop(PARTITION).with_columns(pl.col(TIME).cast(TIMESTAMP))
            if not ordered:
                order = [name for name in (USER, TIME, ORDER, ACTION, ITEM) if name in events.columns]
                events = events.sort(order).with_columns(pl.int_range(pl.len()).alias(ROW))
            return clean_partition(events, options, has_times)

        return clean

    def clean(self) -> list[LogStatistics]:
        clean = self._in_order()

        def cleaned(rows: pl.DataFrame, number: int) -> pa.Table:
            events = clean(rows)[0]
            places = [pl.lit(number, pl.Int32).alias(PARTITION), pl.int_range(pl.len(), dtype=pl.Int64).alias(PLACE)]
            return as_table(events.with_columns(*places, pl.col(TIME).dt.epoch("us")), CLEANED)

        def statistics(rows: pl.DataFrame, number: int) -> pa.Table:
            about = json.dumps({"number": number, **LogStatistics.of(cleaned_events(rows)).to_dict()})
            return pa.table({ABOUT: [about]})

        from pyspark import StorageLevel

        located = self._located.filter(f"{PARTITION} >= 0")
        ordered = self._applied(located, cleaned, CLEANED).repartition(len(self.partitions), PARTITION)
        self._cleaned = ordered.persist(StorageLevel.DISK_ONLY)
        if self._options.min_item_events > 1 or self._options.min_user_events > 1:
            self._drop_rare()
        found = [json.loads(row[ABOUT]) for row in self._applied(self._cleaned, statistics, TEXT).collect()]
        by_number = {about.pop("number"): LogStatistics.from_dict(about) for about in found}
        self._say(f"{len(self.partitions):,} partitions are in order")
        return [by_number.get(number, LogStatistics()) for number in self.partitions]

    def _drop_rare(self) -> None:
        """The minimum counts, round by round, as on one machine; removed events stay, marked with their rule."""
        from pyspark import StorageLevel
        from pyspark.sql import functions as f

        least_item, least_user = self._options.min_item_events, self._options.min_user_events
        empty = [f.lit(None).cast(kind).alias(name) for name, kind in (("rule", "string"), (SEQUENCE, "int"))]
        marked, sequence, removed = self._cleaned.select("*", *empty), FIRST_COUNTS, 1
        while removed:
            counts = marked.filter(f"{SEQUENCE} is null and {ITEM} is not null").groupBy(ITEM).count()
            rare = counts.filter(f"count < {least_item}").select(ITEM, f.lit(True).alias(RARE))
            joined = marked.join(rare, ITEM, "left")
            dropped = self._applied(joined, partial(mark_rare, least_user=least_user, sequence=sequence), MARKED)
            before, marked = marked, dropped.repartition(len(self.partitions), PARTITION)
            marked = marked.persist(StorageLevel.DISK_ONLY)
            removed = marked.filter(f"{SEQUENCE} >= {sequence}").count()
            before.unpersist()
            sequence += 2
            if least_item <= 1 or least_user <= 1:
                break
        self._counted_out, self._cleaned = marked, marked.filter(f"{SEQUENCE} is null").select(*CLEANED.names)

    # -- rejects

    def unusable(self) -> Iterator[pl.DataFrame]:
        if not self._are_some_unusable:
            return iter(())
        log, survey, missing, ends = self._log, self.survey, self._options.missing(), self._ends

        def bad_rows(batches: Batches) -> Batches:
            for table in joined_batches(batches):
                bad = numbered(usable_rows(table, log, survey, missing, [])[2], MALFORMED_FIRST)
                yield from arrow_batches(numbered_rejects(bad, ends, log.files), REJECTED)

        return self._ordered_rejects(self._mapped(self._frame, bad_rows, REJECTED))

    def rejects(self) -> Iterator[pl.DataFrame]:
        yield from self.unusable()
        if self._options.duplicates == "drop" or self._options.max_user_events is not None:
            yield from self._removed_within_users()
        if self._counted_out is not None:
            yield from self._removed_by_counts()

    def _removed_within_users(self) -> Iterator[pl.DataFrame]:
        clean, log, ends = self._in_order(), self._log, self._ends

        def removed(rows: pl.DataFrame, number: int) -> pa.Table:
            return as_table(numbered_rejects(clean(rows)[1], ends, log.files), REJECTED)

        located = self._located.filter(f"{PARTITION} >= 0")
        return self._ordered_rejects(self._applied(located, removed, REJECTED))

    def _removed_by_counts(self) -> Iterator[pl.DataFrame]:
        log, ends = self._log, self._ends

        def removed(batches: Batches) -> Batches:
            for table in joined_batches(batches):
                gone = pl.DataFrame(table).with_columns(pl.col(TIME).cast(TIMESTAMP))
                yield from arrow_batches(numbered_rejects(gone, ends, log.files), REJECTED)

        return self._ordered_rejects(
            self._mapped(self._counted_out.filter(f"{SEQUENCE} is not null"), removed, REJECTED)
        )

    @staticmethod
    def _ordered_rejects(rejects: Any) -> Iterator[pl.DataFrame]:
        """Rows in order, in pieces; a piece at a time comes to the driver."""
        held = list[dict[str, Any]]()
        for row in rejects.orderBy(SEQUENCE, PLACE).select(*REJECT_SCHEMA).toLocalIterator():
            held.append(row.asDict())
            if len(held) == BATCH_ROWS:
                yield pl.DataFrame(held, schema=REJECT_SCHEMA)
                held = []
        if held:
            yield pl.DataFrame(held, schema=REJECT_SCHEMA)

    # -- counts and token ids

    def times(self, statistics: LogStatistics) -> OrderedTimes:
        cleaned = self._cleaned

        def histogram(low: int, width: int, bins: int) -> np.ndarray:
            inside = cleaned.filter(f"{TIME} >= {low} and {TIME} < {low + width * bins}")
            table = inside.selectExpr(f"({TIME} - {low}) div {width} as bin").groupBy("bin").count().toArrow()
            counts = np.zeros(bins, dtype=np.int64)
            counts[table.column("bin").to_numpy()] = table.column("count").to_numpy()
            return counts

        def before(time: int) -> int:
            return int(cleaned.filter(f"{TIME} < {time}").agg({TIME: "max"}).collect()[0][0])

        first, last = statistics.first or 0, statistics.last or 0
        return CountedTimes(statistics.events if statistics.first is not None else 0, first, last, histogram, before)

    def count(self, parts: list[Parts]) -> PartitionCounts:
        from pyspark import StorageLevel
        from pyspark.sql import functions as f

        def counted(rows: pl.DataFrame, number: int) -> pa.Table:
            counts = count_partition(cleaned_events(rows), parts[number])
            about = pl.DataFrame({ABOUT: [json.dumps(counts.to_dict())]})
            return as_table(pl.concat([counts.items, about], how="diagonal"), COUNTED)

        found = self._applied(self._cleaned, counted, COUNTED).persist(StorageLevel.DISK_ONLY)
        sums = [f.sum(name).alias(name) for name in ("events", "known")]
        items = found.filter(f"{ITEM} is not null").groupBy(ITEM).agg(*sums).toArrow()
        total = PartitionCounts(pl.DataFrame(items))
        for row in found.filter(f"{ABOUT} is not null").select(ABOUT).collect():
            total += PartitionCounts.from_dict(json.loads(row[ABOUT]), total.items.head(0))
        found.unpersist()
        return total

    def encode(self, parts: list[Parts], coding: Coding) -> Iterator[pa.Table]:
        from pyspark import StorageLevel

        def encoded(rows: pl.DataFrame, number: int) -> pa.Table:
            users = encode_partition(cleaned_events(rows), parts[number], coding)
            return users.append_column(PARTITION, pa.array([number] * users.num_rows, pa.int32())).select(USERS.names)

        users = self._applied(self._cleaned, encoded, USERS).persist(StorageLevel.DISK_ONLY)
        for number in self.partitions:
            table = users.filter(f"{PARTITION} = {number}").drop(PARTITION).toArrow()
            self._say(f"{number + 1:,} of {len(self.partitions):,} partitions are in token ids")
            yield table.sort_by(USER).cast(FEATURES.arrow_schema)
        for frame in (users, self._cleaned, self._counted_out, self._located):
            if frame is not None:
                frame.unpersist()
