"""Event logs: files or tables -> validated, cleaned, time-ordered events, the rejected rows, and a report.

    log = read_events("events.csv")          # .csv, .csv.gz, .tsv, .parquet, a folder of Parquet files, a Dataset ...
    print(log.report)
    log.events                               # user_id, item_id, action, timestamp, row; sorted by user, time, row
    log.write_rejects("rejects.parquet")

Files become columns in `behavior/tables.py`; the rules and the report are in `behavior/cleaning.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import polars as pl

from next_behavior.data.cleaning import (
    BAD_ROWS,
    REJECT_SCHEMA,
    RULES,
    TIMESTAMP,
    UNITS,
    CleaningReport,
    bad_rows,
    describe,
    parse_times,
    requested_rules,
    summarise,
    utc,
)
from next_behavior.data.hub import is_hub_dataset, load_hub_dataset
from next_behavior.data.tables import (
    ACTION,
    ALIASES,
    FLAGS,
    ITEM,
    TIME,
    USER,
    Rows,
    choose_column,
    columns_of,
    from_table,
    id_text,
    list_files,
    one_row_per_event,
    plain,
    read_file,
)

DEFAULT_ACTION = "interact"
# Title-like columns, best first.
TITLES = [
    "title",
    "name",
    "item_name",
    "item_title",
    "product_name",
    "product_title",
    "article_name",
    "movie_title",
    "headline",
    "prod_name",
    "product_type",
    "label",
    "description",
]
ID_LIKE = {"asin", "parentasin", "sku", "ean", "upc", "gtin", "isbn", "barcode", "url", "link", "image", "imageurl"}


@dataclass(frozen=True)
class ReadOptions:
    """How to read and clean a log.

    Attributes:
        user_column, item_column, action_column, time_column: names in the file; None finds a recognised name.
        time_unit: "s", "ms", "us", "ns" (since 1970) or "iso" (text); None infers and reports it.
        duplicates: "keep" counts later copies of an event, "drop" removes them.
        min_user_events, min_item_events: users and items with fewer events are removed, repeatedly until none is left.
        max_user_events: keep only each user's newest events; None keeps all.
        max_reject_ratio: share (0 to 1) of unusable rows above which reading stops. Rows removed on request
            (duplicates, counts, cap) are not unusable.
        latest_time: ISO time after which an event lies in the future; None is one day from now.
    """

    user_column: str | None = None
    item_column: str | None = None
    action_column: str | None = None
    time_column: str | None = None
    time_unit: str | None = None
    duplicates: str = "keep"
    min_user_events: int = 1
    min_item_events: int = 1
    max_user_events: int | None = None
    max_reject_ratio: float = 0.05
    latest_time: str | None = None

    def __post_init__(self) -> None:
        if self.time_unit not in (None, "iso", *UNITS):
            raise ValueError(f"got time_unit={self.time_unit!r}; expected one of {', '.join(UNITS)}, iso, or None")
        if self.duplicates not in ("keep", "drop"):
            raise ValueError(f"got duplicates={self.duplicates!r}; expected 'keep' or 'drop'")
        for name in ("min_user_events", "min_item_events"):
            if getattr(self, name) < 1:
                raise ValueError(f"got {name}={getattr(self, name)}; expected at least 1 (1 removes nothing)")
        if self.max_user_events is not None and self.max_user_events < 2:
            raise ValueError(
                f"got max_user_events={self.max_user_events}; expected at least 2 (one to predict from), or None"
            )
        if not 0 <= self.max_reject_ratio <= 1:
            raise ValueError(f"got max_reject_ratio={self.max_reject_ratio}; expected a share between 0 and 1")
        self.latest()

    def latest(self) -> datetime:
        """The last time that is not in the future, UTC."""
        if self.latest_time is None:
            return datetime.now(timezone.utc) + timedelta(days=1)
        try:
            return utc(datetime.fromisoformat(self.latest_time.replace("Z", "+00:00")))
        except ValueError:
            raise ValueError(f"got latest_time={self.latest_time!r}; expected ISO time such as 2030-01-31") from None


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
        """Write `rejects` as Parquet: the whole file or, if interrupted, none."""
        _write_whole(self.rejects, Path(path))


def _write_whole(frame: pl.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        frame.write_parquet(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


# Reading


def _choose_all(columns: list[str], options: ReadOptions, notes: list[str]) -> dict[str, str | None]:
    asked = {role: getattr(options, flag) for role, flag in FLAGS.items()}
    free = [column for column in columns if column not in asked.values()]
    chosen = {
        role: choose_column(
            role, free if asked[role] is None else columns, asked[role], needed=role in (USER, ITEM), notes=notes
        )
        for role in FLAGS
    }
    taken: dict[str, str] = {}
    for role, column in chosen.items():
        if column in taken:
            raise ValueError(
                f"got the column {column!r} for both {taken[column]} and {role}; expected two columns: "
                f"change --{FLAGS[taken[column]]} or --{FLAGS[role]}"
            )
        if column is not None:
            if columns.count(column) > 1:
                raise ValueError(
                    f"got {columns.count(column)} columns named {column!r}; expected one: rename the others"
                )
            taken[column] = role
    return chosen


def read_events(
    source: object, options: ReadOptions = ReadOptions(), rejects_path: str | os.PathLike[str] | None = None
) -> EventLog:
    """Read and clean an event log.

    Args:
        source: path of a .csv, .csv.gz, .tsv, .tsv.gz or .parquet file, of a folder of Parquet files (read in order of
            their names), a `datasets.Dataset`, the name of one on the Hub (`owner/name`, see `behavior/hub.py`), a
            Polars or a pandas DataFrame. Needs a user and an item column; action and time are optional (every action
            is then "interact", file order is the order). A Dataset may have one row per user, with lists.
        options: columns, units and rules.
        rejects_path: write the rejected rows here as Parquet, also when reading stops because of them.

    Returns:
        Events sorted by (user_id, timestamp, row), the rejected rows, and the report.

    Raises:
        FileNotFoundError: no such path.
        ValueError: a source that cannot be read or is not a log; more than `options.max_reject_ratio` unusable rows;
            no user with two events. The message says what was got, what was expected and how to mend it.
    """
    notes: list[str] = []
    files: list[Path] = []
    hub_name = source if isinstance(source, str) and is_hub_dataset(source) else None
    if hub_name is not None:
        source = load_hub_dataset(hub_name)
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        files = list_files(Path(name))
        root = Path(name) if Path(name).is_dir() else Path(name).parent
        chosen = _choose_all(columns_of(files[0]), options, notes)
        parts: Iterator[Rows] = (read_file(file, [c for c in chosen.values() if c is not None]) for file in files)
        file_names = [file.relative_to(root).as_posix() for file in files]
    else:
        empty, kind, _ = from_table(source, None)
        name = hub_name or kind
        chosen = _choose_all(empty.columns, options, notes)
        frame, _, table_notes = from_table(source, [c for c in chosen.values() if c is not None])
        notes += table_notes
        frame = one_row_per_event(frame, chosen[USER], notes)
        parts = iter([Rows(frame, np.arange(frame.height), [])])
        file_names = []
    raw, malformed, ends = _gather(parts, chosen, file_names or [name], notes)
    rows = ends[-1]
    if rows == 0:
        raise ValueError(f"got {name} with a header and no rows; expected events: check how the log was written")

    events, bad, time_unit = _usable(raw, chosen, options, notes)
    del raw
    rejects = [_rejects(malformed, ends, file_names), _rejects(bad, ends, file_names)]
    unusable = malformed.height + bad.height
    if unusable > options.max_reject_ratio * rows:
        _stop(pl.concat(rejects), file_names, rows, unusable, options, rejects_path)
    if events.height and events[ITEM].null_count() == events.height:
        raise ValueError(
            f"got an empty item column {chosen[ITEM]!r}: none of {events.height:,} usable rows names an item; expected "
            "items: name another column with --item_column"
        )
    events, removed = requested_rules(
        events,
        duplicates=options.duplicates if chosen[TIME] else "keep",
        min_user_events=options.min_user_events,
        min_item_events=options.min_item_events,
        max_user_events=options.max_user_events,
    )
    if options.duplicates == "drop" and not chosen[TIME]:
        notes.append("duplicates=drop has no effect: without times a copy of an event is a repeat")
    rejects += [_rejects(gone, ends, file_names) for gone in removed]
    rejected = pl.concat(rejects)
    if rejects_path is not None:
        _write_whole(rejected, Path(rejects_path))
    report = describe(
        events,
        source=name,
        files=file_names,
        rows=rows,
        columns=chosen,
        notes=list(dict.fromkeys(notes)),
        time_unit=time_unit,
        rejects=rejected,
    )
    if report.longest_user_events < 2:
        raise ValueError(
            f"got {report.events:,} events of {report.users:,} users, at most one per user; expected users with "
            f"several events, of which the next is predicted: is {chosen[USER]!r} the user (--user_column), and do "
            f"the rules leave enough?\n{report}"
        )
    return EventLog(events, rejected, report)


def _gather(
    parts: Iterator[Rows], chosen: dict[str, str | None], names: list[str], notes: list[str]
) -> tuple[pl.DataFrame, pl.DataFrame, list[int]]:
    """All files in one frame (ids and action as text, time as it is, row); malformed rows; where each file ends."""
    frames: list[pl.DataFrame] = []
    malformed: list[tuple[int, str, str]] = []
    ends: list[int] = []
    for part, name in zip(parts, names, strict=True):
        start = ends[-1] if ends else 0
        columns = {role: part.frame[column] for role, column in chosen.items() if column is not None}
        texts = {role: id_text(values, role, notes) for role, values in columns.items() if role != TIME}
        frame = pl.DataFrame(texts).with_columns(pl.col(ITEM).replace("", None))
        if ACTION not in columns:
            frame = frame.with_columns(pl.lit(DEFAULT_ACTION).alias(ACTION))
        if TIME in columns:
            frame = frame.with_columns(columns[TIME].alias(TIME))
            if frames and frames[0].schema[TIME] != frame.schema[TIME] and not _same_kind(frames[0][TIME], frame[TIME]):
                raise ValueError(
                    f"got {frames[0].schema[TIME]} in the time column {chosen[TIME]!r} of {names[0]} but "
                    f"{frame.schema[TIME]} in {name}; expected one type in every file: rewrite one of them"
                )
        frames.append(frame.with_columns(pl.Series("row", part.positions + start, dtype=pl.Int64)))
        malformed += [(position + start, reason, text) for position, reason, text in part.malformed]
        ends.append(start + part.total)
    schema = {"row": pl.Int64, "reason": pl.String, "text": pl.String}
    aside = pl.DataFrame(malformed, schema=schema, orient="row").with_columns(pl.lit("malformed_row").alias("rule"))
    return pl.concat(frames, how="vertical_relaxed"), aside, ends


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
    if chosen[TIME] is None:
        if options.time_unit is not None:
            raise ValueError(
                f"got time_unit={options.time_unit!r} for a log without a time column; expected none, or name the "
                "column with --time_column"
            )
        raw = raw.with_columns(pl.lit(None, dtype=TIMESTAMP).alias(TIME))
        times, rules = raw[TIME], pl.repeat(None, raw.height, dtype=pl.String, eager=True)
    else:
        times, rules, unit, more = parse_times(raw[TIME], str(chosen[TIME]), options.time_unit, options.latest())
        notes += more
        order = [USER, TIME, "row"]
    marked = raw.with_columns(rules.alias("time_rule"))
    bad = bad_rows(marked, has_action=chosen[ACTION] is not None).drop("time_rule")
    events = raw.with_columns(times.alias(TIME)).select(USER, ITEM, ACTION, TIME, "row")
    if bad.height:
        events = events.join(bad.select("row"), on="row", how="anti")
    return events.sort(order), bad.with_columns(pl.col(TIME).cast(pl.String)), unit


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


def _stop(
    rejects: pl.DataFrame,
    files: list[str],
    rows: int,
    unusable: int,
    options: ReadOptions,
    path: str | os.PathLike[str] | None,
) -> None:
    """Too many unusable rows: write them where asked, and raise an error that shows the reasons and remedies."""
    where = "pass rejects_path to read_events to get all of them"
    if path is not None:
        _write_whole(rejects, Path(path))
        where = f"all of them are in {path}"
    lines = [
        f"  {r.rule}: {r.rows:,} {r.what}; e.g. {r.example}; mend: {BAD_ROWS[r.rule][1]}"
        for r in sorted(summarise(rejects, files), key=lambda r: -r.rows)[:3]
    ]
    raise ValueError(
        f"got {unusable:,} of {rows:,} rows ({100 * unusable / rows:.1f} %) that cannot be used; expected at most "
        f"{100 * options.max_reject_ratio:g} %. The main reasons:\n" + "\n".join(lines) + f"\n{where}; to read the log "
        "without them raise --max_reject_ratio"
    )


# Items


def read_items(source: object, id_column: str | None = None) -> pl.DataFrame:
    """What is known about the items, as text.

    Args:
        source: as in `read_events`.
        id_column: its id column; None finds item_id or a recognised name.

    Returns:
        item_id String (unique, never null), title String (the best title-like column, null where there is none), then
        the other text columns under their own names; lists of text are joined by ", ". Numbers and id-like columns
        (asin, sku, ..._id, urls) are left out.

    Raises:
        FileNotFoundError, ValueError: as in `read_events`.
    """
    notes: list[str] = []
    if isinstance(source, (str, os.PathLike)):
        files = list_files(Path(source))
        columns = columns_of(files[0])
        key = choose_column(ITEM, columns, id_column, needed=True, notes=notes, flag="id_column")
        parts = [read_file(file, columns) for file in files]
        frame = pl.concat([part.frame for part in parts], how="vertical_relaxed")
        malformed = [m for part in parts for m in part.malformed]
        if malformed:
            row, reason, text = malformed[0]
            warnings.warn(
                f"{source}: {len(malformed):,} rows left out, e.g. row {row:,} ({reason}): {text!r}", stacklevel=2
            )
    else:
        columns = from_table(source, None)[0].columns
        key = choose_column(ITEM, columns, id_column, needed=True, notes=notes, flag="id_column")
        frame = from_table(source, columns)[0]
    ids = id_text(frame[str(key)], ITEM, notes).alias(ITEM)
    texts = frame.select(
        (pl.col(c).list.join(", ", ignore_nulls=True) if isinstance(kind, pl.List) else pl.col(c).cast(pl.String))
        .replace("", None)
        for c, kind in frame.schema.items()
        if c != key and not plain(c).endswith("id") and plain(c) not in ID_LIKE
        and (kind in (pl.String, pl.Categorical, pl.Enum) or kind == pl.List(pl.String))
    )  # fmt: skip
    title = next((c for alias in TITLES for c in texts.columns if plain(c) == plain(alias)), None)
    if title is None and texts.width:  # the column that tells items apart best
        title = max(texts.columns, key=lambda c: texts[c].n_unique())
    titles = texts[title].alias("title") if title else pl.Series("title", [None] * frame.height, dtype=pl.String)
    items = pl.DataFrame([ids, titles]).hstack(texts.drop([title] if title else []).get_columns())
    items = items.filter(pl.col(ITEM).is_not_null() & (pl.col(ITEM) != ""))
    if items.is_empty():
        raise ValueError(
            f"got no item in the column {key!r}; expected one row per item: name its id column with id_column"
        )
    unique = items.unique(ITEM, keep="first", maintain_order=True)
    if unique.height < items.height:
        warnings.warn(f"items: {items.height - unique.height:,} later rows of ids seen before left out", stacklevel=2)
    return unique


# Command line


def add_event_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one flag per field of `ReadOptions`."""
    group = parser.add_argument_group("event log")
    for role, flag in FLAGS.items():
        examples = ", ".join(ALIASES[role].split()[:4])
        group.add_argument(f"--{flag}", help=f"column of the {flag.split('_')[0]} (default: {examples} ... if present)")
    group.add_argument(
        "--time_unit", choices=[*UNITS, "iso"], help="unit of the time column (default: inferred, reported)"
    )
    group.add_argument(
        "--duplicates", choices=["keep", "drop"], default="keep", help="exact copies (default: keep, counted)"
    )
    group.add_argument("--min_item_events", type=int, default=1, help="remove items with fewer events (default: 1)")
    group.add_argument("--min_user_events", type=int, default=1, help="remove users with fewer events (default: 1)")
    group.add_argument("--max_user_events", type=int, help="keep each user's newest N events (default: all)")
    group.add_argument(
        "--max_reject_ratio", type=float, default=0.05, help="stop above this share of unusable rows (0.05)"
    )
    group.add_argument("--latest_time", help="ISO time after which events lie in the future (default: a day from now)")


def options_from_arguments(args: argparse.Namespace) -> ReadOptions:
    """The options that `add_event_arguments` parsed."""
    return ReadOptions(**{field.name: getattr(args, field.name) for field in dataclasses.fields(ReadOptions)})
