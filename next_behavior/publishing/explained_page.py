"""One user's explained answers as one HTML file: nothing is loaded, nothing runs.

    Path("why.html").write_text(page_of(user))

Item ids, titles and actions come from strangers: each is shown by the rule of `data/shown.py` and escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from next_behavior.data.shown import shown
from next_behavior.publishing.explained_user import (
    BELOW_ZERO,
    ExplainedUser,
    Mark,
    duration,
    factor,
    headline,
    lead,
    length_of,
    moment,
    opacity_of,
    percent,
    place_of,
    reasons,
    strength,
    title_or_id,
)

STYLE = Path(__file__).with_name("explained_page.css")
LONGEST_NAME = 160
# Outlines in a box of 12 by 12, for the actions in their order; all further ones share the last.
SHAPES = (
    "M6 1.2a4.8 4.8 0 1 0 .01 0z",
    "M1.6 1.6h8.8v8.8H1.6z",
    "M6 .4 11.6 6 6 11.6.4 6z",
    "M6 .9 11.4 10.8H.6z",
    "M.6 1.2h10.8L6 11.1z",
    "M3.6 1h4.8v2.6H11v4.8H8.4V11H3.6V8.4H1V3.6h2.6z",
)
# Pixels of a gap's unit (`length_of`) between rows, and within a run; shorter gaps are not named.
ROW_UNIT, RUN_UNIT, LEAST_NAMED = 3.0, 1.0, 1800.0
# Answers whose reasons are told in full.
EXPLAINED_IN_FULL = 3


def page_of(user: ExplainedUser) -> str:
    """The whole page."""
    name = text(user.user)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark"><title>Why: user {name}</title>
<style>{STYLE.read_text(encoding="utf-8")}</style></head><body>
<svg width="0" height="0" aria-hidden="true" style="position:absolute"><defs>{symbols(user.actions)}</defs></svg><main>
<header><small>Model <bdi>{text(user.model)}</bdi>, user <bdi>{name}</bdi>, {len(user.marks):,} \
event{"s" * (len(user.marks) != 1)}</small>
<h1><bdi>{text(headline(user), 200)}</bdi></h1><p><bdi>{text(lead(user), 300)}</bdi></p></header>
<div class="columns">{timeline(user)}{answers(user)}</div>
<footer>×2.0 means: with this event, the first answer is twice as probable as without it. Effects of events do not add
up to the probability. Times are in UTC.</footer>
</main></body></html>
"""


def text(value: Any, most: int = LONGEST_NAME) -> str:
    """Text from anywhere, as it may stand in the page."""
    return escape(shown(str(value), most))


# ----------------------------------------------------------------------------------------------------------------------
# Pieces
# ----------------------------------------------------------------------------------------------------------------------


def symbols(actions: Sequence[str]) -> str:
    count = min(len(SHAPES), len(actions) + 1)
    return "".join(
        f'<symbol id="a{place}" viewBox="0 0 12 12"><path d="{SHAPES[place]}"/></symbol>' for place in range(count)
    )


def shape_of(action: str | None, actions: Sequence[str]) -> int:
    return place_of(action, actions, len(SHAPES))


def mark_of(mark: Mark, actions: Sequence[str], margin: float = 0.0, title: str = "") -> str:
    contribution = mark.contribution or 0.0
    side = "up" if contribution >= 0 else "down"
    style = f"fill-opacity:{opacity_of(contribution):.2f}" + (f";margin-left:{margin:.1f}px" if margin >= 1 else "")
    hint = f"<title>{title}</title>" if title else ""
    use = f'<use href="#a{shape_of(mark.action, actions)}"/>'
    return f'<svg class="mark {side}" style="{style}" role="img">{hint}{use}</svg>'


def chip(action: str | None) -> str:
    return "" if action is None else f'<bdi class="chip">{text(action, 40)}</bdi> '


def effect(contribution: float) -> str:
    """The factor, and a bar from zero."""
    reach = strength(contribution)
    if reach >= 0:
        begin, width, side = 100 * BELOW_ZERO, 100 * (1 - BELOW_ZERO) * reach, "up"
    else:
        width = min(100 * BELOW_ZERO, 100 * (1 - BELOW_ZERO) * -reach)
        begin, side = 100 * BELOW_ZERO - width, "down"
    bar = f'<i class="{side}" style="left:{begin:.1f}%;width:{max(width, 0.8):.1f}%"></i>'
    return f'<div class="effect"><div class="scale">{bar}</div><b>{escape(factor(contribution))}</b></div>'


# ----------------------------------------------------------------------------------------------------------------------
# The timeline
# ----------------------------------------------------------------------------------------------------------------------


