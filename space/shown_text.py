"""How the page writes things: text of strangers, probabilities, durations and moments.

Ids, titles and actions come from a log, a history from whoever visits the page. Two steps make them safe: `shown` makes
visible what could not be seen and cuts what is too long; `as_html` also takes the meaning from HTML's signs.

    as_html("<b>\\u202elamp")          # '&lt;b&gt;\\\\u202elamp'
"""

from __future__ import annotations

import math
import unicodedata
from datetime import datetime, timedelta, timezone
from html import escape
from typing import Any

# An id of 20,000 characters would push everything else off the page.
MOST_CHARACTERS = 120
# Control characters, line and paragraph ends, lone surrogates, and format characters, which can turn the direction of
# writing round.
HIDDEN = ("Cc", "Cf", "Zl", "Zp", "Cs")
JOINER = "\u200d"  # a format character that emoji need

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
# Larger numbers are milliseconds, and so on: the model's own rule.
LARGEST_SECONDS = 1e11
TIME_UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


def shown(text: str, most: int = MOST_CHARACTERS) -> str:
    """The text on one line with what cannot be seen as escapes, cut to `most` characters.

    >>> shown("Desk\\u202e lamp"), shown("line\\nbreak"), shown("abcdef", most=4)
    ('Desk\\\\u202e lamp', 'line\\\\nbreak', 'abc…')
    """
    visible = "".join(
        character
        if character == JOINER or unicodedata.category(character) not in HIDDEN
        else character.encode("unicode_escape").decode()
        for character in text[: most + 1]
    )
    return visible if len(visible) <= most else visible[: most - 1] + "…"


def as_html(text: str, most: int = MOST_CHARACTERS) -> str:
    """The text as it may stand in HTML, between tags or in a quoted attribute.

    >>> as_html("a < b & \\"c\\"")
    'a &lt; b &amp; &quot;c&quot;'
    """
    return escape(shown(text, most))


def percent(probability: float) -> str:
    """
    >>> [percent(value) for value in (0.5, 0.0312, 0.00004, 0.0)]
    ['50 %', '3.1 %', '<0.01 %', '0 %']
    """
    value = 100 * probability
    if 0 < value < 0.01:
        return "<0.01 %"
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.1f} %" if value >= 1 else f"{value:.2f} %"


def factor(contribution: float) -> str:
    """How many times as probable an answer is with an event as without it.

    >>> [factor(value) for value in (0.693, -0.693, 0.001, 3.2, 27.0, -27.0)]
    ['×2.0', '×0.50', '×1.0', '×25', '>×1000', '<×0.001']
    """
    if abs(contribution) > math.log(1000):
        return ">×1000" if contribution > 0 else "<×0.001"
    times = math.exp(contribution)
    return f"×{times:.0f}" if times >= 10 else f"×{times:.1f}" if times >= 0.95 else f"×{times:.2f}"


def duration(seconds: float) -> str:
    """
    >>> [duration(seconds) for seconds in (0.3, 30, 5400, 200_000, 5_000_000)]
    ['a second', '30 seconds', '1.5 hours', '2.3 days', '58 days']
    """
    if seconds < 1.5:
        return "a second"
    size, unit = next((size, unit) for size, unit in TIME_UNITS if seconds >= 1.5 * size)
    value = seconds / size
    return f"{value:.1f} {unit}" if value < 10 and unit != "seconds" else f"{value:.0f} {unit}"


def seconds_of(timestamp: Any) -> float | None:
    """Seconds since 1970 of a number or of ISO text, in UTC unless it says otherwise; None if it is neither.

    >>> seconds_of(1_700_000_000_000), seconds_of("2023-11-14T22:13:20Z"), seconds_of("1700000000"), seconds_of("soon")
    (1700000000.0, 1700000000.0, 1700000000.0, None)
    """
    if isinstance(timestamp, str):
        try:
            timestamp = float(timestamp)
        except ValueError:
            return seconds_of_iso(timestamp)
    if not isinstance(timestamp, (int, float)) or not abs(timestamp) < 1e20:
        return None
    while abs(timestamp) >= LARGEST_SECONDS:
        timestamp /= 1000
    return float(timestamp)


def seconds_of_iso(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def moment_text(timestamp: Any) -> str:
    """A time for people; what is no time, as it was written.

    >>> [moment_text(time) for time in (1_700_000_000.0, "2024-05-17", "yesterday", None)]
    ['2023-11-14 22:13', '2024-05-17 00:00', 'yesterday', '']
    """
    if timestamp is None:
        return ""
    seconds = seconds_of(timestamp)
    if seconds is not None:
        try:
            return f"{EPOCH + timedelta(seconds=seconds):%Y-%m-%d %H:%M}"
        except OverflowError:  # before the year 1
            pass
    return shown(str(timestamp), 40)
