"""One user's explained answers as a PNG, in the arrangement of explained_page.py. Needs matplotlib.

    draw(user, Path("why.png"))

A font that has Chinese, Japanese or Korean is used where one is installed.
"""

from __future__ import annotations

import logging
import textwrap
import unicodedata
import warnings
from collections.abc import Sequence
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
from next_behavior.publishing.plots import pyplot

# Pixels. The figure is as high as what it holds.
WIDTH, MARGIN, MIDDLE = 1180, 28, 680
DPI = 160
UP, DOWN, INK, SOFT, LINE, TRACK = "#2563eb", "#d9660a", "#1b2430", "#56626f", "#dfe4ea", "#edf0f4"
MARKERS = ("o", "s", "D", "^", "v", "P")  # of the actions in their order; all further ones share the last
WIDE_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei"),
    *("WenQuanYi Micro Hei", "Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans GB", "Arial Unicode MS"),
)
EFFECT_X, EFFECT_WIDTH, FACTOR_X = 500, 90, 652
RUN_STEP = 12
EXPLAINED_IN_FULL = 3


def draw(user: ExplainedUser, path: Path) -> None:
    """Writes the picture.

    Raises:
        ValueError: matplotlib is not installed.
    """
    plots = pyplot()
    fonts = {"font.family": ["DejaVu Sans", *wide_fonts()]}
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it tells of fonts without a bold face
    with plots.rc_context(fonts), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        height = Canvas(None, 0).everything(user)
        figure = plots.figure(figsize=(WIDTH / 100, height / 100))
        axis = figure.add_axes((0, 0, 1, 1))
        axis.set(xlim=(0, WIDTH), ylim=(height, 0))
        axis.axis("off")
        Canvas(axis, height).everything(user)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI, metadata={"Software": None})
        plots.close(figure)
    if any("missing from" in str(warning.message) for warning in caught):
        warnings.warn(
            "got characters that no installed font has, so the picture shows boxes; expected a font such as Noto Sans "
            "CJK: install one, or write HTML.",
            stacklevel=2,
        )


def wide_fonts() -> list[str]:
    """The fonts with Chinese, Japanese or Korean characters that are installed."""
    from matplotlib import font_manager

    manager = font_manager.fontManager
    names = {font.name for font in manager.ttflist}
    if names.isdisjoint(WIDE_FONTS):  # matplotlib's list may be older than a font
        for path in {*font_manager.findSystemFonts()} - {font.fname for font in manager.ttflist}:
            try:
                manager.addfont(path)
            except (OSError, RuntimeError):  # a font that it cannot read
                continue
        names = {font.name for font in manager.ttflist}
    return [name for name in WIDE_FONTS if name in names]


