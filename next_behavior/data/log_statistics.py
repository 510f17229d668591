"""What the report says of the events that are left: counted for some users at a time, and added.

statistics = LogStatistics.of(events_of_some_users) + LogStatistics.of(events_of_later_users)
statistics.median_user_events(), statistics.suspicious_users()
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import polars as pl

PLACEHOLDERS = ["null", "none", "nan", "n/a", "undefined", "unknown", "anonymous", "guest", "-1"]
HEAVY_SHARE, HEAVY_TIMES = 0.01, 20  # a heavy user holds 1 % of the events and 20 times the median
FAST_EVENTS, FAST_SECONDS = 60, 60  # faster than an event per second for a minute: no person


@dataclass
class LogStatistics:
    """Counts over whole users, in the order of their ids.

    Attributes:
        events, without_item: all events, and those that name no item.
        distinct: pairs of a user and an item.
        ties: events at the time of the user's previous one; copies: later copies of an event.
        lengths: users by their number of events.
        actions: events per action.
        first, last: microseconds since 1970, None without times.
        fractions: whether every item id ends in ".0"; first_item: the first one.
        heavy: users with many events, and how many; the only ones that can be heavy in the whole log.
        placeholders: users under a placeholder id, and their events.
        fast: users with more events within a minute than a person.
    """

    events: int = 0
    without_item: int = 0
    distinct: int = 0
    ties: int = 0
    copies: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    first: int | None = None
    last: int | None = None
    fractions: bool = True
    first_item: str | None = None
    heavy: list[tuple[str, int]] = field(default_factory=list)
    placeholders: list[tuple[str, int]] = field(default_factory=list)
    fast: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, events: pl.DataFrame) -> LogStatistics:
        """Counts events, sorted by user and time: user_id, item_id, action, timestamp."""
        if events.is_empty():
            return cls()
        per_user = events.group_by("user_id").len().sort("user_id")
        named = events.select("user_id", "item_id").drop_nulls("item_id")
        statistics = cls(
            events=events.height,
            without_item=events.height - named.height,
            distinct=named.unique().height,
            lengths=Counter(dict(per_user["len"].value_counts().iter_rows())),
            actions=Counter(dict(events["action"].value_counts().iter_rows())),
            fractions=bool(named["item_id"].str.ends_with(".0").all()),
            first_item=named["item_id"][0] if named.height else None,
            heavy=list(per_user.filter(pl.col("len") >= HEAVY_SHARE * events.height).iter_rows()),
            placeholders=list(per_user.filter(pl.col("user_id").str.to_lowercase().is_in(PLACEHOLDERS)).iter_rows()),
        )
        if events["timestamp"].null_count() < events.height:
            statistics._count_times(events)
        return statistics

    def _count_times(self, events: pl.DataFrame) -> None:
        ticks = events["timestamp"].dt.epoch("us")
        self.first, self.last = int(ticks.min()), int(ticks.max())  # type: ignore[arg-type]
        same = (pl.col("user_id") == pl.col("user_id").shift()) & (pl.col("timestamp") == pl.col("timestamp").shift())
        tied = events.select(same.fill_null(False)).to_series()
        self.ties = int(tied.sum())
        moments = events.select("user_id", "timestamp").filter(~tied)
        self.copies = events.height - events.select("user_id", "item_id", "action", "timestamp").unique().height
        later = pl.col("timestamp").shift(-FAST_EVENTS) - pl.col("timestamp")
        fast = moments.filter(
            (pl.col("user_id") == pl.col("user_id").shift(-FAST_EVENTS)) & (later <= pl.duration(seconds=FAST_SECONDS))
        )
        self.fast = fast["user_id"].unique().sort().to_list()

    def __add__(self, later: LogStatistics) -> LogStatistics:
        known = [one for one in (self, later) if one.first is not None and one.last is not None]
        return LogStatistics(
            events=self.events + later.events,
            without_item=self.without_item + later.without_item,
            distinct=self.distinct + later.distinct,
            ties=self.ties + later.ties,
            copies=self.copies + later.copies,
            lengths=self.lengths + later.lengths,
            actions=self.actions + later.actions,
            first=min((one.first for one in known if one.first is not None), default=None),
            last=max((one.last for one in known if one.last is not None), default=None),
            fractions=self.fractions and later.fractions,
            first_item=later.first_item if self.first_item is None else self.first_item,
            heavy=[*self.heavy, *later.heavy],
            placeholders=[*self.placeholders, *later.placeholders],
            fast=[*self.fast, *later.fast],
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields, JSON-able."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LogStatistics:
        lengths = Counter({int(length): count for length, count in values["lengths"].items()})
        pairs = {name: [(user, count) for user, count in values[name]] for name in ("heavy", "placeholders")}
        return cls(**{**values, "lengths": lengths, "actions": Counter(values["actions"]), **pairs})

    @property
    def users(self) -> int:
        return self.lengths.total()

    def median_user_events(self) -> float:
        """The median of the events per user, 0 without users."""
        middle = [self.order_statistic((self.users - 1) // 2), self.order_statistic(self.users // 2)]
        return sum(middle) / 2

    def order_statistic(self, place: int) -> int:
        """The events of the user at a place, from 0, of all users by their number of events."""
        before = 0
        for length in sorted(self.lengths):
            before += self.lengths[length]
            if place < before:
                return length
        return 0

    def suspicious_users(self) -> list[tuple[str, str]]:
        """Users that look like robots, shared accounts or missing ids, with the reason."""
        total, median = self.events, self.median_user_events()
        heavy = [one for one in self.heavy if one[1] >= HEAVY_SHARE * total and one[1] >= HEAVY_TIMES * median]
        heavy.sort(key=lambda one: one[0])
        heavy.sort(key=lambda one: one[1], reverse=True)
        suspicious = [
            (user, f"{count:,} events ({percent(count, total)} of all, {count / median:.0f} times the median)")
            for user, count in heavy
        ]
        suspicious += [(user, f"{count:,} events under a placeholder id") for user, count in self.placeholders]
        reason = f"more than {FAST_EVENTS} events at different moments within {FAST_SECONDS} s"
        return suspicious + [(user, reason) for user in self.fast]


def percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.1f} %"
