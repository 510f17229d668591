"""Event logs: files or tables -> validated, cleaned, time-ordered events, the rejected rows, and a report.

    log = read_events("events.csv")          # .csv, .csv.gz, .tsv, .parquet, a folder of Parquet files, a Dataset ...
    print(log.report)
    log.events                               # user_id, item_id, action, timestamp, row; sorted by user, time, row
    log.write_rejects("rejects.parquet")

Beside this file: `sources.py` opens files and tables, `columns.py` chooses columns, `times.py` reads times,
`markers.py` finds the texts for empty fields, `cleaning.py` has the rules, `report.py` the report.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from next_behavior.data.cleaning import BAD_ROWS, REJECT_SCHEMA, RULES, bad_rows, requested_rules
from next_behavior.data.columns import ACTION, ITEM, TIME, USER
from next_behavior.data.files import whole_file
from next_behavior.data.log_statistics import LogStatistics
from next_behavior.data.markers import check_user_markers, count_markers, marker_notes, other_users
from next_behavior.data.read_options import ReadOptions
from next_behavior.data.report import CleaningReport, Removed, describe, summarize
from next_behavior.data.sources import LogSource, open_source
from next_behavior.data.tables import Rows, id_text
from next_behavior.data.time_survey import parse_times
from next_behavior.data.times import TIMESTAMP, one_time

DEFAULT_ACTION = "interact"
LONGEST_MESSAGE = 2400  # characters
ORDER = "order"  # the name of the order column while a log is read


@dataclass(frozen=True)
class EventLog:
    """A cleaned log.

    Attributes:
        events: user_id String, item_id String (null: the event names no item), action String, timestamp
            Datetime("us", "UTC") (all null without a time column), row Int64 (position in the input: files by name,
            then rows, unusable rows counted); sorted by user_id, timestamp, row.
        rejects: every row that is not in `events`: file, row (0-based in its file, header not counted), rule, reason,
            the values as strings, and `text` for rows that could not be split into fields.
        report: what was read, removed and kept.
    """

    events: pl.DataFrame
    rejects: pl.DataFrame
    report: CleaningReport

    def write_rejects(self, path: str | os.PathLike[str]) -> None:
        """Writes `rejects` as Parquet: the whole file or, if interrupted, none."""
        _write_parquet(self.rejects, Path(path))


def _write_parquet(frame: pl.DataFrame, path: Path) -> None:
    with whole_file(path) as unfinished:
        frame.write_parquet(unfinished)


def read_events(
    source: object, options: ReadOptions | None = None, rejects_path: str | os.PathLike[str] | None = None
) -> EventLog:
    """Reads and cleans an event log.

    Args:
        source: a file (CSV, Parquet or JSON Lines), several with commas between or in a list, a pattern ("logs/*.csv"),
            a folder (read in order of the names), a `datasets.Dataset`, the name of one on the Hub (`owner/name`, see
            `hub.py`), a Polars or a pandas DataFrame. Needs a user and an item column; action and time are optional
            (every action is then "interact", file order is the order). A Dataset may have one row per user, with lists.
        options: columns, units and rules; None are the defaults.
        rejects_path: write the rejected rows here as Parquet, also when reading stops because of them.

    Raises:
        FileNotFoundError: no such path.
        ValueError: a source that cannot be read or is not a log; more than `options.max_reject_ratio` unusable rows;
            no user with two events. The message says what was got, what was expected and how to mend it.
    """
    with naming(source):
        return _read(source, options or ReadOptions(), rejects_path)


@contextmanager
def naming(source: object) -> Iterator[None]:
    """A ValueError that is raised here names the log, and is cut where it quotes ids of thousands of characters."""
    try:
        yield
    except ValueError as error:
        text, name = str(error), os.fspath(source) if isinstance(source, (str, os.PathLike)) else ""
        if name in text and len(text) <= LONGEST_MESSAGE:
            raise
        if len(text) > LONGEST_MESSAGE:
            text = f"{text[: LONGEST_MESSAGE // 2]} ... {text[-LONGEST_MESSAGE // 4 :]}"
        raise ValueError(text if name in text else f"{text} (in {name})") from error


def _read(source: object, options: ReadOptions, rejects_path: str | os.PathLike[str] | None) -> EventLog:
    notes: list[str] = []
    log = open_source(source, options, notes)
    raw, malformed, ends = _gather(log, options.missing(), notes)
    if ends[-1] == 0:
        raise ValueError(f"got {log.name} with a header and no rows; expected events: check how the log was written")
    counts = count_markers(raw, log.columns)
    check_user_markers(counts, raw.height, log.columns, log.present, options.max_reject_ratio)
    notes += marker_notes(counts, log.columns)
    events, bad, time_unit = _usable(raw, log, options, notes)
    del raw
    rejects = [as_rejects(malformed, ends, log.files), as_rejects(bad, ends, log.files)]
    unusable = pl.concat(rejects)
    try:
        check_unusable(summarize(unusable, log.files), log, ends[-1], options, rejects_path)
    except ValueError:
        if rejects_path is not None:
            _write_parquet(unusable, Path(rejects_path))
        raise
    check_items(events.height, events[ITEM].null_count(), log.columns[ITEM])
    has_times = log.columns[TIME] is not None
    events, removed = requested_rules(
        events,
        duplicates=options.duplicates if has_times else "keep",
        min_user_events=options.min_user_events,
        min_item_events=options.min_item_events,
        max_user_events=options.max_user_events,
    )
    if options.duplicates == "drop" and not has_times:
        notes.append("duplicates=drop has no effect: without times a copy of an event is a repeat")
    rejected = pl.concat([*rejects, *(as_rejects(gone, ends, log.files) for gone in removed)])
    if rejects_path is not None:
        _write_parquet(rejected, Path(rejects_path))
    report = describe(
        LogStatistics.of(events),
        items=events[ITEM].drop_nulls().n_unique(),
        source=log.name,
        files=log.files,
        rows=ends[-1],
        columns=log.columns,
        notes=list(dict.fromkeys(notes)),
        time_unit=time_unit,
        order=log.order,
        unread=log.unread(),
        removed=summarize(rejected, log.files),
    )
    check_users(report)
    return EventLog(events, rejected, report)


def _gather(log: LogSource, missing: list[str], notes: list[str]) -> tuple[pl.DataFrame, pl.DataFrame, list[int]]:
    """All files in one frame (ids and action as text, time as it is, order, row); malformed rows; where each file
    ends. Texts in `missing` become empty fields."""
    frames: list[pl.DataFrame] = []
    malformed: list[tuple[int, str, str]] = []
    ends: list[int] = []
    names = log.files or [log.name]
    for part, name in zip(log.parts, names, strict=True):
        start = ends[-1] if ends else 0
        frame = as_roles(part, log, missing, start, notes)
        if frames and log.times:
            check_time_types(frames[0].schema[TIME], names[0], frame.schema[TIME], name, log.columns[TIME])
        frames.append(frame)
        malformed += [(position + start, reason, text) for position, reason, text in part.malformed]
        ends.append(start + part.total)
    return pl.concat(frames, how="vertical_relaxed"), set_aside(malformed), ends


def as_roles(part: Rows, log: LogSource, missing: list[str], start: int, notes: list[str]) -> pl.DataFrame:
    """Rows of a file with their columns named by role: ids and action as text, time as it is, order, row.

    Args:
        missing: texts that become empty fields.
        start: rows in the files before.
    """
    ids = {role: part.frame[column] for role, column in log.columns.items() if column is not None and role != TIME}
    frame = pl.DataFrame({role: id_text(values, role, notes) for role, values in ids.items()})
    frame = frame.with_columns(pl.col(ITEM).replace("", None))
    if ACTION not in ids:
        frame = frame.with_columns(pl.lit(DEFAULT_ACTION).alias(ACTION))
    if log.times:
        frame = frame.with_columns(one_time([part.frame[column] for column in log.times]).alias(TIME))
    if missing:
        texts = pl.selectors.by_dtype(pl.String)
        frame = frame.with_columns(pl.when(~texts.str.strip_chars().is_in(missing)).then(texts))
    if log.order is not None:
        frame = frame.with_columns(part.frame[log.order].alias(ORDER))
    return frame.with_columns(pl.Series("row", part.positions + start, dtype=pl.Int64))


def set_aside(malformed: list[tuple[int, str, str]]) -> pl.DataFrame:
    """Rows that could not be split into fields (row, reason, text) as a frame, with their rule."""
    schema = {"row": pl.Int64, "reason": pl.String, "text": pl.String}
    return pl.DataFrame(malformed, schema=schema, orient="row").with_columns(pl.lit("malformed_row").alias("rule"))


def is_number_text(values: pl.Series) -> bool:
    """Whether a column is text, all of it numbers."""
    if values.dtype != pl.String:
        return False
    text = values.str.strip_chars().replace("", None)
    return text.cast(pl.Float64, strict=False).null_count() == text.null_count()


def number_key(values: pl.Series) -> pl.Series:
    """Text that holds numbers as these."""
    return values.str.strip_chars().replace("", None).cast(pl.Float64, strict=False)


def text_key(values: pl.Series) -> pl.Series:
    """Text without the blanks around it; other values as they are."""
    return values.str.strip_chars().replace("", None) if values.dtype == pl.String else values


def check_time_types(
    first: pl.DataType, first_name: str, other: pl.DataType, other_name: str, column: str | None
) -> None:
    """ValueError unless two files' time columns can be one: both numbers, both dates with the same zone, or one holds
    nothing at all."""
    if isinstance(first, pl.Datetime) and isinstance(other, pl.Datetime):
        fits = first.time_zone == other.time_zone
    else:
        fits = first == other or (first.is_numeric() and other.is_numeric()) or pl.Null in (first, other)
    if not fits:
        raise ValueError(
            f"got {first} in the time column {column!r} of {first_name} but {other} in {other_name}; expected one type "
            "in every file: rewrite one of them"
        )


def check_untimed(options: ReadOptions) -> None:
    """ValueError if the options say how times are read, of a log without them."""
    for name, value in (("time_unit", options.time_unit), ("time_format", options.time_format)):
        if value is not None:
            raise ValueError(
                f"got {name}={value!r} for a log without a time column; expected none, or name the column with "
                "--time_column"
            )


def _usable(
    raw: pl.DataFrame, log: LogSource, options: ReadOptions, notes: list[str]
) -> tuple[pl.DataFrame, pl.DataFrame, str | None]:
    """Raw rows -> events in order, unusable rows with their rule (times as the file has them), unit of time."""
    if ORDER in raw.columns:
        raw = raw.with_columns((number_key if is_number_text(raw[ORDER]) else text_key)(raw[ORDER]))
    if not log.times:
        check_untimed(options)
        events, bad = split_usable(raw, None, None, has_action=log.columns[ACTION] is not None)
        return in_order(events), bad, None
    times, rules, reading = parse_times(
        raw[TIME], str(log.columns[TIME]), options.time_unit, options.latest(), options.time_format
    )
    notes += reading.notes
    events, bad = split_usable(raw, times, rules, has_action=log.columns[ACTION] is not None)
    return in_order(events), bad, reading.unit


def split_usable(
    raw: pl.DataFrame, times: pl.Series | None, rules: pl.Series | None, *, has_action: bool
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Raw rows -> events, and unusable rows with their rule (times as the file has them); both keep the order of rows.

    Args:
        times, rules: as `TimeReading.apply` gives them; None for a log without times.
    """
    if times is None or rules is None:
        times = pl.repeat(None, raw.height, dtype=TIMESTAMP, eager=True)
        rules = pl.repeat(None, raw.height, dtype=pl.String, eager=True)
        raw = raw.with_columns(times.alias(TIME))
    marked = raw.with_columns(rules.alias("time_rule"))
    bad = bad_rows(marked, has_action=has_action).drop("time_rule")
    events = raw.with_columns(times.alias(TIME))
    if bad.height:
        events = events.join(bad.select("row"), on="row", how="anti")
    return events, bad.with_columns(pl.col(TIME).cast(pl.String))


