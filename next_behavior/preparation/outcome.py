"""What a reading of a log by any engine is judged by: the checks, the removed rows and the cleaning report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from next_behavior.data.cleaning import REJECT_SCHEMA
from next_behavior.data.columns import ITEM
from next_behavior.data.events import check_items, check_unusable
from next_behavior.data.files import whole_file
from next_behavior.data.log_statistics import LogStatistics
from next_behavior.data.markers import marker_notes
from next_behavior.data.read_options import ReadOptions
from next_behavior.data.report import CleaningReport, describe
from next_behavior.data.sources import LogSource
from next_behavior.preparation.engine import Engine, ReadRows
from next_behavior.preparation.partition import PartitionCounts
from next_behavior.preparation.survey import Survey

GROUP_ROWS = 1 << 16  # of the file of rejects


def check_read(engine: Engine, rows: ReadRows, log: LogSource, options: ReadOptions, path: Path | None) -> None:
    """ValueError if a log has too many unusable rows, which are then written to `path`, or no items."""
    try:
        check_unusable(rows.removed(log.files), log, engine.survey.rows, options, path)
    except ValueError:
        if path is not None:
            write_rejects(engine.unusable(), path)
        raise
    check_items(rows.events, rows.without_item, log.columns[ITEM])


def write_rejects(pieces: Iterator[pl.DataFrame], path: Path) -> ReadRows:
    """Writes the rows of `as_rejects`, and counts them; the file does not depend on how they are divided."""
    counts, held = ReadRows(), pl.DataFrame(schema=REJECT_SCHEMA)
    schema = held.to_arrow().schema
    with whole_file(path) as unfinished, pq.ParquetWriter(unfinished, schema, compression="zstd") as file:
        for piece in pieces:
            counts.count_rejects(piece)
            held = pl.concat([held, piece])
            while held.height >= GROUP_ROWS:
                file.write_table(held.head(GROUP_ROWS).rechunk().to_arrow().cast(schema))
                held = held.slice(GROUP_ROWS)
        if held.height:
            file.write_table(held.rechunk().to_arrow().cast(schema))
    return counts


def counted_rejects(pieces: Iterator[pl.DataFrame]) -> ReadRows:
    """The counts of rows of `as_rejects`."""
    counts = ReadRows()
    for piece in pieces:
        counts.count_rejects(piece)
    return counts


def report_on(
    rows: ReadRows,
    whole: LogStatistics,
    counts: PartitionCounts,
    log: LogSource,
    survey: Survey,
    options: ReadOptions,
    notes: list[str],
    removed: ReadRows,
) -> CleaningReport:
    notes = [*notes, *rows.notes, *marker_notes({**survey.markers, **rows.markers}, log.columns)]
    notes += survey.reading.notes if survey.reading is not None else ()
    if options.duplicates == "drop" and not log.times:
        notes.append("duplicates=drop has no effect: without times a copy of an event is a repeat")
    return describe(
        whole,
        items=counts.items.height,
        source=log.name,
        files=log.files,
        rows=survey.rows,
        columns=log.columns,
        notes=list(dict.fromkeys(notes)),
        time_unit=survey.reading.unit if survey.reading is not None else None,
        order=log.order,
        unread=log.unread(),
        removed=removed.removed(log.files),
    )
