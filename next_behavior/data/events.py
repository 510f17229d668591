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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from next_behavior.data.cleaning import BAD_ROWS, REJECT_SCHEMA, RULES, bad_rows, requested_rules
from next_behavior.data.columns import ACTION, ITEM, TIME, USER
from next_behavior.data.files import whole_file
from next_behavior.data.markers import check_user_markers, marker_notes, other_users
from next_behavior.data.read_options import ReadOptions
from next_behavior.data.report import CleaningReport, describe, summarize
from next_behavior.data.sources import LogSource, open_source
from next_behavior.data.tables import id_text
from next_behavior.data.times import TIMESTAMP, one_time, parse_times

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
    try:
        return _read(source, options or ReadOptions(), rejects_path)
    except ValueError as error:
        text, name = str(error), os.fspath(source) if isinstance(source, (str, os.PathLike)) else ""
        if name in text and len(text) <= LONGEST_MESSAGE:
            raise
        if len(text) > LONGEST_MESSAGE:  # of ids or names of thousands of characters
            text = f"{text[: LONGEST_MESSAGE // 2]} ... {text[-LONGEST_MESSAGE // 4 :]}"
        raise ValueError(text if name in text else f"{text} (in {name})") from error


def _read(source: object, options: ReadOptions, rejects_path: str | os.PathLike[str] | None) -> EventLog:
    notes: list[str] = []
    log = open_source(source, options, notes)
    raw, malformed, ends = _gather(log, options.missing(), notes)
    if ends[-1] == 0:
        raise ValueError(f"got {log.name} with a header and no rows; expected events: check how the log was written")
    check_user_markers(raw, log.columns, log.present, options.max_reject_ratio)
    notes += marker_notes(raw, log.columns)
    events, bad, time_unit = _usable(raw, log.columns, options, notes)
    del raw
    rejects = [_rejects(malformed, ends, log.files), _rejects(bad, ends, log.files)]
    _check_unusable(pl.concat(rejects), log, ends[-1], options, rejects_path)
    _check_items(events, log.columns[ITEM])
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
    rejected = pl.concat([*rejects, *(_rejects(gone, ends, log.files) for gone in removed)])
    if rejects_path is not None:
        _write_parquet(rejected, Path(rejects_path))
    report = describe(
        events,
        source=log.name,
        files=log.files,
        rows=ends[-1],
        columns=log.columns,
        notes=list(dict.fromkeys(notes)),
        time_unit=time_unit,
        order=log.order,
        unread=[column for column in log.present if column not in log.read()],
        rejects=rejected,
    )
    _check_users(report)
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
        ids = {role: part.frame[column] for role, column in log.columns.items() if column is not None and role != TIME}
        frame = pl.DataFrame({role: id_text(values, role, notes) for role, values in ids.items()})
        frame = frame.with_columns(pl.col(ITEM).replace("", None))
        if ACTION not in ids:
            frame = frame.with_columns(pl.lit(DEFAULT_ACTION).alias(ACTION))
        if log.times:
            frame = frame.with_columns(one_time([part.frame[column] for column in log.times]).alias(TIME))
            if frames and frames[0].schema[TIME] != frame.schema[TIME] and not _same_kind(frames[0][TIME], frame[TIME]):
                raise ValueError(
                    f"got {frames[0].schema[TIME]} in the time column {log.columns[TIME]!r} of {names[0]} but "
                    f"{frame.schema[TIME]} in {name}; expected one type in every file: rewrite one of them"
                )
        if missing:
            texts = pl.selectors.by_dtype(pl.String)
            frame = frame.with_columns(pl.when(~texts.str.strip_chars().is_in(missing)).then(texts))
        if log.order is not None:
            frame = frame.with_columns(part.frame[log.order].alias(ORDER))
        frames.append(frame.with_columns(pl.Series("row", part.positions + start, dtype=pl.Int64)))
        malformed += [(position + start, reason, text) for position, reason, text in part.malformed]
        ends.append(start + part.total)
    schema = {"row": pl.Int64, "reason": pl.String, "text": pl.String}
    aside = pl.DataFrame(malformed, schema=schema, orient="row").with_columns(pl.lit("malformed_row").alias("rule"))
    return pl.concat(frames, how="vertical_relaxed"), aside, ends


