"""Prediction sets and explanations over HTTP are those of `predict`, whichever engine answers."""

from __future__ import annotations

import asyncio
import json
import tarfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import pytest
from golden import ARCHIVE
from served import check_explained, predictor_in_memory
from service_parts import Client, FakePredictor, Reply, fake_service, started
from tiny import load

from next_behavior.model.pipeline_behavior import NextBehaviorPipeline
from next_behavior.model.vocabulary import VOCABULARY_FILE, VocabularyTable
from next_behavior.serving import explaining_queue, messages, questions
from next_behavior.serving.answering import Answering
from next_behavior.serving.golden import difference_between
from next_behavior.serving.metrics import Metrics
from next_behavior.serving.service import Service, Settings
from next_behavior.serving.torch_predictor import TorchPredictor

START = 1_700_000_000
SET_LIMITS = {
    "item_set_limits": np.linspace(0.003, 0.983, 99).tolist(),
    "action_set_limits": np.linspace(0, 0.9, 99).tolist(),
}
HISTORIES: dict[str, list[dict[str, Any]]] = {
    "mixed": [
        {"item": "i2", "action": "view", "timestamp": START},
        {"item": "unknown", "action": "view", "timestamp": START + 60},
        {"action": "search", "timestamp": START + 200},
        {"item": "i5", "action": "view", "timestamp": START + 400_000},
        {"item": "unknown", "action": "buy", "timestamp": START + 400_020},
    ],
    "empty": [],
    "long": [{"item": f"i{place % 15}", "action": "view", "timestamp": START + 60 * place} for place in range(28)],
}

SETS: list[dict[str, Any]] = [
    {"of": "item", "coverage": 0.3},
    {"of": "item", "coverage": 0.9, "paths": True, "top_k": 1},
    {"of": "action", "coverage": 0.5},
]
QUESTIONS: list[dict[str, Any]] = [
    {},
    {"of": "item", "exclude_seen": True},
    {"of": "item", "action": "buy"},
    {"of": "item", "allowed_items": ["i1", "i2", "i5", "i7"]},
    {"of": "action"},
]
# Beside `QUESTIONS` and `HISTORIES`, with what the memory has learned in between.
LEARNED = [HISTORIES["long"][:5], HISTORIES["mixed"][:4], HISTORIES["long"][4:9]]


class Shop:
    """The golden model (item text, three actions, times), some of its items retired, with limits of prediction sets."""

    def __init__(self, folder: Path) -> None:
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(folder, filter="data")
        self.folder = folder / "model"

    def loaded(self) -> tuple[Any, Any]:
        model, tokenizer = load(self.folder)
        for name, limits in SET_LIMITS.items():
            setattr(model.config, name, limits)
        model.retire_items(tokenizer, ["i3", "i9"])
        return model, tokenizer

    def predictor(self, engine: str, place: Path) -> Answering:
        model, tokenizer = self.loaded()
        if engine == "onnx":
            return predictor_in_memory(model, tokenizer, place)
        vocabulary = VocabularyTable((self.folder / VOCABULARY_FILE).read_bytes())
        return TorchPredictor(model.eval(), tokenizer, vocabulary, "in memory")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def predict(shop: Shop) -> NextBehaviorPipeline:
    model, tokenizer = shop.loaded()
    return NextBehaviorPipeline(model=model, tokenizer=tokenizer, device="cpu")


