"""Rules that remove rows from a log.

A rule never drops a row silently. The row goes to the rejects with its rule and reason, and the report counts it with
an example. Rules of the first group (`BAD_ROWS`) find faults in the data and count towards `max_reject_ratio`. Those of
the second group (`REQUESTED`) only run when asked for, and do not count.

Minimum counts are applied again and again until none is violated (the "k-core" of the recommendation literature, e.g.
He and McAuley, "Ups and Downs", WWW 2016).
"""

from __future__ import annotations

import polars as pl

# rule: (what it removes, how to mend it)
BAD_ROWS = {
    "malformed_row": (
        "rows with too few or too many fields",
        "quote fields that hold the separator, or give the header as many names as the rows have fields",
    ),
    "missing_user": ("rows without a user", "fill the user column or remove the rows"),
    "missing_action": ("rows without an action", "fill the action column or name another one with --action_column"),
    "missing_time": ("rows without a time", "fill the time column or name another one with --time_column"),
    "unparsable_time": (
        "times that are neither a number nor ISO text",
        "say how they are written, e.g. --time_format '%m/%d/%Y %I:%M:%S %p' or %d.%m.%Y, or name two columns with "
        "--time_column date,time; else write them as 2024-05-17T08:30:00+02:00 or as seconds since 1970",
    ),
    "impossible_time": ("times too early to be real", "check the time column, or name its unit with --time_unit"),
    "future_time": ("times in the future", "check the unit (--time_unit); simulated logs: --latest_time 2100-01-01"),
}
REQUESTED = {
    "exact_duplicate": ("later copies of an event (user, item, action and time equal)", "--duplicates keep"),
    "user_over_cap": ("the oldest events of users over max_user_events", "raise --max_user_events"),
    "rare_item": ("events of items under min_item_events", "lower --min_item_events"),
    "rare_user": ("events of users under min_user_events", "lower --min_user_events"),
}
RULES = {**BAD_ROWS, **REQUESTED}

REJECT_SCHEMA = {
    "file": pl.String,
    "row": pl.Int64,
    "rule": pl.String,
    "reason": pl.String,
    "user_id": pl.String,
    "item_id": pl.String,
    "action": pl.String,
    "timestamp": pl.String,
    "text": pl.String,
}


def bad_rows(frame: pl.DataFrame, *, has_action: bool) -> pl.DataFrame:
    """Rows without a usable user, action or time: columns of the frame + `rule`; the first rule that fails is named.

    Args:
        frame: user_id, item_id, action (String), time_rule (String, null where the time is fine).
        has_action: whether the log has an action column; without one no action is missing.
    """

    def absent(name: str) -> pl.Expr:
        return pl.col(name).is_null() | (pl.col(name) == "")

    rule = (
        pl.when(absent("user_id")).then(pl.lit("missing_user"))
        .when(absent("action") & has_action).then(pl.lit("missing_action"))
        .otherwise(pl.col("time_rule"))
    )  # fmt: skip
    return frame.with_columns(rule.alias("rule")).filter(pl.col("rule").is_not_null())


def requested_rules(
    events: pl.DataFrame,
    *,
    duplicates: str,
    min_user_events: int,
    min_item_events: int,
    max_user_events: int | None,
) -> tuple[pl.DataFrame, list[pl.DataFrame]]:
    """The removals a user asked for, on events in order: kept events, and the removed ones with their `rule`.

    Order: exact duplicates, then the cap (each user's newest `max_user_events` stay), then the minimum counts, items
    first, repeated until no count is under its minimum. Events without an item are never removed by the item rule.
    """
    removed: list[pl.DataFrame] = []

    def split(rule: str, keep: pl.Expr) -> bool:
        nonlocal events
        marked = events.with_columns(keep.fill_null(True).alias("keep"))
        gone = marked.filter(~pl.col("keep"))
        events = marked.filter(pl.col("keep")).drop("keep")
        removed.append(gone.drop("keep").with_columns(pl.lit(rule).alias("rule")))
        return bool(gone.height)

    if duplicates == "drop":
        split("exact_duplicate", pl.struct("user_id", "item_id", "action", "timestamp").is_first_distinct())
    if max_user_events is not None:
        newest = pl.len().over("user_id") - pl.int_range(pl.len()).over("user_id")
        split("user_over_cap", newest <= max_user_events)
    changed = min_user_events > 1 or min_item_events > 1
    while changed:
        rare_item = pl.col("item_id").is_not_null() & (pl.len().over("item_id") < min_item_events)
        changed = min_item_events > 1 and split("rare_item", ~rare_item)
        changed = (min_user_events > 1 and split("rare_user", pl.len().over("user_id") >= min_user_events)) or changed
        changed = changed and min_user_events > 1 and min_item_events > 1
    return events, removed
