"""The columns of a log: the roles they play, the names they are recognized by, and the choice among those of a file.

This file imports nothing heavy: the commands build their flags from it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from next_behavior.data.shown import shown as text_shown

USER, ITEM, ACTION, TIME = "user_id", "item_id", "action", "timestamp"
FLAGS = {USER: "user_column", ITEM: "item_column", ACTION: "action_column", TIME: "time_column"}

# Recognized names, best first; compared without case, spaces, "_", "-" and ".".
ALIASES = {
    USER: "user_id user userid uid visitorid visitor_id customer_id customer client_id member_id account_id buyer_id "
    "household_id person_id profile_id reviewerid user_session session_id session",
    ITEM: "item_id item itemid iid product_id product productid article_id article sku asin parent_asin content_id "
    "movie_id track_id song_id video_id news_id book_id business_id listing_id offer_id goods_id",
    ACTION: "action event event_type behavior_type behaviour_type action_type interaction_type interaction event_name "
    "behavior behaviour activity",
    TIME: "timestamp time datetime behavior_time behaviour_time event_time event_timestamp time_stamp ts action_time "
    "created_at occurred_at date_time date event_date unix_time unixreviewtime transaction_timestamp transaction_time",
}

# What the names of columns that may be an action or a time hold.
LOOKS = {
    TIME: ("time", "date", "stamp", "day", "when", "clock", "hour"),
    ACTION: ("action", "event", "behavio", "activity", "interact", "type", "verb", "operation", "kind"),
}

MOST_SHOWN = 40  # columns in a message, and characters of each


def plain(name: str) -> str:
    """A name as it is compared."""
    return "".join(c for c in name.lower() if c not in " _-.")


def cut(name: str) -> str:
    """A name as messages show it."""
    return name if len(name) <= MOST_SHOWN else f"{name[:MOST_SHOWN]}..."


def shown(columns: list[str]) -> list[str]:
    """Names of columns as messages show them."""
    return [cut(name) for name in columns[:MOST_SHOWN]] + (["..."] if len(columns) > MOST_SHOWN else [])


def recognized(role: str, columns: list[str]) -> list[str]:
    """The columns with a recognized name for a role, best first."""
    aliases = dict.fromkeys(plain(alias) for alias in ALIASES[role].split())
    return [column for alias in aliases for column in columns if plain(column) == alias]


def looks_like(column: str) -> str | None:
    """The role, action or time, that a column's name suggests; None if it suggests neither."""
    name = plain(column)
    if name.endswith("id"):
        return None
    return next((role for role, parts in LOOKS.items() if any(part in name for part in parts)), None)


def choose_column(
    role: str, columns: list[str], asked: str | None, *, needed: bool, notes: list[str], flag: str | None = None
) -> str | None:
    """The column for a role: the one asked for, else the first recognized name.

    Args:
        role: a key of `ALIASES`.
        columns: names in the file.
        asked: a name given by the user, or None.
        needed: whether a log without it is an error; else None is returned.
        notes: told when an alias was used.
        flag: what to name in messages; None is the command-line flag of the role.
    """
    flag = flag or f"--{FLAGS[role]}"
    if asked is not None:
        if asked in columns:
            return asked
        raise ValueError(
            f"got {flag}={asked!r}, but there are only the columns {shown(columns)}; expected one of them: "
            f"the closest is {flag} {_closest(asked, columns)}"
        )
    if role in columns:
        return role
    found = recognized(role, columns)
    if found:
        others = f" (also there: {', '.join(found[1:])})" if found[1:] else ""
        notes.append(f"{role}: taken from the column {found[0]}{others}; {flag} names another")
        return found[0]
    if not needed:
        return None
    names = {plain(alias) for other in ALIASES if other != role for alias in ALIASES[other].split()}
    free = [column for column in columns if plain(column) not in names]
    header = ""
    if _looks_like_data(columns):
        header = (
            " The first line looks like data: does the file lack a header? Give it with --columns user_id,item_id,..."
        )
    kind = "an item" if role == ITEM else f"a {role.split('_')[0]}"
    raise ValueError(
        f"got the columns {shown(columns)}, none of which is {kind} column; expected {role} or a name "
        f"such as {', '.join(ALIASES[role].split()[1:6])}: name it with {flag}, for example "
        f"{flag} {_closest(role, free or columns)}.{header}"
    )


def named_columns(asked: str, columns: list[str], flag: str) -> list[str]:
    """The columns that a name stands for: one, or those it lists with commas between."""
    if asked in columns:
        return [asked]
    names = [name.strip() for name in asked.split(",")]
    return [str(choose_column(TIME, columns, name, needed=True, notes=[], flag=flag)) for name in names]


def choose_columns(columns: list[str], asked: Mapping[str, str | None], notes: list[str]) -> dict[str, str | None]:
    """The column for every role of an event log; None for a role that the log lacks and does not need.

    A time in two columns is both names with a comma between.

    Args:
        columns: names in the file.
        asked: for each role a name given by the user, or None.
        notes: told when an alias was used.
    """
    time = asked[TIME]
    times = named_columns(time, columns, f"--{FLAGS[TIME]}") if time is not None else []
    free = [column for column in columns if column not in asked.values() and column not in times]
    chosen = {
        role: choose_column(
            role, free if asked[role] is None else columns, asked[role], needed=role in (USER, ITEM), notes=notes
        )
        if role != TIME or not times
        else ",".join(times)
        for role in FLAGS
    }
    taken: dict[str, str] = {}
    for role, column in chosen.items():
        if column in taken:
            raise ValueError(
                f"got the column {cut(column)!r} for both {taken[column]} and {role}; expected two columns: "
                f"change --{FLAGS[taken[column]]} or --{FLAGS[role]}"
            )
        if column is not None:
            if columns.count(column) > 1:
                raise ValueError(
                    f"got {columns.count(column)} columns named {cut(column)!r}; expected one: rename the others"
                )
            taken[column] = role
    return chosen


def _closest(name: str, columns: list[str]) -> str:
    return text_shown(
        max(columns, key=lambda c: difflib.SequenceMatcher(None, plain(c), plain(name)).ratio(), default="..."),
        MOST_SHOWN,
    )


def _looks_like_data(columns: list[str]) -> bool:
    return any(column.replace(".", "", 1).lstrip("-").isdigit() for column in columns)
