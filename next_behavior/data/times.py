"""The time column of a log: numbers in some unit, text or dates -> microseconds in UTC.

The unit of numbers is inferred from their size, and reported. Numbers that may as well be dates (20240130, the days of
a spreadsheet) are refused until an option says what they are. A time that cannot be used gets the name of the rule that
it breaks (`cleaning.py` says what each means). How text is written is in `model/times.py`: histories are read alike.
"""

from __future__ import annotations

from datetime import datetime

import polars as pl

from next_behavior.model.times import BLANKS, COMPACT_FORMATS, COMPACT_PATTERN, ISO_PATTERN, UNITS, unit_of

TIMESTAMP = pl.Datetime("us", "UTC")
UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
EARLIEST_LIKELY = 631_152_000  # 1990-01-01, seconds since 1970: no log of user behavior on the web is older
EARLIEST_DATE = -2_208_988_800  # 1900-01-01: the bound for logs whose dates are mostly before 1990
USUAL_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-5][0-9](?:\.[0-9]{1,9})?$"
SPREADSHEET_EPOCH = 25_569  # days from 1899-12-30, the day 0 of spreadsheets, to 1970-01-01
SAMPLE, MOSTLY = 1000, 0.9  # numbers that are looked at, and the share of them that must look like dates
DAY = 86_400
SLICE = 1 << 18  # rows of text parsed at once


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


def parse_times(
    raw: pl.Series, column: str, unit: str | None, latest: datetime, time_format: str | None = None
) -> tuple[pl.Series, pl.Series, str, list[str]]:
    """Times as the file has them -> microseconds UTC.

    Args:
        raw: (N,) numbers, text, Date or Datetime.
        column: its name in the file, for messages.
        unit: "s", "ms", "us", "ns", "days", "iso", or None to infer it.
        latest: the last time that is not in the future.
        time_format: how text is written, as in `strptime`; None reads numbers and ISO text.

    Returns:
        times (N,) Datetime("us", "UTC"), null where a rule fails; rules (N,) String, the rule's name or null;
        the unit; notes for the report.

    Raises:
        ValueError: the column holds more than one unit, numbers that may be dates, or no times at all by its type.
    """
    if raw.dtype == pl.Date or isinstance(raw.dtype, pl.Datetime):
        if unit is not None or time_format is not None:
            raise ValueError(
                f"got {f'time_unit={unit!r}' if unit else f'time_format={time_format!r}'} for the column {column!r}, "
                f"which holds {raw.dtype}; expected neither unit nor format, its type already says it: leave out "
                "--time_unit and --time_format"
            )
        naive = raw.dtype == pl.Date or (isinstance(raw.dtype, pl.Datetime) and raw.dtype.time_zone is None)
        notes = [f"{column} has no time zone: read as UTC"] if naive else []
        ticks = (raw.cast(pl.Datetime("us")) if naive else raw.dt.convert_time_zone("UTC")).dt.epoch("us")
        return *_bounded(ticks, raw, "us", latest, notes, dates=True), "datetime", notes
    if raw.dtype == pl.Null:
        raw = raw.cast(pl.String)
    if raw.dtype.is_numeric() and time_format is not None:
        whole = raw.cast(pl.Int64, strict=False)
        raw = (whole if whole.null_count() == raw.null_count() else raw).cast(pl.String)
    if raw.dtype.is_numeric():
        if unit == "iso":
            raise ValueError(
                f'got time_unit="iso" for the column {column!r}, which holds numbers ({raw.dtype}); expected one of '
                f"{', '.join(UNITS)}"
            )
        return _parse_numbers(_numbers(raw), raw, column, unit, latest)
    if raw.dtype != pl.String:
        raise ValueError(
            f"got {raw.dtype} in the time column {column!r}; expected numbers, ISO text, Date or Datetime: convert it, "
            "or name another column with --time_column"
        )
    text = raw.str.strip_chars(BLANKS).replace("", None)
    if time_format is not None:
        ticks, notes = _formatted_ticks(text, column, time_format)
        return *_bounded(ticks, text, "us", latest, notes, dates=True), "format", notes
    return _parse_text(text, column, unit, latest)


