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
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import polars as pl
import pyarrow as pa

from next_behavior.data.cleaning import REJECT_SCHEMA
from next_behavior.data.columns import ACTION, ITEM, TIME, USER
from next_behavior.data.events import ORDER, as_rejects, as_roles
from next_behavior.data.log_files import are_files_here, find_files
from next_behavior.data.log_statistics import LogStatistics
from next_behavior.data.markers import count_markers
from next_behavior.data.read_options import ReadOptions
from next_behavior.data.sequences import FEATURES, Coding
from next_behavior.data.sources import LogSource, choose_log_columns
from next_behavior.data.splits import OrderedTimes
from next_behavior.data.tables import Rows
from next_behavior.data.times import TIMESTAMP
from next_behavior.preparation.engine import ReadRows
from next_behavior.preparation.ordered_times import CountedTimes
from next_behavior.preparation.partition import (
    SEQUENCE,
    PartitionCounts,
    Parts,
    clean_partition,
    count_partition,
    encode_partition,
)
from next_behavior.preparation.survey import Survey, SurveyCounts, count_rows, decide, only_users_and_times

PARTITION_ROWS = 1 << 21  # about; of a partition, which is sorted in an executor's memory
TASK_ROWS = 1 << 17  # rows of a task that are worked on at once
BATCH_ROWS = 1 << 16
ROW, FILE, PLACE_IN_FILE = "row", "__file", "__place"
PARTITION, PLACE, ABOUT = "partition", "place", "about"
IDS = {USER: pa.string(), ITEM: pa.string(), ACTION: pa.string(), TIME: pa.int64()}
TEXT = pa.schema({ABOUT: pa.string()})
CLEANED = pa.schema({PARTITION: pa.int32(), PLACE: pa.int64(), **IDS})
COUNTED = pa.schema({ITEM: pa.string(), "events": pa.int64(), "known": pa.int64(), ABOUT: pa.string()})
USERS = pa.schema(
    {PARTITION: pa.int32()}
    | {
        field.name: pa.string() if field.name == "user_id" else pa.list_(field.type.value_type)
        for field in FEATURES.arrow_schema
    }
)
REJECTED = pa.schema(
    {SEQUENCE: pa.int32(), PLACE: pa.int64()}
    | {name: pa.int64() if kind == pl.Int64 else pa.string() for name, kind in REJECT_SCHEMA.items()}
)
MALFORMED_FIRST = -1  # the sequence of rows that are no events

Batches = Iterator[pa.RecordBatch]
Say = Callable[[str], None]


def is_spark(source: object) -> bool:
    """Whether a source is a DataFrame of Spark."""
    return type(source).__module__.split(".")[0] == "pyspark"


def start_session(master: str | None) -> Any:
    """The session there is, or a new one.

    Raises:
        ValueError: pyspark is not installed.
    """
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ValueError("got --engine spark without pyspark; expected it: pip install '.[spark]'") from error
    builder = SparkSession.builder.appName("next-behavior prepare")
    return (builder.master(master) if master else builder).getOrCreate()


