"""The page at / of the service: its files, the routes it needs, and (`make test-browser`) the page in a browser."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from browsers import chromium
from service_parts import Client, FakePredictor, fake_service, listening, started

from next_behavior.data.shown import shown
from next_behavior.model.vocabulary import VocabularyTable, tsv_field
from next_behavior.publishing.explained_user import factor
from next_behavior.serving import page_files
from next_behavior.serving.item_search import ItemSearch
from next_behavior.serving.metrics import Metrics
from next_behavior.serving.predictor import Predictor
from next_behavior.serving.service import Service, Settings

TOKEN = "0123456789abcdef-token"
PAGE = Path(page_files.__file__).parent / "page"
SCRIPT = "<script>window.harmed = 1</script>"
IMAGE = '<img src=x onerror="window.harmed = 1">'
HOSTILE = "\u202eevil\u2066\x1b[31m\nsecond \u200bline \U000e0001"
LONG = "x" * 20_000


def run(test: Callable[[Client], Coroutine[Any, Any, None]], headers: Any = None, **settings: Any) -> None:
    async def whole() -> None:
        async with started(fake_service(**settings), headers) as client:
            await test(client)

    asyncio.run(whole())


def table(*items: tuple[str, str]) -> VocabularyTable:
    """A vocabulary of (item, title)."""
    lines = ["id\titem\tcount\ttitle"]
    lines += [f"{5 + row}\t{tsv_field(item)}\t3\t{tsv_field(title)}" for row, (item, title) in enumerate(items)]
    return VocabularyTable("\n".join([*lines, ""]).encode())


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "events.sqlite")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.txt"
    path.write_text(TOKEN)
    return path


# -- files -------------------------------------------------------------------------------------------------------------


def test_the_files_need_no_token_and_what_they_ask_for_does(tokens: Path, store: str) -> None:
    async def test(client: Client) -> None:
        for path, kind in (("/", "text/html"), ("/page/floor.js", "text/javascript"), ("/page/floor.css", "text/css")):
            reply = await client.get(path)
            assert reply.status == 200
            assert reply.headers["content-type"].startswith(kind)
            assert reply.headers["content-security-policy"] == page_files.POLICY
            assert reply.headers["x-content-type-options"] == "nosniff"
        other = ("/page/", "/page/no.js", "/page/../page_files.py")
        for path in ("/v1/items", "/v1/users", "/v1/users/ann/events", *other):
            assert (await client.get(path)).status == 401
            reply = await client.get(path, headers={"authorization": f"Bearer {TOKEN}"})
            assert reply.status == (200 if path.startswith("/v1") else 404)

    run(test, token_file=tokens, store=store, page=True)


def test_every_file_of_the_page_is_served_and_names_no_other_host() -> None:
    served = {route.path for route in page_files.routes()}
    assert served == {"/"} | {f"/page/{file.name}" for file in PAGE.iterdir() if file.name != page_files.INDEX}
    for file in PAGE.iterdir():
        text = file.read_text(encoding="utf-8")
        addresses = set(re.findall(r"https?://[^\s\"']+", text)) - {"http://www.w3.org/2000/svg"}
        assert not addresses, f"{file.name}: {addresses}"
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), file.name
        for name in re.findall(r"(?:from \"\.|href=\"/page|src=\"/page)/([\w.]+)\"", text):
            assert (PAGE / name).is_file(), f"{file.name} needs {name}"


def test_nothing_of_the_index_is_inline() -> None:
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", text)
    assert re.findall(r"<script([^>]*)>(.*?)</script>", text) == [(' type="module" src="/page/floor.js"', "")]
    script = (PAGE / "floor.js").read_text(encoding="utf-8")
    ids = set(re.findall(r'\sid="([\w-]+)"', text))
    assert set(re.findall(r'\bat\("([\w-]+)"\)', script)) <= ids | {"action"}, "an element that is not there"


# -- what may be looked up ---------------------------------------------------------------------------------------------


def test_items_are_found_by_all_words_of_title_and_id_the_more_common_first() -> None:
    search = ItemSearch(table(("84", "Desk LAMP"), ("5", "Lamp\nof oak"), ("lamp-7", ""), ("9", "Straße")))
    assert search.lines("lamp", 9) == [1, 2, 3]
    assert search.lines("lamp", 2) == [1, 2]
    assert search.lines(" OAK  lamp ", 9) == [2]
    assert search.lines("lamp 84", 9) == [1]
    assert search.lines("STRASSE", 9) == [4]
    assert search.lines("", 9) == [1, 2, 3, 4]
    assert search.lines("desk oak", 9) == []
    assert ItemSearch(table()).lines("", 9) == []


def test_a_search_gives_the_item_of_that_id_first_and_titles_where_there_are_some() -> None:
    async def test(client: Client) -> None:
        reply = await client.get("/v1/items?query=i3&limit=1")
        assert reply.json() == {"items": [{"item": "i3", "title": "Title 3"}]}
        everything = (await client.get("/v1/items")).json()["items"]
        assert [one["item"] for one in everything] == [f"i{n}" for n in range(9)]
        assert everything[8]["title"] is None
        assert (await client.get("/v1/items?query=title%205")).json()["items"] == [{"item": "i5", "title": "Title 5"}]
        for query in ("limit=0", "limit=101", "limit=x", "query=a&query=b", "q=a", f"query={'%C3%A9' * 129}"):
            assert (await client.get(f"/v1/items?{query}")).status == 422

    run(test)


def test_users_are_found_by_the_beginning_of_their_id_with_their_events_in_order(store: str) -> None:
    async def test(client: Client) -> None:
        events = [
            {"event_id": f"e{n}", "user_id": user, "item": item, "action": "view", "timestamp": 1000.0 - n}
            for n, (user, item) in enumerate([("ann", "i1"), ("ann", "unheard of"), ("bob/1", None)])
        ]
        await client.post("/v1/events", {"events": events})
        assert sorted((await client.get("/v1/users")).json()["users"]) == ["ann", "bob/1"]
        assert (await client.get("/v1/users?prefix=b")).json() == {"users": ["bob/1"]}
        assert (await client.get("/v1/users/ann/events")).json()["events"] == [
            {"item": "unheard of", "action": "view", "timestamp": 999.0, "title": None, "known": False},
            {"item": "i1", "action": "view", "timestamp": 1000.0, "title": "Title 1", "known": True},
        ]
        assert [one["item"] for one in (await client.get("/v1/users/bob%2F1/events")).json()["events"]] == [None]
        assert (await client.get("/v1/users/nobody/events")).json() == {"events": []}

    run(test, store=store)


def test_without_a_store_users_cannot_be_looked_up_and_items_can() -> None:
    async def test(client: Client) -> None:
        assert (await client.get("/v1/users")).status == 503
        assert (await client.get("/v1/users/ann/events")).status == 503
        assert (await client.get("/v1/items")).status == 200
        assert (await client.get("/page/floor.js")).status == 404

    run(test, page=False)


# -- in a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@contextmanager
def visiting(browser: Any, service: Service, **window: Any) -> Iterator[Any]:
    """The page of a service in a window. At the end no other host was asked, no script of an id ran, and the page's
    policy was never broken."""
    width, height = window.pop("size", (1280, 900))
    with listening(service) as (port, server):
        address = f"http://127.0.0.1:{port}"
        page = browser.new_page(viewport={"width": width, "height": height}, **window)
        asked: list[str] = []
        faults: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: faults.append(line.text) if "Security Policy" in line.text else None)
        try:
            page.goto(f"{address}/")
            page.server = server
            yield page
            assert page.evaluate("window.harmed") is None
            assert not faults
            assert all(url.startswith(address) for url in asked)
        finally:
            page.close()


def real_service(folder: Path, model: Path, **settings: Any) -> Service:
    from next_behavior.serving.export import bundle_for

    chosen = Settings(model=str(model), store=str(folder / "events.sqlite"), page=True, **settings)
    return Service(chosen, Metrics(), bundle_for, Predictor.load)


@pytest.fixture
def floor(browser: Any, exported: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens the page of a service that serves the golden model."""
    with ExitStack() as stack:

        def opened(**more: Any) -> Any:
            settings = {name: more.pop(name) for name in ("token_file",) if name in more}
            return stack.enter_context(visiting(browser, real_service(tmp_path, exported, **settings), **more))

        yield opened


