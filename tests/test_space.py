"""The Space: histories from text, search on the server, escaped HTML, and (`make test-browser`) the page in a real
browser."""

from __future__ import annotations

import doctest
import importlib.util
import json
import os
import re
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
from browsers import chromium
from test_layout import imports_of
from tiny import tiny_model

from next_behavior.data.shown import shown
from next_behavior.training.vocabulary import assemble

# Not imported for this: that takes seconds in every worker.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="needs the extra 'space': pip install '.[space]'"
)

ROOT = Path(__file__).resolve().parent.parent
SPACE = ROOT / "space"
SCRIPT = "<script>window.harmed = 1</script>"
IMAGE = '<img src=x onerror="window.harmed = 1">${window.harmed = 1}{{value}}'
ITEMS = ["84", "007", SCRIPT, "garden chair, blue", "5"]
TITLES = ["Desk lamp", None, IMAGE, "Chair", "Desk, oak"]
ACTIONS = ["view", "buy", "<b>wish</b>"]


LONG = "x" * 20_000
HOSTILE = "\u202eevil\u2066\x1b[31m\nsecond line"


@pytest.fixture(scope="module")
def app() -> Iterator[Any]:
    """All that the Space's files define. They import each other as files of one folder, which a Space starts in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SPACE))
        parts = [importlib.import_module(path.stem) for path in sorted(SPACE.glob("*.py"))]
        yield SimpleNamespace(**{name: value for part in parts for name, value in vars(part).items()}, parts=parts)


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
    return app.LoadedModel(str(shop))


def test_the_examples_of_its_docstrings_are_true(app: Any) -> None:
    results = [doctest.testmod(part) for part in app.parts]
    assert sum(result.attempted for result in results) >= 8
    assert sum(result.failed for result in results) == 0


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
    assert catalog.search("999")[0] == ("Thing\\n999 (999)", "999")
    assert [item for _, item in catalog.search("thing\n999")] == ["999"]
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
    seen, answers = page.ask(history, "Item", app.ANY_ACTION, False, 50)
    assert "&lt;script&gt;" in seen
    assert "&lt;img" in answers
    assert "new to the model" in seen
    assert "&lt;script" in app.error_html(ValueError(SCRIPT))


@pytest.mark.parametrize("text", [SCRIPT, HOSTILE, LONG, "\ud800", "👩\u200d🔧", "שולחן", "a\u2028b"])
def test_text_is_shown_by_the_rule_of_the_package(app: Any, text: str) -> None:
    assert app.shown(text) == shown(text)
    assert app.shown(text, 7) == shown(text, 7)


@pytest.mark.filterwarnings("ignore:a history has the action:UserWarning")
def test_what_cannot_be_seen_is_shown_and_what_is_long_is_cut(app: Any, model: Any) -> None:
    texts = [HOSTILE, LONG, f"{HOSTILE}{LONG}"]
    page = app.Page(model, None)
    events = [{"item": text, "action": text, "timestamp": 1.7e9} for text in texts]
    pages = [*page.ask(json.dumps(events), "Item", app.ANY_ACTION, False, 50)]
    pages += page.ask(json.dumps([{"item": "84", "timestamp": text} for text in texts]), "Item", "", False, 5)
    pages += page.ask(f"item,{LONG}\n84,3", "Item", "", False, 5)
    pages += [page.matches(text)[1] for text in texts]
    pages += [app.as_html(f"{model.catalog.label(text)} {app.moment_text(text)}") for text in texts]
    for html in pages:
        assert not set(html) & set("\u202e\u2066\x1b\n"), html
        assert "x" * 600 not in html
    assert r"\u202eevil" in pages[0]


def test_an_item_without_a_title_has_its_id_as_the_title(app: Any, model: Any) -> None:
    assert app.item_html("007", model.catalog) == '<bdi class="bnb-title">007</bdi>'
    assert app.item_html("84", model.catalog) == '<bdi class="bnb-title">Desk lamp</bdi> <bdi class="bnb-id">84</bdi>'
    assert app.item_html("9", model.catalog).startswith('<bdi class="bnb-title">9</bdi> ')


@pytest.mark.filterwarnings("ignore:a history has the action:UserWarning")
def test_unknown_actions_are_named_with_the_known_ones(app: Any, model: Any) -> None:
    page = app.Page(model, None)
    history, html = page.ask("84,VIEW\n5,rent\n007,buy\n5,rent", "Item", app.ANY_ACTION, False, 5)
    (hint,) = re.findall(r'<div class="bnb-hint".*?</div>', html)
    words = re.sub(r"<[^>]+>", "", hint)
    assert words == (
        "Unknown actions VIEW (did you mean view?), rent. Known: view, buy, &lt;b&gt;wish&lt;/b&gt;. Spelling counts."
    )
    assert history.count("bnb-unknown") == 3
    assert "bnb-hint" not in page.ask("84,view\n5,buy\n5", "Item", app.ANY_ACTION, False, 5)[1]


def test_a_hint_stays_short_where_actions_are_many(app: Any, model: Any) -> None:
    many = SimpleNamespace(actions=[f"action {number}" for number in range(300)], nearest_action=lambda action: None,
                           unknown_actions=lambda events: [f"odd {number}" for number in range(900)])  # fmt: skip
    words = re.sub(r"<[^>]+>", "", app.unknown_html([], many))
    assert "odd 2 and 897 more. Known: action 0, action 1," in words
    assert "action 7 and 292 more." in words


def test_every_bar_has_the_scale_of_0_to_100_percent(app: Any, model: Any) -> None:
    _, html = app.Page(model, None).ask("84,view,1700000000", "Item", app.ANY_ACTION, False, 50)
    answers = model.answers([{"item": "84", "action": "view", "timestamp": 1.7e9}], "item", None, False, 50)
    shares = [answer["probability"] for answer in answers]
    shares += [share for name, share in answers[0]["when"].items() if "within" in name]
    widths = [float(width) for width in re.findall(r'bnb-bar"><i style="width:([\d.]+)%', html)]
    assert widths == pytest.approx([100 * share for share in shares], abs=0.06)
    scale = r"<i>0</i><i>100 %</i>"
    assert len(re.findall(f"Probability<.*?{scale}|Named by<.*?{scale}", html)) == 3


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
    assert "Desk lamp" not in html.split("<section>")[1]
    assert "within 1 day" in html


def test_two_models_answer_the_same_question_side_by_side(app: Any, model: Any, kiosk: Path) -> None:
    other = app.LoadedModel(str(kiosk))
    _, html = app.Page(model, other).ask("84,view", "Item", app.ANY_ACTION, False, 50)
    left, right = html.split("<section>")[1:]
    assert "shop" in left
    assert "kiosk" in right
    assert left.count("not in the other list") == len(ITEMS) - 1, "only the lamp is known to both"
    assert right.count("not in the other list") == 1


def test_mistakes_are_shown_where_the_answer_would_stand(app: Any, model: Any) -> None:
    page = app.Page(model, None)
    history, answers = page.ask("84,view,yesterday", "Item", app.ANY_ACTION, False, 5)
    assert "84" in history
    assert "timestamp is &#x27;yesterday&#x27;" in answers
    history, answers = page.ask("[", "Item", app.ANY_ACTION, False, 5)
    assert "is no history" in history
    assert "is not JSON" in answers
    _, answers = page.ask(r'[{"item": "\ud800"}]', "Item", app.ANY_ACTION, False, 5)
    assert 'role="alert"' in answers or r"\ud800" in answers
    with pytest.raises(app.gr.Error, match="&lt;img src=x&gt;"):
        page.without_last("item,<img src=x>")


def test_events_are_added_after_the_last_one_and_taken_back(app: Any, model: Any) -> None:
    page = app.Page(model, None)
    text = page.add("84,view,1700000000", "5", "buy", "an hour later")
    assert app.parse_events(text)[-1] == {"item": "5", "action": "buy", "timestamp": 1_700_003_600.0}
    assert app.parse_events(page.without_last(text)) == app.parse_events("84,view,1700000000")
    assert app.parse_events(page.add("", None, "view", "a minute later"))[0]["timestamp"] > 1.7e9
    for moment in ("2023-11-14T22:13:20Z", "2023-11-14 23:13:20+01:00", "1700000000000", '"1700000000"'):
        text = page.add(f"84,view,{moment}", "5", "buy", "an hour later")
        assert app.parse_events(text)[-1]["timestamp"] == 1_700_003_600.0, moment
    assert len(app.parse_events(app.events_text(model.example()))) == 4


def test_the_item_that_is_meant_is_chosen_and_a_search_in_vain_says_so(app: Any, model: Any) -> None:
    page = app.Page(model, None)
    assert [page.matches(query)[0]["value"] for query in ("oak", " 5 ", "desk")] == ["5", "5", None]
    assert [page.matches(query)[1] for query in ("oak", "")] == ["", ""]
    assert "No title or id holds <bdi>“&lt;b&gt;”</bdi>" in page.matches("<b>")[1]


def test_loading_is_announced_and_ends_in_what_was_loaded(
    app: Any, shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app.load(str(shop))
    first, last = capsys.readouterr().out.splitlines()
    assert first == f"Loading {shop} ..."
    assert re.fullmatch(rf"Loaded {re.escape(str(shop))} in \d+\.\d s: 5 items, 3 actions\.", last)
    with pytest.raises(SystemExit, match="nowhere was not loaded, expected the folder or the Hub id"):
        app.load(str(tmp_path / "nowhere"))


def test_another_kind_of_model_is_refused_by_name(app: Any, bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the package is not installed: only a model's folder brings the task."""
    from transformers.pipelines import PIPELINE_REGISTRY

    monkeypatch.delitem(PIPELINE_REGISTRY.supported_tasks, "next-behavior", raising=False)
    with pytest.raises(SystemExit, match="brings no pipeline for next-behavior"):
        app.load(bert)


