"""The time column of a log: numbers in some unit, ISO text or dates -> microseconds in UTC.

The unit of numbers is inferred from their size, and reported. A time that cannot be used gets the name of the rule that
it breaks (`cleaning.py` says what each means).
"""

from __future__ import annotations

from datetime import datetime

import polars as pl

from next_behavior.data.read_options import UNITS

TIMESTAMP = pl.Datetime("us", "UTC")
UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
EARLIEST_LIKELY = 631_152_000  # 1990-01-01, seconds since 1970: no log of user behavior on the web is older
EARLIEST_DATE = -2_208_988_800  # 1900-01-01: the bound for logs whose dates are mostly before 1990
ISO_PATTERN = (
    r"(?i)^(\d{4}-\d{2}-\d{2})(?:[T ]+(\d{2}:\d{2})(:\d{2}(?:[.,]\d+)?)?)?"
    r"\s*(?:(Z|UTC|GMT)|([+-]\d{2}):?(\d{2})?)?$"
)
SLICE = 1 << 18  # rows of text parsed at once


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