def answers_of(page: Any) -> list[str]:
    return page.locator("#answers tbody tr").all_inner_texts()


def store_a_user(page: Any, user: str) -> None:
    page.get_by_role("radio", name="Stored user").check()
    page.get_by_label("Find a user").fill(user)
    page.get_by_role("button", name=f"Open {user}").click()


@pytest.mark.browser
def test_a_history_is_built_by_clicks_and_every_event_changes_the_answers(floor: Any) -> None:
    from playwright.sync_api import expect

    page = floor()
    expect(page.locator("#answers tbody tr")).to_have_count(10)
    expect(page.locator("#history")).to_contain_text("No events yet")
    before = answers_of(page)
    page.get_by_label("Find an item").fill("comb")
    page.locator("#shelf .tile", has_text="comb").first.click()
    expect(page.locator("#history li")).to_have_count(1)
    expect(page.locator("#answers .change").first).to_be_visible()
    assert answers_of(page) != before
    page.get_by_role("button", name=re.compile("^Add ")).first.click()
    expect(page.locator("#history li")).to_have_count(2)
    expect(page.locator("#when")).to_contain_text("half of the time within")
    expect(page.locator("#answers .paths").first).to_have_attribute("title", re.compile("generated .* repeated .*"))
    page.get_by_role("radio", name="Action", exact=True).check()
    expect(page.locator("#answers tbody tr")).to_have_count(3)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#history")).to_contain_text("No events yet")
    expect(page.locator("#lesson")).to_contain_text("a draft is not stored")