def test_a_spaces_files_import_each_other_and_what_it_requires() -> None:
    wanted = {re.split(r"\W", line)[0] for line in (SPACE / "requirements.txt").read_text("utf-8").splitlines()}
    own = {path.stem for path in SPACE.glob("*.py")}
    for path in SPACE.glob("*.py"):
        for _, module, _ in imports_of(path.read_text("utf-8")):
            assert module.split(".")[0] in own | wanted | set(sys.stdlib_module_names), f"{path.name}: {module}"


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


@pytest.fixture(scope="module")
def address(shop: Path, kiosk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The Space, started as its README says from a copy of its folder."""
    folder = shutil.copytree(SPACE, tmp_path_factory.mktemp("copies") / "space")
    command = [sys.executable, str(folder / "app.py"), "--model", str(shop), "--compare", str(kiosk)]
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
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Any]:
    """Opens the page in a window of a size, with an example answered. At the end, nothing was asked of another host,
    and no script of a title ran."""
    pages: list[Any] = []
    asked: list[str] = []

    def opened(width: int = 1280, height: int = 900) -> Any:
        page = browser.new_page(
            viewport={"width": width, "height": height}, permissions=["clipboard-read", "clipboard-write"]
        )
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.wait_for_selector("#answers section tbody tr", timeout=60_000)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        assert page.evaluate("window.harmed") is None
        page.close()
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]


@pytest.fixture
def page(visit: Any) -> Any:
    return visit()


def choose(page: Any, label: str, option: str) -> None:
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


@pytest.mark.browser
def test_a_visitor_builds_a_history_and_asks_in_the_browser(page: Any) -> None:
    from playwright.sync_api import expect

    assert page.locator("#answers section").count() == 2
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#history")).to_contain_text("No events yet")
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
    expect(page.locator("#answers > * > * > [role=alert]")).to_contain_text("expected some of item, action, timestamp")
    expect(page.locator("#history")).to_contain_text("The pasted text is no history")
    box.fill("84,view,1700000000")
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.locator("#history")).to_contain_text("Desk lamp")


@pytest.mark.browser
def test_what_is_pasted_into_the_search_is_found_and_typing_asks_once(page: Any) -> None:
    from playwright.sync_api import expect

    search = page.get_by_label("Find an item")
    page.evaluate("navigator.clipboard.writeText('garden')")
    search.click()
    page.keyboard.press("Control+V")
    expect(page.locator("#matches label")).to_have_count(1)
    expect(page.get_by_role("radio", name="garden chair, blue")).to_be_checked()
    calls: list[str] = []
    page.on("request", lambda request: calls.append(request.url) if "/queue/join" in request.url else None)
    search.fill("")
    expect(page.locator("#matches label")).to_have_count(len(ITEMS))
    assert len(calls) == 1
    search.press_sequentially("no such item", delay=20)
    expect(page.locator("#none")).to_contain_text("No title or id holds “no such item”")
    expect(page.locator("#matches label")).to_have_count(0)
    assert len(calls) == 2


@pytest.mark.browser
def test_unknown_actions_and_refused_buttons_are_explained(page: Any) -> None:
    from playwright.sync_api import expect

    page.get_by_role("tab", name="Paste events").click()
    box = page.locator("#events textarea")
    box.fill("84,VIEW\n84,<img src=x onerror='window.harmed = 1'>")
    hint = page.locator(".bnb-hint").first
    expect(hint).to_contain_text(
        "VIEW (did you mean view?), <img src=x onerror='window.harmed = 1'>. Known: view, buy, <b>wish"
    )
    box.fill("item,<img src=x onerror='window.harmed = 1'>\n84,3")
    page.get_by_role("button", name="Remove last").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("the header has <img src=x onerror='window.harmed = 1'>")


@pytest.mark.browser
def test_the_page_says_that_an_answer_takes_long(page: Any) -> None:
    from playwright.sync_api import expect

    held: list[Any] = []
    page.route("**/queue/join*", lambda route: held.append(route))
    page.get_by_role("radio", name="Item", exact=True).check()
    pending = page.locator("#answers .pending")
    expect(pending).to_be_visible()
    page.wait_for_timeout(700)
    word = pending.evaluate("(e) => { const s = getComputedStyle(e, '::before'); return [s.content, s.visibility]; }")
    assert word == ['"Asking the model …"', "visible"]
    for route in held:
        route.continue_()
    expect(page.locator("#answers thead").first).to_contain_text("Item")
    expect(pending).to_have_count(0)


@pytest.mark.browser
def test_on_a_phone_the_answers_come_first_and_the_search_is_folded(visit: Any) -> None:
    from playwright.sync_api import expect

    page = visit(390, 844)
    first = page.locator("#answers tbody tr").first
    expect(page.get_by_label("Find an item")).to_be_hidden()
    expect(page.locator("#answers .bnb-context").first).to_contain_text("After 4 events, the last: view")
    assert 0 < first.bounding_box()["y"] < first.bounding_box()["y"] + first.bounding_box()["height"] < 844
    assert first.bounding_box()["y"] < page.locator("#history").bounding_box()["y"]
    page.get_by_role("button", name="Change the history").click()
    page.get_by_label("Find an item").fill("oak")
    expect(page.get_by_label("Desk, oak (5)")).to_be_checked()
    page.get_by_role("button", name="Add event").click()
    expect(page.locator("#answers .bnb-context").first).to_contain_text("After 5 events, the last: viewDesk, oak 5")


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_the_page_fits_the_screen(visit: Any, width: int) -> None:
    page = visit(width, 844)
    page.get_by_role("button", name="Change the history" if width < 768 else "Options").click()
    page.get_by_role("tab", name="Paste events").click()
    for text, named in ((f"{LONG},view\n84,{LONG}", ".bnb-hint"), (f"item,{LONG}\n84,3", ".bnb-error")):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for bar in page.locator("#answers .bnb-bar, #answers .bnb-paths").all():
            box = bar.bounding_box()
            assert box is None or box["x"] + box["width"] <= width
        page.locator("#events textarea").fill(text)
        page.wait_for_selector(f"#answers {named}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_history_says_what_each_event_does_to_the_first_answer(app: Any, model: Any) -> None:
    events = [{"item": "84", "action": "view"}, {"item": "5", "action": "buy"}]
    expected = model.predict({"events": events}, of="item", top_k=1, explain=True)[0]["contributions"]
    assert model.contributions(events, "item", None, False, 10) == expected
    history, _ = app.Page(model, None).ask("84,view\n5,buy", "Item", app.ANY_ACTION, False, 5)
    shown_effects = re.findall(r'<b class="bnb-effect[^>]*>([^<]*)</b>', history)
    assert shown_effects == [app.as_html(app.factor(number)) for number in reversed(expected)]
    assert model.contributions(events * 40, "item", None, False, 10) is None
    assert "bnb-effect" not in app.Page(model, None).ask("", "Item", app.ANY_ACTION, False, 5)[0]


def test_a_model_of_older_code_is_asked_without_explanations(app: Any, model: Any) -> None:
    class Older:
        def __call__(self, inputs: Any, **options: Any) -> Any:
            if "explain" in options:
                raise TypeError("explain is not an option")
            return model.predict(inputs, **options)

    older = object.__new__(app.LoadedModel)
    older.predict = Older()
    assert older.contributions([{"item": "84"}], "item", None, False, 10) is None
