"""Histories as text: what is pasted into the page, and what the page writes back.

parse_events("84,view,1700000000")        # [{'item': '84', 'action': 'view', 'timestamp': 1700000000.0}]
events_text([{"item": "84"}])             # 'item,action,timestamp\\n84,,\\n'
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from typing import Any

from shown_text import shown

MAX_EVENTS = 2_000
COLUMNS = ("item", "action", "timestamp")

Event = dict[str, Any]


def parse_events(text: str) -> list[Event]:
    """The events of a pasted history.

    Args:
        text: JSON (a list of events, `{"events": [...]}`, or one event a line), or CSV (`item,action,timestamp`, other
            orders and fewer columns with a header). A time is seconds since 1970 or ISO text.

    Raises:
        ValueError: the text is neither, with the line that is not.

    >>> parse_events("84,view,1700000000\\n7,cart,")
    [{'item': '84', 'action': 'view', 'timestamp': 1700000000.0}, {'item': '7', 'action': 'cart'}]
    >>> parse_events('{"events": [{"item": "84"}]}') == parse_events("item\\n84")
    True
    """
    text = text.strip()
    if not text:
        return []
    events = json_events(text) if text[0] in "[{" else csv_events(text)
    if len(events) > MAX_EVENTS:
        raise ValueError(f"got {len(events):,} events, expected at most {MAX_EVENTS:,}: paste the newest.")
    return events


def json_events(text: str) -> list[Event]:
    """As `parse_events`, of JSON."""
    try:
        events = json.loads(text)
    except json.JSONDecodeError as error:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2 or not lines[1].lstrip().startswith("{"):
            raise ValueError(f"line {error.lineno} is not JSON ({error.msg}), expected a list of events.") from error
        events = [json_line(line, number) for number, line in enumerate(lines, 1)]
    except RecursionError as error:
        raise ValueError("got JSON that is nested too deeply, expected a list of events.") from error
    if isinstance(events, dict):
        events = events["events"] if set(events) == {"events"} else [events]
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise ValueError('got JSON that is no list of events, expected [{"item": "84", "action": "view"}, ...].')
    return events


def json_line(line: str, number: int) -> Any:
    """One line of JSON lines."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is not JSON ({error.msg}), expected one event on each line.") from error


def csv_events(text: str) -> list[Event]:
    """As `parse_events`, of CSV."""
    try:
        lines = list(csv.reader(io.StringIO(text), strict=False, skipinitialspace=True))
    except csv.Error as error:
        raise ValueError(f"got text that is no CSV ({error}), expected lines such as 84,view,1700000000.") from error
    names = ["item" if name == "item_id" else name for name in (field.strip().lower() for field in lines[0])]
    if "item" in names or set(names) <= set(COLUMNS):
        if unknown := sorted(set(names) - set(COLUMNS)):
            raise ValueError(f"the header has {shown(', '.join(unknown))}, expected some of {', '.join(COLUMNS)}.")
        lines = lines[1:]
        first = 2
    else:
        names, first = list(COLUMNS), 1
    events = []
    for number, fields in enumerate(lines, first):
        if not any(field.strip() for field in fields):
            continue
        if len(fields) > len(names):
            raise ValueError(f"line {number} has {len(fields)} fields, expected {','.join(names)}.")
        event: Event = {name: field.strip() for name, field in zip(names, fields, strict=False) if field.strip()}
        if re.fullmatch(r"-?\d+(\.\d+)?", event.get("timestamp", "")):
            event["timestamp"] = float(event["timestamp"])
        events.append(event)
    return events


def events_text(events: Sequence[Event]) -> str:
    """The events as CSV, which `parse_events` reads back."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for event in events:
        values = [event.get(name) for name in COLUMNS]
        writer.writerow(
            ["" if value is None else f"{value:.0f}" if type(value) is float else value for value in values]
        )
    return out.getvalue()
