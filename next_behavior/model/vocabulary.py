"""The vocabulary: the keys that items have in it, and vocabulary.tsv, which people read.

An item that could be taken for a special token has an escaped key, so an item called [PAD] is an ordinary item. This
file imports numpy alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from .special_ids import ITEM_SPECIALS

ESCAPE = "\\"
ESCAPED_STARTS = ("", "[", ESCAPE)
VOCABULARY_FILE = "vocabulary.tsv"
VOCABULARY_HEADER = "id\titem\tcount\ttitle"
TSV_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
TSV_ESCAPE_TABLE = str.maketrans(TSV_ESCAPES)
TSV_UNESCAPES = {escaped: plain for plain, escaped in TSV_ESCAPES.items()}


def item_key(item: str) -> str:
    """The key of an item in the vocabulary: the item itself, escaped where it could be a special token or empty."""
    return ESCAPE + item if item[:1] in ESCAPED_STARTS else item


def plain_item(key: str) -> str:
    """The item of a key; the inverse of `item_key`."""
    return key.removeprefix(ESCAPE)


def known_item(lookup: Callable[[str], int | None], item: str) -> int | None:
    """The id of an item's key, None if the vocabulary does not hold it."""
    try:
        return lookup(item_key(item) if item[:1] in ESCAPED_STARTS else item)
    except UnicodeEncodeError:  # a lone surrogate, as JSON may hold one: not text, so in no vocabulary
        return None


def special_keys(num_new_items: int) -> list[str]:
    """The reserved keys in id order: [PAD], [UNK], [NONE], [START], then [NEW_1] ... [NEW_n]."""
    return [*ITEM_SPECIALS, *(f"[NEW_{slot}]" for slot in range(1, num_new_items + 1))]


def tsv_field(text: str) -> str:
    """Text for one field of vocabulary.tsv: backslash, tab and line ends escaped."""
    return text.translate(TSV_ESCAPE_TABLE)


def plain_field(field: str) -> str:
    """The inverse of `tsv_field`."""
    return re.sub(r"\\.", lambda escaped: TSV_UNESCAPES[escaped[0]], field) if ESCAPE in field else field


class VocabularyTable:
    """vocabulary.tsv in memory: its bytes and where its lines begin. A line is decoded when it is asked for, so that a
    million titles cost no million strings."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        ends = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == ord("\n"))
        self.line_starts = np.concatenate([[0], ends + 1])

    def fields(self, line: int) -> list[str]:
        """The fields of a line; line 0 is the header."""
        begin, end = self.line_starts[line : line + 2]
        text = self.text[begin : end - 1].decode()
        fields = text.split("\t")
        return [plain_field(field) for field in fields] if ESCAPE in text else fields
