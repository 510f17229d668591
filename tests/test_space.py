"""The Space: histories from text, search on the server, escaped HTML, and (`make test-browser`) the page in a real
browser."""

from __future__ import annotations

import doctest
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import tiny_model

from next_behavior.training.vocabulary import assemble

# Not imported for this: that takes seconds in every worker.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="needs the extra 'space': pip install '.[space]'"
)

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = "<script>window.harmed = 1</script>"
IMAGE = '<img src=x onerror="window.harmed = 1">${window.harmed = 1}{{value}}'
ITEMS = ["84", "007", SCRIPT, "garden chair, blue", "5"]
TITLES = ["Desk lamp", None, IMAGE, "Chair", "Desk, oak"]
ACTIONS = ["view", "buy", "<b>wish</b>"]


@pytest.fixture(scope="module")
def app() -> Any:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "space" / "app.py")))


def save_model(folder: Path, items: list[str], titles: list[str | None]) -> Path:
    """A model with random weights and a memory."""
    tokenizer = assemble(items, ACTIONS, [60.0, 3600.0, 86400.0], num_new_items=3, max_length=8)
    tokenizer.describe_items([1] * len(items), titles)
    model = tiny_model(tokenizer)
    walk = [{"item": item, "action": "view"} for item in items]
    model.update_memory(**tokenizer([walk], return_tensors="pt"), pairs="all")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "shop", ITEMS, TITLES)


@pytest.fixture(scope="module")
def kiosk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model that knows one of the shop's items."""
    return save_model(tmp_path_factory.mktemp("models") / "kiosk", ["84", "soap"], ["Lamp", None])


@pytest.fixture(scope="module")
def model(app: Any, shop: Path) -> Any:
    return app.Model(str(shop))


def test_the_examples_of_its_docstrings_are_true(app: Any) -> None:
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    own = {name: part for name, part in vars(app).items() if getattr(part, "__module__", "") == app.__name__}
    found = [test for name, part in own.items() for test in finder.find(part, name, module=False, globs=vars(app))]
    assert sum(bool(test.examples) for test in found) >= 4
    assert sum(runner.run(test).failed for test in found) == 0


# -- histories from text -----------------------------------------------------------------------------------------------


