"""What Spark reads as an event log: a DataFrame, a table by its name, files of Parquet.

log, rows, ends = open_spark(session.table("shop.events"), session, options, notes)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np

from next_behavior.data.log_files import are_files_here, find_files
from next_behavior.data.read_options import ReadOptions
from next_behavior.data.sources import LogSource, choose_log_columns
from next_behavior.preparation.spark_rows import ROW

FILE, PLACE_IN_FILE = "__file", "__place"


def is_spark(source: object) -> bool:
    """Whether a source is a DataFrame of Spark."""
    return type(source).__module__.split(".")[0] == "pyspark"


def start_session(master: str | None) -> Any:
    """The session there is, or a new one.

    Raises:
        ValueError: pyspark or Java is missing.
    """
    try:
        from pyspark.errors import PySparkRuntimeError
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ValueError("got the engine spark without pyspark; expected it: pip install '.[spark]'") from error
    builder = SparkSession.builder.appName("next-behavior")
    try:
        return (builder.master(master) if master else builder).getOrCreate()
    except PySparkRuntimeError as error:
        if error.getCondition() != "JAVA_GATEWAY_EXITED":
            raise
        raise ValueError(
            "got the engine spark, whose Java did not start; expected Java 17 or 21: install it, and set JAVA_HOME if "
            "`java` is not on the PATH"
        ) from error


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