@pytest.mark.browser
def test_what_the_memory_learned_from_a_click_is_shown_with_its_weights(floor: Any) -> None:
    from playwright.sync_api import expect

    page = floor()
    store_a_user(page, "ann")
    expect(page.locator("#context")).to_contain_text("User ann")
    tiles = page.locator("#shelf .tile")
    tiles.nth(0).click()
    expect(page.locator("#lesson")).to_contain_text("No new pair")
    tiles.nth(1).click()
    expect(page.locator("#lesson .pairs li")).to_have_count(1)
    expect(page.locator("#lesson .pairs li b")).to_have_text(re.compile(r"^\+\d\.\d+$"))
    expect(page.locator("#history li")).to_have_count(2)
    expect(page.locator("#lesson .pairs")).to_contain_text(page.locator("#history li .name").last.inner_text())
    store = page.server.service.store
    assert [event["item"] is not None for event in store.history("ann", 9)] == [True, True]
    page.reload()
    page.get_by_role("radio", name="Stored user").check()
    page.get_by_role("button", name="ann").click()
    expect(page.locator("#history li")).to_have_count(2)


@pytest.mark.browser
def test_events_that_others_send_show_up_by_themselves(floor: Any) -> None:
    from playwright.sync_api import expect

    page = floor()
    store_a_user(page, "ann")
    expect(page.locator("#history")).to_contain_text("No events yet")
    page.evaluate(
        """async () => fetch("/v1/events", {method: "POST", headers: {"Content-Type": "application/json"},
        body: JSON.stringify({events: [{event_id: "1", user_id: "ann", item: "i1", timestamp: Date.now() / 1000}]})})"""
    )
    expect(page.locator("#history li")).to_have_count(1, timeout=10_000)


@pytest.mark.browser
def test_a_draft_is_stored_as_a_new_user_on_demand(floor: Any) -> None:
    from playwright.sync_api import expect

    page = floor()
    for number in (0, 1, 2):
        page.locator("#shelf .tile").nth(number).click()
        expect(page.locator("#history li")).to_have_count(number + 1)
    page.get_by_role("button", name="Store this draft as a new user").click()
    expect(page.locator("#context")).to_contain_text("User floor-")
    expect(page.locator("#lesson .pairs li")).to_have_count(2)
    expect(page.locator("#history li")).to_have_count(3)


