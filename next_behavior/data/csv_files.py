"""CSV files: columns asked for, as text exactly as written, and the rows that could not be split into fields.

    csv_columns(Path("ratings.dat"), separators, names=["user_id", "item_id", "rating", "timestamp"])
    read_csv(Path("events.csv"), ["user_id", "item_id"])

Arrow parses bytes, so that ids stay as they are (`007` stays `007`, quoted commas, newlines and emoji are kept) and a
row with a wrong number of fields is set aside instead of shifting its values. The separator is found in the first line.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv

from next_behavior.data.columns import shown
from next_behavior.data.tables import Rows, first_not_utf8, joined
from next_behavior.data.text_streams import DOUBLE_COLON, ONE_BYTE, not_utf8, open_text

SEPARATORS = ",;\t|"
BLOCK_BYTES = 1 << 23
HEADER_BYTES = 1 << 16
TYPED_NAME = re.compile(r"(.+):(?:token|float)(?:_seq)?")  # of the library RecBole: user_id:token


@dataclass(frozen=True)
class Header:
    """The first line of a file.

    Attributes:
        names: names of the columns.
        separator: between fields, one character.
        is_row: whether the first line is a row, not names.
        is_padded: whether blanks follow the separators.
    """

    names: list[str]
    separator: str
    is_row: bool
    is_padded: bool

    @property
    def double_colon(self) -> bool:
        return self.separator == ONE_BYTE.decode()


def read_header(file: Path, separators: str = SEPARATORS, names: list[str] | None = None) -> Header:
    """Column names and separator: of the separators, `::` and the blank the one that gives the most columns.

    Args:
        names: of the columns, for a file without a header.
    """
    fields, separator = _first_line(file, separators)
    written = [field.strip() for field in fields]
    typed = [TYPED_NAME.fullmatch(name) for name in written]
    if all(typed):
        written = [match[1] for match in typed if match]
    is_padded = len(fields) > 1 and all(field.startswith(" ") for field in fields[1:])
    if names is None:
        if not any(written):
            raise ValueError(f"got {file}, whose first line is empty; expected a header with column names")
        return Header(written, separator, False, is_padded)
    if len(names) != len(fields):
        raise ValueError(
            f"got {len(names)} names in --columns for {file}, whose first row has {len(fields)} fields "
            f"({shown(fields)}); expected a name for each: change --columns"
        )
    return Header(names, separator, written != names, is_padded)


def _first_line(file: Path, separators: str) -> tuple[list[str], str]:
    """The fields of the first line, and the separator between them."""
    try:
        with open_text(file) as stream:
            start = b""
            while len(start) < HEADER_BYTES and (more := stream.read(HEADER_BYTES - len(start))):
                start += more
    except OSError as error:
        raise _broken_csv(file, error) from error
    try:
        text = start.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < min(start.find(b"\n") % len(start), len(start) - 4):
            raise not_utf8(file, "header", start[max(error.start - 20, 0) :]) from error
        text = start[: error.start].decode("utf-8-sig", errors="ignore")
    if "\0" in text:
        raise ValueError(
            f"got {file}, which holds zero bytes; expected text: if it is UTF-16 without a mark, convert it with "
            f"iconv -f UTF-16LE -t UTF-8 {file.name}"
        )
    found = [(_fields(file, text, separator), separator) for separator in separators]
    if separators == SEPARATORS:
        one_byte = ONE_BYTE.decode()
        found.append((_fields(file, text.replace(DOUBLE_COLON.decode(), one_byte), one_byte), one_byte))
        if max(len(fields) for fields, _ in found) == 1:
            found.append((_fields(file, text, " "), " "))
    return max(found, key=lambda one: len(one[0]))


def _fields(file: Path, text: str, separator: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(text, newline=None), delimiter=separator), [])
    except csv.Error as error:
        raise _broken_csv(file, error) from error


def _broken_csv(file: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:200]
    return ValueError(
        f"got {file}, which could not be read as CSV ({reason}); expected whole rows, quoted as in RFC 4180: look for "
        "a quote that never closes or a file that was cut short"
    )


def read_csv(file: Path, columns: list[str], separators: str = SEPARATORS, names: list[str] | None = None) -> Rows:
    """The columns of one file as text."""
    empty = pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
    return joined(empty, csv_blocks(file, columns, separators, names))


def csv_blocks(
    file: Path, columns: list[str], separators: str = SEPARATORS, names: list[str] | None = None
) -> Iterator[Rows]:
    """`read_csv` in pieces of some megabytes, in order; positions count from the file's first row."""
    header = read_header(file, separators, names)
    places = [str(header.names.index(column)) for column in columns]
    malformed: list[tuple[int, str, str]] = []
    first = 1 if header.is_row else 2  # Arrow numbers lines from 1, the header included

    def set_aside(row: pa.csv.InvalidRow) -> str:
        if row.number >= first:
            reason = f"{row.actual_columns} fields, expected {row.expected_columns}"
            malformed.append((row.number - first, reason, row.text))
        return "skip"

    fields = [str(place) for place in range(len(header.names))]
    convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(fields, pa.binary()), include_columns=places)
    parse = pa.csv.ParseOptions(
        delimiter=header.separator, newlines_in_values=True, invalid_row_handler=set_aside, ignore_empty_lines=True
    )
    read = pa.csv.ReadOptions(
        use_threads=False,  # one thread: rows keep their numbers
        block_size=BLOCK_BYTES,
        column_names=fields,
        skip_rows_after_names=0 if header.is_row else 1,
    )
    rows, skipped = 0, 0  # whole rows so far, and malformed ones before them
    try:
        with open_text(file, header.double_colon) as stream:
            with pa.csv.open_csv(pa.PythonFile(stream, mode="r"), read, parse, convert) as batches:
                for batch in batches:
                    frame = pl.DataFrame(batch).rename(dict(zip(places, columns, strict=True)))
                    frame = _decode(file, frame, rows)
                    if header.is_padded:
                        frame = frame.with_columns(pl.all().str.strip_chars_start(" "))
                    positions = _positions(rows, batch.num_rows, skipped, [position for position, _, _ in malformed])
                    passed = [row for row in malformed if len(positions) and row[0] < positions[-1]]
                    del malformed[: len(passed)]
                    rows, skipped = rows + batch.num_rows, skipped + len(passed)
                    yield Rows(frame, positions, passed)
            doubtful = stream.quotes % 2 or stream.escaped
    except (pa.ArrowInvalid, OSError) as error:
        if "columns, got" in str(error):  # Arrow could not hand the row over because its text is not UTF-8
            raise not_utf8(file, "in a row with a wrong number of fields", str(error).encode()[-60:]) from error
        raise _broken_csv(file, error) from error
    if doubtful:
        _check_quotes(file, header)
    if malformed:
        empty = pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
        yield Rows(empty, np.zeros(0, dtype=np.int64), malformed)


