"""A service for tests: a small predictor, a client that calls the application in this process, a real server."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from next_behavior.model.vocabulary import VocabularyTable
from next_behavior.serving.app import Application, application
from next_behavior.serving.metrics import Metrics
from next_behavior.serving.server import Limits, Server, bind, server_config
from next_behavior.serving.service import Service, Settings

LIMITS = Limits(read_seconds=0.3, most_connections=50, drain_seconds=0.2, grace_seconds=3.0)
VOCABULARY = VocabularyTable(
    b"id\titem\tcount\ttitle\n" + b"".join(b"%d\ti%d\t9\tTitle %d\n" % (n, n, n) for n in range(8)) + b"8\ti8\t9\t\n"
)
WHEN = {"median_seconds": 60.0, "within_1_hour": 0.5, "within_1_day": 0.6, "within_7_days": 0.7, "within_30_days": 0.8}


@dataclass
class FakeInfo:
    revision: str = "rev-1"
    items: int = 9
    actions: tuple[str, ...] = ("view", "buy")
    max_events: int = 5
    has_time: bool = True
    training_actions: dict[str, int] | None = None
    explained_events: int = 5


@dataclass
class FakeAsked:
    items: list[str]
    options: dict[str, Any]
    cold_start: bool
    truncated: bool
    unknown_items: int
    events: int


@dataclass
class FakeLesson:
    pairs: list[tuple[str, str, float]]


@dataclass
class FakePredictor:
    """Answers are the items i0 .. i8, those counted most often first. Unknown items are those of another name."""

    info: FakeInfo = field(default_factory=FakeInfo)
    counts: dict[str, int] = field(default_factory=dict)
    batches: list[int] = field(default_factory=list)
    slow: float = 0.0
    vocabulary: VocabularyTable = VOCABULARY
    explains_beside: bool = False
    explaining: Callable[[], None] = lambda: None

    def vocabulary_line(self, item: str) -> int | None:
        known = {f"i{n}": n + 1 for n in range(self.info.items)}
        return known.get(item)

    def ask(self, events: Sequence[Mapping[str, Any]], **options: Any) -> FakeAsked:
        known = {f"i{n}" for n in range(self.info.items)}
        if options.get("action") not in (None, *self.info.actions):
            raise ValueError(f"action is {options['action']!r}, expected one of {', '.join(self.info.actions)}")
        if unknown := set(options.get("allowed_items") or ()) - known:
            raise ValueError(f"allowed_items holds {sorted(unknown)}, unknown to this model")
        for event in events:
            moment = event.get("timestamp")
            if isinstance(moment, str) and "-" not in moment:
                raise ValueError(f"timestamp is {moment!r:.40}, expected seconds or ISO text")
            if any(isinstance(event.get(name), float) for name in ("item", "action")):
                raise ValueError("expected text or a whole number")
        items = [str(event.get("item")) for event in events][-self.info.max_events :]
        strange = sum(item not in known for item in items)
        return FakeAsked(
            items, options, strange == len(items), len(events) > self.info.max_events, strange, len(items)
        )  # fmt: skip

    def answers(self, asked: Sequence[FakeAsked]) -> list[list[dict[str, Any]]]:
        self.batches.append(len(asked))
        if any("explode" in one.items for one in asked):
            raise RuntimeError("the secret item explode")
        if any("crash" in one.items for one in asked):
            import os
            import signal

            os.kill(os.getpid(), signal.SIGSEGV)
        return [self._answers(one) for one in asked]

    def _answers(self, asked: FakeAsked) -> list[dict[str, Any]]:
        if self.slow:
            import time

            time.sleep(self.slow)
        items = asked.options.get("allowed_items") or [f"i{n}" for n in range(self.info.items)]
        if asked.options.get("exclude_seen"):
            items = [item for item in items if item not in asked.items]
        items = sorted(items, key=lambda item: (-self.counts.get(item, 0), item))
        probability = float("nan") if "nan" in asked.items else 0.125
        return [
            {"action": "view", "item": item, "title": None, "probability": probability, "when": WHEN}
            for item in items[: asked.options.get("top_k", 10)]
        ]

    def answer(self, events: Sequence[Mapping[str, Any]], **options: Any) -> list[dict[str, Any]]:
        return self.answers([self.ask(events, **options)])[0]

    def explain(self, asked: FakeAsked) -> Iterator[list[dict[str, Any]] | None]:
        """In a step for each event; `explaining` is called in each."""
        for item in asked.items:
            if item == "explode":
                raise RuntimeError("the secret item explode")
            self.explaining()
            yield None
        numbers = [0.5] * len(asked.items)
        first = {"event": 0, "item": "".join(asked.items[:1])}
        because = {
            "repeats": {"event": len(asked.items) - 1, "share": 0.25} if asked.items else None,
            "counted": [{**first, "pairs": 43.0, "reverse_pairs": 3.5, "share": 1.0}] if asked.items else [],
            "popularity": 1.7,
            "similar_texts": [{**first, "similarity": 0.75}] if asked.items else [],
        }
        yield [
            {**answer, "contributions": numbers, "importance": numbers, "because": because}
            for answer in self._answers(asked)
        ]

    def count(self, history: Sequence[Mapping[str, Any]]) -> FakeLesson:
        item = str(history[-1]["item"])
        self.counts[item] = self.counts.get(item, 0) + 1
        return FakeLesson([(str(event["item"]), item, 1.0) for event in history[:-1]])

    def snapshot(self, path: Path) -> None:
        path.write_text(json.dumps([self.info.revision, self.counts]))

    def restore(self, path: Path) -> None:
        revision, counts = json.loads(path.read_text())
        if revision != self.info.revision:
            raise ValueError("a snapshot of another revision")
        self.counts = counts


def load_fake(bundle: Path) -> FakePredictor:
    """`rev-1` and so on; a bundle named `broken...` cannot be loaded, `nan...` answers with no number."""
    if bundle.name.startswith("broken"):
        raise ValueError("the digest of encoder.onnx is not that of the manifest")
    predictor = FakePredictor(FakeInfo(bundle.name))
    if bundle.name.startswith("nan"):
        predictor.answer = lambda events, **options: [{"probability": float("nan")}]  # type: ignore[method-assign]
    return predictor


def fake_service(**settings: Any) -> Service:
    settings.setdefault("model", "rev-1")
    return Service(Settings(**settings), Metrics(), lambda model, revision: Path(revision or model), load_fake)


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Calls an application in this process. `Authorization` and so on are added by `headers`."""

    def __init__(self, app: Application, headers: Mapping[str, str] | None = None) -> None:
        self.app, self.headers = app, dict(headers or {})

    @property
    def service(self) -> Service:
        return self.app.service

    async def get(self, path: str, **more: Any) -> Reply:
        return await self.call("GET", path, **more)

    async def post(self, path: str, content: Any = None, **more: Any) -> Reply:
        body = content if isinstance(content, (bytes, list)) and not _is_json(content) else json.dumps(content).encode()
        return await self.call(
            "POST", path, body, {"content-type": "application/json"} | more.pop("headers", {}), **more
        )

    async def call(
        self,
        method: str,
        path: str,
        body: bytes | list[bytes] = b"",
        headers: Mapping[str, str] | None = None,
        gone: bool = False,
    ) -> Reply:
        """`body` as a list is sent in chunks, without a length. `gone`: the client has left already."""
        chunks = [body] if isinstance(body, bytes) else body
        sent = self.headers | dict(headers or {})
        if isinstance(body, bytes) and body:
            sent.setdefault("content-length", str(len(body)))
        raw, _, query = path.partition("?")
        scope = {
            "type": "http", "method": method, "path": raw, "raw_path": raw.encode(), "query_string": query.encode(),
            "root_path": "", "scheme": "http", "http_version": "1.1", "server": ("test", 80), "client": ("test", 1),
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in sent.items()],
            "extensions": {"next_behavior.gone": {"gone": lambda: gone}},
        }  # fmt: skip
        messages: list[Any] = []
        waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
        waiting[-1]["more_body"] = False

        async def receive() -> Any:
            return waiting.pop(0) if waiting else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            messages.append(message)

        await self.app(scope, receive, send)
        if not messages:
            return Reply(0, {}, b"")
        head, *rest = messages
        return Reply(
            head["status"],
            {name.decode(): value.decode() for name, value in head["headers"]},
            b"".join(message.get("body", b"") for message in rest),
        )


def _is_json(content: Any) -> bool:
    return isinstance(content, list) and not all(isinstance(part, bytes) for part in content)


@asynccontextmanager
async def started(service: Service, headers: Mapping[str, str] | None = None) -> Any:
    """The client of a service that is ready."""
    client = Client(application(service), headers)
    service.start()
    try:
        while not service.ready and service.failure is None:
            await asyncio.sleep(0.005)
        if service.failure is not None:
            raise service.failure
        yield client
    finally:
        await service.stop()


@contextmanager
def listening(service: Service, limits: Limits = LIMITS) -> Iterator[tuple[int, Server]]:
    """A real server in a thread: its port, and what to stop it with."""
    sock = bind("127.0.0.1", 0)
    server = Server(server_config(application(service), limits), service, limits.drain_seconds)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        while not service.ready and thread.is_alive():
            threading.Event().wait(0.005)
        yield sock.getsockname()[1], server
    finally:
        server.should_exit = True
        thread.join(20)


def exchange(port: int, sent: bytes, seconds: float = 5.0) -> bytes:
    """What comes back on one connection until the server closes it."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(sent)
        received = b""
        while part := connection.recv(65_536):
            received += part
        return received