@pytest.mark.browser
def test_a_token_is_asked_for_and_kept_in_the_tab(floor: Any, tokens: Path) -> None:
    from playwright.sync_api import expect

    page = floor(token_file=tokens)
    gate = page.get_by_role("dialog")
    expect(gate).to_be_visible()
    expect(page.locator("#refused")).to_be_hidden()
    for wrong in ("a wrong token", "é" * 20):
        page.get_by_label("Token", exact=True).fill(wrong)
        page.keyboard.press("Enter")
        expect(page.locator("#refused")).to_be_visible()
    page.get_by_label("Token", exact=True).fill(TOKEN)
    page.keyboard.press("Enter")
    expect(gate).to_be_hidden()
    expect(page.locator("#answers tbody tr")).to_have_count(10)
    page.reload()
    expect(page.locator("#answers tbody tr")).to_have_count(10)
    page.get_by_role("button", name="Forget the token").click()
    expect(gate).to_be_visible()
    assert page.evaluate("JSON.stringify([sessionStorage.length, localStorage.length])") == "[0,0]"


def hostile_service(store: str) -> Service:
    """A service whose catalog and whose users have ids and titles that mean harm."""
    service = fake_service(store=store, page=True)
    load = service.load

    def load_hostile(bundle: Path) -> Any:
        predictor = load(bundle)
        assert isinstance(predictor, FakePredictor)
        predictor.vocabulary = table(
            *(("i0", IMAGE), ("i1", HOSTILE), ("i2", ""), ("i3", "word " * 4_000), ("i4", LONG), (LONG, SCRIPT)),
            *((f"i{n}", "A title") for n in range(6, 9)),
        )
        predictor.info.actions = ("view", "<b>buy</b>", HOSTILE)
        plain = predictor._answers

        def answers(asked: Any) -> Any:
            found = plain(asked)
            for place, answer in enumerate(found):
                answer["title"] = predictor.vocabulary.fields(place + 1)[3] or None
                answer["action"] = predictor.info.actions[place % 3]
                answer["paths"] = {"generate": 0.2, "repeat": 0.5, "associate": 0.3}
            return found

        predictor._answers = answers  # type: ignore[method-assign]
        return predictor

    service.load = load_hostile
    return service


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_hostile_ids_and_titles_are_text_and_fit_the_screen(browser: Any, store: str, width: int) -> None:
    from playwright.sync_api import expect

    with visiting(browser, hostile_service(store), size=(width, 844)) as page:
        expect(page.locator("#answers tbody tr")).to_have_count(9)
        for text in (IMAGE, "<b>buy</b>", r"\u202eevil\u2066\x1b[31m\nsecond \u200bline \U000e0001"):
            expect(page.locator("#answers")).to_contain_text(text)
        expect(page.locator("#shelf")).to_contain_text(SCRIPT)
        for number in (0, 1, 2, 4):
            page.locator("#shelf .tile").nth(number).click()
        expect(page.locator("#history li")).to_have_count(4)
        page.get_by_role("button", name=re.compile("^Why")).nth(1).click()
        expect(page.locator(".reasons")).to_contain_text(IMAGE)
        expect(page.locator("#history .effect")).to_have_count(4)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator("#shelf .tile").nth(5).click()
        expect(page.locator("#trouble")).to_contain_text("at most 256")
        expect(page.locator("#history li")).to_have_count(4)
        page.get_by_label("Find an item").fill(IMAGE)
        expect(page.locator("#shelf .tile")).to_have_count(2)
        page.locator("#shelf .tile").nth(1).click()
        expect(page.locator("#history")).to_contain_text("new to the model")
        store_a_user(page, SCRIPT)
        expect(page.locator("#context")).to_contain_text(f"User {SCRIPT}")
        page.locator("#shelf .tile").nth(0).click()
        expect(page.locator("#history li")).to_have_count(1)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("body").inner_text().count("x" * 121) == 0


@pytest.mark.browser
def test_the_page_shows_text_by_the_rule_of_the_commands(browser: Any) -> None:
    texts = [HOSTILE, LONG, "\x7f" * 200, "", "👩\u200d🔬" * 60, "\x85\u2028\t\r\xad\ufeff", "é" * 121, "a\x00" * 61]
    with visiting(browser, fake_service(page=True)) as page:
        page.evaluate("async () => { window.shown = (await import('/page/shown.js')).shown; }")
        found = page.evaluate("(texts) => texts.map((text) => shown(text))", texts)
        lone = page.evaluate("shown('a\\ud800')")
    assert found == [shown(text) for text in texts]
    assert lone == shown("a\ud800")