def timeline(user: ExplainedUser) -> str:
    rows = []
    for row in user.rows:
        rows.append(event_row(row[0], user.actions) if len(row) == 1 else run_row(row, user.actions))
        rows.append(gap_row(row[-1].gap))
    if rows and user.unread:
        rows.append(f'<li class="many"><small>{user.unread:,} older events are not read.</small></li>')
    elif rows:
        rows.pop()
    empty = '<p class="soft">No events.</p>' if not rows else ""
    used = list(dict.fromkeys(mark.action for mark in user.marks if mark.action is not None))
    used.sort(key=lambda action: shape_of(action, user.actions))
    shapes = "".join(
        f'<span><svg class="mark"><use href="#a{shape_of(action, user.actions)}"/></svg>'
        f"<bdi>{text(action, 40)}</bdi></span>"
        for action in used[: len(SHAPES) + 2]
    )
    return (
        '<section><h2>What the user did, newest first</h2><p class="soft"><small>Distances grow with the logarithm of '
        'the time between events.</small></p><div class="legend"><span><i class="up"></i>makes the first answer more '
        f'probable</span><span><i class="down"></i>less probable</span>{shapes}</div>{empty}'
        f'<ol class="timeline">{"".join(rows)}</ol></section>'
    )


def event_row(mark: Mark, actions: Sequence[str]) -> str:
    identity = f' <bdi class="id">{text(mark.item, 40)}</bdi>' if mark.title is not None else ""
    name = f'<bdi class="name">{text(title_or_id(mark.item, mark.title))}</bdi>'
    about = (
        f'<span class="number">#{mark.number}</span> {chip(mark.action)}<small>{moment(mark.seconds)}</small>{identity}'
    )
    return f"<li>{mark_of(mark, actions)}<div>{name}<div>{about}</div></div>{effect(mark.contribution or 0.0)}</li>"


def run_row(marks: Sequence[Mark], actions: Sequence[str]) -> str:
    drawn, before = [], None
    for mark in marks:
        what = f"{text(mark.action or '', 40)} {text(title_or_id(mark.item, mark.title), 80)}"
        hint = f"#{mark.number} {what}, {moment(mark.seconds)}"
        margin = RUN_UNIT * length_of(before.gap) if before is not None else 0.0
        drawn.append(mark_of(mark, actions, margin, f"{hint} {escape(factor(mark.contribution or 0.0))}"))
        before = mark
    falls = [mark.contribution or 0.0 for mark in marks]
    low, high = escape(factor(min(falls))), escape(factor(max(falls)))
    span = f"about {low}" if low == high else f"{low} to {high}"
    return (
        f'<li class="many"><div class="run">{"".join(drawn)}</div><small>#{marks[-1].number} to #{marks[0].number}: '
        f"{len(marks):,} events, each {span}</small></li>"
    )


def gap_row(gap: float | None) -> str:
    height = ROW_UNIT * length_of(gap)
    named = f"<small>{duration(gap)}</small>" if gap is not None and gap >= LEAST_NAMED else ""
    return f'<li class="gap" style="height:{max(2.0, height):.0f}px">{named}</li>'


# ----------------------------------------------------------------------------------------------------------------------
# The answers
# ----------------------------------------------------------------------------------------------------------------------


def answers(user: ExplainedUser) -> str:
    rows = "".join(answer_row(rank, answer, user) for rank, answer in enumerate(user.answers, 1))
    return (
        f'<section class="answers"><h2>What comes next</h2><p class="soft"><small>{text(user.question)}. # is the '
        f"number of an event.</small></p><ol>{rows}</ol></section>"
    )


def answer_row(rank: int, answer: Mapping[str, Any], user: ExplainedUser) -> str:
    named = answer["item"] is not None or answer["action"] is None
    what = f'<bdi class="name">{text(title_or_id(answer["item"], answer["title"]))}</bdi>' if named else ""
    identity = f'<bdi class="id">{text(answer["item"], 40)}</bdi>' if answer["title"] is not None else ""
    why = "<br>".join(
        escape(words) if number is None else f"<b>#{number}</b> {escape(words)}"
        for number, words in reasons(answer, whole=rank <= EXPLAINED_IN_FULL)
    )
    return (
        f'<li><span class="rank">{rank}</span><div>{what}<div>{chip(answer["action"])}{identity}</div></div>'
        f'<span class="probability">{percent(answer["probability"])}</span>'
        f'<div class="bar"><i style="width:{100 * answer["probability"]:.1f}%"></i></div>'
        f'<div class="why">{why}</div></li>'
    )
