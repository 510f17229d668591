"""next-behavior explain: one user's history and answers as HTML and PNG, readable and escaped."""

from __future__ import annotations

import csv
import re
import tarfile
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from browsers import chromium
from golden import ARCHIVE
from PIL import Image
from tiny import load

from next_behavior.commands.__main__ import main_of
from next_behavior.model.pipeline_behavior import NextBehaviorPipeline
from next_behavior.publishing.explained_page import page_of
from next_behavior.publishing.explained_png import broken, draw, fitted
from next_behavior.publishing.explained_user import (
    MOST_ROWS,
    ExplainedUser,
    Mark,
    explained_user,
    lead,
    reasons,
)

HOSTILE = ["<script>alert(1)</script>", "a \u202e b", 'quote " and & $x_1$ $', "x" * 400, "\x1b[31mred", ""]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "model"


def made_up(count: int, names: list[str], unread: int = 0) -> ExplainedUser:
    """A history of `count` events, of which each seventh matters, and an answer for each name."""
    marks = [
        Mark(
            number=place + 1,
            item=names[place % len(names)],
            title=None if place % 2 else names[place % len(names)],
            action=names[place % 3] if place % 4 else None,
            seconds=1.7e9 + 3600 * place,
            contribution=None if place < unread else 0.5 + place if place % 7 == 0 else 0.01,
            importance=0.0 if place < unread else 0.5 + place if place % 7 == 0 else 0.01,
            gap=3600.0 if place else None,
        )
        for place in range(count)
    ]
    because = {
        "repeats": {"event": 0, "share": 0.8},
        "counted": [{"event": 1, "item": names[0], "pairs": 43.2, "reverse_pairs": 2.0, "share": 0.7}],
        "popularity": 2.0,
        "similar_texts": [{"event": 2, "item": names[-1], "similarity": 0.83}],
    }
    paths = {"generate": 0.1, "repeat": 0.7, "associate": 0.2}
    answers = [
        {
            "action": name, "item": name, "title": name, "probability": 0.4 / (rank + 1), "when": None, "paths": paths,
            "because": because, "contributions": [mark.contribution or 0.0 for mark in marks],
        }
        for rank, name in enumerate(names)
    ]  # fmt: skip
    return ExplainedUser(names[0], names[0], names[0], names[:3], marks, answers)


def text_of(page: str) -> str:
    return unescape(re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)))


def test_events_that_matter_have_rows_and_every_event_that_is_read_a_mark() -> None:
    for count in (5, 16, 200):
        user = made_up(count, ["a", "b", "c"], unread=3)
        drawn = [mark.number for row in user.rows for mark in row]
        assert drawn == list(range(count, 3, -1)), "the newest first, each once"
        alone = {row[0].number for row in user.rows if len(row) == 1}
        assert {mark.number for mark in user.marks[3:] if mark.importance > max(1, count - 7 * MOST_ROWS)} <= alone
        assert len(user.rows) <= max(16, 2 * MOST_ROWS + 3)
        page = page_of(user)
        assert page.count('<svg class="mark') == count - 3 + len(re.findall(r"<span><svg", page))
        assert "3 older events are not read" in text_of(page)


@pytest.mark.parametrize("count", [0, 1, 200])
def test_what_a_log_names_is_escaped_and_nothing_is_loaded(count: int, tmp_path: Path) -> None:
    page = page_of(made_up(count, HOSTILE))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not set("\u202e\x1b") & set(page)
    assert "x" * 161 not in page
    assert not re.search(r"(src|href)=\"(?!#a\d)|url\(|@import|https?:", page)
    assert "default-src 'none'" in page
    if count == 200:
        draw(made_up(count, HOSTILE), tmp_path / "why.png")


def test_a_user_without_answers_or_events_has_a_page(tmp_path: Path) -> None:
    nothing = ExplainedUser("m", "u", "Items", ["view"], [], [])
    assert "Nothing is left to answer" in text_of(page_of(nothing))
    draw(nothing, tmp_path / "nothing.png")
    new = made_up(0, ["a"])
    assert "this is the answer for a new user" in text_of(page_of(new))


