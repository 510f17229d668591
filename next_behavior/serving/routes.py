"""What each route does. An exception `Problem` is the answer that is an error.

Late events, duplicates and conflicts: an event is put in its place of the history by (time, arrival), however late it
comes. Sent again it changes nothing (200, `duplicate`). The same `event_id` with another content is refused (409), and
the first one stays; the answer says what became of each event of the batch, and the others of the batch are stored.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from next_behavior.serving import messages, problems
from next_behavior.serving.answering import Answering, Lesson
from next_behavior.serving.batcher import Failed, Full, Gone, Late
from next_behavior.serving.event_store import EventStore, StoredEvent, StoreError
from next_behavior.serving.live import History
from next_behavior.serving.metrics import CONTENT_TYPE
from next_behavior.serving.problems import Problem
from next_behavior.serving.service import Busy, NotReady, Service

MOST_BODY_BYTES = 1_000_000
MOST_QUERY_BYTES = 32_768
# How far a clock may be ahead: an event from the future would be its user's newest until then.
FUTURE_SECONDS = 300
STORE_SECONDS = 10.0
RETRY = {"retry-after": "1"}
# The key in `scope["extensions"]` of {"gone": a function that says whether the client has left}.
GONE = "next_behavior.gone"
DECODING = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@dataclass(slots=True)
class Head:
    """The headers that matter, read in one pass."""

    authorization: bytes | None = None
    request_id: bytes | None = None
    content_type: bytes = b""
    content_encoding: bytes = b"identity"
    content_length: bytes | None = None
    timeout: bytes | None = None

    @classmethod
    def of(cls, headers: Sequence[tuple[bytes, bytes]]) -> Head:
        head = cls()
        for name, value in headers:
            match name:
                case b"content-type":
                    head.content_type = value
                case b"content-length":
                    head.content_length = value
                case b"authorization":
                    head.authorization = value
                case b"x-request-id":
                    head.request_id = value
                case b"content-encoding":
                    head.content_encoding = value
                case b"x-timeout-ms":
                    head.timeout = value
        return head


class Routes:
    """The endpoints of one service."""

    document = b"{}"

    def __init__(self, service: Service) -> None:
        self.service = service
        self.metrics_of = service.metrics

    # -- predictions ---------------------------------------------------------------------------------------------------

    async def predict(self, request: Request) -> Response:
        self._check_queue()
        body = await read_body(request)
        try:
            message = messages.predict_request.decode(body)
            messages.check_bytes(body, message)
        except DECODING as error:
            raise problems.of_decoding(error) from error
        history: Sequence[Any] = message.events
        return await self._answer(request, history, message.as_keywords())

    async def next_of_user(self, request: Request) -> Response:
        self._check_queue()
        user = user_of(request)
        options = options_of(request)
        live = self._serving()
        history = await self._stored(lambda store: store.history(user, live.predictor.info.max_events))
        response = await self._answer(request, history, options)
        # After the answer has been written, and only if nobody waits.
        asyncio.get_running_loop().call_soon(self._watch, live.predictor, user, history)
        return response

    def _watch(self, predictor: Answering, user: str, history: History) -> None:
        if not self.service.batcher.waiting:
            self.service.watch.predict(predictor, user, history)

    async def _answer(self, request: Request, events: Sequence[Mapping[str, Any]], options: dict[str, Any]) -> Response:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_of(request.scope["head"], self.service.settings.deadline)
        live = self._serving()
        metrics = self.metrics_of
        try:
            asked = live.predictor.ask(events, largest_set=messages.MOST_IN_SET, **options)
        except ValueError as error:
            raise Problem(422, str(error)) from error
        metrics.history_events.observe(asked.events)
        metrics.unknown_items.inc(asked.unknown_items)
        metrics.known_items.inc(min(asked.events, live.predictor.info.max_events) - asked.unknown_items)
        if asked.cold_start:
            metrics.cold_starts.inc()
        gone: Callable[[], bool] = request.scope.get("extensions", {}).get(GONE, {}).get("gone", stays)
        try:
            queue = self.service.explanations if options["explain"] else self.service.batcher
            answers = await queue.answer(live.predictor, asked, deadline, gone)
        except Full as error:
            raise self._overloaded() from error
        except Late as error:
            metrics.dropped("deadline")
            raise Problem(504, "the deadline passed before the model was asked") from error
        except Gone as error:
            metrics.dropped("client_left")
            raise ClientDisconnect from error
        except Failed as error:
            raise Problem(500, "the model failed on this question; the log has the request id") from error
        if options["coverage"] is not None and len(answers) > messages.MOST_IN_SET:
            raise Problem(
                422,
                f"the set has more than {messages.MOST_IN_SET} answers, which is not sent: ask for a lower coverage",
            )
        return json_response(
            {
                "answers": answers,
                "model": live.revision,
                "cold_start": asked.cold_start,
                "truncated": asked.truncated,
                "unknown_items": asked.unknown_items,
            }
        )

    def _check_queue(self) -> None:
        """Refuses before the body is read: under overload a refusal has to be cheap."""
        if self.service.batcher.full:
            raise self._overloaded()

    def _overloaded(self) -> Problem:
        self.metrics_of.dropped("queue_full")
        return Problem(429, "too many questions wait; ask again later", headers=RETRY)

    def _serving(self) -> Any:
        try:
            return self.service.serving()
        except NotReady as error:
            raise Problem(503, "the model is being loaded", headers=RETRY) from error

    # -- stored events -------------------------------------------------------------------------------------------------

    async def events(self, request: Request) -> Response:
        body = await read_body(request)
        try:
            message = messages.events_request.decode(body)
            messages.check_bytes(body, message)
            latest = time.time() + FUTURE_SECONDS
            for position, event in enumerate(message.events):
                if event.timestamp > latest:
                    raise msgspec.ValidationError(
                        f"The event lies in the future: expected seconds since 1970 UTC - at `$.events[{position}]"
                        ".timestamp`"
                    )
        except DECODING as error:
            raise problems.of_decoding(error) from error
        self._serving()
        events = [StoredEvent(one.event_id, one.user_id, one.item, one.action, one.timestamp) for one in message.events]
        results = await (self._store_and_learn(events) if message.learned else self._store(events))
        if any(one.result == "conflict" for one in results):
            raise Problem(
                409, "an event_id is there already with other content, which stays; the other events are stored",
                events=results,
            )  # fmt: skip
        counts = [one.result for one in results]
        return json_response(messages.EventsStored(
            events=results, inserted=counts.count("inserted"), duplicates=counts.count("duplicate")
        ))  # fmt: skip

    async def _store(self, events: list[StoredEvent]) -> list[messages.Stored]:
        outcomes = await self._within(self._submit(events))
        return [
            messages.Stored(event_id=event.event_id, result=outcome, inserted=outcome == "inserted")
            for event, outcome in zip(events, outcomes, strict=True)
        ]

    async def _store_and_learn(self, events: list[StoredEvent]) -> list[messages.Stored]:
        learners = [self.service.learner(event) for event in events]
        try:
            results = await self._store(events)
            new = [learner for one, learner in zip(results, learners, strict=True) if one.inserted]
            if new:
                await asyncio.wait(new, timeout=STORE_SECONDS)
            for one, learner in zip(results, learners, strict=True):
                if one.inserted and learner.done():
                    one.learned = pairs_of(learner.result())
            return results
        finally:
            for event, learner in zip(events, learners, strict=True):
                self.service.forget_learner(event, learner)

    async def _submit(self, events: list[StoredEvent]) -> list[Any]:
        self._store_of_events()
        try:
            return await self.service.submit(events)
        except ValueError as error:
            raise Problem(422, str(error)) from error

    async def erase(self, request: Request) -> Response:
        user = user_of(request)
        erased = await self._stored(lambda store: store.erase(user))
        self.service.watch.forget(user)
        return json_response(messages.Erased(erased))

    async def _stored(self, call: Callable[[EventStore], Any]) -> Any:
        store = self._store_of_events()
        return await self._within(self.service.in_thread(call, store))

    async def _within(self, work: Any) -> Any:
        """Waits for the store, and says of each of its failures what it means for the client."""
        try:
            return await asyncio.wait_for(work, STORE_SECONDS)
        except StoreError as error:
            self.service.store_failed(error)
            raise Problem(503, "the event store fails; send the same again later", headers=RETRY) from error
        except asyncio.TimeoutError as error:
            raise Problem(503, "the event store is slow; send the same again later", headers=RETRY) from error

    def _store_of_events(self) -> EventStore:
        if self.service.store is None:
            why = "the service has no event store" if self.service.settings.store is None else "the store is opened"
            raise Problem(503, why, headers=RETRY)
        return self.service.store

    # -- operation -----------------------------------------------------------------------------------------------------

    async def livez(self, request: Request) -> Response:
        return json_response(messages.Probe("alive"))

    async def readyz(self, request: Request) -> Response:
        if not self.service.ready:
            raise Problem(503, "stopping" if self.service.draining else "the model is being loaded", headers=RETRY)
        return json_response(messages.Probe("store fails" if self.service.store_fails else "ready"))

    async def metrics(self, request: Request) -> Response:
        return Response(await self.service.in_thread(self.metrics_of.text), headers={"content-type": CONTENT_TYPE})

    async def info(self, request: Request) -> Response:
        live = self._serving()
        info, settings = live.predictor.info, self.service.settings
        return json_response(messages.Info(
            model=live.revision, items=info.items, actions=list(info.actions), max_events=info.max_events,
            has_time=info.has_time, counted_to=live.position,
            store=None if settings.store is None else "redis" if "://" in settings.store else "sqlite",
            limits={
                "body_bytes": MOST_BODY_BYTES, "history_events": messages.MOST_HISTORY,
                "events_in_a_batch": messages.MOST_EVENTS, "id_bytes": messages.MOST_ID_BYTES,
                "top_k": messages.MOST_ANSWERS, "answers_in_a_set": messages.MOST_IN_SET,
                "explained_answers": messages.MOST_EXPLAINED, "explained_events": info.explained_events,
                "waiting": settings.most_waiting, "deadline_seconds": settings.deadline,
            },
        ))  # fmt: skip

    async def openapi(self, request: Request) -> Response:
        return Response(self.document, media_type="application/json")

    async def reload(self, request: Request) -> Response:
        body = await read_body(request, optional=True)
        try:
            message = messages.reload_request.decode(body or b"{}")
        except DECODING as error:
            raise problems.of_decoding(error) from error
        self._serving()
        try:
            if message.rollback:
                revision, before = await self.service.roll_back()
            else:
                revision, before = await self.service.reload(message.model, message.revision)
        except Busy as error:
            raise Problem(409, "a reload is under way") from error
        except (ValueError, OSError, StoreError) as error:
            raise Problem(422, f"the old model is still served: {error}") from error
        return json_response(messages.Reloaded(revision, before, revision != before))


# ----------------------------------------------------------------------------------------------------------------------
# Parts of requests and answers
# ----------------------------------------------------------------------------------------------------------------------


async def read_body(request: Request, optional: bool = False) -> bytes:
    """The body, never more of it than may be. The type is checked first: what is not JSON is not read.

    Raises:
        Problem: 413, 415.
        ClientDisconnect: the client left before the end.
    """
    head: Head = request.scope["head"]
    length = head.content_length
    if not optional or (length not in (None, b"0")):
        check_type(head)
    if length is not None and (not length.isdigit() or int(length[:20]) > MOST_BODY_BYTES):
        raise too_large()
    parts: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        size += len(part)
        if size > MOST_BODY_BYTES:
            raise too_large()
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def check_type(head: Head) -> None:
    kind, *parameters = head.content_type.decode("latin-1").lower().replace(" ", "").split(";")
    if kind != "application/json" or any(one not in ("", "charset=utf-8", 'charset="utf-8"') for one in parameters):
        raise Problem(415, "expected the header `Content-Type: application/json`")
    if head.content_encoding.lower() != b"identity":
        raise Problem(415, "expected a body without Content-Encoding")


def too_large() -> Problem:
    return Problem(413, f"expected a body of at most {MOST_BODY_BYTES} bytes")


def user_of(request: Request) -> str:
    """The user id in the path, as it was before it was percent-encoded."""
    try:
        user = unquote_to_bytes(request.path_params["user_id"]).decode()
    except UnicodeDecodeError as error:
        raise Problem(400, "the user id in the path is not UTF-8") from error
    if messages.too_long({"user_id": user}):
        raise problems.invalid(f"Expected at most {messages.MOST_ID_BYTES} bytes in UTF-8 - at `$.user_id`")
    return user


def query_of(request: Request) -> list[tuple[str, str]]:
    query: bytes = request.scope["query_string"]
    if len(query) > MOST_QUERY_BYTES:
        raise Problem(422, f"expected a query of at most {MOST_QUERY_BYTES} bytes")
    try:
        return parse_qsl(query.decode("ascii"), keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    except ValueError as error:  # UnicodeDecodeError is one
        raise Problem(400, "the query is not `name=value&...` in UTF-8") from error


def options_of(request: Request) -> dict[str, Any]:
    try:
        options = messages.options_of_query(query_of(request))
        messages.check_options(options)
    except msgspec.ValidationError as error:
        raise problems.of_decoding(error) from error
    return options.as_keywords()


def timeout_of(head: Head, default: float) -> float:
    """Seconds that the client gives a question, at most the service's own limit."""
    if head.timeout is None:
        return default
    if not head.timeout.isdigit() or not 0 < len(head.timeout) < 10:
        raise Problem(422, "expected the header `X-Timeout-Ms` with whole milliseconds")
    return min(default, int(head.timeout) / 1000)


def pairs_of(learned: Lesson | None) -> list[messages.Pair] | None:
    if learned is None:
        return None
    return [messages.Pair(item, to, weight) for item, to, weight in learned.pairs]


def json_response(content: Any) -> Response:
    return Response(messages.encode(content), media_type="application/json")


def stays() -> bool:
    return False
