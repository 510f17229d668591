"""What the reports as HTML share: one self-contained file that loads nothing and runs nothing, light or dark as the
reader's system is.

    Path("report.html").write_text(page("Title", header, body))

Names and ids come from strangers: each is shown by the rule of `shown.py` and escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from next_behavior.data.shown import shown

STYLE = Path(__file__).with_name("report.css")
LONGEST_NAME = 60


def page(title: str, body: str) -> str:
    """The whole file; `body` is HTML, `title` is text."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark"><title>{text(title)}</title>
<style>{STYLE.read_text(encoding="utf-8")}</style></head><body><main>
{body}
</main></body></html>
"""


def text(value: str, most: int = LONGEST_NAME) -> str:
    """Text from anywhere, as it may stand in the page.

    >>> text("<b>&\\u202e")
    '&lt;b&gt;&amp;\\\\u202e'
    """
    return escape(shown(value, most))


def percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f}\u00a0%"


def section(title: str, says: str, *parts: str) -> str:
    """A titled part of the page; all but the title is HTML."""
    return f"<section><h2>{title}</h2><p>{says}</p>{''.join(parts)}</section>"


def tiles(figures: Sequence[tuple[str, str, str]]) -> str:
    """The figures that matter most: name, value and a note each, as HTML."""
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, value, note in figures)
    return f'<dl class="tiles">{cells}</dl>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
