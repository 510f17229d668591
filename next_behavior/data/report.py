"""The report on a cleaned log.

    report = describe(LogStatistics.of(events), source="events.csv", ...)
    print(report)

It says what was read, what each rule removed, what is left, and what looks odd.
"""

from __future__ import annotations

import dataclasses
import textwrap
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

import polars as pl

from next_behavior.data.cleaning import RULES
from next_behavior.data.columns import ACTION, FLAGS, looks_like
from next_behavior.data.log_statistics import LogStatistics, percent
from next_behavior.data.shown import LONGEST_LINE, shown

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
WIDTH, INDENT = 110, 18  # characters in a line of the report, and before its text
NAME = 60  # characters of a column, a user or an action
SHOWN = 5  # users, files and actions named in the report before it says "and N more"


@dataclass(frozen=True)
class Removed:
    """Rows one rule removed: its name, how many rows, what they have in common and one of them in words."""

    rule: str
    rows: int
    what: str
    example: str


@dataclass(frozen=True)
class CleaningReport:
    """What was read, what each rule removed, and what is left. `str` is for people, `to_dict` for JSON.

    Attributes:
        source: the path as given, or the kind of table.
        files: names of the files read, in order.
        rows: rows read, rejected ones included.
        columns: the column chosen for `user_id`, `item_id`, `action` and `timestamp`; None where the log has none.
        notes: aliases used, units inferred and other choices made for the user.
        time_unit: "s", "ms", "us", "ns", "iso", "datetime" or None (no time column).
        removed: one entry per rule that removed rows.
        events, users, items: what is left; items counts distinct ids.
        actions: events per action, most frequent first.
        first_time, last_time: ISO text in UTC, None without times.
        median_user_events, longest_user_events: events per user.
        repeats: share (0 to 1) of the events naming an item whose user had that item before.
        ties: events with the same user and time as another, earlier one in order (their order is the file's).
        exact_duplicates: later copies of an event; 0 without times, where a copy is a repeat.
        without_item: events that name no item.
        suspicious_users: user, reason.
        order: the column that orders events of one user at one time, before file order does; None without one.
        unread: the columns of the log that were not read.
    """

    source: str
    files: list[str]
    rows: int
    columns: dict[str, str | None]
    notes: list[str]
    time_unit: str | None
    removed: list[Removed]
    events: int
    users: int
    items: int
    actions: dict[str, int]
    first_time: str | None
    last_time: str | None
    median_user_events: float
    longest_user_events: int
    repeats: float
    ties: int
    exact_duplicates: int
    without_item: int
    suspicious_users: list[tuple[str, str]] = field(default_factory=list)
    order: str | None = None
    unread: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """The report as plain dicts, lists, numbers and strings."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [*self._read_and_removed(), *self._kept(), *self._odd()]
        return "\n".join(
            textwrap.fill(
                shown(text, LONGEST_LINE),
                width=WIDTH,
                initial_indent=label.ljust(INDENT),
                subsequent_indent=" " * INDENT,
                break_long_words=False,
                break_on_hyphens=False,
            )
            for label, text in lines
        )

    def _read_and_removed(self) -> list[tuple[str, str]]:
        """Label and text of each line, as below."""
        size = [_count(len(self.files), "file")] if self.files else []
        lines = [("Event log", f"{self.source} ({', '.join([*size, _count(self.rows, 'row')])})")]
        absent = {"action": 'none, every action is "interact"', "timestamp": "none, file order is the order"}
        for role, column in self.columns.items():
            lines.append((f"  {role}", f"column {shown(column, NAME)}" if column else absent[role]))
        if self.unread:
            lines.append(("  not read", self._leftovers()))
        lines += [("  note", note) for note in self.notes]
        lines.append(("Removed", _count(sum(r.rows for r in self.removed), "row") if self.removed else "nothing"))
        for r in self.removed:
            lines.append((f"  {r.rule}", f"{r.rows:,} ({percent(r.rows, self.rows)}) {r.what}; e.g. {r.example}"))
        return lines

    def _leftovers(self) -> str:
        """The columns that were not read; those that look like an action or a time, which the log lacks, first."""
        hints = {column: looks_like(column) for column in self.unread}
        lacking = [column for column, role in hints.items() if role is not None and self.columns[role] is None]
        texts = [
            f"{name} (looks like {'an action' if role == ACTION else 'a time'}: --{FLAGS[role]} {name})"
            for column, name in zip(lacking, names(lacking), strict=True)
            if (role := hints[column]) is not None
        ]
        texts += names([column for column in self.unread if column not in lacking])
        more = f" and {len(texts) - 2 * SHOWN} more" if len(texts) > 2 * SHOWN else ""
        return ", ".join(texts[: 2 * SHOWN]) + more

    def _kept(self) -> list[tuple[str, str]]:
        kept = f"{_count(self.events, 'event')} of {_count(self.users, 'user')} on {_count(self.items, 'item')}"
        lines = [("Kept", kept)]
        if self.first_time and self.last_time:
            lines.append(("  time span", f"{_short(self.first_time)} to {_short(self.last_time)} UTC"))
        lines.append(("  per user", f"median {self.median_user_events:g} events, longest {self.longest_user_events:,}"))
        shares = [f"{shown(action, NAME)} {percent(count, self.events)}" for action, count in self.actions.items()]
        more = f" and {len(shares) - 2 * SHOWN} more" if len(shares) > 2 * SHOWN else ""
        lines.append(("  actions", f"{len(shares)}: {', '.join(shares[: 2 * SHOWN])}{more}"))
        lines.append(("  repeats", f"{100 * self.repeats:.1f} % of the events with an item: their user had it before"))
        if self.without_item:
            share = percent(self.without_item, self.events)
            lines.append(("  no item", f"{_count(self.without_item, 'event')} ({share})"))
        return lines

    def _odd(self) -> list[tuple[str, str]]:
        lines = []
        if self.first_time:
            share = percent(self.ties, self.events)
            tied = f"{_count(self.ties, 'event')} ({share}) at the same time as the user's previous one"
            hint = ", or --order_column" if self.ties and not self.order else ""
            lines.append(("  ties", f"{tied}; {shown(self.order or 'file order', NAME)} decides{hint}"))
            copies = f"{self.exact_duplicates:,} ({percent(self.exact_duplicates, self.events)})"
            hint = " kept; --duplicates drop removes them" if self.exact_duplicates else ""
            lines.append(("  exact copies", copies + hint))
        users = {user for user, _ in self.suspicious_users}
        lines.append(("  suspicious", _count(len(users), "user") if users else "no user"))
        lines += [("", f"{shown(user, NAME)}: {reason}") for user, reason in self.suspicious_users[:SHOWN]]
        if len(self.suspicious_users) > SHOWN:
            lines.append(("", f"and {len(self.suspicious_users) - SHOWN} more"))
        return lines


def names(columns: list[str]) -> list[str]:
    return [shown(column, NAME) for column in columns]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _short(time: str) -> str:
    return time[:19].replace("T", " ")


def describe(
    statistics: LogStatistics,
    *,
    items: int,
    source: str,
    files: list[str],
    rows: int,
    columns: dict[str, str | None],
    notes: list[str],
    time_unit: str | None,
    order: str | None,
    unread: list[str],
    removed: list[Removed],
) -> CleaningReport:
    """The report on a log, from the counts of what is left (of distinct `items`) and of what each rule removed."""
    actions = sorted(statistics.actions.items(), key=lambda action: (-action[1], action[0]))
    named = statistics.events - statistics.without_item
    odd = []
    if named and statistics.fractions:
        example = statistics.first_item
        odd = [f"every item id ends in .0 (e.g. {example!r}): the item table may have them without"]
    return CleaningReport(
        source=source,
        files=files,
        rows=rows,
        columns=columns,
        notes=[*notes, *odd],
        time_unit=time_unit,
        removed=removed,
        events=statistics.events,
        users=statistics.users,
        items=items,
        actions=dict(actions),
        first_time=_iso(statistics.first),
        last_time=_iso(statistics.last),
        median_user_events=statistics.median_user_events(),
        longest_user_events=max(statistics.lengths, default=0),
        repeats=1 - statistics.distinct / named if named else 0.0,
        ties=statistics.ties,
        exact_duplicates=statistics.copies,
        without_item=statistics.without_item,
        suspicious_users=statistics.suspicious_users(),
        order=order,
        unread=unread,
    )


def _iso(microseconds: int | None) -> str | None:
    if microseconds is None:
        return None
    return (EPOCH + timedelta(microseconds=microseconds)).isoformat()


def summarize(rejects: pl.DataFrame, files: list[str]) -> list[Removed]:
    """One entry per rule that removed rows, in the order of `RULES`."""
    counts = dict(rejects.group_by("rule").len().iter_rows())
    removed = []
    for rule in RULES:
        if rule in counts:
            first = rejects.filter(pl.col("rule") == rule).row(0, named=True)
            removed.append(removed_by(rule, counts[rule], first, files))
    return removed


def removed_by(rule: str, rows: int, first: dict[str, object], files: list[str]) -> Removed:
    """The entry of a rule, from the number of its rows and the first of them."""
    return Removed(rule, rows, RULES[rule][0], _example(first, len(files) > 1))


def _example(reject: dict[str, object], name_file: bool) -> str:
    where = f"row {reject['row']:,}" + (f" of {reject['file']}" if name_file else "")
    if reject["text"] is not None:
        return f"{where}: {reject['reason']}: {str(reject['text'])[:80]!r}"
    values = [f"{k}={str(reject[k])[:40]!r}" for k in ("user_id", "item_id", "action", "timestamp") if reject[k]]
    return f"{where}: {', '.join(values) or 'all empty'}"