def _sort_key(values: pl.Series) -> pl.Series:
    """Text as numbers where all of it is numbers."""
    if values.dtype != pl.String:
        return values
    text = values.str.strip_chars().replace("", None)
    numbers = text.cast(pl.Float64, strict=False)
    return numbers if numbers.null_count() == text.null_count() else text


def _same_kind(a: pl.Series, b: pl.Series) -> bool:
    """Whether two time columns can be one: both numbers, both dates with the same zone, or one holds nothing at all."""
    if isinstance(a.dtype, pl.Datetime) and isinstance(b.dtype, pl.Datetime):
        return a.dtype.time_zone == b.dtype.time_zone
    return (a.dtype.is_numeric() and b.dtype.is_numeric()) or pl.Null in (a.dtype, b.dtype)


def _usable(
    raw: pl.DataFrame, chosen: dict[str, str | None], options: ReadOptions, notes: list[str]
) -> tuple[pl.DataFrame, pl.DataFrame, str | None]:
    """Raw rows -> events in order, unusable rows with their rule (times as the file has them), unit of time."""
    unit = None
    order = [USER, "row"]
    if ORDER in raw.columns:
        raw, order = raw.with_columns(_sort_key(raw[ORDER])), [USER, ORDER, "row"]
    if chosen[TIME] is None:
        for name in ("time_unit", "time_format"):
            if getattr(options, name) is not None:
                raise ValueError(
                    f"got {name}={getattr(options, name)!r} for a log without a time column; expected none, or name "
                    "the column with --time_column"
                )
        raw = raw.with_columns(pl.lit(None, dtype=TIMESTAMP).alias(TIME))
        times, rules = raw[TIME], pl.repeat(None, raw.height, dtype=pl.String, eager=True)
    else:
        times, rules, unit, more = parse_times(
            raw[TIME], str(chosen[TIME]), options.time_unit, options.latest(), options.time_format
        )
        notes += more
        order.insert(1, TIME)
    marked = raw.with_columns(rules.alias("time_rule"))
    bad = bad_rows(marked, has_action=chosen[ACTION] is not None).drop("time_rule")
    events = raw.with_columns(times.alias(TIME))
    if bad.height:
        events = events.join(bad.select("row"), on="row", how="anti")
    events = events.select({*order, USER, ITEM, ACTION, TIME, "row"}).sort(order)
    return events.select(USER, ITEM, ACTION, TIME, "row"), bad.with_columns(pl.col(TIME).cast(pl.String)), unit


def _rejects(frame: pl.DataFrame, ends: list[int], files: list[str]) -> pl.DataFrame:
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


def _check_unusable(
    rejects: pl.DataFrame, log: LogSource, rows: int, options: ReadOptions, path: str | os.PathLike[str] | None
) -> None:
    """With too many unusable rows: writes them where asked, and raises an error that shows the reasons and remedies."""
    allowed = options.max_reject_ratio
    if rejects.height <= allowed * rows:
        return
    where = ""
    if path is not None:
        _write_parquet(rejects, Path(path))
        where = f"all of them are in {path}; "
    lines = []
    for r in sorted(summarize(rejects, log.files), key=lambda r: -r.rows)[:3]:
        hint = other_users(log.columns, log.present) if r.rule == "missing_user" else ""
        if r.rule == "unparsable_time":
            hint = other_ways(str(log.columns[TIME]), options)
        lines.append(f"  {r.rule}: {r.rows:,} {r.what}; e.g. {r.example}; mend: {hint}{BAD_ROWS[r.rule][1]}")
    raise ValueError(
        f"got {rejects.height:,} of {rows:,} rows ({100 * rejects.height / rows:.1f} %) that cannot be used; expected "
        f"at most {100 * allowed:g} %. The main reasons:\n" + "\n".join(lines) + f"\n{where}to read the log "
        "without them raise --max_reject_ratio"
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


def _check_items(events: pl.DataFrame, column: str | None) -> None:
    if events.height and events[ITEM].null_count() == events.height:
        raise ValueError(
            f"got an empty item column {column!r}: none of {events.height:,} usable rows names an item; expected "
            "items: name another column with --item_column"
        )


def _check_users(report: CleaningReport) -> None:
    if report.longest_user_events < 2:
        raise ValueError(
            f"got {report.events:,} events of {report.users:,} users, at most one per user; expected users with "
            f"several events, of which the next is predicted: is {report.columns[USER]!r} the user (--user_column), "
            f"and do the rules leave enough?\n{report}"
        )
