"""Event logs: files or tables -> validated, cleaned, time-ordered events, the rejected rows, and a report.

    log = read_events("events.csv")          # .csv, .csv.gz, .tsv, .parquet, a folder of Parquet files, a Dataset ...
    print(log.report)
    log.events                               # user_id, item_id, action, timestamp, row; sorted by user, time, row
    log.write_rejects("rejects.parquet")

CSV is parsed by Arrow as bytes, so that ids stay exactly as written (`007` stays `007`, quoted commas, newlines and
emoji are kept) and a row with a wrong number of fields is set aside instead of shifting its values. All else is Polars.
The rules and the report are in `behavior/cleaning.py`.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import difflib
import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv

from behavior.cleaning import (
    BAD_ROWS,
    REJECT_SCHEMA,
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

DEFAULT_ACTION = "interact"
USER, ITEM, ACTION, TIME = "user_id", "item_id", "action", "timestamp"
FLAGS = {USER: "user_column", ITEM: "item_column", ACTION: "action_column", TIME: "time_column"}

# Recognised names, best first; compared without case, spaces, "_", "-" and ".".
ALIASES = {
    USER: "user_id user userid uid visitorid visitor_id customer_id customer client_id member_id account_id buyer_id "
    "household_id person_id profile_id reviewerid user_session session_id session",
    ITEM: "item_id item itemid iid product_id product productid article_id article sku asin parent_asin content_id "
    "movie_id track_id song_id video_id news_id book_id business_id listing_id offer_id goods_id",
    ACTION: "action event event_type behavior_type behaviour_type action_type interaction_type interaction event_name "
    "behavior behaviour activity",
    TIME: "timestamp time datetime behavior_time behaviour_time event_time event_timestamp time_stamp ts action_time "
    "created_at occurred_at date_time date unix_time unixreviewtime transaction_timestamp transaction_time",
}
TITLES = (
    "title name item_name item_title product_name product_title article_name movie_title headline prod_name "
    "product_type label description"
).split()
ID_LIKE = {"asin", "parentasin", "sku", "ean", "upc", "gtin", "isbn", "barcode", "url", "link", "image", "imageurl"}
EXTENSIONS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
SEPARATORS = ",;\t|"
BLOCK_BYTES = 1 << 23
EXACT_FLOAT = 2**53  # whole numbers above it are not exact in a float


@dataclass(frozen=True)
class ReadOptions:
    """How to read and clean a log.

    Attributes:
        user_column, item_column, action_column, time_column: names in the file; None finds a recognised name.
        time_unit: "s", "ms", "us", "ns" (since 1970) or "iso" (text); None infers and reports it.
        duplicates: "keep" counts later copies of an event, "drop" removes them.
        min_user_events, min_item_events: users and items with fewer events are removed, repeatedly until none is left.
        max_user_events: keep only each user's newest events; None keeps all.
        max_reject_ratio: share (0 to 1) of unusable rows above which reading stops. Rows removed on request (duplicates,
            counts, cap) are not unusable.
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
                f"got max_user_events={self.max_user_events}; expected at least 2 (an event and one to predict), or None"
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


# Columns


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c not in " _-.")


def _choose(role: str, columns: list[str], asked: str | None, *, needed: bool, notes: list[str]) -> str | None:
    """The column for a role: the one asked for, else the first recognised name; notes say when an alias was used."""
    flag = FLAGS[role]
    if asked is not None:
        if asked in columns:
            return asked
        close = difflib.get_close_matches(asked, columns, n=1, cutoff=0.0)
        raise ValueError(
            f"got {flag}={asked!r}, but the log has the columns {columns}; expected one of them: "
            f"the closest is --{flag} {close[0] if close else '...'}"
        )
    if role in columns:
        return role
    found = []
    for alias in dict.fromkeys(_plain(alias) for alias in ALIASES[role].split()):
        found += [column for column in columns if _plain(column) == alias]
    if found:
        others = f" (also there: {', '.join(found[1:])})" if found[1:] else ""
        notes.append(f"{role}: taken from the column {found[0]}{others}; --{flag} names another")
        return found[0]
    if not needed:
        return None
    close = sorted(columns, key=lambda c: -difflib.SequenceMatcher(None, _plain(c), _plain(role)).ratio())
    header = " The first line looks like data: does the file lack a header?" if _looks_like_data(columns) else ""
    raise ValueError(
        f"got the columns {columns}, none of which is a {role.split('_')[0]} column; expected {role} or a name such as "
        f"{', '.join(ALIASES[role].split()[1:6])}: name it with --{flag} {close[0] if close else '...'}.{header}"
    )