@pytest.mark.browser
def test_a_busy_and_a_silent_service_are_explained_and_asked_again(browser: Any, store: str) -> None:
    from playwright.sync_api import expect

    with visiting(browser, fake_service(store=store, page=True)) as page:
        expect(page.locator("#answers tbody tr")).to_have_count(9)
        problem = {"status": 429, "detail": "too many questions wait", "request_id": "r1"}
        busy = {"status": 429, "headers": {"Retry-After": "1"}, "json": problem}
        page.route("**/v1/predict", lambda route: route.fulfill(**busy))
        page.locator("#shelf .tile").nth(0).click()
        expect(page.locator("#trouble")).to_contain_text("Too many questions wait. Asking again in 1 second.")
        page.unroute("**/v1/predict")
        expect(page.locator("#trouble")).to_be_empty(timeout=10_000)
        expect(page.locator("#history li")).to_have_count(1)

        page.route("**/*", lambda route: route.abort())
        expect(page.locator("#served")).to_have_text("Offline", timeout=10_000)
        expect(page.locator("#trouble")).to_contain_text("The service does not answer")
        page.unroute("**/*")
        expect(page.locator("#trouble")).to_be_empty(timeout=10_000)
        expect(page.locator("#served")).to_contain_text("Live")


@pytest.mark.browser
def test_an_event_that_could_not_be_stored_is_sent_again_with_its_id(browser: Any, store: str) -> None:
    from playwright.sync_api import expect

    with visiting(browser, fake_service(store=store, page=True)) as page:
        store_a_user(page, "ann")
        sent: list[str] = []

        def lose_the_answer(route: Any) -> None:
            sent.append(route.request.post_data)
            route.fetch()
            route.abort()

        page.route("**/v1/events", lose_the_answer)
        page.locator("#shelf .tile").nth(0).click()
        expect(page.locator("#unsent")).to_contain_text("The event is not stored. The service does not answer.")
        expect(page.locator("#history")).to_contain_text("not stored")
        page.locator("#shelf .tile").nth(1).click()
        expect(page.locator("#unsent")).to_contain_text("2 events are not stored.")
        page.unroute("**/v1/events")
        page.on("request", lambda request: sent.append(request.post_data) if request.method == "POST" else None)
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#unsent")).to_be_empty()
        expect(page.locator("#lesson .pairs li")).to_have_count(1)
        assert sent[0] == sent[1] == sent[2] != sent[3]
        assert len(sent) == 4
        assert [event["item"] for event in page.server.service.store.history("ann", 9)] == ["i0", "i1"]


@pytest.mark.browser
def test_on_a_phone_the_answers_come_first_and_a_click_says_what_is_first_now(floor: Any) -> None:
    from playwright.sync_api import expect

    page = floor(size=(390, 844), has_touch=True)
    expect(page.locator("#answers tbody tr")).to_have_count(10)
    third = page.locator("#answers tbody tr").nth(2).bounding_box()
    assert 0 < third["y"] < third["y"] + third["height"] < 844
    assert third["y"] < page.locator("#shelf").bounding_box()["y"]
    page.locator("#shelf .tile").nth(1).tap()
    said = page.get_by_role("status")
    expect(said).to_contain_text("Now first: ")
    assert said.bounding_box()["y"] > 700
    for button in page.locator("#shelf .tile, #answers .plus").all():
        box = button.bounding_box()
        assert min(box["width"], box["height"]) >= 36


@pytest.mark.browser
def test_the_page_is_used_with_the_keyboard_alone(floor: Any) -> None:
    from playwright.sync_api import expect

    page = floor()
    expect(page.locator("#answers tbody tr")).to_have_count(10)
    reached: list[str] = []
    while "tile" not in reached and len(reached) < 60:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.getAttribute('name') || document.activeElement.className"))
    assert {"of", "who", "action", "plus", "tile"} <= set(reached)
    page.keyboard.press("Enter")
    expect(page.locator("#history li")).to_have_count(1)


