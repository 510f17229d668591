"""Texts that stand for an empty field: NA, \\N, (null), ? ...

They are kept as written, because each may be an id (NA is Namibia). They are counted, and noted by column. In the user
column a marker gathers the events of many people: more of it than the share of rows that may be unusable stops reading.
"""

from __future__ import annotations

from collections import Counter

import polars as pl

from next_behavior.data.columns import ACTION, FLAGS, ITEM, USER, recognized

_EMPTY = (
    r"NA N/A #N/A #NA <NA> N.A. \N (null) [null] <null> {null} null #NULL! nil None (none) <none> NaN NaT ? ?? - -- "
    r"(blank) (empty) undefined (undefined) missing (missing) (not\ set) #REF! #VALUE!"
)
_NOBODY = "unknown anonymous guest -1 (anonymous) not\\ set anon nobody"


def _variants(names: str) -> list[str]:
    words = [word.replace("\0", " ") for word in names.replace("\\ ", "\0").split()]
    return sorted({form for word in words for form in (word, word.lower(), word.upper(), word.capitalize())})


ROLES = (USER, ITEM, ACTION)
MARKERS = _variants(_EMPTY)
USER_MARKERS = _variants(f"{_EMPTY} {_NOBODY}")


def count_markers(raw: pl.DataFrame, columns: dict[str, str | None]) -> dict[str, dict[str, int]]:
    """How many rows each marker has, by role; rows of a log can be counted in pieces, and the counts added.

    Args:
        raw: user_id, item_id, action String.
        columns: the name in the file for each role.
    """
    return {role: _counts(raw[role], USER_MARKERS if role == USER else MARKERS) for role in ROLES if columns[role]}


def add_counts(counts: dict[str, dict[str, int]], more: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    return {role: dict(Counter(counts.get(role, {})) + Counter(found)) for role, found in more.items()}


def marker_notes(counts: dict[str, dict[str, int]], columns: dict[str, str | None]) -> list[str]:
    """For each column that holds markers: which, how often, and the option that reads them as empty."""
    notes = []
    for role, found in counts.items():
        found = _most_frequent_first({marker: count for marker, count in found.items() if marker in MARKERS})
        if found:
            shown = ", ".join(f"{count:,} rows '{marker}'" for marker, count in found.items())
            notes.append(
                f"{columns[role]}: {shown}, which may mean an empty field: kept as written; "
                f"--missing_values {_quoted(found)} reads it as empty"
            )
    return notes


def check_user_markers(
    counts: dict[str, dict[str, int]], total: int, columns: dict[str, str | None], present: list[str], allowed: float
) -> None:
    """ValueError if a larger share of the `total` rows than `allowed` has a marker for a user."""
    found = _most_frequent_first(counts[USER])
    rows = sum(found.values())
    if not found or rows <= allowed * total:
        return
    shown = ", ".join(f"'{marker}'" for marker in found)
    raise ValueError(
        f"got {shown} in the user column {columns[USER]!r} in {rows:,} of {total:,} rows "
        f"({100 * rows / total:.1f} %), which would be one user; expected a user in each row: "
        f"{other_users(columns, present)}leave these rows out with --missing_values {_quoted(found)} and a higher "
        "--max_reject_ratio"
    )


def other_users(columns: dict[str, str | None], present: list[str]) -> str:
    """A hint at the columns that may be the user as well, "" without one."""
    others = [column for column in recognized(USER, present) if column not in columns.values()]
    return f"try another column, --{FLAGS[USER]} {others[0]}, or " if others else ""


def _counts(values: pl.Series, markers: list[str]) -> dict[str, int]:
    found = values.filter(values.is_in(markers))
    return dict(found.value_counts().iter_rows())


def _most_frequent_first(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def _quoted(counts: dict[str, int]) -> str:
    return f"'{','.join(counts)}'"
