"""Numbers and tables as text that reads in a terminal and renders as Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def number(value: float | None, digits: int = 4) -> str:
    """The value as text without its leading zero, a dash for None.

    >>> number(0.0553), number(-0.25, 2), number(1.0, 3), number(None)
    ('.0553', '-.25', '1.000', '–')
    >>> number(-0.00001)
    '.0000'
    """
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table, the first column to the left, the others to the right.

    >>> print(table(["ranker", "NDCG@10"], [["model", ".06"]]))
    | ranker | NDCG@10 |
    |:-------|--------:|
    | model  |     .06 |
    """
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        others = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return f"| {' | '.join([cells[0].ljust(widths[0]), *others])} |"

    rule = "|".join([":" + "-" * (widths[0] + 1), *("-" * (width + 1) + ":" for width in widths[1:])])
    return "\n".join([line(header), f"|{rule}|", *(line(row) for row in rows)])
