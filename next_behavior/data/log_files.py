"""Files of a log: one, several, a pattern or a folder -> their columns and rows.

    files = find_files("logs/*.csv")                 # or "a.csv,b.csv", or a folder of Parquet files
    columns_of(files.paths[0]), read_file(files.paths[0], ["user_id", "item_id"])

In folders named `action=view` the action is a column, as Spark and Hive write them. Parquet is read by Polars, only the
columns needed; `csv_files.py` and `json_lines.py` read text.
"""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from next_behavior.data.csv_files import SEPARATORS, csv_blocks, read_csv, read_header
from next_behavior.data.json_lines import json_blocks, json_columns, read_json_lines
from next_behavior.data.tables import Rows

KINDS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
EXTENSIONS = tuple(
    end for name, kind in KINDS.items() for end in ((name,) if kind == "parquet" else (name, f"{name}.gz"))
)
PATTERN = set("*?[")
BLOCK_ROWS = 1 << 18  # of a Parquet file read in pieces
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"

Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class Layout:
    """What the files are: a `format` that holds whatever they are called, names of the columns without a header."""

    format: str | None = None
    names: list[str] | None = None


@dataclass(frozen=True)
class Files:
    """The files of a log, in order.

    Attributes:
        paths: the files; names: what to call them.
        partitions: for each file, the columns that its folders name, with their value.
    """

    paths: list[Path]
    names: list[str]
    partitions: list[dict[str, str | None]]


def find_files(source: Source, format: str | None = None) -> Files:
    """The files of a path, of a pattern such as `logs/*.csv`, of several with commas between or in a list.

    Raises:
        FileNotFoundError: no such path.
        ValueError: a folder without a log; a file of an unknown kind.
    """
    if not isinstance(source, (str, os.PathLike)):
        sources = [os.fspath(one) for one in source]
    else:
        name = os.fspath(source)
        if os.path.exists(name):
            return _files_of_path(Path(name), format)
        found = sorted(path for path in glob.glob(name, recursive=True)) if PATTERN & set(name) else []
        sources = found or [part.strip() for part in name.split(",") if part.strip()]
        if len(sources) < 2 and not found:
            raise _no_such_file(Path(name))
    if not sources:
        raise ValueError(f"got no file; expected {_expected()}")
    inside = [find_files(one, format) for one in sources]
    paths = [path for files in inside for path in files.paths]
    parent = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    names = [path.absolute().relative_to(parent).as_posix() for path in paths]
    return Files(paths, names, [_partition(path.parent.parts) for path in paths])


def are_files_here(source: str) -> bool:
    """Whether a path, a pattern or several paths name files of this machine."""
    one = [source] if os.path.exists(source) else [part.strip() for part in source.split(",")]
    return all(os.path.exists(part) or bool(PATTERN & set(part) and glob.glob(part, recursive=True)) for part in one)


def _files_of_path(path: Path, format: str | None) -> Files:
    if not path.is_dir():
        if format is None and not path.name.lower().endswith(EXTENSIONS):
            raise ValueError(
                f"got {path.name}; expected {_expected()}: say what it is with --format csv, tsv, parquet or jsonl"
            )
        if path.stat().st_size == 0:
            raise ValueError(f"got {path}, an empty file (0 bytes); expected a header and rows: write the log again")
        return Files([path], [path.name], [{}])
    inside = [file for file in sorted(path.rglob("*")) if file.is_file() and not _is_hidden(file.relative_to(path))]
    kinds = {file: _kind_by_name(file) for file in inside}
    wanted = [_kind(format)] if format is not None else ["parquet", "csv", "jsonl"]
    paths: list[Path] = next((found for kind in wanted if (found := [f for f in inside if kinds[f] == kind])), [])
    if not paths and format is not None:
        paths = [file for file in inside if kinds[file] is None]
    paths = [file for file in paths if file.stat().st_size or kinds[file] == "parquet"]
    if not paths:
        names = sorted(entry.name for entry in path.iterdir())[:5]
        raise ValueError(
            f"got the folder {path} without a .parquet file or another one that can be read (it holds {names}); "
            f"expected {_expected()}"
        )
    relative = [file.relative_to(path) for file in paths]
    return Files(paths, [file.as_posix() for file in relative], [_partition(file.parent.parts) for file in relative])