def in_order(events: pl.DataFrame) -> pl.DataFrame:
    """Events sorted by user, time, the order column if there is one, and row."""
    order = [name for name in (USER, TIME, ORDER, "row") if name in events.columns]
    return events.sort(order).select(USER, ITEM, ACTION, TIME, "row")


def as_rejects(frame: pl.DataFrame, ends: list[int], files: list[str]) -> pl.DataFrame:
    """Removed rows in the columns of `rejects`, in input order; `frame` has row, rule and some of the rest."""
    frame = frame.sort("row")
    starts = np.array([0, *ends[:-1]])
    which = np.searchsorted(np.array(ends), frame["row"].to_numpy(), side="right")
    if "reason" not in frame.columns:
        what = {rule: text for rule, (text, _) in RULES.items()}
        frame = frame.with_columns(pl.col("rule").replace(what).alias("reason"))
    frame = frame.with_columns(
        pl.Series("file", [files[i] if files else None for i in which], dtype=pl.String),
        pl.col("row") - pl.Series(starts[which], dtype=pl.Int64),
    )
    absent = [pl.lit(None, dtype=kind).alias(name) for name, kind in REJECT_SCHEMA.items() if name not in frame.columns]
    return frame.with_columns(absent).select(pl.col(name).cast(kind) for name, kind in REJECT_SCHEMA.items())


