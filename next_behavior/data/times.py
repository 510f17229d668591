"""The time column of a log: numbers in some unit, text or dates -> microseconds in UTC.

    parsed = ParsedTimes.of(raw, asked)             # of the whole column, or of some of its rows
    times, rules = reading.apply(parsed)            # `time_survey.py` decides on the reading, for the whole column

The unit of numbers is inferred from their size, and reported. Numbers that may as well be dates (20240130, the days of
a spreadsheet) are refused until an option says what they are. A time that cannot be used gets the name of the rule that
it breaks (`cleaning.py` says what each means). How text is written is in `model/times.py`: histories are read alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import polars as pl

from next_behavior.model.times import BLANKS, ISO_PATTERN, UNITS

TIMESTAMP = pl.Datetime("us", "UTC")
USUAL_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-5][0-9](?:\.[0-9]{1,9})?$"
SPREADSHEET_EPOCH = 25_569  # days from 1899-12-30, the day 0 of spreadsheets, to 1970-01-01
DAY = 86_400
SLICE = 1 << 18  # rows of text parsed at once

# What is read of a column: moments (dates, ISO text, text in a format, days of a spreadsheet) or plain numbers.
MOMENTS, NUMBERS = "moments", "numbers"


def one_time(columns: list[pl.Series]) -> pl.Series:
    """The time column as it is; two columns, a date and a time of day, as one text."""
    if len(columns) == 1:
        return columns[0]
    texts = [
        (values.dt.date() if isinstance(values.dtype, pl.Datetime) else values).cast(pl.String).str.strip_chars(BLANKS)
        for values in columns
    ]
    frame = pl.DataFrame([text.replace("", None).alias(str(place)) for place, text in enumerate(texts)])
    return frame.select(pl.concat_str(pl.all(), separator=" ")).to_series()


@dataclass(frozen=True)
class AskedTimes:
    """What the user says about the time column.

    Attributes:
        column: its name in the file, for messages.
        unit: "s", "ms", "us", "ns", "days", "iso", or None to infer it.
        latest: the last time that is not in the future.
        format: how text is written, as in `strptime`; None reads numbers and ISO text.
    """

    column: str
    unit: str | None
    latest: datetime
    format: str | None = None


@dataclass(frozen=True)
class ParsedTimes:
    """Rows of a time column in the forms that they may be read in.

    Attributes:
        raw: (N,) as the file has them; text without the blanks around it, null where it is empty.
        moments: (N,) Int64 microseconds since 1970, null where a row is no moment; None: not looked for.
        numbers: (N,) Int64 or Float64, null where a row is no finite number; None: not looked for.
        zoneless: moments that were written without a time zone.
        notes: for the report.
    """

    raw: pl.Series
    moments: pl.Series | None
    numbers: pl.Series | None
    zoneless: int
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, raw: pl.Series, asked: AskedTimes) -> ParsedTimes:
        """Parses (N,) numbers, text, Date or Datetime.

        Raises:
            ValueError: the column's type contradicts the options, or holds no times at all.
        """
        column, unit = asked.column, asked.unit
        if raw.dtype == pl.Date or isinstance(raw.dtype, pl.Datetime):
            if unit is not None or asked.format is not None:
                raise ValueError(
                    f"got {f'time_unit={unit!r}' if unit else f'time_format={asked.format!r}'} for the column "
                    f"{column!r}, which holds {raw.dtype}; expected neither unit nor format, its type already says it: "
                    "leave out --time_unit and --time_format"
                )
            naive = raw.dtype == pl.Date or (isinstance(raw.dtype, pl.Datetime) and raw.dtype.time_zone is None)
            zone_note = (f"{column} has no time zone: read as UTC",) if naive else ()
            ticks = (raw.cast(pl.Datetime("us")) if naive else raw.dt.convert_time_zone("UTC")).dt.epoch("us")
            return cls(raw, ticks, None, 0, zone_note)
        if raw.dtype == pl.Null:
            raw = raw.cast(pl.String)
        if raw.dtype.is_numeric() and asked.format is not None:
            raw = _digits(raw)
        if raw.dtype.is_numeric():
            if unit == "iso":
                raise ValueError(
                    f'got time_unit="iso" for the column {column!r}, which holds numbers ({raw.dtype}); expected one '
                    f"of {', '.join(UNITS)}"
                )
            numbers = parsed_numbers(raw)
            return cls(raw, _spreadsheet_ticks(numbers) if unit == "days" else None, numbers, 0)
        if raw.dtype != pl.String:
            raise ValueError(
                f"got {raw.dtype} in the time column {column!r}; expected numbers, ISO text, Date or Datetime: convert "
                "it, or name another column with --time_column"
            )
        text = raw.str.strip_chars(BLANKS).replace("", None)
        if asked.format is not None:
            ticks, notes = _formatted_ticks(text, column, asked.format)
            return cls(text, ticks, None, 0, notes)
        return cls._of_text(text, unit)

    @classmethod
    def _of_text(cls, text: pl.Series, unit: str | None) -> ParsedTimes:
        numbers = None if unit == "iso" else parsed_numbers(text)
        if unit == "days" and numbers is not None:
            return cls(text, _spreadsheet_ticks(numbers), numbers, 0)
        written = unit in (None, "iso") and (numbers is None or numbers.null_count() > text.null_count())
        if not written:
            return cls(text, None, numbers, 0)
        # In slices: the pieces of a text take several times its memory.
        parts = [_iso_ticks(part) for part in pl.DataFrame({"text": text}).iter_slices(SLICE)]
        return cls(text, pl.concat([part[0] for part in parts]), numbers, sum(part[1] for part in parts))


@dataclass(frozen=True)
class TimeReading:
    """How the rows of a time column become times: the same for all of them.

    Attributes:
        asked: what the user said.
        kind: MOMENTS or NUMBERS.
        unit: "s", "ms", "us", "ns", "iso", "datetime", "format" or "days", for the report.
        scale: of the numbers, in ticks per second; of moments, microseconds.
        whole: whether every number is one without a fraction.
        low, high: the first and the last time that are possible, in ticks.
        notes: for the report.
    """

    asked: AskedTimes
    kind: str
    unit: str
    scale: int
    whole: bool
    low: int
    high: int
    notes: tuple[str, ...]

    def read(self, raw: pl.Series) -> tuple[pl.Series, pl.Series]:
        """`apply` of rows as the file has them."""
        return self.apply(ParsedTimes.of(raw, self.asked))

    def apply(self, parsed: ParsedTimes) -> tuple[pl.Series, pl.Series]:
        """Times (N,) Datetime("us", "UTC"), null where a rule fails; rules (N,) String, the rule's name or null."""
        ticks = parsed.moments if self.kind == MOMENTS else parsed.numbers
        if ticks is None:  # none of these rows is of the kind
            ticks = pl.repeat(None, len(parsed.raw), dtype=pl.Int64, eager=True)
        if self.kind == NUMBERS and not self.whole:
            ticks = ticks.cast(pl.Float64)
        raw = parsed.raw
        missing = raw.is_nan() | raw.is_null() if raw.dtype.is_float() else raw.is_null()
        frame = pl.DataFrame({"ticks": ticks, "missing": missing})
        value = pl.col("ticks")
        inside = pl.when(value.is_between(self.low, self.high)).then(value)
        if ticks.dtype.is_float():
            micros = (inside * (1_000_000 / self.scale)).round()
        elif self.scale <= 1_000_000:
            micros = inside * (1_000_000 // self.scale)
        else:
            micros = inside // (self.scale // 1_000_000)
        rule = (
            pl.when(pl.col("missing")).then(pl.lit("missing_time"))
            .when(value.is_null()).then(pl.lit("unparsable_time"))
            .when(value < self.low).then(pl.lit("impossible_time"))
            .when(value > self.high).then(pl.lit("future_time"))
        )  # fmt: skip
        result = frame.select(micros.cast(pl.Int64).cast(TIMESTAMP).alias("time"), rule.alias("rule"))
        return result["time"], result["rule"]


def parsed_numbers(raw: pl.Series) -> pl.Series:
    """Int64 where every number is whole, else Float64; null where the value is no finite number."""
    if raw.dtype.is_integer():
        return raw.cast(pl.Int64, strict=False)
    whole = raw.cast(pl.Int64, strict=False) if raw.dtype == pl.String else None
    if whole is not None and whole.null_count() == raw.null_count():
        return whole
    floats = raw.cast(pl.Float64, strict=False)
    floats = pl.select(pl.when(floats.is_finite()).then(floats)).to_series()
    return whole if whole is not None and whole.null_count() == floats.null_count() else floats


def _digits(numbers: pl.Series) -> pl.Series:
    """Numbers as text, whole ones without a fraction; null where there is no number."""
    if numbers.dtype.is_float():
        numbers = numbers.fill_nan(None)
    whole = numbers.cast(pl.Int64, strict=False)
    return pl.select(pl.coalesce(whole.cast(pl.String), numbers.cast(pl.String))).to_series()


def _spreadsheet_ticks(days: pl.Series) -> pl.Series:
    """Days since 1899-12-30 -> microseconds since 1970, to milliseconds."""
    ticks = ((days.cast(pl.Float64) - SPREADSHEET_EPOCH) * (DAY * 1000)).round() * 1000
    return ticks.cast(pl.Int64, strict=False)


def _formatted_ticks(text: pl.Series, column: str, time_format: str) -> tuple[pl.Series, tuple[str, ...]]:
    """Text in a given format -> microseconds since 1970 (null where it is none), notes."""
    written, chrono = text, time_format.replace(".%f", "%.f")
    for directives, rest in ((("%m", "%b", "%B", "%h", "%j"), "%m"), (("%d", "%e", "%j"), "%d")):
        plain = chrono.replace("%-", "%")
        if not any(directive in plain for directive in (*directives, "%D", "%F", "%x", "%c", "%s", "%V", "%U", "%W")):
            written, chrono = written + " 01", f"{chrono} {rest}"  # a month or a year begins with its first day
    try:
        moments = written.str.to_datetime(chrono, time_unit="us", strict=False)
    except pl.exceptions.PolarsError as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"got time_format={time_format!r} for the column {column!r} ({reason}); expected a format as in strptime: "
            "for example --time_format '%d.%m.%Y %H:%M'"
        ) from error
    notes = [f"format of time: {time_format}, as given"]
    if moments.dtype.time_zone is None:  # type: ignore[attr-defined]
        notes.append(f"{column} has no time zone: read as UTC")
    return moments.dt.epoch("us"), tuple(notes)


def _iso_ticks(frame: pl.DataFrame) -> tuple[pl.Series, int]:
    """ISO text -> microseconds since 1970 (null where it is none), and how many of them have no zone."""
    text = frame["text"]
    if text.str.contains(USUAL_PATTERN).all():
        some = text.drop_nulls().head(1)
        between = some[0][10] if len(some) else " "
        fast = text.str.to_datetime(f"%Y-%m-%d{between}%H:%M:%S%.f", time_unit="us", strict=False)
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
