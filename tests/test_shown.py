"""Text from a log, shown: on one line, nothing hidden, and no markup of its own."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from next_behavior.data.shown import HIDDEN, JOINER, shown
from next_behavior.model.times import micros_of_text
from next_behavior.model.vocabulary import item_key
from next_behavior.publishing.run_text import code, plain, unfenced


@given(st.text(max_size=300))
def test_what_is_shown_is_one_line_without_hidden_characters_and_not_long(text: str) -> None:
    for way in (shown, unfenced):
        visible = way(text)
        assert len(visible) <= 120
        assert all(unicodedata.category(c) not in HIDDEN or c == JOINER for c in visible)
    assert not set("|`") & set(plain(text))


@pytest.mark.parametrize(
    "text", ["1" * 2**20, "2024-01-01" + " " * 2**20 + "x", "1." * 2**19, "1e" * 2**19, " " * 2**20]
)
def test_a_megabyte_where_a_time_should_be_is_read_in_a_second(text: str) -> None:
    started = time.process_time()
    assert micros_of_text(text) is None
    shown(text)
    item_key(text)
    assert time.process_time() - started < 1


def test_usual_text_is_shown_as_it_is() -> None:
    for text in ("Desk lamp, 40 W", "Größe 5 – blau", "机械键盘", "👩\u200d🔧 tools"):
        assert shown(text) == text


@pytest.mark.parametrize("item", ["x\n```\n# Heading\n![i](http://example.org/i.png)", "<img src=x onerror=alert(1)>"])
def test_an_id_sets_no_heading_image_or_tag_in_a_card(item: str) -> None:
    for text in (plain(item), code(item)):
        assert "\n" not in text
        assert "```" not in text
    assert "![i](" not in plain(item)
    assert "<" not in plain(item).replace(r"\<", "")