class Canvas:
    """Draws on a matplotlib axis in pixels from the upper left corner; without an axis it measures."""

    def __init__(self, axis: Any | None, height: float) -> None:
        self.axis, self.height = axis, height

    def everything(self, user: ExplainedUser) -> float:
        """Draws all, and returns how high it is."""
        about = f"Model {user.model}, user {user.user}, {len(user.marks):,} events"
        y = self.text(MARGIN, 24, fitted(about, WIDTH - 2 * MARGIN, 9), 9, SOFT)
        for line in broken(headline(user), 74)[:2]:
            y = self.text(MARGIN, y + 8, line, 17, INK, "bold")
        for line in broken(lead(user), 140):
            y = self.text(MARGIN, y + 4, line, 11, INK)
        top = y + 22
        ends = (self.timeline(user, top), self.answers(user, top))
        if ends[0] > top and self.axis is not None:
            self.axis.plot([MIDDLE - 6] * 2, [top, self.height - 30], color=LINE, linewidth=0.8)
        return max(ends) + 34

    def text(
        self, x: float, y: float, words: str, size: float, color: str, weight: str = "normal", side: str = "left"
    ) -> float:
        """Draws a line of text below y, and returns where it ends."""
        if self.axis is not None:
            # As it is: a dollar sign begins no formula.
            self.axis.text(
                x, y + 1.05 * size, words, fontsize=0.72 * size, color=color, weight=weight, ha=side, va="baseline",
                parse_math=False,
            )  # fmt: skip
        return y + 1.4 * size

    # -- the timeline --------------------------------------------------------------------------------------------------

    def timeline(self, user: ExplainedUser, y: float) -> float:
        y = self.text(MARGIN, y, "What the user did, newest first", 14, INK, "bold")
        y = self.text(MARGIN, y + 2, "Distances grow with the logarithm of the time between events.", 10, SOFT)
        y = self.legend(user, y + 6) + 8
        begin, x = y + 8, MARGIN + 8
        rows = user.rows
        for place, row in enumerate(rows):
            y = self.event(row[0], user.actions, x, y) if len(row) == 1 else self.run(row, user.actions, x, y)
            if place + 1 < len(rows) or user.unread:
                y = self.gap(row[-1].gap, x, y)
        if self.axis is not None and len(rows) > 1:
            self.axis.plot([x, x], [begin, y - 14], color=LINE, linewidth=1, zorder=0)
        if user.unread:
            y = self.text(x + 18, y, f"{user.unread:,} older events are not read.", 10, SOFT)
        return y if rows else self.text(MARGIN, y, "No events.", 11, SOFT)

    def legend(self, user: ExplainedUser, y: float) -> float:
        x = float(MARGIN)
        for color, words in ((UP, "makes the first answer more probable"), (DOWN, "less probable")):
            self.bar(x, y + 3, 18, 8, color)
            self.text(x + 24, y, words, 10, SOFT)
            x += 24 + 6.4 * len(words) + 14
        for action in list(dict.fromkeys(mark.action for mark in user.marks if mark.action is not None))[
            : len(MARKERS)
        ]:
            words = fitted(action, 90, 10)
            if x + 20 + width_of(words, 10) > MIDDLE - 20:
                break
            self.mark(x + 5, y + 7, place_of(action, user.actions, len(MARKERS)), 0.0, 6)
            self.text(x + 15, y, words, 10, SOFT)
            x += 15 + width_of(words, 10) + 16
        return y + 14

    def event(self, mark: Mark, actions: Sequence[str], x: float, y: float) -> float:
        contribution = mark.contribution or 0.0
        self.mark(x, y + 10, place_of(mark.action, actions, len(MARKERS)), contribution, 9)
        name = title_or_id(mark.item, mark.title)
        end = self.text(x + 18, y, fitted(name, EFFECT_X - x - 30, 12), 12, INK, "bold")
        about = [f"#{mark.number}", mark.action, moment(mark.seconds), mark.item if mark.title is not None else None]
        end = self.text(x + 18, end + 1, fitted("  ".join(filter(None, about)), EFFECT_X - x - 30, 10), 10, SOFT)
        self.bar(EFFECT_X, y + 5, EFFECT_WIDTH, 9, TRACK)
        reach = strength(contribution)
        zero, scale = EFFECT_X + BELOW_ZERO * EFFECT_WIDTH, (1 - BELOW_ZERO) * EFFECT_WIDTH
        width = min(scale * abs(reach), scale if reach > 0 else BELOW_ZERO * EFFECT_WIDTH)
        self.bar(zero if reach > 0 else zero - width, y + 5, width, 9, UP if reach > 0 else DOWN)
        self.bar(zero - 0.5, y + 5, 1, 9, SOFT)
        self.text(FACTOR_X, y + 1, factor(contribution), 11, INK, "bold", "right")
        return end + 4

    def run(self, marks: Sequence[Mark], actions: Sequence[str], x: float, y: float) -> float:
        left, right = x + 22, FACTOR_X - 4
        at, before = left, None
        for mark in marks:
            at += 0.0 if before is None else RUN_STEP + length_of(before.gap)
            if at > right:
                at, y = left, y + RUN_STEP + 2
            self.mark(at, y + 7, place_of(mark.action, actions, len(MARKERS)), mark.contribution or 0.0, 6)
            before = mark
        falls = [mark.contribution or 0.0 for mark in marks]
        low, high = factor(min(falls)), factor(max(falls))
        span = f"about {low}" if low == high else f"{low} to {high}"
        words = f"#{marks[-1].number} to #{marks[0].number}: {len(marks):,} events, each {span}"
        return self.text(x + 18, y + 14, words, 10, SOFT) + 4

    def gap(self, gap: float | None, x: float, y: float) -> float:
        height = 3 + 3 * length_of(gap)
        if gap is not None and gap >= 1800:
            height = max(height, 15)
            self.text(x + 18, y + height / 2 - 9, duration(gap), 9, SOFT)
        return y + height

    # -- the answers ---------------------------------------------------------------------------------------------------

    def answers(self, user: ExplainedUser, y: float) -> float:
        left, right = MIDDLE + 12, WIDTH - MARGIN
        y = self.text(left, y, "What comes next", 14, INK, "bold")
        y = (
            self.text(left, y + 2, fitted(f"{user.question}. # is the number of an event.", right - left, 10), 10, SOFT)
            + 8
        )
        for rank, answer in enumerate(user.answers, 1):
            self.text(left, y, str(rank), 11, SOFT)
            self.text(right, y, percent(answer["probability"]), 12, INK, "bold", "right")
            words = [answer["action"], None if answer["item"] is None else title_or_id(answer["item"], answer["title"])]
            y = self.text(left + 24, y, fitted("  ".join(filter(None, words)), right - left - 84, 12), 12, INK, "bold")
            self.bar(left + 24, y + 2, right - left - 24, 5, TRACK)
            self.bar(left + 24, y + 2, (right - left - 24) * answer["probability"], 5, SOFT)
            y += 10
            for number, why in reasons(answer, whole=rank <= EXPLAINED_IN_FULL):
                line = why if number is None else f"#{number} {why}"
                y = self.text(left + 24, y, fitted(line, right - left - 24, 10), 10, SOFT)
            y += 9
        return y

    # -- shapes --------------------------------------------------------------------------------------------------------

    def bar(self, x: float, y: float, width: float, height: float, color: str) -> None:
        if self.axis is not None and width > 0:
            self.axis.fill([x, x + width, x + width, x], [y, y, y + height, y + height], color=color, linewidth=0)

    def mark(self, x: float, y: float, place: int, contribution: float, size: float) -> None:
        if self.axis is not None:
            color = UP if contribution >= 0 else DOWN
            look: dict[str, Any] = {"marker": MARKERS[place], "markersize": 0.72 * size * 1.15, "linestyle": "none"}
            self.axis.plot([x], [y], markerfacecolor="white", markeredgewidth=0, **look)  # hides the line below
            self.axis.plot([x], [y], markerfacecolor=color, markeredgewidth=0, alpha=opacity_of(contribution), **look)
            self.axis.plot([x], [y], markerfacecolor="none", markeredgecolor=SOFT, markeredgewidth=0.5, **look)


def width_of(words: str, size: float) -> float:
    """About how many pixels a line takes."""
    return sum(1.0 if unicodedata.east_asian_width(character) in "WF" else 0.62 for character in words) * size


def fitted(words: str, width: float, size: float) -> str:
    """Text on one line as it may be shown, cut to a width."""
    words = shown(words)
    if width_of(words, size) <= width:
        return words
    while words and width_of(words, size) > width - size:
        words = words[:-1]
    return f"{words.rstrip()}…"


def broken(words: str, columns: int) -> list[str]:
    """Lines of at most so many columns, of which wide characters take two."""
    lines, line = [], ""
    for word in textwrap.wrap(words, 12, break_on_hyphens=False, drop_whitespace=False, break_long_words=True):
        if line and width_of(line + word, 1 / 0.62) > columns:
            lines.append(line.strip())
            line = ""
        line += word
    return [*lines, line.strip()]