def open_spark(
    source: object, session: Any, options: ReadOptions, notes: list[str]
) -> tuple[LogSource, Any, list[int]]:
    """A table's name, Parquet files or a DataFrame -> the log, its rows (the columns and `row`), its files' ends."""
    from pyspark.sql import functions as f

    if options.column_names() is not None or options.format not in (None, "parquet"):
        raise ValueError("got --columns or --format; expected neither: Spark reads Parquet files and tables")
    files, ends, name = list[str](), [1 << 62], "DataFrame of Spark"
    if is_spark(source):
        frame = source
    else:
        name = str(source)
        is_path = "/" in name or are_files_here(name)
        frame = session.read.parquet(*[part.strip() for part in name.split(",")]) if is_path else session.table(name)
        if is_path:
            frame = frame.withColumn(FILE, f.col("_metadata.file_path"))
            frame = frame.withColumn(PLACE_IN_FILE, f.col("_metadata.row_index"))
    present = [column for column in frame.columns if column not in (FILE, PLACE_IN_FILE)]  # type: ignore[attr-defined]
    columns, times, order = choose_log_columns(present, options, notes)
    log = LogSource(name, files, present, columns, times, order, iter(()), lambda columns: iter(()))
    wanted = [f.col(f"`{column}`") for column in log.read()]
    if FILE not in frame.columns:  # type: ignore[attr-defined]
        return log, frame.select(*wanted, f.monotonically_increasing_id().alias(ROW)), ends  # type: ignore[attr-defined]
    counted = {row[FILE]: row["count"] for row in frame.groupBy(FILE).count().collect()}  # type: ignore[attr-defined]
    paths = sorted(counted, key=lambda uri: unquote(urlparse(uri).path))
    files = [unquote(urlparse(uri).path) for uri in paths]
    if are_files_here(name):
        found = find_files(name, options.format)
        names = {str(path.absolute()): short for path, short in zip(found.paths, found.names, strict=True)}
        paths = sorted(paths, key=lambda uri: [*names].index(unquote(urlparse(uri).path)))
        files = [names[unquote(urlparse(uri).path)] for uri in paths]
    ends = np.cumsum([counted[path] for path in paths]).tolist()
    starts = [(path, end - counted[path]) for path, end in zip(paths, ends, strict=True)]
    before = f.element_at(f.create_map(*[f.lit(value) for pair in starts for value in pair]), f.col(FILE))
    rows = frame.select(*wanted, (f.col(PLACE_IN_FILE) + before).cast("long").alias(ROW))  # type: ignore[attr-defined]
    return replace(log, files=files), rows, ends


class Spark:
    """The engine.

    Args:
        frame: the log's columns and `row`.
        ends: rows up to the end of each file; for a table, a number that no row has.
    """

    def __init__(
        self, frame: Any, log: LogSource, ends: list[int], options: ReadOptions, partitions: int | None, say: Say
    ) -> None:
        if options.min_item_events > 1 or options.min_user_events > 1:
            raise ValueError(
                "got minimum counts of events; expected none with Spark, which would pass over the log for each round: "
                "--min_item_count leaves rare items out of the vocabulary, or prepare on one machine"
            )
        self._frame, self._options, self._say = frame, options, say
        self._log = replace(log, parts=iter(()), blocks=no_blocks)
        self._ordered, self._ends = bool(log.files), ends
        self.survey = self._surveyed()
        wanted = partitions or 1 + self.survey.rows // PARTITION_ROWS
        self.bounds = self.survey.bounds(wanted)
        self.partitions = range(len(self.bounds) + 1)
        self._located: Any = None
        self._cleaned: Any = None
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
            events = clean(rows)[0].drop(ROW)
            places = [pl.lit(number, pl.Int32).alias(PARTITION), pl.int_range(pl.len(), dtype=pl.Int64).alias(PLACE)]
            return as_table(events.with_columns(*places, pl.col(TIME).dt.epoch("us")), CLEANED)

        def statistics(rows: pl.DataFrame, number: int) -> pa.Table:
            about = json.dumps({"number": number, **LogStatistics.of(cleaned_events(rows)).to_dict()})
            return pa.table({ABOUT: [about]})

        from pyspark import StorageLevel

        located = self._located.filter(f"{PARTITION} >= 0")
        ordered = self._applied(located, cleaned, CLEANED).repartition(len(self.partitions), PARTITION)
        self._cleaned = ordered.persist(StorageLevel.DISK_ONLY)
        found = [json.loads(row[ABOUT]) for row in self._applied(self._cleaned, statistics, TEXT).collect()]
        by_number = {about.pop("number"): LogStatistics.from_dict(about) for about in found}
        self._say(f"{len(self.partitions):,} partitions are in order")
        return [by_number.get(number, LogStatistics()) for number in self.partitions]

    # -- rejects

    def unusable(self) -> Iterator[pl.DataFrame]:
        if not self._are_some_unusable:
            return iter(())
        log, survey, missing, ends = self._log, self.survey, self._options.missing(), self._ends

        def bad_rows(batches: Batches) -> Batches:
            for table in joined_batches(batches):
                bad = usable_rows(table, log, survey, missing, [])[2].sort(ROW)
                rejects = as_rejects(bad, ends, log.files)
                numbers = [pl.lit(MALFORMED_FIRST, pl.Int32).alias(SEQUENCE), bad[ROW].alias(PLACE)]
                yield from arrow_batches(rejects.with_columns(numbers), REJECTED)

        return self._ordered_rejects(self._mapped(self._frame, bad_rows, REJECTED))

    def rejects(self) -> Iterator[pl.DataFrame]:
        yield from self.unusable()
        if self._options.duplicates == "keep" and self._options.max_user_events is None:
            return
        clean, log, ends = self._in_order(), self._log, self._ends

        def removed(rows: pl.DataFrame, number: int) -> pa.Table:
            gone = clean(rows)[1].sort(ROW)
            rejects = as_rejects(gone, ends, log.files)
            return as_table(rejects.with_columns(gone[SEQUENCE], gone[ROW].alias(PLACE)), REJECTED)

        located = self._located.filter(f"{PARTITION} >= 0")
        yield from self._ordered_rejects(self._applied(located, removed, REJECTED))

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
        for frame in (users, self._cleaned, self._located):
            frame.unpersist()