def _looks_like_data(columns: list[str]) -> bool:
    return any(column.replace(".", "", 1).lstrip("-").isdigit() for column in columns)


def _choose_all(columns: list[str], options: ReadOptions, notes: list[str]) -> dict[str, str | None]:
    asked = {role: getattr(options, flag) for role, flag in FLAGS.items()}
    free = [column for column in columns if column not in asked.values()]
    chosen = {
        role: _choose(
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


# Files


@dataclass
class _Rows:
    """Rows of one file: the columns asked for, each row's position in the file, and rows that could not be split."""

    frame: pl.DataFrame
    positions: np.ndarray  # (N,) int64
    malformed: list[tuple[int, str, str]]  # position, reason, text

    @property
    def total(self) -> int:
        return len(self.positions) + len(self.malformed)


def _list_files(path: Path) -> list[Path]:
    if not path.exists():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, near, n=1)
        hint = f"did you mean {path.parent / close[0]}?" if close else f"it was looked for as {path.absolute()}"
        raise FileNotFoundError(f"got {path}, which does not exist; expected {_expected()}: {hint}")
    if path.is_dir():
        files = sorted(p for p in path.rglob("*.parquet") if p.is_file() and not p.name.startswith((".", "_")))
        if not files:
            names = sorted(p.name for p in path.iterdir())[:5]
            raise ValueError(
                f"got the folder {path} without a .parquet file (it holds {names}); expected {_expected()}"
            )
        return files
    if not path.name.lower().endswith(EXTENSIONS):
        raise ValueError(f"got {path.name}; expected {_expected()}: convert the file or rename it to what it is")
    if path.stat().st_size == 0:
        raise ValueError(f"got {path}, an empty file (0 bytes); expected a header and rows: write the log again")
    return [path]


def _expected() -> str:
    return f"a file ending in {', '.join(EXTENSIONS)}, or a folder of Parquet files"


def _is_parquet(file: Path) -> bool:
    return file.name.lower().endswith(".parquet")


def _columns_of(file: Path) -> list[str]:
    if not _is_parquet(file):
        return _header(file)[0]
    try:
        return list(pl.read_parquet_schema(file))
    except pl.exceptions.PolarsError as error:
        raise _broken_parquet(file, error) from error


def _broken_parquet(file: Path, error: Exception) -> ValueError:
    return ValueError(
        f"got {file} ({file.stat().st_size:,} bytes), which is not a whole Parquet file ({error}); "
        "expected a complete one: it was probably cut short, copy or write it again"
    )


def _read_file(file: Path, columns: list[str]) -> _Rows:
    """The columns of one file, as they are (Parquet) or as text (CSV)."""
    if not _is_parquet(file):
        return _read_csv(file, columns)
    try:
        missing = [column for column in columns if column not in pl.read_parquet_schema(file)]
        if missing:
            raise ValueError(
                f"got {file} without the column {missing[0]!r}, which other files of the folder have; expected the "
                "same columns in every file: rewrite it or move it out of the folder"
            )
        frame = pl.read_parquet(file, columns=columns)
    except pl.exceptions.PolarsError as error:
        raise _broken_parquet(file, error) from error
    return _Rows(frame, np.arange(frame.height), [])


def _open(file: Path) -> pa.NativeFile:
    """The bytes of a file, unzipped where its first bytes say that it is gzipped."""
    with open(file, "rb") as f:
        zipped = f.read(2) == b"\x1f\x8b"
    if file.name.lower().endswith(".gz") and not zipped:
        raise ValueError(f"got {file}, which is not gzip data; expected a gzipped file: rename it without .gz")
    return pa.input_stream(str(file), compression="gzip" if zipped else None)


def _not_utf8(file: Path, where: str, value: bytes) -> ValueError:
    return ValueError(
        f"got invalid UTF-8 in {file}, {where}: {value[:60]!r}; expected UTF-8 text: convert the file, for example "
        f"with iconv -f LATIN1 -t UTF-8 {file.name}"
    )


def _header(file: Path) -> tuple[list[str], str]:
    """Column names and separator: of `,` `;` tab `|` the one that gives the most columns."""
    try:
        with _open(file) as stream:
            start = stream.read(1 << 16)
    except OSError as error:
        raise _broken_csv(file, error) from error
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise _not_utf8(file, "which is UTF-16", start)
    try:
        text = start.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < min(start.find(b"\n") % len(start), len(start) - 4):
            raise _not_utf8(file, "header", start[max(error.start - 20, 0) :]) from error
        text = start[: error.start].decode("utf-8-sig")
    headers = [(next(csv.reader(io.StringIO(text), delimiter=s), []), s) for s in SEPARATORS]
    columns, separator = max(headers, key=lambda h: len(h[0]))
    if not any(columns):
        raise ValueError(f"got {file}, whose first line is empty; expected a header with column names")
    return columns, separator


def _broken_csv(file: Path, error: Exception) -> ValueError:
    return ValueError(
        f"got {file}, which could not be read as CSV ({error}); expected whole rows, quoted as in RFC 4180: look for a "
        "quote that never closes or a file that was cut short"
    )


class _QuoteCounter(io.RawIOBase):
    """Passes bytes through and counts the quotes in them: an odd number means that one of them never closes."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self.stream = stream
        self.quotes = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data: bytes = self.stream.read(size if size >= 0 else None)
        self.quotes += data.count(b'"')
        return data


def _read_csv(file: Path, columns: list[str]) -> _Rows:
    header, separator = _header(file)
    malformed: list[tuple[int, str, str]] = []

    def set_aside(row: pa.csv.InvalidRow) -> str:
        reason = f"{row.actual_columns} fields, expected {row.expected_columns}"
        malformed.append((row.number - 2, reason, row.text))  # record 1 is the header
        return "skip"

    convert = pa.csv.ConvertOptions(column_types={name: pa.binary() for name in header}, include_columns=columns)
    parse = pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=set_aside)
    read = pa.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES)  # one thread: rows keep their numbers
    frames, rows = [], 0
    try:
        with _open(file) as stream:
            counter = _QuoteCounter(stream)
            with pa.csv.open_csv(pa.PythonFile(counter, mode="r"), read, parse, convert) as batches:
                for batch in batches:
                    frames.append(_decode(file, pl.DataFrame(batch), rows))
                    rows += batch.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise _broken_csv(file, error) from error
    except UnicodeDecodeError as error:
        raise _not_utf8(
            file, "in a row with a wrong number of fields", error.object[max(error.start - 20, 0) :]
        ) from error
    if counter.quotes % 2:
        _check_quotes(file, separator)
    positions = np.delete(np.arange(rows + len(malformed)), [m[0] for m in malformed])
    schema = {column: pl.String for column in columns}
    return _Rows(pl.concat(frames) if frames else pl.DataFrame(schema=schema), positions, malformed)


def _decode(file: Path, batch: pl.DataFrame, before: int) -> pl.DataFrame:
    text = batch.with_columns(pl.all().cast(pl.String, strict=False))
    for column in batch.columns:
        if text[column].null_count():
            at = int(text[column].is_null().arg_true()[0])
            raise _not_utf8(file, f"row {before + at:,}, column {column!r}", batch[column][at])
    return text


def _check_quotes(file: Path, separator: str) -> None:
    """An odd number of quotes: find out, row by row, whether one never closes and swallowed the rows after it."""

    def lines() -> Iterator[str]:
        with _open(file) as stream:
            yield from io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="")

    reader, last = csv.reader(lines(), delimiter=separator, strict=True), 0
    try:
        for _ in reader:
            last = reader.line_num
    except csv.Error as error:
        raise ValueError(
            f"got {file} with a quote that is not closed in the row that starts at line {last + 1:,} ({error}); "
            'expected every quoted field to end with ", and a quote inside to be doubled: mend that row'
        ) from error


# Tables


def _from_table(source: object, columns: list[str] | None) -> tuple[pl.DataFrame, str, list[str]]:
    """A table in memory -> Polars frame (of `columns`, None: no rows, all names), its kind, notes."""
    import datasets
    import pandas as pd

    if isinstance(source, pl.DataFrame):
        return source.head(0) if columns is None else source.select(columns), "Polars DataFrame", []
    if isinstance(source, datasets.Dataset):
        if columns is None:
            return pl.DataFrame(schema={name: pl.Null for name in source.column_names}), "Dataset", []
        frame, notes = source.select_columns(columns).with_format(None).to_polars(), []
        for column in columns:
            feature = source.features[column]
            if isinstance(feature, datasets.ClassLabel):
                names = dict(enumerate(feature.names))
                frame = frame.with_columns(pl.col(column).replace_strict(names, default=None, return_dtype=pl.String))
                notes.append(f"{column}: class numbers replaced by their names")
        return frame, "Dataset", notes
    if isinstance(source, pd.DataFrame):
        if columns is None:
            return pl.DataFrame(schema={str(name): pl.Null for name in source.columns}), "pandas DataFrame", []
        try:
            return pl.from_pandas(source[columns]), "pandas DataFrame", []
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
            raise ValueError(
                f"got a pandas column that mixes types ({error}); expected one type per column: for ids use "
                ".astype(str)"
            ) from error
    hint = ""
    if isinstance(source, dict):
        hint = f": choose one split, for example source[{next(iter(source), 'train')!r}]"
    raise ValueError(
        f"got {type(source).__name__}; expected a path, a datasets.Dataset, a Polars or a pandas DataFrame{hint}"
    )


def _id_text(values: pl.Series, role: str, notes: list[str]) -> pl.Series:
    """Ids as text; whole numbers that pandas stored as floats lose their `.0`."""
    kind = values.dtype
    if isinstance(kind, (pl.List, pl.Array, pl.Struct)) or kind.is_temporal():
        flag = FLAGS.get(role, "id_column")
        raise ValueError(f"got {kind} in the {role} column {values.name!r}; expected text or numbers: change --{flag}")
    if kind == pl.Binary:
        text = values.cast(pl.String, strict=False)
        if text.null_count() > values.null_count():
            raise ValueError(f"got bytes that are not UTF-8 in the column {values.name!r}; expected text or numbers")
        return text
    if not (kind.is_float() or kind.is_decimal()):
        return values.cast(pl.String)
    numbers = values.cast(pl.Float64)
    if (numbers.abs() >= EXACT_FLOAT).any():
        notes.append(f"{role}: numbers of {values.name} stored as floats above 2^53, different ids may have become one")
    whole = numbers.is_finite() & (numbers == numbers.floor()) & (numbers.abs() < 2**63)
    text = pl.when(whole).then(numbers.cast(pl.Int64, strict=False).cast(pl.String)).when(numbers.is_finite())
    return pl.select(text.then(values.cast(pl.String)).alias(values.name)).to_series()


# Reading


def read_events(
    source: object, options: ReadOptions = ReadOptions(), rejects_path: str | os.PathLike[str] | None = None
) -> EventLog:
    """Read and clean an event log.

    Args:
        source: path of a .csv, .csv.gz, .tsv, .tsv.gz or .parquet file, of a folder of Parquet files (read in order of
            their names), a `datasets.Dataset`, a Polars or a pandas DataFrame. Needs a user and an item column; action
            and time are optional (every action is then "interact", file order is the order).
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
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        files = _list_files(Path(name))
        root = Path(name) if Path(name).is_dir() else Path(name).parent
        chosen = _choose_all(_columns_of(files[0]), options, notes)
        parts = (_read_file(file, [c for c in chosen.values() if c is not None]) for file in files)
        file_names = [file.relative_to(root).as_posix() for file in files]
    else:
        empty, name, _ = _from_table(source, None)
        chosen = _choose_all(empty.columns, options, notes)
        frame, _, table_notes = _from_table(source, [c for c in chosen.values() if c is not None])
        notes += table_notes
        parts = iter([_Rows(frame, np.arange(frame.height), [])])
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
    if events["item_id"].null_count() == events.height:
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
        notes=notes,
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
    parts: Iterator[_Rows], chosen: dict[str, str | None], names: list[str], notes: list[str]
) -> tuple[pl.DataFrame, pl.DataFrame, list[int]]:
    """All files in one frame (user_id, item_id, action as text, time as it is, row); malformed rows; where files end."""
    frames: list[pl.DataFrame] = []
    malformed: list[tuple[int, str, str]] = []
    ends: list[int] = []
    for part, name in zip(parts, names):
        start = ends[-1] if ends else 0
        columns = {role: part.frame[column] for role, column in chosen.items() if column is not None}
        texts = {role: _id_text(values, role, notes) for role, values in columns.items() if role != TIME}
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
    """Whether two time columns hold numbers, or at least one nothing at all."""
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
        times, rules = raw[TIME], pl.lit(None, dtype=pl.String)
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
    """Rows that were removed, in the columns of `rejects`, in input order; `frame` has row, rule and some of the rest."""
    frame = frame.sort("row")
    starts = np.array([0, *ends[:-1]])
    which = np.searchsorted(np.array(ends), frame["row"].to_numpy(), side="right")
    if "reason" not in frame.columns:
        what = {**{rule: text for rule, (text, _) in BAD_ROWS.items()}}
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
        files = _list_files(Path(source))
        columns = _columns_of(files[0])
        key = _choose(ITEM, columns, id_column, needed=True, notes=notes)
        parts = [_read_file(file, columns) for file in files]
        frame = pl.concat([part.frame for part in parts], how="vertical_relaxed")
        malformed = [m for part in parts for m in part.malformed]
        if malformed:
            row, reason, text = malformed[0]
            warnings.warn(
                f"{source}: {len(malformed):,} rows left out, e.g. row {row:,} ({reason}): {text!r}", stacklevel=2
            )
    else:
        columns = _from_table(source, None)[0].columns
        key = _choose(ITEM, columns, id_column, needed=True, notes=notes)
        frame = _from_table(source, columns)[0]
    ids = _id_text(frame[str(key)], ITEM, notes).alias(ITEM)
    text = frame.select(
        pl.col(c).list.join(", ", ignore_nulls=True) if isinstance(kind, pl.List) else pl.col(c).cast(pl.String).replace("", None)
        for c, kind in frame.schema.items()
        if c != key and not _plain(c).endswith("id") and _plain(c) not in ID_LIKE
        and (kind in (pl.String, pl.Categorical, pl.Enum) or kind == pl.List(pl.String))
    )  # fmt: skip
    title = next((c for alias in TITLES for c in text.columns if _plain(c) == _plain(alias)), None)
    if title is None and text.width:  # the column that tells items apart best
        title = max(text.columns, key=lambda c: text[c].n_unique())
    titles = text[title].alias("title") if title else pl.Series("title", [None] * frame.height, dtype=pl.String)
    items = pl.DataFrame([ids, titles]).hstack(text.drop([title] if title else []).get_columns())
    items = items.filter(pl.col(ITEM).is_not_null() & (pl.col(ITEM) != ""))
    if items.is_empty():
        raise ValueError(f"got no item in the column {key!r}; expected one row per item: name it with --item_id_column")
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