def _parse_numbers(
    numbers: pl.Series, raw: pl.Series, column: str, unit: str | None, latest: datetime
) -> tuple[pl.Series, pl.Series, str, list[str]]:
    if unit is None:
        _refuse_dates(numbers, column, latest)
    if unit == "days":
        notes = ["unit of time: days of a spreadsheet (0 is 1899-12-30), as given"]
        ticks = ((numbers.cast(pl.Float64) - SPREADSHEET_EPOCH) * (DAY * 1000)).round() * 1000  # to milliseconds
        ticks = ticks.cast(pl.Int64, strict=False)
        return *_bounded(ticks, raw, "us", latest, notes, dates=True), "days", notes
    unit, notes = _number_unit(numbers, column, unit, latest)
    return *_bounded(numbers, raw, unit, latest, notes), unit, notes


def _refuse_dates(numbers: pl.Series, column: str, latest: datetime) -> None:
    """ValueError if the numbers look like dates: 20240130, 202401 ..., or the days of a spreadsheet."""
    known = numbers.drop_nulls()
    sample = known.gather_every(max(1, len(known) // SAMPLE))
    if sample.is_empty():
        return
    is_whole = sample == sample.floor() if sample.dtype.is_float() else pl.repeat(True, len(sample), eager=True)
    digits = sample.cast(pl.Int64, strict=False).cast(pl.String).filter(is_whole)
    dates = digits.filter(digits.str.contains(COMPACT_PATTERN))
    if len(dates) >= MOSTLY * len(sample):
        raise ValueError(
            f"got numbers in the time column {column!r} that look like dates (e.g. {dates[0]}); expected seconds since "
            f"1970 or ISO text: read them as dates with --time_format {COMPACT_FORMATS[len(dates[0])]}, or, if they "
            "are numbers, name their unit with --time_unit s"
        )
    last = latest.timestamp() / DAY + SPREADSHEET_EPOCH
    days = sample.filter(sample.is_between(EARLIEST_LIKELY / DAY + SPREADSHEET_EPOCH, last))
    if len(days) >= MOSTLY * len(sample):
        raise ValueError(
            f"got numbers in the time column {column!r} that look like the days of a spreadsheet (e.g. {days[0]}); "
            "expected seconds since 1970 or ISO text: read them as days with --time_unit days, or, if they are "
            "seconds, with --time_unit s"
        )


def _formatted_ticks(text: pl.Series, column: str, time_format: str) -> tuple[pl.Series, list[str]]:
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
    return moments.dt.epoch("us"), notes


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
    return _parse_numbers(numbers, text, column, unit, latest)


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
    likely = [u for u in UNITS if counts[u]]
    if len(likely) > 1:
        examples = []
        for u in likely:
            low, high = EARLIEST_LIKELY * UNITS[u], int(latest.timestamp() * UNITS[u])
            example = numbers.filter(numbers.is_between(low, high))[0]
            examples.append(f"{counts[u]:,} rows in {UNIT_NAMES[u]} (e.g. {example})")
        raise ValueError(
            f"got mixed units in the time column {column!r}: {' and '.join(examples)}; expected one unit: convert the "
            f"column, or name the right one with --time_unit ({', '.join(likely)}) and the other rows are rejected"
        )
    if likely:
        return likely[0], [f"unit of time: {UNIT_NAMES[likely[0]]} since 1970, inferred from the size of the numbers"]
    unit = unit_of(float(numbers.median() or 0))  # type: ignore[arg-type]
    return unit, [f"unit of time: {UNIT_NAMES[unit]}, a guess from the size of the numbers: --time_unit says it"]


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
