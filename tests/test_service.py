"""The service over HTTP: what it answers to every kind of request and fault, without a trained model.

A small predictor stands for the real one; `test_serve_command.py` starts the real one as users do.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from service_parts import Client, FakePredictor, Reply, fake_service, started

from next_behavior.serving import access_log, security
from next_behavior.serving.app import OPERATIONS
from next_behavior.serving.event_store import StoreBusy, StoreFull
from next_behavior.serving.sqlite_store import SQLiteStore

TOKEN = "0123456789abcdef-token"


def run(test: Callable[[Client], Coroutine[Any, Any, None]], headers: Any = None, **settings: Any) -> None:
    """Runs a test on a service that is ready."""

    async def whole() -> None:
        async with started(fake_service(**settings), headers) as client:
            await test(client)

    asyncio.run(whole())


def event(number: int, user: str = "ann", item: str = "i1", at: float | None = None) -> dict[str, Any]:
    moment = 1000.0 + number if at is None else at
    return {"event_id": f"e{number}", "user_id": user, "item": item, "action": "view", "timestamp": moment}


def predictor(client: Client) -> FakePredictor:
    live = client.service.live
    assert live is not None
    assert isinstance(live.predictor, FakePredictor)
    return live.predictor


def check_problem(reply: Reply, status: int) -> dict[str, Any]:
    """Every error has the same shape."""
    assert reply.status == status, reply.body
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert set(problem) >= {"type", "title", "status", "detail", "request_id"}
    assert problem["status"] == status
    assert problem["request_id"] == reply.headers["x-request-id"]
    assert "Traceback" not in reply.body.decode()
    return problem


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "events.sqlite")


# -- questions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("events", [[], [{"item": "new"}, {"item": "newer", "action": "view"}]], ids=["empty", "new"])
def test_a_history_without_a_known_event_gets_a_cold_start_answer(events: list[Any]) -> None:
    async def test(client: Client) -> None:
        reply = await client.post("/v1/predict", {"events": events})
        assert reply.status == 200
        assert reply.json()["cold_start"] is True
        assert reply.json()["unknown_items"] == len(events)
        assert len(reply.json()["answers"]) == 9
        if events:
            assert b"nextbehavior_unknown_items_total 2.0" in (await client.get("/metrics")).body

    run(test)


def test_an_unknown_user_gets_a_cold_start_answer(store: str) -> None:
    async def test(client: Client) -> None:
        reply = await client.get("/v1/users/nobody/next")
        assert reply.status == 200
        assert reply.json()["cold_start"] is True

    run(test, store=store)


def test_an_unknown_action_is_refused_in_a_question_and_read_in_a_history() -> None:
    async def test(client: Client) -> None:
        check_problem(await client.post("/v1/predict", {"events": [], "action": "steal"}), 422)
        reply = await client.post("/v1/predict", {"events": [{"item": "i1", "action": "steal"}]})
        assert reply.status == 200

    run(test)


def test_a_long_history_is_cut_and_a_far_too_long_one_refused() -> None:
    async def test(client: Client) -> None:
        short = await client.post("/v1/predict", {"events": [{"item": "i1"}] * 5})
        cut = await client.post("/v1/predict", {"events": [{"item": "i1"}] * 512})
        assert (short.json()["truncated"], cut.json()["truncated"]) == (False, True)
        problem = check_problem(await client.post("/v1/predict", {"events": [{"item": "i1"}] * 513}), 422)
        assert problem["errors"] == [{"loc": "$.events", "msg": "Expected `array` of length <= 512"}]

    run(test)


def test_top_k_is_between_one_and_the_limit_and_never_more_than_there_are_items() -> None:
    async def test(client: Client) -> None:
        for top_k in (0, -1, 101, 10**9):
            check_problem(await client.post("/v1/predict", {"events": [], "top_k": top_k}), 422)
        assert len((await client.post("/v1/predict", {"events": [], "top_k": 100})).json()["answers"]) == 9

    run(test)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_numbers_that_json_does_not_have_are_refused(number: str) -> None:
    async def test(client: Client) -> None:
        body = b'{"events": [{"item": "i1", "timestamp": %s}]}' % number.encode()
        assert (await client.post("/v1/predict", body)).status in (400, 422)

    run(test)


@pytest.mark.parametrize("value", ["true", '"1"', "1.0", "null", "[1]"])
def test_a_value_of_another_type_is_refused(value: str) -> None:
    async def test(client: Client) -> None:
        check_problem(await client.post("/v1/predict", b'{"events": [], "top_k": %s}' % value.encode()), 422)
        if value != "1.0" and value != "null":  # a time may be a fraction, or missing
            body = b'{"events": [{"item": "i1", "timestamp": %s}]}' % value.encode()
            check_problem(await client.post("/v1/predict", body), 422)

    run(test)


def test_of_a_key_that_stands_twice_the_last_one_counts() -> None:
    async def test(client: Client) -> None:
        reply = await client.post("/v1/predict", b'{"events": [], "top_k": 1, "top_k": 2}')
        assert len(reply.json()["answers"]) == 2

    run(test)


@pytest.mark.parametrize(
    "body",
    [b'{"events":[{"item":"\\ud800"}]}', b'{"events":[{"item":"\xff"}]}', b'\xef\xbb\xbf{"events":[]}', b"", b"{"],
    ids=["lone surrogate", "not UTF-8", "byte order mark", "empty", "cut"],
)
def test_what_is_no_json_in_utf8_is_malformed(body: bytes) -> None:
    async def test(client: Client) -> None:
        check_problem(await client.post("/v1/predict", body), 400)

    run(test)


@pytest.mark.parametrize(
    "body",
    [b'{"events":' + b"[" * 100_000, b'{"a":' * 100_000, b'{"events":[],"top_k":' + b"9" * 10_000 + b"}"],
    ids=["arrays", "objects", "digits"],
)
def test_deep_nesting_and_long_numbers_are_refused_at_once(body: bytes) -> None:
    async def test(client: Client) -> None:
        begin = time.perf_counter()
        reply = await client.post("/v1/predict", body)
        assert reply.status in (400, 422)
        assert time.perf_counter() - begin < 0.5

    run(test)


def test_a_misspelled_field_is_named() -> None:
    async def test(client: Client) -> None:
        problem = check_problem(await client.post("/v1/predict", {"events": [{"itme": "i1"}]}), 422)
        assert "itme" in problem["detail"]
        assert "$.events[0]" in problem["detail"]
        check_problem(await client.post("/v1/predict", {"events": [{}]}), 422)
        check_problem(await client.post("/v1/predict", {"events": [], "topk": 3}), 422)

    run(test)


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
def test_a_body_over_the_limit_is_refused_before_it_is_read_whole(chunked: bool) -> None:
    async def test(client: Client) -> None:
        body: bytes | list[bytes] = [b" " * 400_000] * 100 if chunked else b" " * 1_000_001
        check_problem(await client.post("/v1/predict", body), 413)

    run(test)


def test_ids_are_limited_in_bytes_not_in_characters(store: str) -> None:
    async def test(client: Client) -> None:
        for item, status in (("a" * 255, 200), ("a" * 257, 422), ("😀" * 64, 200), ("😀" * 65, 422), ("😀" * 256, 422)):
            assert (await client.post("/v1/predict", {"events": [{"item": item}]})).status == status
            one = event(len(item.encode()), item=item, user=item)
            assert (await client.post("/v1/events", {"events": [one]})).status == status
            allowed = {"events": [], "allowed_items": [item]}
            assert (await client.post("/v1/predict", allowed)).status == 422

    run(test, store=store)


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "nonsense"])
def test_a_compressed_body_is_not_accepted(encoding: str) -> None:
    async def test(client: Client) -> None:
        check_problem(await client.post("/v1/predict", b"\x1f\x8b", headers={"content-encoding": encoding}), 415)

    run(test)


def test_a_wrong_type_method_or_path_has_the_shape_of_every_error() -> None:
    async def test(client: Client) -> None:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", ""):
            check_problem(await client.post("/v1/predict", b"{}", headers={"content-type": kind}), 415)
        reply = await client.get("/v1/predict")
        check_problem(reply, 405)
        assert reply.headers["allow"] == "POST"
        for path in ("/", "/v1", "/v1/predict/", "/v1/users//next", "/v1/users/a/b/next", "/admin", "/../etc"):
            check_problem(await client.get(path), 404)

    run(test)


def test_options_in_a_query_are_those_of_the_body(store: str) -> None:
    async def test(client: Client) -> None:
        reply = await client.get("/v1/users/ann/next?top_k=3&allowed_items=i4&allowed_items=i2&exclude_seen=true")
        assert [answer["item"] for answer in reply.json()["answers"]] == ["i2", "i4"]
        for query in ("top_k=0", "top_k=1.0", "topk=1", "exclude_seen=1", "top_k=1&top_k=2", "of=all", "action="):
            check_problem(await client.get(f"/v1/users/ann/next?{query}"), 422)
        for query in ("top_k", "action=%FF"):
            check_problem(await client.get(f"/v1/users/ann/next?{query}"), 400)

    run(test, store=store)


# -- the queue ---------------------------------------------------------------------------------------------------------


def test_questions_that_wait_are_answered_together_and_as_alone() -> None:
    async def test(client: Client) -> None:
        questions = [{"events": [{"item": f"i{n % 9}"}], "exclude_seen": True, "top_k": 9} for n in range(70)]
        alone = [(await client.post("/v1/predict", question)).body for question in questions]
        predictor(client).batches.clear()
        together = await asyncio.gather(*(client.post("/v1/predict", question) for question in questions))
        assert [reply.body for reply in together] == alone
        assert predictor(client).batches == [32, 32, 6]

    run(test)


def test_a_full_queue_refuses_at_once_and_the_probes_go_on() -> None:
    async def test(client: Client) -> None:
        waiting = [client.post("/v1/predict", {"events": []}) for _ in range(20)]
        replies = await asyncio.gather(*waiting, client.get("/livez"), client.get("/readyz"))
        codes = [reply.status for reply in replies]
        assert codes[-2:] == [200, 200]
        assert sorted(codes[:20]) == [200] * 4 + [429] * 16
        refused = next(reply for reply in replies if reply.status == 429)
        check_problem(refused, 429)
        assert int(refused.headers["retry-after"]) >= 1
        assert b'nextbehavior_rejected_total{reason="queue_full"} 16.0' in (await client.get("/metrics")).body

    run(test, most_waiting=4)


def test_a_question_whose_deadline_passed_is_not_put_to_the_model() -> None:
    async def test(client: Client) -> None:
        async def late() -> Reply:
            asking = asyncio.ensure_future(client.post("/v1/predict", {"events": []}, headers={"x-timeout-ms": "1"}))
            await asyncio.sleep(0)  # it waits in the queue now
            time.sleep(0.005)
            return await asking

        check_problem(await late(), 504)
        assert predictor(client).batches == []
        check_problem(await client.post("/v1/predict", {"events": []}, headers={"x-timeout-ms": "soon"}), 422)

    asyncio.run(_after_start(test))


def test_a_question_whose_client_left_is_not_put_to_the_model() -> None:
    async def test(client: Client) -> None:
        reply = await client.post("/v1/predict", {"events": []}, gone=True)
        assert reply.status == 0
        assert predictor(client).batches == []
        assert b'nextbehavior_rejected_total{reason="client_left"} 1.0' in (await client.get("/metrics")).body

    asyncio.run(_after_start(test))


async def _after_start(test: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    async with started(fake_service()) as client:
        predictor(client).batches.clear()  # of the check at the start
        await test(client)


def test_one_question_that_breaks_the_model_does_not_spoil_the_others_of_its_batch() -> None:
    async def test(client: Client) -> None:
        questions = [{"events": [{"item": item}]} for item in ("i1", "explode", "i2", "nan")]
        replies = await asyncio.gather(*(client.post("/v1/predict", question) for question in questions))
        assert [reply.status for reply in replies] == [200, 500, 200, 500]
        assert b"explode" not in check_problem(replies[1], 500)["detail"].encode()
        assert all(b"NaN" not in reply.body and b'"probability":null' not in reply.body for reply in replies)
        assert (await client.post("/v1/predict", {"events": []})).status == 200

    run(test)


# -- stored events -----------------------------------------------------------------------------------------------------


def test_an_event_changes_the_next_answer_of_everybody_and_survives_a_restart(store: str, tmp_path: Path) -> None:
    async def first(client: Client) -> None:
        body = {"events": [event(1, item="i3"), event(2, item="i7")], "learned": True}
        reply = await client.post("/v1/events", body)
        assert reply.status == 200
        assert (reply.json()["inserted"], reply.json()["duplicates"]) == (2, 0)
        assert [one["learned"] for one in reply.json()["events"]] == [[], [{"item": "i3", "to": "i7", "weight": 1.0}]]
        answers = (await client.post("/v1/predict", {"events": [], "top_k": 2})).json()["answers"]
        assert [answer["item"] for answer in answers] == ["i3", "i7"]

    async def again(client: Client) -> None:
        assert predictor(client).counts == {"i3": 1, "i7": 1}
        assert client.service.store is not None
        assert (await client.get("/info")).json()["counted_to"] == client.service.store.journal()[-1].arrival
        reply = await client.get("/v1/users/ann/next?exclude_seen=true")
        assert not {"i3", "i7"} & {answer["item"] for answer in reply.json()["answers"]}

    run(first, store=store, state=tmp_path / "state")
    run(again, store=store, state=tmp_path / "state")
    for snapshot in (tmp_path / "state" / "rev-1").glob("memory-*"):
        snapshot.write_text("damaged")
    run(again, store=store, state=tmp_path / "state")  # from the journal


def test_an_event_that_is_sent_three_times_at_once_is_stored_once(store: str) -> None:
    async def test(client: Client) -> None:
        replies = await asyncio.gather(*(client.post("/v1/events", {"events": [event(1)]}) for _ in range(3)))
        assert [reply.status for reply in replies] == [200] * 3
        assert sorted(reply.json()["events"][0]["inserted"] for reply in replies) == [False, False, True]
        assert client.service.store is not None
        assert client.service.store.count() == 1

    run(test, store=store)


def test_an_event_id_with_another_content_is_a_conflict_and_the_first_one_stays(store: str) -> None:
    async def test(client: Client) -> None:
        await client.post("/v1/events", {"events": [event(1, item="i1")]})
        reply = await client.post("/v1/events", {"events": [event(1, item="i2"), event(2, item="i3")]})
        problem = check_problem(reply, 409)
        assert [one["result"] for one in problem["events"]] == ["conflict", "inserted"]
        assert client.service.store is not None
        assert [one["item"] for one in client.service.store.history("ann", 9)] == ["i1", "i3"]

    run(test, store=store)


def test_a_late_event_is_served_in_its_place_and_not_counted(store: str) -> None:
    async def test(client: Client) -> None:
        await client.post("/v1/events", {"events": [event(1, item="i1"), event(5, item="i5")], "learned": True})
        reply = await client.post("/v1/events", {"events": [event(3, item="i3")], "learned": True})
        assert reply.json()["events"][0]["learned"] is None
        assert client.service.store is not None
        assert [one["item"] for one in client.service.store.history("ann", 9)] == ["i1", "i3", "i5"]
        assert predictor(client).counts == {"i1": 1, "i5": 1}
        metrics = (await client.get("/metrics")).body
        assert b'nextbehavior_event_actions_total{action="view"} 3.0' in metrics
        assert b'nextbehavior_counted_events_total{result="late"} 1.0' in metrics

    run(test, store=store)


def test_an_erased_user_is_unknown_and_stays_so(store: str) -> None:
    async def test(client: Client) -> None:
        body = {"events": [event(1, user="ann/1 é")]}
        await client.post("/v1/events", body)
        path = "/v1/users/ann%2F1%20%C3%A9"
        assert (await client.get(f"{path}/next")).json()["cold_start"] is False
        assert (await client.call("DELETE", path)).json() == {"erased": True}
        assert (await client.call("DELETE", path)).json() == {"erased": False}
        assert (await client.get(f"{path}/next")).json()["cold_start"] is True
        assert (await client.post("/v1/events", body)).json()["events"][0]["result"] == "erased"
        check_problem(await client.get("/v1/users/%FF/next"), 400)

    run(test, store=store)


def test_an_event_from_the_future_is_refused(store: str) -> None:
    async def test(client: Client) -> None:
        soon, far = time.time() + 60, time.time() + 3600
        assert (await client.post("/v1/events", {"events": [event(1, at=soon)]})).status == 200
        check_problem(await client.post("/v1/events", {"events": [event(2, at=far)]}), 422)

    run(test, store=store)


def test_a_clock_that_jumps_back_costs_no_answer_and_no_event(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(client: Client) -> None:
        moment = time.time()
        await client.post("/v1/events", {"events": [event(1, item="i1", at=moment)]})
        monkeypatch.setattr(time, "time", lambda: moment - 7200)
        question = client.post("/v1/predict", {"events": []}, headers={"x-timeout-ms": "500"})
        assert (await question).status == 200
        stamped = [event(2, item="i2", at=moment - 7200), event(3, item="i3", at=moment - 7200)]
        assert (await client.post("/v1/events", {"events": stamped})).status == 200
        monkeypatch.undo()
        assert client.service.store is not None
        # In order of time, and of arrival where the times are equal.
        assert [one["item"] for one in client.service.store.history("ann", 9)] == ["i2", "i3", "i1"]

    run(test, store=store)


@pytest.mark.parametrize("fault", [StoreBusy("locked"), StoreFull("no space left")], ids=["locked", "disk full"])
def test_without_its_store_the_service_still_predicts(store: str, fault: Exception) -> None:
    class Broken(SQLiteStore):
        def submit(self, events: Any) -> Any:
            raise fault

        def history(self, user: str, length: int, until: int | None = None) -> Any:
            raise fault

    async def test(client: Client) -> None:
        client.service.store = Broken(store)
        reply = await client.post("/v1/events", {"events": [event(1)]})
        check_problem(reply, 503)
        assert "retry-after" in reply.headers
        check_problem(await client.get("/v1/users/ann/next"), 503)
        assert (await client.post("/v1/predict", {"events": []})).status == 200
        assert (await client.get("/readyz")).status == 200

    run(test)


def test_a_service_without_a_store_says_so() -> None:
    async def test(client: Client) -> None:
        check_problem(await client.post("/v1/events", {"events": [event(1)]}), 503)

    run(test)


def test_a_store_that_is_no_store_keeps_the_service_from_starting(tmp_path: Path) -> None:
    (tmp_path / "events.sqlite").write_bytes(b"not a database" * 100)

    async def test(client: Client) -> None:
        raise AssertionError("it started")

    with pytest.raises(Exception, match=r"events\.sqlite"):
        run(test, store=str(tmp_path / "events.sqlite"))


# -- who may ask -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.txt"
    path.write_text(f"# of the shop\n{TOKEN}\nanother-token-that-is-long\n")
    return path


def test_every_route_needs_the_token_except_the_probes(tokens: Path) -> None:
    async def test(client: Client) -> None:
        paths = [(one.method, one.path.replace("{user_id}", "ann")) for one in OPERATIONS]
        assert len(paths) == len(client.app.router.routes)
        for method, path in [*paths, ("GET", "/"), ("GET", "/nothing"), ("POST", "/livez/"), ("GET", "//livez")]:
            reply = await client.call(method, path)
            if path in ("/livez", "/readyz"):
                assert reply.status == 200
            else:
                check_problem(reply, 401)
                assert reply.headers["www-authenticate"] == "Bearer"

    run(test, token_file=tokens)


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer é",
               f"Bearer {'x' * 100_000}", TOKEN]
)  # fmt: skip
def test_a_missing_or_wrong_token_is_refused(tokens: Path, header: str | None) -> None:
    digests = security.read_tokens(tokens)
    assert not security.allows(digests, None if header is None else header.encode())


def test_several_tokens_are_valid_and_are_read_again_at_a_reload(tokens: Path) -> None:
    async def test(client: Client) -> None:
        for token in (TOKEN, "another-token-that-is-long"):
            assert (await client.get("/info", headers={"authorization": f"Bearer {token}"})).status == 200
        tokens.write_text("a-new-token-of-the-shop\n")
        old, new = {"authorization": f"Bearer {TOKEN}"}, {"authorization": "bearer a-new-token-of-the-shop"}
        assert (await client.post("/admin/reload", {}, headers=old)).status == 200
        assert (await client.get("/info", headers=old)).status == 401
        assert (await client.get("/info", headers=new)).status == 200

    run(test, token_file=tokens)


def test_a_public_address_needs_a_token() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        security.check_host(host, has_tokens=False)
    for host in ("0.0.0.0", "::", "192.168.1.4", "example.org"):
        security.check_host(host, has_tokens=True)
        with pytest.raises(ValueError, match="--token_file"):
            security.check_host(host, has_tokens=False)


@pytest.mark.parametrize("content", ["", "# nothing\n\n", "short\n", "x" * 600, "a token é that is long"])
def test_a_token_file_without_a_good_token_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokens.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="openssl rand"):
        security.read_tokens(path)


def test_a_token_file_that_is_not_text_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "tokens.txt"
    path.write_bytes(b"\xff\xfe" * 16)
    with pytest.raises(ValueError, match=r"tokens\.txt has .* expected 16 to 512 of ASCII"):
        security.read_tokens(path)


def test_logs_name_no_user_no_item_and_no_token(
    tokens: Path, store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(client: Client) -> None:
        await client.post("/v1/events", {"events": [event(1, user="secret-user", item="secret-item")]})
        await client.get("/v1/users/secret-user/next?action=secret-action")
        await client.post("/v1/predict", {"events": [{"item": "explode"}]})
        await client.get("/secret-path", headers={"authorization": "Bearer secret-token"})

    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    try:
        access_log.start_logging("info", True)
        run(test, {"authorization": f"Bearer {TOKEN}"}, token_file=tokens, store=store)
    finally:
        root.setLevel(level)
        access_log.requests.disabled = True
        logging.captureWarnings(False)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    requests = [line for line in lines if line["message"] == "request"]
    assert [(line["route"], line["status"]) for line in requests] == [
        ("/v1/events", 200), ("/v1/users/{user_id}/next", 422), ("/v1/predict", 500), ("other", 401),
    ]  # fmt: skip
    text = json.dumps(lines)
    assert not any(secret in text for secret in ("secret", TOKEN, "explode", "ann"))


def test_a_full_disk_does_not_hinder_the_stop(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def snapshot(self: FakePredictor, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def test(client: Client) -> None:
        assert (await client.post("/v1/events", {"events": [event(1)], "learned": True})).status == 200

    monkeypatch.setattr(FakePredictor, "snapshot", snapshot)
    with caplog.at_level(logging.INFO, access_log.OURS):
        run(test, store=store, state=tmp_path / "state")
    [failure] = [record for record in caplog.records if record.message == "snapshot failed"]
    assert failure.__dict__["problem"] == "No space left on device"
    assert caplog.records[-1].message == "stopped"


# -- reload ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["broken", "nan-weights"])
def test_a_reload_that_fails_leaves_the_old_model_serving(bad: str) -> None:
    async def test(client: Client) -> None:
        problem = check_problem(await client.post("/admin/reload", {"model": bad}), 422)
        assert "still served" in problem["detail"]
        assert (await client.post("/v1/predict", {"events": []})).json()["model"] == "rev-1"
        assert b'nextbehavior_reload_total{result="failed"} 1.0' in (await client.get("/metrics")).body

    run(test)


def test_a_reload_while_predicting_costs_no_request_and_every_answer_is_of_one_revision(
    store: str, tmp_path: Path
) -> None:
    async def test(client: Client) -> None:
        await client.post("/v1/events", {"events": [event(1, item="i5")], "learned": True})
        seen: list[tuple[int, str]] = []
        done = asyncio.Event()

        async def ask() -> None:
            while not done.is_set():
                reply = await client.post("/v1/predict", {"events": []})
                seen.append((reply.status, reply.json()["model"]))
                await asyncio.sleep(0)

        asking = [asyncio.create_task(ask()) for _ in range(5)]
        for model in ("rev-2", "rev-3"):
            reply = await client.post("/admin/reload", {"model": model})
            assert reply.json()["model"] == model
            await asyncio.sleep(0.01)
        assert (await client.post("/admin/reload", {"rollback": True})).json() == {
            "model": "rev-2", "previous": "rev-3", "changed": True,
        }  # fmt: skip
        await asyncio.sleep(0.01)
        done.set()
        await asyncio.gather(*asking)
        assert {status for status, _ in seen} == {200}
        models = [model for _, model in seen]
        assert set(models) == {"rev-1", "rev-2", "rev-3"}

    run(test, store=store, state=tmp_path / "state")


def test_a_model_that_is_new_to_the_service_counts_from_the_end_of_the_journal(store: str, tmp_path: Path) -> None:
    async def test(client: Client) -> None:
        await client.post("/v1/events", {"events": [event(1, item="i5")], "learned": True})
        await client.post("/admin/reload", {"model": "rev-2"})
        assert predictor(client).counts == {}
        await client.post("/v1/events", {"events": [event(2, item="i6")], "learned": True})
        assert predictor(client).counts == {"i6": 1}
        await client.post("/admin/reload", {"rollback": True})
        assert predictor(client).counts == {"i5": 1, "i6": 1}  # it has caught up

    run(test, store=store, state=tmp_path / "state")


def test_the_reload_of_the_same_model_changes_nothing() -> None:
    async def test(client: Client) -> None:
        reply = await client.call("POST", "/admin/reload")
        assert reply.json() == {"model": "rev-1", "previous": "rev-1", "changed": False}
        check_problem(await client.post("/admin/reload", {"rollback": True}), 422)

    run(test)
