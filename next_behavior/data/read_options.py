"""How a log is to be read and cleaned, and the command-line flags that say it.

    add_event_arguments(parser)
    log = read_events(args.events, options_from_arguments(args))        # data/events.py

This file imports nothing heavy, so that a command shows its help at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from next_behavior.data.columns import ACTION, ALIASES, FLAGS, ITEM, TIME, USER
from next_behavior.model.times import UNITS

SPLITS = ("time", "leave_one_out", "none")  # ways to hold out events; `splits.py` has what they mean
FORMATS = ("csv", "tsv", "parquet", "jsonl")
# How `--items` is read.
ITEMS_HELP = {
    "items_id_column": "Column of --items with the ids. Default: item_id, or another usual name.",
    "items_format": "What --items is: csv, tsv, parquet or jsonl. Default: by its extension.",
    "items_columns": "Names of the columns of --items without a header: item_id,title,...",
}
TIME_UNITS = (*UNITS, "days", "iso")


@dataclass(frozen=True)
class ReadOptions:
    """How to read and clean a log.

    Attributes:
        user_column, item_column, action_column, time_column: names in the file; None finds a recognized name.
            The time may be in two columns, "date,clock".
        time_unit: "s", "ms", "us", "ns" (since 1970), "days" (of a spreadsheet, since 1899-12-30) or "iso" (text);
            None infers and reports it.
        time_format: how times are written, as in `strptime` ("%m/%d/%Y %I:%M:%S %p"); None reads numbers and ISO text.
        order_column: events of one user at one time are in its order; None takes the order of the file.
        columns: names of the columns of files without a header, "user_id,item_id"; None takes the first line.
        format: "csv", "tsv", "parquet" or "jsonl", whatever a file is called; None takes the file's extension.
        missing_values: texts that mean an empty field, "NA,?"; None: no text but the empty one does.
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
    time_format: str | None = None
    order_column: str | None = None
    columns: str | None = None
    format: str | None = None
    missing_values: str | None = None
    duplicates: str = "keep"
    min_user_events: int = 1
    min_item_events: int = 1
    max_user_events: int | None = None
    max_reject_ratio: float = 0.05
    latest_time: str | None = None

    def __post_init__(self) -> None:
        if self.time_unit not in (None, *TIME_UNITS):
            raise ValueError(f"got time_unit={self.time_unit!r}; expected one of {', '.join(TIME_UNITS)}, or None")
        if self.format not in (None, *FORMATS):
            raise ValueError(f"got format={self.format!r}; expected one of {', '.join(FORMATS)}, or None")
        self._check_time_format()
        self._check_column_names()
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

    def _check_time_format(self) -> None:
        if self.time_format is None:
            return
        if not re.search(r"%-?[YyDFxscGg]", self.time_format):
            raise ValueError(
                f"got time_format={self.time_format!r}; expected a format with a year, such as '%d.%m.%Y' or "
                "'%m/%d/%Y %I:%M:%S %p'"
            )
        if self.time_unit is not None:
            raise ValueError(
                f"got time_format={self.time_format!r} and time_unit={self.time_unit!r}; expected one of them: a "
                "format says how text is written, a unit what numbers count"
            )

    def _check_column_names(self) -> None:
        names = self.column_names()
        if names is not None and (len(set(names)) < len(names) or not all(names)):
            raise ValueError(
                f"got columns={self.columns!r}; expected one name for each column of the file, all different: for "
                "example user_id,item_id,rating,timestamp"
            )

    def column_names(self) -> list[str] | None:
        """The names in `columns`."""
        return column_names(self.columns)

    def missing(self) -> list[str]:
        """The texts in `missing_values`."""
        return [text.strip() for text in self.missing_values.split(",")] if self.missing_values else []

    def roles(self) -> dict[str, str | None]:
        """The column that was named for each role, None for one that is to be found."""
        return {USER: self.user_column, ITEM: self.item_column, ACTION: self.action_column, TIME: self.time_column}

    def latest(self) -> datetime:
        """The last time that is not in the future, UTC."""
        if self.latest_time is None:
            return datetime.now(timezone.utc) + timedelta(days=1)
        try:
            return utc(datetime.fromisoformat(self.latest_time.replace("Z", "+00:00")))
        except ValueError:
            raise ValueError(f"got latest_time={self.latest_time!r}; expected ISO time such as 2030-01-31") from None


def column_names(columns: str | None) -> list[str] | None:
    """Names with commas between, as a list."""
    return None if columns is None else [name.strip() for name in columns.split(",")]


def utc(time: datetime) -> datetime:
    """The time in UTC; a naive one is taken as UTC."""
    return time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time.astimezone(timezone.utc)


def add_event_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one flag per field of `ReadOptions`."""
    group = parser.add_argument_group("event log")
    for role, flag in FLAGS.items():
        examples = ", ".join(ALIASES[role].split()[:4])
        more = "; a date and a time of day in two: date,time" if role == TIME else ""
        group.add_argument(
            f"--{flag}", help=f"column of the {flag.split('_')[0]} (default: {examples} ... if present){more}"
        )
    group.add_argument("--time_unit", choices=TIME_UNITS, help="unit of the time column (default: inferred, reported)")
    group.add_argument(
        "--time_format",
        help="how times are written, as in strptime: '%%d.%%m.%%Y %%H:%%M' (default: numbers or ISO text)",
    )
    group.add_argument("--order_column", help="orders events of a user at the same time (default: order of the file)")
    group.add_argument("--columns", help="names of the columns of a file without a header: user_id,item_id,...")
    group.add_argument("--format", choices=FORMATS, help="what the files are (default: by their extension)")
    group.add_argument("--missing_values", help="texts that mean an empty field, such as NA,? (default: none)")
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


def add_item_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how an item table is read, beside `--items`."""
    group = parser.add_argument_group("item table")
    group.add_argument("--items_id_column", help=ITEMS_HELP["items_id_column"])
    group.add_argument("--items_format", choices=FORMATS, help=ITEMS_HELP["items_format"])
    group.add_argument("--items_columns", help=ITEMS_HELP["items_columns"])


def options_from_arguments(args: argparse.Namespace) -> ReadOptions:
    """The options that `add_event_arguments` parsed."""
    return ReadOptions(**{field.name: getattr(args, field.name) for field in dataclasses.fields(ReadOptions)})