def _positions(before: int, count: int, skipped: int, malformed: list[int]) -> np.ndarray:
    """(N,) int64: the positions in the file of `count` whole rows.

    Args:
        before, skipped: whole and malformed rows before them.
        malformed: positions of the malformed rows among them, and maybe of some after them.
    """
    whole = np.arange(before, before + count)
    # So many whole rows stand before each malformed one.
    ahead = np.array(malformed, dtype=np.int64) - skipped - np.arange(len(malformed))
    return whole + skipped + np.searchsorted(ahead, whole, side="right")


def _decode(file: Path, batch: pl.DataFrame, before: int) -> pl.DataFrame:
    try:
        return batch.with_columns(pl.all().cast(pl.String))
    except pl.exceptions.ComputeError as error:
        for column in batch.columns:
            at = first_not_utf8(batch[column])
            if at is not None:
                raise not_utf8(file, f"row {before + at:,}, column {column!r}", batch[column][at]) from error
        raise


def _check_quotes(file: Path, header: Header) -> None:
    """Doubtful quotes: find out, row by row, whether one never closes, or closes before the end of its field."""

    def lines() -> Iterator[str]:
        with open_text(file, header.double_colon) as stream:
            yield from io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="")  # type: ignore[type-var]

    reader, last = csv.reader(lines(), delimiter=header.separator, strict=True), 0
    try:
        for _ in reader:
            last = reader.line_num
    except csv.Error as error:
        raise ValueError(
            f"got {file} with a quote that is not closed in the row that starts at line {last + 1:,} ({error}); "
            'expected every quoted field to end with ", and a quote inside to be doubled (not \\"): mend that row'
        ) from error
