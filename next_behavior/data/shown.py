"""Text of a log as it may be shown: on a terminal, in a table, in a card. Ids and names come from strangers.

shown("\\x1b[31mred\\n")          # '\\\\x1b[31mred\\\\n'
"""

from __future__ import annotations

import re
import textwrap
import unicodedata

# Longer text is cut: an id of 20,000 characters would push everything else off the screen.
MOST_CHARACTERS = 120
LONGEST_LINE = 2400  # of a message, which names files and several ids
# Control characters, line and paragraph ends, lone surrogates, and format characters, which can turn the direction of
# writing round.
HIDDEN = ("Cc", "Cf", "Zl", "Zp", "Cs")
JOINER = "\u200d"  # a format character that emoji need
# Lines of a narrow terminal; and what stands before a line's text: a time, a bullet, a label before two spaces.
WIDTH = 80
MARGIN = re.compile(r"\s*(?:\[[ \d:]+\] +|- |\S.{0,20}?\s{2,})?")


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


def to_width(text: str, width: int = WIDTH) -> str:
    """The text with lines of at most `width` columns, longer ones broken under their own text; tables and code stay.

    >>> print(to_width("repeats     one two three", width=20))
    repeats     one two
                three
    """
    lines = []
    for line in text.split("\n"):
        margin = MARGIN.match(line)
        indent = " " * len(margin.group()) if margin else ""
        if len(line) <= width or line.lstrip().startswith("|"):
            lines.append(line)
        else:
            lines += textwrap.wrap(
                line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False,
                drop_whitespace=True, replace_whitespace=False,
            )  # fmt: skip
    return "\n".join(lines)


def shown_lines(text: str) -> str:
    """Lines of a message, each as `shown` shows it: what a message quotes may have slipped in unseen."""
    return "\n".join(shown(line, LONGEST_LINE) for line in text.split("\n"))