@pytest.mark.browser
def test_quick_clicks_are_all_stored_in_their_order(browser: Any, store: str) -> None:
    from playwright.sync_api import expect

    with visiting(browser, fake_service(store=store, page=True)) as page:
        store_a_user(page, "ann")
        page.wait_for_selector("#shelf .tile")
        page.evaluate("for (const tile of [...document.querySelectorAll('#shelf .tile')].slice(0, 5)) tile.click()")
        expect(page.locator("#history li:not(.waiting)")).to_have_count(5)
        assert [event["item"] for event in page.server.service.store.history("ann", 9)] == [f"i{n}" for n in range(5)]


@pytest.mark.browser
def test_many_actions_are_a_list_to_choose_from(browser: Any) -> None:
    from playwright.sync_api import expect

    service = fake_service(page=True)
    load = service.load

    def load_many(bundle: Path) -> Any:
        predictor = load(bundle)
        assert isinstance(predictor, FakePredictor)
        predictor.info.actions = tuple(f"action {n}" for n in range(30))
        return predictor

    service.load = load_many
    with visiting(browser, service) as page:
        page.get_by_label("Action", exact=True).last.select_option("action 7")
        page.locator("#shelf .tile").nth(0).click()
        expect(page.locator("#history .action")).to_have_text("action 7")


@pytest.mark.browser
def test_a_click_on_why_says_what_named_an_answer_and_colors_the_history(floor: Any) -> None:
    from playwright.sync_api import expect

    page = floor()
    expect(page.locator("#answers tbody tr")).to_have_count(10)
    page.get_by_role("button", name=re.compile("^Why")).first.click()
    expect(page.locator(".reasons")).to_contain_text("no event to explain it by")
    for number in (0, 1, 0, 2):
        page.locator("#shelf .tile").nth(number).click()
    expect(page.locator("#history li")).to_have_count(4)
    page.get_by_role("radio", name="Item", exact=True).check()
    expect(page.locator("#answers th.what")).to_have_text("Item")
    expect(page.locator(".reasons")).to_have_count(0)
    button = page.get_by_role("button", name=re.compile("^Why")).first
    with page.expect_response(lambda one: '"explain":true' in (one.request.post_data or "")) as response:
        button.click()
    answer = response.value.json()["answers"][0]
    expect(page.locator(".reasons")).to_contain_text("It is named")
    expect(page.locator(".reasons .matters li")).not_to_have_count(0)
    expect(button).to_be_focused()
    expect(button).to_have_attribute("aria-expanded", "true")
    falls = [factor(one) for one in answer["contributions"]]
    expect(page.locator("#history .effect")).to_have_text(falls[::-1])
    button.click()
    expect(page.locator(".reasons")).to_have_count(0)
    expect(page.locator("#history .effect")).to_have_count(0)
    page.get_by_role("radio", name="Action", exact=True).check()
    expect(page.locator("#answers tbody tr")).to_have_count(3)
    page.get_by_role("button", name=re.compile("^Why")).last.click()
    expect(page.locator("#history .effect")).to_have_count(4)
    expect(page.locator(".reasons")).to_contain_text("It names no item")


@pytest.mark.browser
def test_an_explanation_of_a_stored_user_is_of_the_stored_events(floor: Any) -> None:
    from playwright.sync_api import expect

    page = floor()
    store_a_user(page, "ann")
    for number in (0, 1, 2):
        page.locator("#shelf .tile").nth(number).click()
    expect(page.locator("#history li")).to_have_count(3)
    expect(page.locator("#history .waiting")).to_have_count(0)
    page.get_by_role("button", name=re.compile("^Why")).nth(2).click()
    expect(page.locator("#history .effect")).to_have_count(3)


@pytest.mark.browser
def test_an_explanation_that_is_refused_says_why_below_the_answer(
    browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from playwright.sync_api import expect

    plain = FakePredictor.ask

    def ask(self: FakePredictor, events: Any, **options: Any) -> Any:
        if options.get("explain"):
            raise ValueError("explain got a history of 30 events, expected at most 16")
        return plain(self, events, **options)

    monkeypatch.setattr(FakePredictor, "ask", ask)
    with visiting(browser, fake_service(page=True)) as page:
        page.get_by_role("button", name=re.compile("^Why")).first.click()
        expect(page.locator(".reasons")).to_contain_text("Explain got a history of 30 events")
        expect(page.locator("#trouble")).to_be_empty()
