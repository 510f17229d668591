"""What a picture of one user's explained answers shows, in the order in which it shows it.

    user = explained_user(predict, "u17", events, top_k=10)
    Path("why.html").write_text(page_of(user))          # explained_page.py
    draw(user, Path("why.png"))                          # explained_png.py

The events that matter most to the first answer have a row each; runs of others between them share one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import polars as pl

from next_behavior.data.shown import shown

# Events with a row of their own, and how many fewer than that make a history short: all its events have one.
MOST_ROWS = 12
SPARED_ROWS = 4
# A factor beyond this is at the end of its scale.
END_OF_SCALE = math.log(1000)
# A smaller effect is not told.
LEAST_EFFECT = math.log(1.1)
NAMED_BY = {"generate": "the network", "repeat": "the user's own items", "associate": "counts of pairs"}
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
# The share of the scale that lies below zero: events are rarely strong against an answer.
BELOW_ZERO = 0.25
MOMENT = 60.0  # seconds that take the first step of a gap's length
UNITS = ((31_557_600.0, "year"), (2_629_800.0, "month"), (604_800.0, "week"), (86_400.0, "day"), (3600.0, "hour"),
         (60.0, "minute"), (1.0, "second"))  # fmt: skip


@dataclass(frozen=True)
class Mark:
    """An event of the history.

    Attributes:
        number: its place, from 1, the oldest first.
        contribution: to the first answer; None for an event that is too old to be read, or where nothing is answered.
        importance: of the event for the first answer, by which it gets a row.
        gap: seconds since the event before; None where that is not known.
    """

    number: int
    item: str | None
    title: str | None
    action: str | None
    seconds: float | None
    contribution: float | None
    importance: float
    gap: float | None


@dataclass(frozen=True)
class ExplainedUser:
    """One user's history and the explained answers to it.

    Attributes:
        model, user: names. question: what is ranked, in words.
        actions: of the model, the most frequent first.
        marks: the events, the oldest first.
        answers: of the pipeline, with `explain=True`.
    """

    model: str
    user: str
    question: str
    actions: Sequence[str]
    marks: Sequence[Mark]
    answers: Sequence[Mapping[str, Any]]

    @property
    def rows(self) -> list[list[Mark]]:
        """The events that are read, the newest first: each that matters alone, runs of others together."""
        read = [mark for mark in self.marks if mark.contribution is not None]
        by_importance = sorted(read, key=lambda mark: (-abs(mark.importance), -mark.number))
        alone = {mark.number for mark in (*by_importance[:MOST_ROWS], *read[-1:])}
        if len(read) <= MOST_ROWS + SPARED_ROWS:
            alone = {mark.number for mark in read}
        rows: list[list[Mark]] = []
        for mark in reversed(read):
            if mark.number in alone or not rows or rows[-1][0].number in alone:
                rows.append([mark])
            else:
                rows[-1].append(mark)
        return rows

    @property
    def unread(self) -> int:
        """Events that are too old to be read."""
        return sum(mark.contribution is None for mark in self.marks) if self.answers else 0


def explained_user(
    predict: Any, model: str, user: str, events: Sequence[Mapping[str, Any]], question: str, **options: Any
) -> ExplainedUser:
    """Asks a pipeline.

    Args:
        events: of the user, the oldest first; `timestamp` is in seconds.
        options: of the pipeline.
    """
    answers = predict({"events": list(events)}, explain=True, **options)
    tokenizer = predict.tokenizer
    too_old = max(0, len(events) - tokenizer.model_max_length)
    marks = []
    for place, event in enumerate(events):
        item, seconds = event.get("item"), event.get("timestamp")
        before = events[place - 1].get("timestamp") if place else None
        is_read = place >= too_old and answers
        marks.append(
            Mark(
                number=place + 1,
                item=item,
                title=None if item is None else tokenizer.title(item),
                action=event.get("action"),
                seconds=seconds,
                contribution=answers[0]["contributions"][place] if is_read else None,
                importance=answers[0]["importance"][place] if is_read else 0.0,
                gap=None if seconds is None or before is None else seconds - before,
            )
        )
    return ExplainedUser(model, user, question, tokenizer.action_vocabulary, marks, answers)


def history_of(events: pl.DataFrame, user: str) -> list[dict[str, Any]]:
    """A user's events of a log, in order, as the pipeline takes them.

    Args:
        events: item_id, action, timestamp of that user alone, as `read_events` gives them.

    Raises:
        ValueError: there are none.
    """
    if events.is_empty():
        raise ValueError(f"got the user {user!r:.80}, of whom the log has no event; expected a user_id of the log.")
    rows = events.select("item_id", "action", pl.col("timestamp").dt.epoch("us") / 1e6).iter_rows()
    return [
        {"item": item, "action": action, **({} if seconds is None else {"timestamp": seconds})}
        for item, action, seconds in rows
    ]


def question_in_words(of: str, action: str | None, exclude_seen: bool) -> str:
    """
    >>> question_in_words("pair", None, False), question_in_words("item", "buy", True)
    ('Actions and items', 'Items, given that the action is buy, new to the user')
    """
    what = {"pair": "Actions and items", "item": "Items", "action": "Actions"}[of]
    given = "" if action is None else f", given that the action is {action}"
    return f"{what}{given}{', new to the user' if exclude_seen and of != 'action' else ''}"


def strongest(marks: Sequence[Mark]) -> Mark:
    """The event that contributes most, in either direction; of equals the newest."""
    return max(marks, key=lambda mark: (abs(mark.contribution or 0), mark.number))


def strength(contribution: float) -> float:
    """How far a contribution reaches on the scale, from -1 to 1.

    >>> strength(math.log(1000)), round(strength(-math.log(10)), 3), strength(27.0)
    (1.0, -0.333, 1.0)
    """
    return max(-1.0, min(1.0, contribution / END_OF_SCALE))


def opacity_of(contribution: float) -> float:
    """How strongly a mark is colored: small contributions are seen, too."""
    return min(1.0, 0.06 + 1.2 * math.sqrt(abs(strength(contribution))))


def place_of(action: str | None, actions: Sequence[str], most: int) -> int:
    """Which of `most` shapes stands for an action; those without one of their own share the last."""
    place = len(actions) if action is None or action not in actions else list(actions).index(action)
    return min(place, most - 1)


def factor(contribution: float) -> str:
    """How many times as probable the answer is with the event.

    >>> [factor(number) for number in (0.693, -0.693, 0.001, 3.2, 27.0, -27.0)]
    ['×2.0', '×0.50', '×1.0', '×25', '>×1000', '<×0.001']
    """
    if abs(contribution) > END_OF_SCALE:
        return ">×1000" if contribution > 0 else "<×0.001"
    times = math.exp(contribution)
    return f"×{times:.0f}" if times >= 10 else f"×{times:.1f}" if times >= 0.95 else f"×{times:.2f}"


def length_of(gap: float | None) -> float:
    """How long a gap is drawn: logarithmic, 0 for none, 1 for a minute, about 6 for an hour, 10 a day, 15 a month.

    >>> [round(length_of(gap)) for gap in (None, 0, 60, 3600, 86400, 2629800)]
    [0, 0, 1, 6, 10, 15]
    """
    return math.log2(1 + max(0.0, gap or 0.0) / MOMENT)


def duration(seconds: float) -> str:
    """
    >>> [duration(seconds) for seconds in (0, 1, 75, 5400, 200_000, 5_000_000)]
    ['0 seconds', '1 second', '1 minute', '2 hours', '2 days', '2 months']
    """
    size, unit = next(((size, unit) for size, unit in UNITS if seconds >= size), UNITS[-1])
    count = round(seconds / size)
    return f"{count} {unit}{'s' * (count != 1)}"


def moment(seconds: float | None) -> str:
    """A time for people, in UTC; nothing for one that is not known or has no date."""
    if seconds is None:
        return ""
    try:
        return f"{EPOCH + timedelta(seconds=seconds):%Y-%m-%d %H:%M}"
    except OverflowError:  # before the year 1, or after 9999
        return ""


def percent(share: float) -> str:
    if share < 0.001:
        return "<0.1\u00a0%"
    return f"{100 * share:.0f}\u00a0%" if share >= 0.1 else f"{100 * share:.1f}\u00a0%"


def title_or_id(item: str | None, title: str | None) -> str:
    return "no item" if item is None else item if title is None else title


# -- what is said of it ------------------------------------------------------------------------------------------------


def headline(user: ExplainedUser) -> str:
    """The first answer."""
    if not user.answers:
        return "Nothing is left to answer"
    first = user.answers[0]
    item = None if first["item"] is None else shown(title_or_id(first["item"], first["title"]), 90)
    action = shown(first["action"], 40) if first["action"] is not None and len(user.actions) > 1 else None
    return f"Next: {' '.join(filter(None, (action, item)))} ({percent(first['probability'])})"


def lead(user: ExplainedUser) -> str:
    """The event that matters most, in a sentence."""
    read = [mark for mark in user.marks if mark.contribution is not None]
    if not read:
        return "The user has no events: this is the answer for a new user." if user.answers else ""
    mark = strongest(read)
    assert mark.contribution is not None
    if abs(mark.contribution) < LEAST_EFFECT:
        return "No single event matters much: without any one of them the answer is about as probable."
    what = shown(" ".join(filter(None, (mark.action, title_or_id(mark.item, mark.title)))), 80)
    when = f" ({moment(mark.seconds)})" if moment(mark.seconds) else ""
    if mark.contribution > END_OF_SCALE:
        does = "without it the answer is all but impossible"
    elif mark.contribution < -END_OF_SCALE:
        does = "it all but rules the answer out"
    else:
        does = f"with it, the answer is {factor(mark.contribution)} as probable as without it"
    return f"What matters most is #{mark.number}, {what}{when}: {does}."


def reasons(answer: Mapping[str, Any], whole: bool) -> list[tuple[int | None, str]]:
    """Why an answer is given, in lines, each with the number of the event that it begins with, if it does.

    Args:
        whole: all that the model's parts say; else only the strongest events and the path.
    """
    falls = answer["contributions"]
    order = sorted(range(len(falls)), key=lambda place: -abs(falls[place]))[:3]
    strong = [f"#{place + 1} {factor(falls[place])}" for place in order if abs(falls[place]) >= LEAST_EFFECT]
    path = ""
    if answer["paths"] is not None:
        name, share = max(answer["paths"].items(), key=lambda one: one[1])
        path = f"named by {NAMED_BY[name]}, {percent(share)}"
    if not whole:
        return [(None, "; ".join(filter(None, (", ".join(strong), path))))]
    lines: list[tuple[int | None, str]] = [(None, ", ".join(strong))] if strong else []
    lines += of_parts(answer["because"])
    return [*lines, (None, path)] if path else lines


def of_parts(because: Mapping[str, Any] | None) -> list[tuple[int | None, str]]:
    """What the model's parts say of an answer, as `reasons` has it."""
    if because is None:
        return []
    lines: list[tuple[int | None, str]] = []
    if because["repeats"] is not None:
        share = because["repeats"]["share"]
        lines.append((because["repeats"]["event"] + 1, f"is the user's own item: {percent(share)} of repeats"))
    for one in because["counted"][:2]:
        pairs, reverse = (round(one[name]) for name in ("pairs", "reverse_pairs"))
        if pairs >= reverse and pairs > 0:
            lines.append((one["event"] + 1, f"this came after it {counted(pairs)}"))
        elif reverse > 0:
            lines.append((one["event"] + 1, f"this came before it {counted(reverse)}"))
    for one in because["similar_texts"][:1]:
        lines.append((one["event"] + 1, f"has a similar text ({one['similarity']:.2f})"))
    if because["popularity"] >= 1.5:
        lines.append((None, f"popular lately: ×{because['popularity']:.1f}"))
    return lines


def counted(pairs: int) -> str:
    return f"{pairs:,} time{'s' * (pairs != 1)} in the log"
