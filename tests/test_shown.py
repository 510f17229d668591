"""Text from a log, shown: on one line, nothing hidden, and no markup of its own."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from next_behavior.data.shown import HIDDEN, JOINER, shown
from next_behavior.publishing.run_text import code, plain, unfenced


@given(st.text(max_size=300))
def test_what_is_shown_is_one_line_without_hidden_characters_and_not_long(text: str) -> None:
    for way in (shown, unfenced):
        visible = way(text)
        assert len(visible) <= 120
        assert all(unicodedata.category(c) not in HIDDEN or c == JOINER for c in visible)
    assert not set("|`") & set(plain(text))


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