@pytest.fixture(scope="module", params=["onnx", "torch"])
def predictor(request: pytest.FixtureRequest, shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    return shop.predictor(request.param, tmp_path_factory.mktemp("bundle") / "b")  # type: ignore[return-value]


def run(predictor: Answering, test: Callable[[Client], Coroutine[Any, Any, None]], **settings: Any) -> None:
    """Runs a test on a service that answers with a predictor."""

    async def whole() -> None:
        service = Service(Settings(model="m", **settings), Metrics(), lambda *_: Path("m"), lambda _: predictor)
        async with started(service) as client:
            await test(client)

    asyncio.run(whole())


async def asked(client: Client, events: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    reply = await client.post("/v1/predict", {"events": events, **options})
    assert reply.status == 200, reply.body
    answers: list[dict[str, Any]] = reply.json()["answers"]
    return answers


def detail(reply: Reply) -> str:
    """Of an error that says what was wrong with the question."""
    assert reply.status == 422, reply.body
    assert reply.headers["content-type"] == "application/problem+json"
    return str(reply.json()["detail"])


# -- prediction sets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HISTORIES)
def test_a_set_over_http_is_that_of_predict(predictor: Answering, predict: NextBehaviorPipeline, name: str) -> None:
    async def test(client: Client) -> None:
        for options in SETS:
            wanted = predict({"events": HISTORIES[name]}, **options)
            found = await asked(client, HISTORIES[name], **options)
            assert [answer["item"] for answer in found] == [answer["item"] for answer in wanted]
            assert difference_between(found, wanted) is None

    run(predictor, test)


def test_the_set_of_a_stored_user_is_that_of_the_history(shop: Shop, tmp_path: Path) -> None:
    history = [event for event in HISTORIES["mixed"] if event.get("action") != "buy"]

    async def test(client: Client) -> None:
        events = [{"event_id": f"e{place}", "user_id": "a/n", **event} for place, event in enumerate(history)]
        await client.post("/v1/events", {"events": events, "learned": True})
        reply = await client.get(f"/v1/users/{quote('a/n', safe='')}/next?of=item&coverage=0.4")
        assert reply.json()["answers"] == await asked(client, history, of="item", coverage=0.4)

    predictor = shop.predictor("onnx", tmp_path / "bundle")  # its own, because it learns
    run(predictor, test, store=str(tmp_path / "events.sqlite"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": "item", "coverage": 1.5}, "<= 0.99 (at $.coverage)"),
        ({"of": "item", "coverage": 0}, ">= 0.01 (at $.coverage)"),
        ({"of": "item", "coverage": "0.9"}, "got `str` (at $.coverage)"),
        ({"coverage": 0.9}, 'use of="item" or of="action"'),
        ({"of": "item", "coverage": 0.9, "exclude_seen": True}, "do not apply to it"),
        ({"of": "item", "coverage": 0.9, "action": "buy"}, "do not apply to it"),
        ({"of": "item", "coverage": 0.9, "allowed_items": ["i1"]}, "do not apply to it"),
    ],
    ids=str,
)
def test_a_set_that_cannot_be_promised_is_refused_in_a_sentence(
    predictor: Answering, options: dict[str, Any], message: str
) -> None:
    async def test(client: Client) -> None:
        assert message in detail(await client.post("/v1/predict", {"events": [], **options}))

    run(predictor, test)


def test_a_model_without_limits_says_how_to_get_them(shop: Shop, tmp_path: Path) -> None:
    model, tokenizer = load(shop.folder)
    model.config.item_set_limits = []

    async def test(client: Client) -> None:
        reply = await client.post("/v1/predict", {"events": [], "of": "item", "coverage": 0.9})
        assert "next-behavior calibrate" in detail(reply)

    run(predictor_in_memory(model, tokenizer, tmp_path / "bundle"), test)


def test_a_set_that_is_too_large_to_send_is_refused(predictor: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(client: Client) -> None:
        whole = await asked(client, HISTORIES["mixed"], of="item", coverage=0.9)
        monkeypatch.setattr(messages, "MOST_IN_SET", len(whole))
        assert await asked(client, HISTORIES["mixed"], of="item", coverage=0.9) == whole
        monkeypatch.setattr(messages, "MOST_IN_SET", len(whole) - 1)
        question = {"events": HISTORIES["mixed"], "of": "item", "coverage": 0.9}
        assert "ask for a lower coverage" in detail(await client.post("/v1/predict", question))
        assert len(await asked(client, HISTORIES["mixed"], of="item", top_k=100)) > len(whole) - 1

    run(predictor, test)


def test_a_coverage_in_a_query_is_read_as_in_a_body(tmp_path: Path) -> None:
    async def whole() -> None:
        async with started(fake_service(store=str(tmp_path / "events.sqlite"))) as client:
            for value in ("2", "nan", "much", ""):
                query = urlencode({"of": "item", "coverage": value})
                assert "$.coverage" in detail(await client.get(f"/v1/users/ann/next?{query}"))
            document = json.loads((await client.get("/openapi.json")).body)
            parameters = document["paths"]["/v1/users/{user_id}/next"]["get"]["parameters"]
            coverage = next(one for one in parameters if one["name"] == "coverage")
            assert (coverage["schema"]["minimum"], coverage["schema"]["maximum"]) == (0.01, 0.99)

    asyncio.run(whole())


# -- explanations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HISTORIES)
def test_an_explanation_over_http_is_that_of_predict(
    predictor: Answering, predict: NextBehaviorPipeline, name: str
) -> None:
    async def test(client: Client) -> None:
        for question in QUESTIONS:
            wanted = predict({"events": HISTORIES[name]}, explain=True, top_k=5, **question)
            check_explained(await asked(client, HISTORIES[name], explain=True, top_k=5, **question), wanted)

    run(predictor, test)


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_an_explanation_follows_what_the_memory_has_learned(shop: Shop, tmp_path: Path, engine: str) -> None:
    predictor, (model, tokenizer) = shop.predictor(engine, tmp_path / "bundle"), shop.loaded()
    pipeline = NextBehaviorPipeline(model=model, tokenizer=tokenizer, device="cpu")
    history = LEARNED[0]
    before = predictor.answer(history, of="item", explain=True)
    for learned in LEARNED * 3:
        predictor.count(learned)
        model.update_memory(**tokenizer([learned], return_tensors="pt"))
    after = predictor.answer(history, of="item", explain=True)
    check_explained(after, pipeline({"events": history}, of="item", explain=True))
    assert [answer["contributions"] for answer in after] != [answer["contributions"] for answer in before]


def test_the_explanation_of_a_stored_user_is_that_of_the_history(shop: Shop, tmp_path: Path) -> None:
    history = HISTORIES["long"][:6]

    async def test(client: Client) -> None:
        events = [{"event_id": f"e{place}", "user_id": "ann", **event} for place, event in enumerate(history)]
        await client.post("/v1/events", {"events": events, "learned": True})
        reply = await client.get("/v1/users/ann/next?explain=true&top_k=4")
        assert reply.json()["answers"] == await asked(client, history, explain=True, top_k=4)

    run(shop.predictor("onnx", tmp_path / "bundle"), test, store=str(tmp_path / "events.sqlite"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"explain": "integrated_gradients"}, "gradients and counterfactuals are computed by `predict` in Python"),
        ({"explain": True, "top_k": 21}, "`top_k` of at most 20"),
        ({"explain": True, "of": "item", "coverage": 0.9}, "ask again with explain and top_k"),
        ({"explain": 1}, "got `int`"),
    ],
    ids=str,
)
def test_an_explanation_that_there_is_not_is_refused(
    predictor: Answering, options: dict[str, Any], message: str
) -> None:
    async def test(client: Client) -> None:
        assert message in detail(await client.post("/v1/predict", {"events": [], **options}))

    run(predictor, test)


def test_a_history_that_is_too_long_to_explain_is_refused_with_the_length_that_is_not(
    predictor: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(client: Client) -> None:
        limits = (await client.get("/info")).json()["limits"]
        assert (limits["explained_answers"], limits["explained_events"]) == (20, 24)
        scores = len(predictor.info.actions) * predictor.info.items
        monkeypatch.setattr(questions, "MOST_SCORES", 7 * scores)  # of three events
        reply = await client.post("/v1/predict", {"events": HISTORIES["long"][:4], "explain": True})
        assert "a history of 4 events, expected at most 3" in detail(reply)
        assert await asked(client, HISTORIES["long"][:3], explain=True)

    run(predictor, test)


def test_a_predictor_says_that_gradients_are_for_the_pipeline(predictor: Answering) -> None:
    with pytest.raises(ValueError, match="a predictor takes explain=True"):
        predictor.ask([], explain="integrated_gradients")  # type: ignore[arg-type]


# -- what an explanation may cost --------------------------------------------------------------------------------------


EXPLAINED = {"events": [{"item": f"i{place}"} for place in range(5)], "explain": True}


def with_fake(test: Callable[[Client, FakePredictor], Coroutine[Any, Any, None]], **settings: Any) -> None:
    """Runs a test on a service of a small predictor."""

    async def whole() -> None:
        async with started(fake_service(**settings)) as client:
            assert client.service.live is not None
            assert isinstance(client.service.live.predictor, FakePredictor)
            await test(client, client.service.live.predictor)

    asyncio.run(whole())


def test_others_are_answered_between_two_steps_and_nothing_is_counted(tmp_path: Path) -> None:
    async def test(client: Client, predictor: FakePredictor) -> None:
        done: list[str] = []

        async def note(name: str, call: Coroutine[Any, Any, Reply]) -> None:
            assert (await call).status == 200
            done.append(name)

        event = {"event_id": "e1", "user_id": "ann", "item": "i3", "timestamp": 1000}
        counted: list[int] = []
        predictor.explaining = lambda: counted.append(sum(predictor.counts.values())) or time.sleep(0.02)  # type: ignore[func-returns-value]
        explanation = asyncio.ensure_future(note("explained", client.post("/v1/predict", EXPLAINED)))
        await asyncio.sleep(0)
        await asyncio.gather(
            explanation,
            note("plain", client.post("/v1/predict", {"events": []})),
            note("learned", client.post("/v1/events", {"events": [event], "learned": True})),
        )
        assert done == ["plain", "explained", "learned"]
        assert counted == [0] * 5
        assert predictor.counts == {"i3": 1}

    with_fake(test, store=str(tmp_path / "events.sqlite"))


def test_a_step_that_may_run_beside_answers_is_left_to_a_thread() -> None:
    async def test(client: Client, predictor: FakePredictor) -> None:
        threads: set[str] = set()
        predictor.explains_beside = True
        predictor.explaining = lambda: threads.add(threading.current_thread().name)
        assert (await client.post("/v1/predict", EXPLAINED)).status == 200
        assert threading.current_thread().name not in threads

    with_fake(test)


def test_more_explanations_than_may_wait_are_refused_and_late_ones_are_not_begun() -> None:
    async def test(client: Client, predictor: FakePredictor) -> None:
        asking = [client.post("/v1/predict", EXPLAINED) for _ in range(explaining_queue.MOST_WAITING + 2)]
        statuses = [reply.status for reply in await asyncio.gather(*asking)]
        assert sorted(statuses) == [200] * explaining_queue.MOST_WAITING + [429] * 2
        steps: list[int] = []
        predictor.explaining = lambda: steps.append(1) or time.sleep(0.005)  # type: ignore[func-returns-value]
        late = client.post("/v1/predict", EXPLAINED, headers={"x-timeout-ms": "1"})
        first, second = await asyncio.gather(client.post("/v1/predict", EXPLAINED), late)
        assert (first.status, second.status, len(steps)) == (200, 504, 5)

    with_fake(test)


def test_an_explanation_for_a_client_that_left_is_not_begun_and_one_that_fails_is_a_fault() -> None:
    async def test(client: Client, predictor: FakePredictor) -> None:
        steps: list[int] = []
        predictor.explaining = lambda: steps.append(1)
        await client.post("/v1/predict", EXPLAINED, gone=True)
        assert steps == []
        reply = await client.post("/v1/predict", {"events": [{"item": "explode"}], "explain": True})
        assert reply.status == 500
        assert b"explode" not in reply.body
        assert (await client.post("/v1/predict", EXPLAINED)).status == 200

    with_fake(test)
