"""Rows on their way between Spark, Arrow and Polars: their schemas, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl
import pyarrow as pa

from next_behavior.data.cleaning import REJECT_SCHEMA
from next_behavior.data.columns import ACTION, ITEM, TIME, USER
from next_behavior.data.events import ORDER, as_rejects
from next_behavior.data.sequences import FEATURES
from next_behavior.data.sources import LogSource
from next_behavior.data.tables import Rows
from next_behavior.data.times import TIMESTAMP
from next_behavior.preparation.engine import ReadRows
from next_behavior.preparation.partition import SEQUENCE, drop_rare
from next_behavior.preparation.survey import Survey

TASK_ROWS = 1 << 17  # rows of a task that are worked on at once
BATCH_ROWS = 1 << 16
ROW = "row"
PARTITION, PLACE, ABOUT = "partition", "place", "about"
IDS = {USER: pa.string(), ITEM: pa.string(), ACTION: pa.string(), TIME: pa.int64()}
TEXT = pa.schema({ABOUT: pa.string()})
CLEANED = pa.schema({PARTITION: pa.int32(), PLACE: pa.int64(), **IDS, ROW: pa.int64()})
MARKED = pa.schema([*CLEANED, pa.field("rule", pa.string()), pa.field(SEQUENCE, pa.int32())])  # those removed, too
RARE = "rare"
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
    return rows.sort(PLACE).select(USER, ITEM, ACTION, pl.col(TIME).cast(TIMESTAMP), ROW)


def mark_rare(rows: pl.DataFrame, number: int, least_user: int, sequence: int) -> pa.Table:
    """Marks what `drop_rare` removes of a partition: rows of MARKED, with RARE where an item has too few events."""
    gone_before, events = rows.filter(pl.col(SEQUENCE).is_not_null()), rows.filter(pl.col(SEQUENCE).is_null())
    rare = events.filter(pl.col(RARE))[ITEM].unique()
    return as_table(pl.concat([gone_before, *drop_rare(events, rare, least_user, sequence)]), MARKED)


def numbered_rejects(removed: pl.DataFrame, ends: list[int], files: list[str]) -> pl.DataFrame:
    """Removed rows with their sequence as rows of REJECTED."""
    removed = removed.sort(ROW)
    return as_rejects(removed, ends, files).with_columns(removed[SEQUENCE], removed[ROW].alias(PLACE))


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
