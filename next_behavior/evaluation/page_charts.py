"""The charts of an evaluation's page: rows of a table with one small SVG each, so that labels stay text and fit a
narrow window.

    interval_chart([IntervalRow("next item", 0.12, (0.05, 0.2), "22.7 % against 20.2 %", "keep")])
    bar_chart([BarRow("taken again", "793 events", [Bar(0.9, "now"), Bar(0.8, "then")])])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from next_behavior.data.page_pieces import percent

# Relative differences beyond this are drawn at the end of the scale.
MOST_RELATIVE = 1.0
LEAST_RELATIVE = 0.05
# Classes of the colors of up to four models; rules have the last.
MODEL_COLORS = ("now", "second", "third", "fourth")
RULE_COLOR = "then"


@dataclass(frozen=True)
class IntervalRow:
    """A difference with its interval, both as shares of what is compared with.

    Attributes:
        label, says: HTML, before and after the drawing.
        ends: None where there is no interval.
        level: keep, retrain or unclear: better, worse, or not certain.
    """

    label: str
    difference: float
    ends: tuple[float, float] | None
    says: str
    level: str


@dataclass(frozen=True)
class Bar:
    """A share, None where there is none, with its interval."""

    value: float | None
    color: str
    ends: Sequence[float] | None = None


@dataclass(frozen=True)
class BarRow:
    """Bars that are compared with each other; `label` and `note` are HTML."""

    label: str
    note: str
    bars: Sequence[Bar]


def model_color(models: Sequence[str], name: str) -> str:
    """The class of a ranker's color: each model its own, all rules the same."""
    return MODEL_COLORS[models.index(name) % len(MODEL_COLORS)] if name in models else RULE_COLOR


def interval_chart(rows: Sequence[IntervalRow]) -> str:
    """Differences on one scale with 0 in the middle."""
    if not rows:
        return ""
    ends = [abs(end) for row in rows for end in (row.difference, *(row.ends or ()))]
    reach = min(MOST_RELATIVE, max(LEAST_RELATIVE, 1.05 * max(ends)))

    def x(share: float) -> float:
        return 50 + 50 * min(1.0, max(-1.0, share / reach))

    lines = []
    for row in rows:
        middle, (low, high) = x(row.difference), row.ends or (row.difference, row.difference)
        says = "no interval" if row.ends is None else f"95 % interval {low:+.0%} to {high:+.0%}"
        drawing = (
            f'<svg class="strip" viewBox="0 0 100 10" preserveAspectRatio="none" role="img">'
            f"<title>{row.difference:+.1%}, {says}</title>"
            f'<line class="zero" x1="50" x2="50" y1="0" y2="10"/>'
            f'<line class="range {row.level}" x1="{x(low):.2f}" x2="{x(high):.2f}" y1="5" y2="5"/>'
            f'<line class="point {row.level}" x1="{middle:.2f}" x2="{middle:.2f}" y1="1.5" y2="8.5"/>'
            "</svg>"
        )
        lines.append(
            f"<tr><th>{row.label}<small>{row.says}</small></th><td>{drawing}</td>"
            f'<td class="{row.level}">{row.difference:+.0%}</td></tr>'
        )
    scale = (
        f'<tr class="ends"><th></th><td><div><i>−{reach:.0%}</i><i>best rule</i><i>+{reach:.0%}</i></div></td>'
        "<td></td></tr>"
    )
    return f'<table class="bars strips">{"".join(lines)}{scale}</table>'


def bar_chart(rows: Sequence[BarRow]) -> str:
    """Bars from 0 to the largest value; intervals are thin lines."""
    bars = [bar for row in rows for bar in row.bars]
    top = max([1e-9, *(end for bar in bars for end in (bar.value, *(bar.ends or ())) if end is not None)])
    lines = []
    for row in rows:
        drawings = "".join(drawn_bar(bar, top) for bar in row.bars)
        values = "".join(f"<span>{percent(bar.value)}</span>" for bar in row.bars)
        note = f"<small>{row.note}</small>" if row.note else ""
        lines.append(f"<tr><th>{row.label}{note}</th><td>{drawings}</td><td>{values}</td></tr>")
    return f'<table class="bars">{"".join(lines)}</table>'


def drawn_bar(bar: Bar, top: float) -> str:
    width = 0.0 if bar.value is None else 100 * bar.value / top
    whisker = ""
    if bar.ends is not None:
        low, high = (100 * end / top for end in bar.ends)
        whisker = f'<line class="whisker" x1="{low:.2f}" x2="{high:.2f}" y1="2" y2="2"/>'
    return (
        '<svg class="bar" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="{bar.color}" width="{width:.2f}" height="4"/>{whisker}</svg>'
    )


def key(names: Sequence[str], colors: Sequence[str]) -> str:
    """What the colors mean; names are HTML."""
    entries = (f'<span><i class="{color}"></i>{name}</span>' for name, color in zip(names, colors, strict=True))
    return f'<p class="key">{"".join(entries)}</p>'


def reliability_chart(bins: Sequence[tuple[float, float, int]]) -> str:
    """What was said against what came: a circle for each bin of (said, came, count); both agree on the diagonal."""
    size, left, top = 200, 60, 8
    most = max(count for _, _, count in bins)
    parts = [
        f'<rect class="frame" x="{left}" y="{top}" width="{size}" height="{size}"/>',
        f'<line class="dash" x1="{left}" y1="{top + size}" x2="{left + size}" y2="{top}"/>',
        f'<text x="{left - 6}" y="{top + 10}" text-anchor="end">100 %</text>',
        f'<text x="{left - 6}" y="{top + size}" text-anchor="end">0 %</text>',
        f'<text x="{left + size}" y="{top + size + 16}" text-anchor="end">said 100 %</text>',
        f'<text x="{left}" y="{top + size + 16}">0 %</text>',
        f'<text x="{left + 6}" y="{top + 16}">came</text>',
    ]
    for said, came, count in bins:
        radius = 3 + 7 * (count / most) ** 0.5
        parts.append(
            f'<circle class="now" cx="{left + size * said:.1f}" cy="{top + size * (1 - came):.1f}" r="{radius:.1f}">'
            f"<title>said {percent(said)}, came {percent(came)}, {count:,} times</title></circle>"
        )
    return f'<svg class="square" viewBox="0 0 {left + size + 12} {top + size + 24}" role="img">{"".join(parts)}</svg>'
