"""Tables: files or frames -> the columns asked for, ids as text, and the rows that could not be split into fields.

CSV is parsed by Arrow as bytes, so that ids stay exactly as written (`007` stays `007`, quoted commas, newlines and
emoji are kept) and a row with a wrong number of fields is set aside instead of shifting its values. Parquet is read by
Polars, only the columns needed. Used for event logs (`events.py`) and for item tables (`items.py`).
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv

from next_behavior.data.columns import FLAGS

EXTENSIONS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
SEPARATORS = ",;\t|"
BLOCK_BYTES = 1 << 23
EXACT_FLOAT = 2**53  # whole numbers above it are not exact in a float


# Files


@dataclass
class Rows:
    """Rows of one file: the columns asked for, each row's position in the file, and rows that could not be split."""

    frame: pl.DataFrame
    positions: np.ndarray  # (N,) int64
    malformed: list[tuple[int, str, str]]  # position, reason, text

    @property
    def total(self) -> int:
        return len(self.positions) + len(self.malformed)


def list_files(path: Path) -> list[Path]:
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


def columns_of(file: Path) -> list[str]:
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


def read_file(file: Path, columns: list[str]) -> Rows:
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
    return Rows(frame, np.arange(frame.height), [])


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


def _read_csv(file: Path, columns: list[str]) -> Rows:
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
        if "columns, got" in str(error):  # Arrow could not hand the row over because its text is not UTF-8
            raise _not_utf8(file, "in a row with a wrong number of fields", str(error).encode()[-60:]) from error
        if "Empty CSV" not in str(error):  # a header without a line end
            raise _broken_csv(file, error) from error
    if counter.quotes % 2:
        _check_quotes(file, separator)
    positions = np.delete(np.arange(rows + len(malformed)), [m[0] for m in malformed])
    schema = dict.fromkeys(columns, pl.String)
    return Rows(pl.concat(frames) if frames else pl.DataFrame(schema=schema), positions, malformed)


def _decode(file: Path, batch: pl.DataFrame, before: int) -> pl.DataFrame:
    try:
        return batch.with_columns(pl.all().cast(pl.String))
    except pl.exceptions.ComputeError as error:
        for column in batch.columns:
            at = _first_not_utf8(batch[column])
            if at is not None:
                raise _not_utf8(file, f"row {before + at:,}, column {column!r}", batch[column][at]) from error
        raise


def _first_not_utf8(values: pl.Series) -> int | None:
    for at, value in enumerate(values):
        try:
            (value or b"").decode()
        except UnicodeDecodeError:
            return at
    return None


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


def from_table(source: object, columns: list[str] | None) -> tuple[pl.DataFrame, str, list[str]]:
    """A table in memory -> Polars frame (of `columns`, None: no rows, all names), its kind, notes."""
    if isinstance(source, pl.DataFrame):
        return source.head(0) if columns is None else source.select(columns), "Polars DataFrame", []
    import datasets  # here, because importing them takes longer than reading most files
    import pandas as pd

    if isinstance(source, datasets.Dataset):
        if columns is None:
            return pl.DataFrame(schema=dict.fromkeys(source.column_names, pl.Null)), "Dataset", []
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
            return pl.from_pandas(source.rename(columns=str)[columns]), "pandas DataFrame", []
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
            raise ValueError(
                f"got a pandas column that mixes types ({error}); expected one type per column: for ids "
                "use .astype(str)"
            ) from error
    hint = ""
    if isinstance(source, dict):
        hint = f": choose one split, for example source[{next(iter(source), 'train')!r}]"
    raise ValueError(
        f"got {type(source).__name__}; expected a path, a datasets.Dataset, a Polars or a pandas DataFrame{hint}"
    )


def one_row_per_event(frame: pl.DataFrame, user_column: str | None, notes: list[str]) -> pl.DataFrame:
    """A frame of one row per user, with lists, as one row per list entry; any other frame as it is."""
    lists = [column for column, kind in frame.schema.items() if isinstance(kind, pl.List) and column != user_column]
    if not lists:
        return frame
    lengths = [frame[column].list.len() for column in lists]
    odd = pl.select(pl.any_horizontal([(length != lengths[0]).fill_null(True) for length in lengths])).to_series()
    if odd.any():
        row = int(odd.arg_max() or 0)
        raise ValueError(
            f"got lists of different lengths in row {row:,} ({', '.join(lists)}); expected one entry per event in "
            "each: mend that row, or write one row per event"
        )
    notes.append(f"one row per user: the lists in {', '.join(lists)} were unfolded")
    return frame.filter(lengths[0] > 0).explode(lists)


def id_text(values: pl.Series, role: str, notes: list[str]) -> pl.Series:
    """Ids as text; whole numbers that pandas stored as floats lose their `.0`; null stays null, NaN becomes null."""
    kind, name = values.dtype, values.name
    if isinstance(kind, (pl.List, pl.Array, pl.Struct)) or kind.is_temporal():
        raise ValueError(
            f"got {kind} in the {role} column {name!r}; expected text or numbers: name another column (--{FLAGS[role]})"
        )
    if kind == pl.Binary:
        at = _first_not_utf8(values)
        if at is not None:
            raise ValueError(
                f"got invalid UTF-8 in the column {name!r}, row {at:,}: {values[at][:60]!r}; expected text or numbers: "
                "decode the bytes"
            )
        return values.cast(pl.String)
    if not (kind.is_float() or kind.is_decimal()):
        return values.cast(pl.String)
    if kind.is_decimal():
        return values.cast(pl.String).str.replace(r"\.0+$", "")
    if (values.abs() >= EXACT_FLOAT).any():
        notes.append(f"{role}: floats above 2^53 in {name}, different ids may have become one")
    number = pl.col(name)
    whole = (number == number.floor()) & (number.abs() < 2**63)
    exact = pl.when(whole).then(number.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(number.cast(pl.String))
    return values.to_frame().select(pl.when(number.is_finite()).then(exact).alias(name)).to_series()
