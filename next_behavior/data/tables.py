"""Tables in memory -> the columns asked for, and ids as text.

Used for event logs (`events.py`) and for item tables (`items.py`); `log_files.py` reads files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from next_behavior.data.columns import FLAGS

EXACT_FLOAT = 2**53  # whole numbers above it are not exact in a float


@dataclass
class Rows:
    """Rows of one file: the columns asked for, each row's position in the file, and rows that could not be split."""

    frame: pl.DataFrame
    positions: np.ndarray  # (N,) int64
    malformed: list[tuple[int, str, str]]  # position, reason, text

    @property
    def total(self) -> int:
        return len(self.positions) + len(self.malformed)


def joined(empty: pl.DataFrame, blocks: Iterable[Rows]) -> Rows:
    """Rows in pieces as one; `empty` has the columns of none."""
    frames, positions = [empty], [np.zeros(0, dtype=np.int64)]
    malformed: list[tuple[int, str, str]] = []
    for block in blocks:
        frames.append(block.frame)
        positions.append(block.positions)
        malformed += block.malformed
    return Rows(pl.concat(frames), np.concatenate(positions), malformed)


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
        at = first_not_utf8(values)
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


def first_not_utf8(values: pl.Series) -> int | None:
    for at, value in enumerate(values):
        try:
            (value or b"").decode()
        except UnicodeDecodeError:
            return at
    return None