def test_every_form_of_text_gives_the_same_history(app: Any) -> None:
    events = [
        {"item": "84", "action": "view", "timestamp": 1_700_000_000},
        {"item": "garden chair, blue", "action": "buy"},
    ]
    texts = [
        json.dumps(events),
        json.dumps({"events": events}, indent=1),
        "\n".join(json.dumps(event) for event in events),
        '84,view,1700000000\n"garden chair, blue",buy\n',
        'item,action,timestamp\n84,view,1700000000\n"garden chair, blue",buy,\n',
        '\n timestamp, item_id ,action\r\n1700000000,84,view\r\n,"garden chair, blue",buy\r\n\r\n',
    ]
    for text in texts:
        assert app.parse_events(text) == events, text
    assert app.parse_events(app.events_text(events)) == events
    assert app.parse_events(" \n") == []
    assert app.parse_events("item\n007") == [{"item": "007"}]
    assert app.parse_events(",search,2024-05-17T08:30:00Z") == [
        {"action": "search", "timestamp": "2024-05-17T08:30:00Z"}
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"item": "84"', "line 1 is not JSON"),
        ('{"item": "84"}\n{"item": 84', "line 2 is not JSON"),
        ("[1, 2]", "no list of events"),
        ("item,price\n84,3", "header has price, expected some of item, action, timestamp"),
        ("84,view,1,2", "line 1 has 4 fields"),
        ("item,action\n84,view\n84,view,5", "line 3 has 3 fields, expected item,action"),
        ("84\n" * 2_001, "got 2,001 events, expected at most 2,000"),
    ],
)
def test_text_that_is_no_history_is_named(app: Any, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        app.parse_events(text)


# -- search ------------------------------------------------------------------------------------------------------------


def test_items_are_found_by_a_part_of_their_title_or_id_in_any_case(model: Any) -> None:
    assert model.catalog.search("DESK") == [("Desk lamp (84)", "84"), ("Desk, oak (5)", "5")]
    assert [item for _, item in model.catalog.search("chair, b")] == ["garden chair, blue"]
    assert model.catalog.search("007") == [("007", "007")]
    assert [item for _, item in model.catalog.search("5")] == ["5"]
    assert model.catalog.search("nothing like it") == []
    assert [item for _, item in model.catalog.search("")] == ITEMS


def test_a_search_returns_a_handful_and_the_item_whose_id_was_typed_first(app: Any) -> None:
    items = [str(number) for number in range(1000)]
    tokenizer = assemble(items, ["view"], [], num_new_items=1, max_length=4)
    tokenizer.describe_items([1] * 1000, [f"Thing\n{number}" for number in range(1000)])
    catalog = app.Catalog(tokenizer)
    assert len(catalog.search("thing")) == app.MATCHES
    assert catalog.search("999")[0] == ("Thing\n999 (999)", "999")
    assert [item for _, item in catalog.search("thing 99")] == ["99", *(str(number) for number in range(990, 997))]


# -- the page's answers ------------------------------------------------------------------------------------------------


def test_whatever_an_item_is_called_is_shown_as_text(app: Any, model: Any) -> None:
    page = app.Page(model, None)
    history = app.events_text([{"item": SCRIPT, "action": "<b>wish</b>"}, {"item": "<i>new</i>", "action": "view"}])
    for question in app.QUESTIONS:
        for html in page.ask(history, question, app.ANY_ACTION, False, 50):
            tags = set(re.findall(r"<(\w+)", html))
            assert not tags & {"script", "img"}, html
            assert "<b>wish" not in html
            assert "<i>new" not in html
    shown, answers = page.ask(history, "Item", app.ANY_ACTION, False, 50)
    assert "&lt;script&gt;" in shown
    assert "&lt;img" in answers
    assert "new to the model" in shown
    assert "&lt;script" in app.error_html(ValueError(SCRIPT))


def test_answers_show_the_pipelines_probabilities_and_paths(app: Any, model: Any) -> None:
    _, html = app.Page(model, None).ask("84,view,1700000000", "Item", "buy", True, 3)
    answers = model.predict({"events": [{"item": "84", "action": "view", "timestamp": 1.7e9}]}, of="item", action="buy",
                            exclude_seen=True, top_k=3, paths=True)  # fmt: skip
    assert [app.percent(answer["probability"]) for answer in answers] == re.findall(
        r"<td class=.bnb-prob.*?<b>(.*?)</b>", html
    )
    widths = re.findall(r'class="bnb-associate" style="width:([\d.]+)%', html)
    assert [float(width) for width in widths] == pytest.approx(
        [100 * a["paths"]["associate"] for a in answers], abs=0.06
    )
    assert "Desk lamp" not in html
    assert "within 1 day" in html


def test_two_models_answer_the_same_question_side_by_side(app: Any, model: Any, kiosk: Path) -> None:
    other = app.Model(str(kiosk))
    _, html = app.Page(model, other).ask("84,view", "Item", app.ANY_ACTION, False, 50)
    left, right = html.split("<section>")[1:]
    assert "shop" in left
    assert "kiosk" in right
    assert left.count("not in the other list") == len(ITEMS) - 1, "only the lamp is known to both"
    assert right.count("not in the other list") == 1


def test_mistakes_are_shown_where_the_answer_would_stand(app: Any, model: Any) -> None:
    page = app.Page(model, None)
    shown, answers = page.ask("84,view,yesterday", "Item", app.ANY_ACTION, False, 5)
    assert "84" in shown
    assert "timestamp is &#x27;yesterday&#x27;" in answers
    shown, answers = page.ask("[", "Item", app.ANY_ACTION, False, 5)
    assert "is not JSON" in shown
    assert answers == ""


def test_events_are_added_after_the_last_one_and_taken_back(app: Any, model: Any) -> None:
    page = app.Page(model, None)
    text = page.add("84,view,1700000000", "5", "buy", "an hour later")
    assert app.parse_events(text)[-1] == {"item": "5", "action": "buy", "timestamp": 1_700_003_600.0}
    assert app.parse_events(page.without_last(text)) == app.parse_events("84,view,1700000000")
    assert app.parse_events(page.add("", None, "view", "a minute later"))[0]["timestamp"] > 1.7e9
    assert len(app.parse_events(app.events_text(model.example()))) == 4


def test_without_a_model_the_command_says_what_to_name(
    app: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MODEL", raising=False)
    with pytest.raises(SystemExit):
        app.arguments([])
    assert "got no --model" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["space", "metric/next_behavior_ranking"])
def test_a_space_names_the_gradio_it_is_tested_with(folder: str) -> None:
    (pinned,) = re.findall(r"^gradio==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), flags=re.MULTILINE)
    front = (ROOT / folder / "README.md").read_text("utf-8").split("---\n")[1]
    assert f"sdk: gradio\nsdk_version: {pinned}\napp_file: app.py\n" in front
    assert (ROOT / folder / "app.py").is_file()
    assert "gradio" in (ROOT / folder / "requirements.txt").read_text("utf-8")


# -- in a browser ------------------------------------------------------------------------------------------------------

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def address(shop: Path, kiosk: Path) -> Iterator[str]:
    """The Space, started as its README says."""
    command = [sys.executable, str(ROOT / "space" / "app.py"), "--model", str(shop), "--compare", str(kiosk)]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, text=True,
                                  env=os.environ | {"PYTHONUNBUFFERED": "1"})  # fmt: skip
        try:
            yield address_in(log, server)
        finally:
            server.terminate()
            server.wait(timeout=20)


def address_in(log: Any, server: subprocess.Popen[str]) -> str:
    """What Gradio prints once it serves."""
    for _ in range(600):
        log.seek(0)
        printed = log.read()
        if found := re.search(r"http://127\.0\.0\.1:\d+", printed):
            return found[0]
        assert server.poll() is None, printed
        time.sleep(0.2)
    raise AssertionError(printed)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, or the one that BROWSER names, driven by Playwright. Without them the tests are skipped, or
    fail where BROWSER_REQUIRED is set."""
    chromium = os.environ.get("BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
    missing = None
    if chromium is None:
        missing = "no Chromium: apt-get install chromium, or name one in BROWSER"
    elif importlib.util.find_spec("playwright") is None:
        missing = "no Playwright: pip install '.[browser]' (its own browsers are not needed)"
    if missing is not None:
        pytest.fail(missing) if os.environ.get("BROWSER_REQUIRED") else pytest.skip(missing)
    import playwright.sync_api as playwright

    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, with an example answered; nothing was asked of another host, and no script of a title ran."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("#answers section tbody tr", timeout=60_000)
    yield page
    assert page.evaluate("window.harmed") is None
    elsewhere = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    page.close()
    assert not elsewhere


def choose(page: Any, label: str, option: str) -> None:
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


@pytest.mark.browser
def test_a_visitor_builds_a_history_and_asks_in_the_browser(page: Any) -> None:
    from playwright.sync_api import expect

    assert page.locator("#answers section").count() == 2
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#history")).to_contain_text("An empty history")
    expect(page.locator("#matches label")).to_have_count(len(ITEMS))
    page.get_by_label("Find an item").press_sequentially("oak", delay=30)
    expect(page.locator("#matches label")).to_have_count(1)
    page.get_by_label("Desk, oak (5)").check()
    page.get_by_role("button", name="Add event").click()
    expect(page.locator("#history li")).to_have_count(1)
    expect(page.locator("#history")).to_contain_text("Desk, oak")

    page.get_by_role("radio", name="Item", exact=True).check()
    expect(page.locator("#answers section").first.locator("tbody tr")).to_have_count(len(ITEMS))
    page.get_by_label("Leave out items of the history").check()
    expect(page.locator("#answers section").first.locator("tbody tr")).to_have_count(len(ITEMS) - 1)
    expect(page.locator("#answers section").first).not_to_contain_text("Desk, oak")
    choose(page, "If the next action is", "buy")
    expect(page.locator("#answers section").first.locator("tbody tr .bnb-action").first).to_have_text("buy")
    page.get_by_role("radio", name="Action", exact=True).check()
    expect(page.locator("#answers section").first.locator("tbody tr")).to_have_count(len(ACTIONS))
    expect(page.locator("#answers")).to_contain_text("<b>wish</b>")


@pytest.mark.browser
def test_a_visitor_pastes_events_and_reads_what_is_wrong_with_them(page: Any) -> None:
    from playwright.sync_api import expect

    page.get_by_role("tab", name="Paste events").click()
    box = page.locator("#events textarea")
    box.fill(f'[{{"item": {json.dumps(IMAGE)}, "action": "view"}}, {{"item": {json.dumps(SCRIPT)}}}]')
    expect(page.locator("#history li")).to_have_count(2)
    expect(page.locator("#history")).to_contain_text(SCRIPT)
    expect(page.locator("#history")).to_contain_text(IMAGE)
    box.fill('[{"itme": "84"}]')
    expect(page.get_by_role("alert").first).to_contain_text("did you mean 'item'?")
    box.fill("item,price\n84,3")
    expect(page.locator("#history").get_by_role("alert")).to_contain_text("expected some of item, action, timestamp")
    box.fill("84,view,1700000000")
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.locator("#history")).to_contain_text("Desk lamp")


@pytest.mark.browser
def test_the_page_fits_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for bar in page.locator("#answers .bnb-bar").all():
        box = bar.bounding_box()
        assert box is None or box["x"] + box["width"] <= 360