# ----------------------------------------------------------------------------------------------------------------------
# Rows between Spark, Arrow and Polars
# ----------------------------------------------------------------------------------------------------------------------


def no_blocks(columns: list[str]) -> Iterator[tuple[int, Rows]]:
    return iter(())


def first_row(counts: ReadRows) -> int:
    """What orders the counts of tasks: the position of the first row that a rule removed."""
    return min((int(row["row"]) for row in counts.first.values()), default=-1)


def usable_rows(
    table: pa.Table, log: LogSource, survey: Survey, missing: list[str], notes: list[str]
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """`Survey.usable` of rows with their place in the whole log."""
    frame = pl.DataFrame(table)
    return survey.usable(Rows(frame.drop(ROW), frame[ROW].to_numpy(), []), log, 0, missing, notes)


def cleaned_events(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of CLEANED as events in order."""
    return rows.sort(PLACE).select(USER, ITEM, ACTION, pl.col(TIME).cast(TIMESTAMP), pl.col(PLACE).alias(ROW))


def joined_batches(batches: Batches) -> Iterator[pa.Table]:
    """Spark's batches, several as one."""
    held, rows = list[pa.RecordBatch](), 0
    for batch in batches:
        if batch.num_rows:
            held.append(batch)
        rows += batch.num_rows
        if rows >= TASK_ROWS:
            yield pa.Table.from_batches(held)
            held, rows = [], 0
    if held:
        yield pa.Table.from_batches(held)


def as_table(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    return frame.select(schema.names).to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema)


def arrow_batches(frame: pl.DataFrame, schema: pa.Schema) -> Batches:
    yield from as_table(frame, schema).to_batches(max_chunksize=BATCH_ROWS)


def text_batches(texts: list[str]) -> Batches:
    yield pa.RecordBatch.from_pydict({ABOUT: texts}, schema=TEXT)


def order_field(survey: Survey) -> pa.DataType:
    """What the order column is while events are moved."""
    kind = pl.Float64 if survey.numbers_order else survey.order_type
    table = pl.DataFrame(schema={ORDER: kind}).to_arrow(compat_level=pl.CompatLevel.oldest())
    field = table.schema.field(ORDER).type
    return pa.string() if pa.types.is_large_string(field) else field


def spark_schema(schema: pa.Schema) -> str:
    """A schema as Spark writes it."""
    return ", ".join(f"`{field.name}` {spark_type(field.type)}" for field in schema)


SPARK_TYPES = {
    pa.int8(): "tinyint", pa.int16(): "smallint", pa.int32(): "int", pa.int64(): "bigint", pa.string(): "string",
    pa.float64(): "double", pa.float32(): "float", pa.bool_(): "boolean", pa.date32(): "date",
}  # fmt: skip


def spark_type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"array<{spark_type(kind.value_type)}>"
    if pa.types.is_timestamp(kind):
        return "timestamp" if kind.tz else "timestamp_ntz"
    if pa.types.is_decimal(kind):
        return f"decimal({kind.precision},{kind.scale})"
    if kind not in SPARK_TYPES:
        raise ValueError(f"got an order column of the type {kind}; expected numbers, text or times: cast it")
    return SPARK_TYPES[kind]
