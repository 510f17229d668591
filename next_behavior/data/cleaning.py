"""Rules that turn raw rows into usable events, and the report that accounts for every row.

Raw rows (ids already text, times still as the file has them) -> times in UTC -> named rules -> ordered events. A rule
never drops a row silently: the row lands in the rejects with its rule and reason, and the report counts it with an
example. Rules of the first group (`BAD_ROWS`) find faults in the data and count towards `max_reject_ratio`; rules of
the second group (`REQUESTED`) only run when asked for and do not.

Minimum counts are applied again and again until none is violated (the "k-core" of the recommendation literature, e.g.
He and McAuley, "Ups and Downs", WWW 2016).
"""

from __future__ import annotations

import dataclasses
import textwrap
from dataclasses import dataclass, field
from datetime import datetime, timezone

import polars as pl

TIMESTAMP = pl.Datetime("us", "UTC")
UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}  # ticks per second
UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
EARLIEST_LIKELY = 631_152_000  # 1990-01-01, seconds since 1970: no log of user behaviour on the web is older
EARLIEST_DATE = -2_208_988_800  # 1900-01-01: the bound for logs whose dates are mostly before 1990

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
        "write times as 2024-05-17T08:30:00+02:00 or as seconds since 1970",
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

ISO_PATTERN = (
    r"(?i)^(\d{4}-\d{2}-\d{2})(?:[T ]+(\d{2}:\d{2})(:\d{2}(?:[.,]\d+)?)?)?"
    r"\s*(?:(Z|UTC|GMT)|([+-]\d{2}):?(\d{2})?)?$"
)
PLACEHOLDERS = ["null", "none", "nan", "n/a", "undefined", "unknown", "anonymous", "guest", "-1"]
HEAVY_SHARE, HEAVY_TIMES = 0.01, 20  # a heavy user holds 1 % of the events and 20 times the median
FAST_EVENTS, FAST_SECONDS = 60, 60  # faster than an event per second for a minute: no person
SLICE = 1 << 18  # rows of text parsed at once
WIDTH = 110  # characters in a line of the report
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

    def to_dict(self) -> dict[str, object]:
        """The report as plain dicts, lists, numbers and strings."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        size = [_count(len(self.files), "file")] if self.files else []
        read = f"{self.source} ({', '.join([*size, _count(self.rows, 'row')])})"
        lines = [("Event log", read)]
        absent = {"action": 'none, every action is "interact"', "timestamp": "none, file order is the order"}
        for role, column in self.columns.items():
            lines.append((f"  {role}", f"column {column}" if column else absent[role]))
        lines += [("  note", note) for note in self.notes]
        lines.append(("Removed", _count(sum(r.rows for r in self.removed), "row") if self.removed else "nothing"))
        for r in self.removed:
            lines.append((f"  {r.rule}", f"{r.rows:,} ({_percent(r.rows, self.rows)}) {r.what}; e.g. {r.example}"))
        lines.append(
            ("Kept", f"{_count(self.events, 'event')} of {_count(self.users, 'user')} on {_count(self.items, 'item')}")
        )
        if self.first_time and self.last_time:
            lines.append(("  time span", f"{_short(self.first_time)} to {_short(self.last_time)} UTC"))
        lines.append(("  per user", f"median {self.median_user_events:g} events, longest {self.longest_user_events:,}"))
        shares = [f"{action} {_percent(count, self.events)}" for action, count in self.actions.items()]
        more = f" and {len(shares) - 2 * SHOWN} more" if len(shares) > 2 * SHOWN else ""
        lines.append(("  actions", f"{len(shares)}: {', '.join(shares[: 2 * SHOWN])}{more}"))
        lines.append(("  repeats", f"{100 * self.repeats:.1f} % of the events with an item: their user had it before"))
        if self.without_item:
            lines.append(
                ("  no item", f"{_count(self.without_item, 'event')} ({_percent(self.without_item, self.events)})")
            )
        if self.first_time:
            share = _percent(self.ties, self.events)
            tied = f"{_count(self.ties, 'event')} ({share}) at the same time as the user's previous one"
            lines.append(("  ties", f"{tied}; file order decides"))
            copies = f"{self.exact_duplicates:,} ({_percent(self.exact_duplicates, self.events)})"
            hint = " kept; --duplicates drop removes them" if self.exact_duplicates else ""
            lines.append(("  exact copies", copies + hint))
        suspicious = [f"{user}: {reason}" for user, reason in self.suspicious_users]
        lines.append(
            (
                "  suspicious",
                _count(len({user for user, _ in self.suspicious_users}), "user") if suspicious else "no user",
            )
        )
        lines += [("", text) for text in suspicious[:SHOWN]]
        if len(suspicious) > SHOWN:
            lines.append(("", f"and {len(suspicious) - SHOWN} more"))
        return "\n".join(
            textwrap.fill(
                text,
                width=WIDTH,
                initial_indent=f"{label:<18}",
                subsequent_indent=" " * 18,
                break_long_words=False,
                break_on_hyphens=False,
            )
            for label, text in lines
        )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.1f} %"


def _short(time: str) -> str:
    return time[:19].replace("T", " ")


def parse_times(
    raw: pl.Series, column: str, unit: str | None, latest: datetime
) -> tuple[pl.Series, pl.Series, str, list[str]]:
    """Times as the file has them -> microseconds UTC.

    Args:
        raw: (N,) numbers, text, Date or Datetime.
        column: its name in the file, for messages.
        unit: "s", "ms", "us", "ns", "iso", or None to infer it.
        latest: the last time that is not in the future.

    Returns:
        times (N,) Datetime("us", "UTC"), null where a rule fails; rules (N,) String, the rule's name or null;
        the unit; notes for the report.

    Raises:
        ValueError: the column holds more than one unit, or no times at all by its type.
    """
    if raw.dtype == pl.Date or isinstance(raw.dtype, pl.Datetime):
        if unit is not None:
            raise ValueError(
                f"got time_unit={unit!r} for the column {column!r}, which holds {raw.dtype}; expected no unit, "
                "its type already says it: leave out --time_unit"
            )
        naive = raw.dtype == pl.Date or (isinstance(raw.dtype, pl.Datetime) and raw.dtype.time_zone is None)
        notes = [f"{column} has no time zone: read as UTC"] if naive else []
        ticks = (raw.cast(pl.Datetime("us")) if naive else raw.dt.convert_time_zone("UTC")).dt.epoch("us")
        return *_bounded(ticks, raw, "us", latest, notes, dates=True), "datetime", notes
    if raw.dtype == pl.Null:
        raw = raw.cast(pl.String)
    if raw.dtype.is_numeric():
        if unit == "iso":
            raise ValueError(
                f'got time_unit="iso" for the column {column!r}, which holds numbers ({raw.dtype}); expected one of '
                f"{', '.join(UNITS)}"
            )
        numbers = _numbers(raw)
        unit, notes = _number_unit(numbers, column, unit, latest)
        return *_bounded(numbers, raw, unit, latest, notes), unit, notes
    if raw.dtype != pl.String:
        raise ValueError(
            f"got {raw.dtype} in the time column {column!r}; expected numbers, ISO text, Date or Datetime: convert it, "
            "or name another column with --time_column"
        )
    return _parse_text(raw.str.strip_chars().replace("", None), column, unit, latest)


def _parse_text(
    text: pl.Series, column: str, unit: str | None, latest: datetime
) -> tuple[pl.Series, pl.Series, str, list[str]]:
    nothing = pl.repeat(None, len(text), dtype=pl.Int64, eager=True)
    numbers = nothing if unit == "iso" else _numbers(text)
    written = unit in (None, "iso") and numbers.null_count() > text.null_count()
    ticks, zoneless = nothing, 0
    if written:  # in slices: the pieces of a text take several times its memory
        parts = [_iso_ticks(part) for part in pl.DataFrame({"text": text}).iter_slices(SLICE)]
        ticks, zoneless = pl.concat([part[0] for part in parts]), sum(part[1] for part in parts)
    dates = len(ticks) - ticks.null_count()
    likely = sum(_likely(numbers, u, latest) for u in UNITS) if dates else 0
    if likely:
        date, number = text.filter(ticks.is_not_null())[0], text.filter(numbers.is_not_null())[0]
        raise ValueError(
            f"got mixed units in the time column {column!r}: {dates:,} rows of ISO text (e.g. {date!r}) and "
            f"{likely:,} of numbers (e.g. {number!r}); expected one: convert the column, or name the right "
            "one with --time_unit (iso, s, ms, us) and the other rows are rejected"
        )
    if dates or unit == "iso":
        notes = ["unit of time: ISO text"]
        if zoneless:
            notes.append(f"{column}: {zoneless:,} of {dates:,} times have no zone: read as UTC")
        return *_bounded(ticks, text, "us", latest, notes, dates=True), "iso", notes
    unit, notes = _number_unit(numbers, column, unit, latest)
    return *_bounded(numbers, text, unit, latest, notes), unit, notes


def _numbers(raw: pl.Series) -> pl.Series:
    """Int64 where every number is whole, else Float64; null where the value is no finite number."""
    if raw.dtype.is_integer():
        return raw.cast(pl.Int64, strict=False)
    whole = raw.cast(pl.Int64, strict=False) if raw.dtype == pl.String else None
    if whole is not None and whole.null_count() == raw.null_count():
        return whole
    floats = raw.cast(pl.Float64, strict=False)
    floats = pl.select(pl.when(floats.is_finite()).then(floats)).to_series()
    return whole if whole is not None and whole.null_count() == floats.null_count() else floats


def _likely(numbers: pl.Series, unit: str, latest: datetime) -> int:
    """How many numbers are times between 1990 and `latest` in this unit; the ranges of the units do not overlap."""
    ticks = UNITS[unit]
    return int(numbers.is_between(EARLIEST_LIKELY * ticks, int(latest.timestamp() * ticks)).sum())


def _number_unit(numbers: pl.Series, column: str, unit: str | None, latest: datetime) -> tuple[str, list[str]]:
    if unit is not None:
        return unit, [f"unit of time: {UNIT_NAMES[unit]} since 1970, as given"]
    counts = {u: _likely(numbers, u, latest) for u in UNITS}
    found = [u for u in UNITS if counts[u]]
    if len(found) > 1:
        examples = []
        for u in found:
            low, high = EARLIEST_LIKELY * UNITS[u], int(latest.timestamp() * UNITS[u])
            example = numbers.filter(numbers.is_between(low, high))[0]
            examples.append(f"{counts[u]:,} rows in {UNIT_NAMES[u]} (e.g. {example})")
        raise ValueError(
            f"got mixed units in the time column {column!r}: {' and '.join(examples)}; expected one unit: convert the "
            f"column, or name the right one with --time_unit ({', '.join(found)}) and the other rows are rejected"
        )
    if found:
        return found[0], [f"unit of time: {UNIT_NAMES[found[0]]} since 1970, inferred from the size of the numbers"]
    middle = abs(float(numbers.median() or 0))  # type: ignore[arg-type]
    unit = "s" if middle < 1e11 else "ms" if middle < 1e14 else "us" if middle < 1e17 else "ns"
    return unit, [f"unit of time: {UNIT_NAMES[unit]}, a guess from the size of the numbers: --time_unit says it"]


def _iso_ticks(frame: pl.DataFrame) -> tuple[pl.Series, int]:
    """ISO text -> microseconds since 1970 (null where it is none), and how many of them have no zone."""
    text = frame["text"]
    plain = text.str.replace("T", " ", literal=True)
    fast = plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)
    if fast.null_count() == text.null_count():
        return fast.dt.epoch("us"), len(fast) - fast.null_count()
    groups = frame.select(pl.col("text").str.extract_groups(ISO_PATTERN)).unnest("text")
    date, clock, seconds, utc, hours, minutes = (pl.col(name) for name in groups.columns)
    written = pl.concat_str(
        date, pl.lit(" "), clock.fill_null("00:00"), seconds.fill_null(":00").str.replace(",", ".", literal=True)
    )
    offset = hours.cast(pl.Int64).abs() * 60 + minutes.cast(pl.Int64).fill_null(0)
    offset = pl.when(hours.str.starts_with("-")).then(-offset).otherwise(offset).fill_null(0) * 60_000_000
    parsed = groups.select(
        ticks=written.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False).dt.epoch("us") - offset,
        zoneless=utc.is_null() & hours.is_null(),
    )
    return parsed["ticks"], int((parsed["zoneless"] & parsed["ticks"].is_not_null()).sum())


def _bounded(
    ticks: pl.Series, raw: pl.Series, unit: str, latest: datetime, notes: list[str], dates: bool = False
) -> tuple[pl.Series, pl.Series]:
    """Apply the time rules; most times before 1990 mean a relative clock, on which no time is too early but < 0."""
    scale = UNITS[unit]
    high = int(latest.timestamp() * scale)
    early = int((ticks < EARLIEST_LIKELY * scale).sum())
    low = EARLIEST_LIKELY
    if 2 * early > len(ticks) - ticks.null_count():
        low = EARLIEST_DATE if dates else 0
        notes.append("most times are before 1990: taken as they are (order and gaps count, dates may mean nothing)")
    missing = raw.is_nan() | raw.is_null() if raw.dtype.is_float() else raw.is_null()
    frame = pl.DataFrame({"ticks": ticks, "missing": missing})
    value = pl.col("ticks")
    inside = pl.when(value.is_between(low * scale, high)).then(value)
    if ticks.dtype.is_float():
        micros = (inside * (1_000_000 / scale)).round()
    else:
        micros = inside * (1_000_000 // scale) if scale <= 1_000_000 else inside // (scale // 1_000_000)
    rule = (
        pl.when(pl.col("missing")).then(pl.lit("missing_time"))
        .when(value.is_null()).then(pl.lit("unparsable_time"))
        .when(value < low * scale).then(pl.lit("impossible_time"))
        .when(value > high).then(pl.lit("future_time"))
    )  # fmt: skip
    result = frame.select(micros.cast(pl.Int64).cast(TIMESTAMP).alias("time"), rule.alias("rule"))
    return result["time"], result["rule"]


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


def describe(
    events: pl.DataFrame,
    *,
    source: str,
    files: list[str],
    rows: int,
    columns: dict[str, str | None],
    notes: list[str],
    time_unit: str | None,
    rejects: pl.DataFrame,
) -> CleaningReport:
    """Count what is left of the log and what each rule removed."""
    has_time = columns["timestamp"] is not None
    per_user = events.group_by("user_id").len()
    actions = events.group_by("action").len().sort(["len", "action"], descending=[True, False])
    named = events.select("user_id", "item_id").drop_nulls("item_id")
    repeats = 1 - named.unique().height / named.height if named.height else 0.0
    moments, copies = events.select("user_id", "timestamp"), 0
    ties = 0
    if has_time and events.height:
        same = (pl.col("user_id") == pl.col("user_id").shift()) & (pl.col("timestamp") == pl.col("timestamp").shift())
        moments = moments.filter(~same.fill_null(False))
        ties = events.height - moments.height
        copies = events.height - events.select("user_id", "item_id", "action", "timestamp").unique().height
    span = [t.isoformat() if t is not None else None for t in (events["timestamp"].min(), events["timestamp"].max())]  # type: ignore[union-attr]
    return CleaningReport(
        source=source,
        files=files,
        rows=rows,
        columns=columns,
        notes=[*notes, *_odd_ids(named["item_id"])],
        time_unit=time_unit,
        removed=summarise(rejects, files),
        events=events.height,
        users=per_user.height,
        items=named["item_id"].n_unique(),
        actions=dict(actions.iter_rows()),
        first_time=span[0],
        last_time=span[1],
        median_user_events=float(per_user["len"].median() or 0),  # type: ignore[arg-type]
        longest_user_events=int(per_user["len"].max() or 0),  # type: ignore[arg-type]
        repeats=repeats,
        ties=ties,
        exact_duplicates=copies,
        without_item=events.height - named.height,
        suspicious_users=_suspicious(per_user, moments if has_time else None),
    )


def summarise(rejects: pl.DataFrame, files: list[str]) -> list[Removed]:
    """One entry per rule that removed rows, in the order of `RULES`."""
    counts = dict(rejects.group_by("rule").len().iter_rows())
    found = []
    for rule, (what, _) in RULES.items():
        if rule in counts:
            first = rejects.filter(pl.col("rule") == rule).row(0, named=True)
            found.append(Removed(rule, counts[rule], what, _example(first, len(files) > 1)))
    return found


def _example(reject: dict[str, object], name_file: bool) -> str:
    where = f"row {reject['row']:,}" + (f" of {reject['file']}" if name_file else "")
    if reject["text"] is not None:
        return f"{where}: {reject['reason']}: {str(reject['text'])[:80]!r}"
    values = [f"{k}={str(reject[k])[:40]!r}" for k in ("user_id", "item_id", "action", "timestamp") if reject[k]]
    return f"{where}: {', '.join(values) or 'all empty'}"


def _odd_ids(items: pl.Series) -> list[str]:
    """Notes on item ids that look like accidents of an export; they are kept as written."""
    notes = []
    empty = items.filter(items.is_in(["nan", "NaN", "None", "null", "NULL", "<NA>", "N/A"]))
    if len(empty):
        notes.append(f"{_count(len(empty), 'event')} with the item id {empty[0]!r}: empty it if it means no item")
    if len(items) and items.str.ends_with(".0").all():
        notes.append(f"every item id ends in .0 (e.g. {items[0]!r}): the item table may have them without")
    return notes


def _suspicious(per_user: pl.DataFrame, moments: pl.DataFrame | None) -> list[tuple[str, str]]:
    """Users that look like robots, shared accounts or missing ids; reported, never removed."""
    total, median = int(per_user["len"].sum()), float(per_user["len"].median() or 0)  # type: ignore[arg-type]
    heavy = per_user.filter((pl.col("len") >= HEAVY_SHARE * total) & (pl.col("len") >= HEAVY_TIMES * median))
    found = [
        (str(user), f"{count:,} events ({_percent(count, total)} of all, {count / median:.0f} times the median)")
        for user, count in heavy.sort(["len", "user_id"], descending=[True, False]).iter_rows()
    ]
    names = per_user.filter(pl.col("user_id").str.to_lowercase().is_in(PLACEHOLDERS)).sort("user_id")
    found += [(str(user), f"{count:,} events under a placeholder id") for user, count in names.iter_rows()]
    if moments is not None:
        later = pl.col("timestamp").shift(-FAST_EVENTS) - pl.col("timestamp")
        fast = moments.filter(
            (pl.col("user_id") == pl.col("user_id").shift(-FAST_EVENTS)) & (later <= pl.duration(seconds=FAST_SECONDS))
        )
        reason = f"more than {FAST_EVENTS} events at different moments within {FAST_SECONDS} s"
        found += [(str(user), reason) for user in fast["user_id"].unique().sort()]
    return found


def utc(time: datetime) -> datetime:
    """The time in UTC; a naive one is taken as UTC."""
    return time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time.astimezone(timezone.utc)
