"""What a log is read from: files, a data set on the Hub, or a table in memory -> its columns, and its rows in parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl

from next_behavior.data.columns import TIME, USER, choose_column, choose_columns, named_columns
from next_behavior.data.hub import is_hub_dataset, load_hub_dataset
from next_behavior.data.log_files import BLOCK_ROWS, Files, Layout, columns_of, find_files, read_blocks, read_file
from next_behavior.data.read_options import ReadOptions
from next_behavior.data.tables import Rows, from_table, one_row_per_event


@dataclass(frozen=True)
class LogSource:
    """A log before it is read.

    Attributes:
        name: what to call it.
        files: names of its files, none for a table.
        present: all columns that it has.
        columns: the column of each role, None for one that it lacks; a time in two is both with a comma between.
        times: the columns that hold the time: none, one, or a date and a time of day.
        order: the column that orders events of one user at one time.
        parts: its rows, file by file.
        blocks: gives columns of its rows in pieces, each with the number of its file; may be called again and again.
    """

    name: str
    files: list[str]
    present: list[str]
    columns: dict[str, str | None]
    times: list[str]
    order: str | None
    parts: Iterator[Rows]
    blocks: Callable[[list[str]], Iterator[tuple[int, Rows]]]

    def read(self) -> list[str]:
        """The columns that are read."""
        return _read_columns(self.columns, self.times, self.order)

    def unread(self) -> list[str]:
        """The other columns."""
        return [column for column in self.present if column not in self.read()]


def open_source(source: object, options: ReadOptions, notes: list[str]) -> LogSource:
    """Chooses the columns of a log; its rows are read when `parts` is. `notes` is told what was chosen."""
    hub_name = source if isinstance(source, str) and options.format is None and is_hub_dataset(source) else None
    if hub_name is not None:
        source = load_hub_dataset(hub_name)
    several = source if isinstance(source, (list, tuple)) else [source]
    places = [os.fspath(one) for one in several if isinstance(one, (str, os.PathLike))]
    if places and len(places) == len(several):
        files = find_files(places if several is source else places[0], options.format)
        return _open_files(", ".join(places), files, options, notes)
    empty, kind, _ = from_table(source, None)
    columns, times, order = choose_log_columns(empty.columns, options, notes)
    frame, _, table_notes = from_table(source, _read_columns(columns, times, order))
    notes += table_notes
    frame = one_row_per_event(frame, columns[USER], notes)
    rows = Rows(frame, np.arange(frame.height), [])
    return LogSource(hub_name or kind, [], empty.columns, columns, times, order, iter([rows]), partial(_slices, frame))


def _open_files(name: str, files: Files, options: ReadOptions, notes: list[str]) -> LogSource:
    layout = Layout(options.format, options.column_names())
    inside = columns_of(files.paths[0], layout)
    folders = [column for column in files.partitions[0] if column not in inside]
    present = [*inside, *folders]
    columns, times, order = choose_log_columns(present, options, notes)
    read = _read_columns(columns, times, order)
    notes += [f"{column}: from the names of the folders" for column in folders if column in read]
    parts = _read_files(files, read, folders, layout)
    blocks = partial(_file_blocks, files, folders, layout)
    return LogSource(name, files.names, present, columns, times, order, parts, blocks)


def choose_log_columns(
    present: list[str], options: ReadOptions, notes: list[str]
) -> tuple[dict[str, str | None], list[str], str | None]:
    """Of the columns that are there: the one of each role, those of the time, and the one that orders."""
    columns = choose_columns(present, options.roles(), notes)
    time, order = columns[TIME], options.order_column
    if order is not None:
        order = choose_column(TIME, present, order, needed=True, notes=notes, flag="--order_column")
    return columns, named_columns(time, present, "--time_column") if time is not None else [], order


def _read_columns(columns: dict[str, str | None], times: list[str], order: str | None) -> list[str]:
    ids = [column for role, column in columns.items() if column is not None and role != TIME]
    return list(dict.fromkeys([*ids, *times, *([order] if order is not None else [])]))


def _read_files(files: Files, columns: list[str], folders: list[str], layout: Layout) -> Iterator[Rows]:
    """The columns of each file; those in `folders` have one value for the whole file."""
    inside = [column for column in columns if column not in folders]
    for path, partition in zip(files.paths, files.partitions, strict=True):
        yield _with_folders(read_file(path, inside, layout), columns, folders, partition)


def _file_blocks(files: Files, folders: list[str], layout: Layout, columns: list[str]) -> Iterator[tuple[int, Rows]]:
    """`_read_files` in pieces, each with the number of its file."""
    inside = [column for column in columns if column not in folders]
    for number, (path, partition) in enumerate(zip(files.paths, files.partitions, strict=True)):
        for block in read_blocks(path, inside, layout):
            yield number, _with_folders(block, columns, folders, partition)


def _with_folders(rows: Rows, columns: list[str], folders: list[str], partition: dict[str, str | None]) -> Rows:
    values = [pl.lit(partition.get(name), dtype=pl.String).alias(name) for name in columns if name in folders]
    return Rows(rows.frame.with_columns(values), rows.positions, rows.malformed) if values else rows


def _slices(frame: pl.DataFrame, columns: list[str]) -> Iterator[tuple[int, Rows]]:
    for start in range(0, frame.height, BLOCK_ROWS):
        piece = frame.select(columns).slice(start, BLOCK_ROWS)
        yield 0, Rows(piece, np.arange(start, start + piece.height), [])
