"""JSON Lines: one object per line -> the columns asked for as text, numbers as they are written.

A line that is no object, or holds a list or an object in a column asked for, is set aside.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from next_behavior.data.tables import Rows, joined
from next_behavior.data.text_streams import not_utf8, open_text

FIRST_LINES = 1000  # that columns are looked for in
BLOCK_LINES = 1 << 16


def json_columns(file: Path) -> list[str]:
    """The keys of the first objects, in order."""
    names: dict[str, None] = {}
    for (position, line), _ in zip(_lines(file), range(FIRST_LINES), strict=False):
        entry = _parsed(line)
        if isinstance(entry, dict):
            names.update(dict.fromkeys(entry))
        elif position == 0 and isinstance(entry, list):
            raise ValueError(f"got {file}, which is one JSON list; expected JSON Lines: one object on each line")
    if not names:
        raise ValueError(
            f'got {file} without a JSON object in its first lines; expected one on each, such as {{"user_id": "u1", '
            '"item_id": "84"}: check the file, or say what it is with --format'
        )
    return list(names)


def read_json_lines(file: Path, columns: list[str]) -> Rows:
    """The columns of one file as text; null where an object lacks a key."""
    return joined(pl.DataFrame(schema=dict.fromkeys(columns, pl.String)), json_blocks(file, columns))


def json_blocks(file: Path, columns: list[str]) -> Iterator[Rows]:
    """`read_json_lines` in pieces of BLOCK_LINES lines, in order; positions count from the file's first line."""
    lines = _lines(file)
    while block := list(itertools.islice(lines, BLOCK_LINES)):
        yield _parsed_block(block, columns)


def _parsed_block(lines: list[tuple[int, str]], columns: list[str]) -> Rows:
    texts: dict[str, list[str | None]] = {column: [] for column in columns}
    positions: list[int] = []
    malformed: list[tuple[int, str, str]] = []
    for position, line in lines:
        entry = _parsed(line)
        fault = None if isinstance(entry, dict) else "no JSON object"
        if isinstance(entry, dict):
            values = [entry.get(column) for column in columns]
            nested = [column for column, value in zip(columns, values, strict=True) if isinstance(value, (list, dict))]
            if nested:
                fault = f"{nested[0]} holds a list or an object"
            elif "\\" in line and not all(_is_text(value) for value in values):
                fault = "half of a character"
        if fault is not None:
            malformed.append((position, fault, line))
            continue
        positions.append(position)
        for column, value in zip(columns, values, strict=True):
            texts[column].append(str(value).lower() if isinstance(value, bool) else value)
    frame = pl.DataFrame(texts, schema=dict.fromkeys(columns, pl.String))
    return Rows(frame, np.array(positions, dtype=np.int64), malformed)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank; the numbers leave no gaps."""
    position = 0
    try:
        with open_text(file) as stream:
            for line in io.TextIOWrapper(io.BufferedReader(stream), encoding="utf-8-sig", newline="\n"):  # type: ignore[type-var]
                if line.strip():
                    yield position, line.strip()
                    position += 1
    except UnicodeDecodeError as error:
        raise not_utf8(file, f"after line {position:,}", error.object[max(error.start - 20, 0) :]) from error
    except OSError as error:
        raise ValueError(
            f"got {file}, which could not be read ({error}); expected a whole file: it was probably cut short, copy it "
            "again"
        ) from error


def _parsed(line: str) -> Any:
    try:
        return json.loads(line, parse_int=str, parse_float=str, parse_constant=lambda _: None)
    except (json.JSONDecodeError, RecursionError):
        return None


def _is_text(value: Any) -> bool:
    try:
        return value is None or isinstance(value, bool) or bool(value.encode()) or True
    except UnicodeEncodeError:
        return False
