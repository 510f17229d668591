"""What is done with one part of a log: all events of the users in a range of ids. Every function is pure, so any engine
may call it anywhere, again after a failure, and in any order. Nothing here needs torch.

    cleaned = clean_partition(events, options)
    counts = count_partition(cleaned.events, parts)
    users = encode_partition(cleaned.events, parts, coding)      # rows of `encode_users`
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from next_behavior.data.cleaning import requested_rules
from next_behavior.data.columns import ITEM, TIME, USER
from next_behavior.data.events import in_order
from next_behavior.data.held_out import hold_out, users_with_several_events
from next_behavior.data.read_options import ReadOptions
from next_behavior.data.sequences import TRAIN, VALIDATION, Coding, encode_users, time_gaps
from next_behavior.data.splits import Split, assign_parts

# The place of a rule among those that remove rows on request, in the order of the rejects.
DUPLICATES, CAP, FIRST_COUNTS = 0, 1, 2
SEQUENCE = "sequence"


def clean_partition(events: pl.DataFrame, options: ReadOptions, has_times: bool) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Usable events, in any order -> events in order, and those that the rules within one user remove.

    The removed ones have the columns `rule` and `sequence`, the place of the rule.
    """
    kept, removed = requested_rules(
        in_order(events),
        duplicates=options.duplicates if has_times else "keep",
        min_user_events=1,
        min_item_events=1,
        max_user_events=options.max_user_events,
    )
    places = {"exact_duplicate": DUPLICATES, "user_over_cap": CAP}
    empty = numbered(kept.head(0).with_columns(pl.lit("", pl.String).alias("rule")), 0)
    pieces = [numbered(gone, places[gone["rule"][0]]) for gone in removed if gone.height]
    return kept, pl.concat([empty, *pieces])


def drop_rare(
    events: pl.DataFrame, rare_items: pl.Series, min_user_events: int, sequence: int
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """One round of the minimum counts: events left, removed ones of rare items, then of users with few events left."""
    is_rare = pl.col(ITEM).is_in(rare_items.implode()).fill_null(False)
    of_items = events.filter(is_rare).with_columns(pl.lit("rare_item").alias("rule"))
    events = events.filter(~is_rare)
    is_few = pl.len().over(USER) < min_user_events
    of_users = events.filter(is_few).with_columns(pl.lit("rare_user").alias("rule"))
    return events.filter(~is_few), numbered(of_items, sequence), numbered(of_users, sequence + 1)


def numbered(removed: pl.DataFrame, sequence: int) -> pl.DataFrame:
    return removed.with_columns(pl.lit(sequence, pl.Int32).alias(SEQUENCE))


@dataclass(frozen=True)
class Parts:
    """Which events of a partition are held out.

    Attributes:
        split: of the whole log.
        drawn: with the split none, which of the partition's users with two events and more have events held out.
        cut: those after it, in microseconds since 1970; None for the last ones of each.
    """

    split: Split
    drawn: np.ndarray | None = None
    cut: int | None = None

    def assign(self, events: pl.DataFrame) -> pl.DataFrame:
        """Adds the column `part`."""
        if self.drawn is None:
            return assign_parts(events, self.split)
        return hold_out(events, users_with_several_events(events).gather(self.drawn), None, self.cut)


@dataclass
class PartitionCounts:
    """What the vocabulary is made of, of whole users; `+` adds those of others.

    Attributes:
        items: item_id, events and known: how many events name each item, and how many that a model knows.
        actions: known events per action.
        lengths: users by their number of known events.
        held_out: validation events.
        shortest, longest: seconds between two known events of one user, if any differ in time.
    """

    items: pl.DataFrame
    actions: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    held_out: int = 0
    shortest: float | None = None
    longest: float | None = None

    def __add__(self, other: PartitionCounts) -> PartitionCounts:
        return PartitionCounts(
            items=added_items([self.items, other.items]),
            actions=self.actions + other.actions,
            lengths=self.lengths + other.lengths,
            held_out=self.held_out + other.held_out,
            shortest=min((gap for gap in (self.shortest, other.shortest) if gap is not None), default=None),
            longest=max((gap for gap in (self.longest, other.longest) if gap is not None), default=None),
        )

    def to_dict(self) -> dict[str, Any]:
        """All but the items, JSON-able."""
        return {name: value for name, value in vars(self).items() if name != "items"}

    @classmethod
    def from_dict(cls, values: dict[str, Any], items: pl.DataFrame) -> PartitionCounts:
        lengths = Counter({int(length): count for length, count in values["lengths"].items()})
        return cls(**{**values, "items": items, "actions": Counter(values["actions"]), "lengths": lengths})


NO_ITEMS = pl.DataFrame(schema={ITEM: pl.String, "events": pl.Int64, "known": pl.Int64})


def added_items(counts: list[pl.DataFrame]) -> pl.DataFrame:
    """Item counts of several partitions as one."""
    return pl.concat(counts).group_by(ITEM).agg(pl.col("events", "known").sum())


def count_partition(events: pl.DataFrame, parts: Parts) -> PartitionCounts:
    """Counts cleaned events in order; with the split none, a model knows all of them, else those that it trains on."""
    marked = parts.assign(events)
    trains = pl.col("part") == TRAIN
    everything = parts.split.how == "none"
    counted = {"events": pl.len(), "known": pl.len() if everything else trains.sum()}
    items = (
        marked.drop_nulls(ITEM).group_by(ITEM).agg(many.cast(pl.Int64).alias(name) for name, many in counted.items())
    )
    known = marked if everything else marked.filter(trains)
    gaps = time_gaps(known)
    return PartitionCounts(
        items=items,
        actions=Counter(dict(known["action"].value_counts().iter_rows())),
        lengths=Counter(dict(known.group_by(USER).len()["len"].value_counts().iter_rows())),
        held_out=int((marked["part"] == VALIDATION).sum()),
        shortest=float(gaps.min()) if len(gaps) else None,
        longest=float(gaps.max()) if len(gaps) else None,
    )


def times_of(events: pl.DataFrame) -> np.ndarray:
    """(N,) int64 microseconds since 1970, of the events that have a time."""
    return events[TIME].drop_nulls().dt.epoch("us").to_numpy()


def encode_partition(events: pl.DataFrame, parts: Parts, coding: Coding) -> pa.Table:
    """Cleaned events in order -> one row of token ids per user, in the order of their ids."""
    return encode_users(parts.assign(events), coding)