def _no_such_file(path: Path) -> FileNotFoundError:
    near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, near, n=1)
    hint = f"did you mean {path.parent / close[0]}?" if close else f"it was looked for as {path.absolute()}"
    return FileNotFoundError(f"got {path}, which does not exist; expected {_expected()}: {hint}")


def _expected() -> str:
    return f"a file ending in {', '.join(EXTENSIONS)}, a pattern, several files, or a folder of such files"


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) and "=" not in part for part in path.parts)


def _partition(folders: Sequence[str]) -> dict[str, str | None]:
    """The columns that folders name: `action=view`."""
    pairs = [folder.split("=", 1) for folder in folders if "=" in folder.lstrip("=")]
    return {unquote(name): None if value == NO_VALUE else unquote(value) for name, value in pairs}


def _kind(format: str) -> str:
    return "csv" if format == "tsv" else format


def _kind_by_name(file: Path) -> str | None:
    name = file.name.lower()
    return next((kind for end, kind in KINDS.items() if name.removesuffix(".gz").endswith(end)), None)


def columns_of(file: Path, layout: Layout = Layout()) -> list[str]:
    """Names of the columns of a file."""
    kind = _kind(layout.format) if layout.format is not None else _kind_by_name(file)
    if kind == "csv":
        return read_header(file, _separators(layout), layout.names).names
    if layout.names is not None:
        raise ValueError(f"got --columns for {file}, which names its own columns; expected none: leave out --columns")
    if kind == "jsonl":
        return json_columns(file)
    return list(_parquet_schema(file))


def read_file(file: Path, columns: list[str], layout: Layout = Layout()) -> Rows:
    """The columns of one file, as they are (Parquet) or as text."""
    match _kind_of(file, columns, layout):
        case "jsonl":
            return read_json_lines(file, columns)
        case "csv":
            return read_csv(file, columns, _separators(layout), layout.names)
    try:
        frame = pl.read_parquet(file, columns=columns, hive_partitioning=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise _broken_parquet(file, error) from error
    return Rows(frame, np.arange(frame.height), [])


def read_blocks(file: Path, columns: list[str], layout: Layout = Layout()) -> Iterator[Rows]:
    """`read_file` in pieces, in order: memory does not grow with the file. Positions count from its first row."""
    match _kind_of(file, columns, layout):
        case "jsonl":
            yield from json_blocks(file, columns)
        case "csv":
            yield from csv_blocks(file, columns, _separators(layout), layout.names)
        case _:
            yield from _parquet_blocks(file, columns)


def _parquet_blocks(file: Path, columns: list[str]) -> Iterator[Rows]:
    schema = {column: kind for column, kind in _parquet_schema(file).items() if column in columns}
    before = 0
    try:
        with pq.ParquetFile(file, pre_buffer=False) as parquet:
            for batch in parquet.iter_batches(BLOCK_ROWS, columns=columns):
                frame = pl.DataFrame(batch).select(columns).cast(schema)  # type: ignore[arg-type]
                yield Rows(frame, np.arange(before, before + frame.height), [])
                before += frame.height
    except (pa.ArrowException, OSError) as error:
        raise _broken_parquet(file, error) from error


def _kind_of(file: Path, columns: list[str], layout: Layout) -> str | None:
    """What a file is. ValueError if it lacks one of the columns."""
    kind = _kind(layout.format) if layout.format is not None else _kind_by_name(file)
    missing = [] if kind == "jsonl" else [column for column in columns if column not in columns_of(file, layout)]
    if missing:
        raise ValueError(
            f"got {file} without the column {missing[0]!r:.80}, which other files of the log have; expected the same "
            "columns in every file: rewrite it or move it away"
        )
    return kind


def _separators(layout: Layout) -> str:
    return "\t" if layout.format == "tsv" else SEPARATORS


def _parquet_schema(file: Path) -> dict[str, pl.DataType]:
    try:
        return dict(pl.read_parquet_schema(file))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise _broken_parquet(file, error) from error


def _broken_parquet(file: Path, error: BaseException) -> ValueError:
    reason = " ".join(str(error).split())[:200]
    return ValueError(
        f"got {file} ({file.stat().st_size:,} bytes), which is not a whole Parquet file ({reason}); "
        "expected a complete one: it was probably cut short, copy or write it again"
    )