def test_the_picture_says_what_the_numbers_are(tmp_path: Path) -> None:
    user = made_up(9, ["a", "b", "c"])
    assert lead(user).startswith("What matters most is #8, ")
    assert "without it the answer is all but impossible" in lead(user)
    lines = reasons(user.answers[0], whole=True)
    assert lines == [
        (None, "#8 >×1000, #1 ×1.6"),
        (1, "is the user's own item: 80\u00a0% of repeats"),
        (2, "this came after it 43 times in the log"),
        (3, "has a similar text (0.83)"),
        (None, "popular lately: ×2.0"),
        (None, "named by the user's own items, 70\u00a0%"),
    ]
    draw(user, tmp_path / "why.png")
    with Image.open(tmp_path / "why.png") as image:
        assert image.format == "PNG"
        assert image.width > 1800


def test_wide_characters_take_two_columns() -> None:
    assert fitted("abc", 100, 10) == "abc"
    assert len(fitted("裙" * 50, 100, 10)) <= 11
    assert len(fitted("i" * 50, 100, 10)) <= 18
    assert "".join(broken("裙" * 50, 20)) == "裙" * 50
    assert max(map(len, broken("裙" * 50, 20))) <= 12


def test_a_picture_shows_the_pipelines_answers(model_folder: Path) -> None:
    model, tokenizer = load(model_folder)
    predict = NextBehaviorPipeline(model=model, tokenizer=tokenizer, device="cpu")
    events = [{"item": f"i{place % 9}", "action": "view", "timestamp": 1.7e9 + place} for place in range(30)]
    user = explained_user(predict, "m", "u", events, "Items", of="item", top_k=3)
    expected: Any = predict({"events": events}, of="item", top_k=3, explain=True)
    assert list(user.answers) == expected
    assert user.unread == 30 - tokenizer.model_max_length
    assert [mark.contribution or 0.0 for mark in user.marks] == expected[0]["contributions"]
    assert [mark.importance for mark in user.marks][-24:] == expected[0]["importance"][-24:]
    assert [mark.gap for mark in user.marks] == [None, *[1.0] * 29]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "events.csv"
    rows = [("u1", f"i{place}", "view", 1_700_000_000 + 60 * place) for place in range(6)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [["user_id", "item_id", "action", "timestamp"], *rows, ("u2", "i3", "buy", 1_700_000_000)]
        )
    return path


def test_the_command_writes_html_and_png(
    model_folder: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = main_of("explain")
    given = ["--model", str(model_folder), "--events", str(log), "--user", "u1"]
    run([*given, "--output", str(tmp_path / "why.html"), "--of", "item", "--exclude_seen", "--top_k", "4"])
    page = text_of((tmp_path / "why.html").read_text())
    assert "6 events" in page
    assert "Items, new to the user" in page
    assert f"The picture is in {tmp_path / 'why.html'}" in capsys.readouterr().out
    run([*given, "--output", str(tmp_path / "why.png"), "--until", "2023-11-14T22:15:30"])
    assert (tmp_path / "why.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="got the user 'nobody', of whom the log has no event"):
        run([*given[:-1], "nobody", "--output", str(tmp_path / "why.html")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "why.svg"], "expected a name that ends in .html or .png"),
        (["--output", "why.html", "--top_k", "0"], "expected at least 1"),
        (["--output", "why.html", "--until", "noon"], "expected a date or a time"),
    ],
)
def test_a_wrong_option_is_refused_at_once(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main_of("explain")(["--model", "m", "--events", "e.csv", "--user", "u", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.browser
def test_the_page_fits_windows_of_any_width_and_runs_nothing(tmp_path: Path) -> None:
    titles = ["家用多功能电饭煲智能预约大容量不锈钢内胆官方旗舰店正品包邮限时特惠送蒸笼和量杯", *HOSTILE]
    with chromium() as browser:
        for count in (5, 200):
            path = tmp_path / f"{count}.html"
            path.write_text(page_of(made_up(count, titles)), encoding="utf-8")
            for width in (320, 700, 1280):
                page = browser.new_page(viewport={"width": width, "height": 800})
                faults: list[Any] = []
                page.on("console", lambda message, faults=faults: faults.append(message.text))
                page.on("dialog", lambda dialog, faults=faults: faults.append(dialog.message))
                page.goto(path.as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") == width
                assert page.evaluate("document.documentElement.scrollHeight") < 9000
                assert not faults
                page.close()