# Checks


def check_unusable(
    removed: list[Removed], log: LogSource, rows: int, options: ReadOptions, path: str | os.PathLike[str] | None
) -> None:
    """ValueError with the reasons and remedies if there are too many unusable rows.

    Args:
        removed: the unusable rows by rule.
        rows: of the whole log.
        path: where the unusable rows are written.
    """
    allowed, unusable = options.max_reject_ratio, sum(r.rows for r in removed)
    if unusable <= allowed * rows:
        return
    where = "" if path is None else f"all of them are in {path}; "
    lines = []
    for r in sorted(removed, key=lambda r: -r.rows)[:3]:
        hint = other_users(log.columns, log.present) if r.rule == "missing_user" else ""
        if r.rule == "unparsable_time":
            hint = other_ways(str(log.columns[TIME]), options)
        lines.append(f"  {r.rule}: {r.rows:,} {r.what}; e.g. {r.example}; mend: {hint}{BAD_ROWS[r.rule][1]}")
    raise ValueError(
        f"got {unusable:,} of {rows:,} rows ({100 * unusable / rows:.1f} %) that cannot be used; expected at most "
        f"{100 * allowed:g} %. The main reasons:\n" + "\n".join(lines) + f"\n{where}to read the log without them raise "
        "--max_reject_ratio"
    )


def other_ways(column: str, options: ReadOptions) -> str:
    """How the options of a time column that was not read may be at fault."""
    if options.time_unit not in (None, "iso"):
        return f"if they are text, leave out --time_unit {options.time_unit}, which is for numbers; or "
    date, *clock = column.split(",")
    if len(clock) == 1:
        return (
            f"if {clock[0]} is a number and no time of day, let it order the events of a time: --time_column {date} "
            f"--order_column {clock[0]}; or "
        )
    return ""


def check_items(events: int, without_item: int, column: str | None) -> None:
    """ValueError if no event names an item."""
    if events and without_item == events:
        raise ValueError(
            f"got an empty item column {column!r}: none of {events:,} usable rows names an item; expected "
            "items: name another column with --item_column"
        )


def check_users(report: CleaningReport) -> None:
    """ValueError if no user has two events."""
    if report.longest_user_events < 2:
        raise ValueError(
            f"got {report.events:,} events of {report.users:,} users, at most one per user; expected users with "
            f"several events, of which the next is predicted: is {report.columns[USER]!r} the user (--user_column), "
            f"and do the rules leave enough?\n{report}"
        )
