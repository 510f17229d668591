"""How a time is written: one set of rules for event logs and for histories.

    micros_of_text("2024-5-1 8:30 +02:00")      # microseconds since 1970 UTC
    micros_of_text("1700000000000")             # a number as text: milliseconds, by its size
    micros_of_number(1_700_000_000)

A log infers one unit for its whole column, a history has single values. For a column of one size both give the same
moment. This file imports nothing but the standard library.
"""

from __future__ import annotations

import math
import re
from datetime import datetime, timezone
from decimal import Decimal

# Ticks per second.
UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
# The first number that is too large for its unit. Seconds beyond the year 5138 are milliseconds, and so on.
TOO_LARGE = {"s": 1e11, "ms": 1e14, "us": 1e17}

# The white space that may surround a time.
BLANKS = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f"
    "\u205f\u3000"
)
# Groups: date, hour and minute, seconds, UTC, hours and minutes of the offset. Python and Rust read it alike.
ISO_PATTERN = (
    r"(?i)^([0-9]{4}-[0-9]{1,2}-[0-9]{1,2})(?:(?:T| +)([0-9]{1,2}:[0-9]{1,2})(:[0-5]?[0-9](?:[.,][0-9]{1,9})?)?)?"
    r" *(?:(Z|UTC|GMT)|([+-][01][0-9]):?([0-5][0-9])?)?$"
)
# A whole number whose digits are a date: year, month, day, hour, minute, second, as far as they are written.
COMPACT_PATTERN = (
    r"^(?:19[0-9]{2}|20[0-9]{2})"
    r"(?:(?:0[1-9]|1[0-2])(?:(?:0[1-9]|[12][0-9]|3[01])(?:(?:[01][0-9]|2[0-3])(?:[0-5][0-9](?:[0-5][0-9])?)?)?)?)?$"
)
# The format of such a number by its length.
COMPACT_FORMATS = {4: "%Y", 6: "%Y%m", 8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
NUMBER_PATTERN = r"^[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$"

ISO, COMPACT, NUMBER = (re.compile(pattern) for pattern in (ISO_PATTERN, COMPACT_PATTERN, NUMBER_PATTERN))


def unit_of(size: float) -> str:
    """The unit of a number, or of the median of several, by its size."""
    return next((unit for unit, end in TOO_LARGE.items() if abs(size) < end), "ns")


def micros_of_number(value: int | float | Decimal) -> int | None:
    """Microseconds since 1970 of a number of seconds, milliseconds, microseconds or nanoseconds; None if it is none.

    None is also for digits that are a date and no moment: 20240501083000.
    """
    if not math.isfinite(value):
        return None
    ticks = UNITS[unit_of(float(value))]
    if ticks > 1 and COMPACT.match(f"{value:.0f}"):
        return None
    if isinstance(value, int):
        return value * (1_000_000 // ticks) if ticks <= 1_000_000 else value // (ticks // 1_000_000)
    return round(float(value) * (1_000_000 / ticks))


def micros_of_text(text: str) -> int | None:
    """Microseconds since 1970 of ISO text or of a number as text; None if it is neither, or may be both: 20240501."""
    text = text.strip(BLANKS)
    if COMPACT.match(text):
        return None
    if NUMBER.match(text):
        return micros_of_number(float(text) if set(text) & set(".eE") or len(text) > 19 else int(text))
    parts = ISO.match(text)
    if parts is None or text.endswith("\n"):
        return None
    date, clock, seconds, _, hours, minutes = parts.groups()
    second, _, fraction = (seconds or ":0").lstrip(":").replace(",", ".").partition(".")
    year, month, day = (int(part) for part in date.split("-"))
    hour, minute = (int(part) for part in (clock or "0:0").split(":"))
    try:
        moment = datetime(year, month, day, hour, minute, int(second), tzinfo=timezone.utc)
    except ValueError:  # a 30th of February
        return None
    offset = 60 * abs(int(hours or 0)) + int(minutes or 0)
    since = moment - datetime(1970, 1, 1, tzinfo=timezone.utc)
    whole = since.days * 86_400 + since.seconds - 60 * (-offset if (hours or "").startswith("-") else offset)
    return whole * 1_000_000 + int(fraction.ljust(6, "0")[:6] or 0)
