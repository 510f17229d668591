"""The server on a real port: slow and broken clients, a signal under load, and what the document promises."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from service_parts import LIMITS, exchange, fake_service, listening

from next_behavior.serving.app import OPERATIONS, application
from next_behavior.serving.server import Server, bind, server_config
from next_behavior.serving.service import Service

ASK = (
    b'POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"events":[]}'
)
NOT_READY = b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
PROBE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with listening(fake_service()) as (port, _):
        yield port


def ask(port: int, path: str = "/v1/predict", body: Any = None, seconds: float = 5.0) -> tuple[int, Any]:
    data = json.dumps({"events": []} if body is None else body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.parametrize(
    "sent",
    [b"", b"\r\n\r\n", b"POST /v1/pre", ASK[:-60], ASK[:-1]],
    ids=["nothing", "empty lines", "half a request line", "half of the headers", "half of the body"],
)
@pytest.mark.parametrize("before", [b"", PROBE], ids=["first request", "second request"])
def test_a_client_that_sends_half_a_request_is_closed(port: int, before: bytes, sent: bytes) -> None:
    if before and not sent.strip():
        pytest.skip("an idle connection stays open for a while")
    begin = time.monotonic()
    answer = exchange(port, before + sent)
    assert time.monotonic() - begin < LIMITS.read_seconds + 2
    assert answer.count(b"HTTP/1.1 200") == (1 if before else 0)


def drip(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for byte in sent:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)


@pytest.mark.parametrize("sent", [ASK * 9, b"\r\n" * 999], ids=["a request", "empty lines"])
def test_a_client_that_sends_a_byte_now_and_then_is_closed(port: int, sent: bytes) -> None:
    begin = time.monotonic()
    with pytest.raises(OSError, match=r"reset|pipe"):
        drip(port, sent)
    assert time.monotonic() - begin < LIMITS.read_seconds + 2


def test_a_connection_is_used_again_and_requests_may_come_together(port: int) -> None:
    last = PROBE.replace(b"Host: x", b"Host: x\r\nConnection: close")
    assert exchange(port, ASK + PROBE + ASK + last).count(b"HTTP/1.1 200") == 4


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02", b"GARBAGE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
def test_what_is_not_http_is_answered_as_a_problem(port: int, sent: bytes) -> None:
    answer = exchange(port, sent)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"application/problem+json" in answer


def test_headers_that_do_not_end_are_refused(port: int) -> None:
    answer = exchange(port, b"GET /livez HTTP/1.1\r\n" + b"a: b\r\n" * 10_000)
    assert answer.startswith(b"HTTP/1.1 400")


def test_a_body_over_the_limit_is_refused_by_its_length_alone(port: int) -> None:
    begin = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(ASK.replace(b"Content-Length: 13", b"Content-Length: 9999999999"))
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")
    assert time.monotonic() - begin < 1


def test_more_connections_than_may_be_are_refused(port: int) -> None:
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(LIMITS.most_connections + 10)]
    try:
        time.sleep(0.1)
        refused = 0
        for connection in connections:
            connection.setblocking(False)
            try:
                refused += connection.recv(4096).startswith(b"HTTP/1.1 503")
            except BlockingIOError:
                continue
        assert refused >= 10
    finally:
        for connection in connections:
            connection.close()


def test_a_client_that_leaves_harms_nobody(port: int) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(ASK)
    assert ask(port)[0] == 200


def test_at_sigterm_it_is_not_ready_and_what_was_asked_is_answered() -> None:
    service = fake_service()
    with listening(service) as (port, server):
        service.serving().predictor.slow = 0.02  # type: ignore[attr-defined]
        answers: list[int] = []
        asking = [threading.Thread(target=lambda: answers.append(ask(port)[0])) for _ in range(10)]
        for thread in asking:
            thread.start()
        server.handle_exit(signal.SIGTERM, None)
        assert b"HTTP/1.1 503" in exchange(port, NOT_READY)
        for thread in asking:
            thread.join()
        assert answers == [200] * 10
        assert stopped(server, port)


def stopped(server: Server, port: int) -> bool:
    """Whether the port is closed after the time to drain."""
    end = time.monotonic() + LIMITS.drain_seconds + LIMITS.grace_seconds + 2
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_a_worker_whose_parent_died_while_it_started_ends() -> None:
    with bind("127.0.0.1", 0) as sock:
        gone = subprocess.Popen(["true"])
        gone.wait()
        service = fake_service()
        server = Server(server_config(application(service), LIMITS), service, LIMITS.drain_seconds, parent=gone.pid)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        thread.join(20)
        assert not thread.is_alive()


def test_a_taken_port_is_a_mistake_in_one_line() -> None:
    with bind("127.0.0.1", 0) as taken, pytest.raises(ValueError, match="expected a free port"):
        bind("127.0.0.1", taken.getsockname()[1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("examples", [5, pytest.param(300, marks=pytest.mark.slow)])
def test_every_answer_is_what_the_document_says(tmp_path: Path, examples: int) -> None:
    """Schemathesis sends what the document allows and what it does not, to every route.

    What only the model can refuse (an unknown action in a question, a text that is no time) is left out of the checks.
    """
    service: Service = fake_service(store=str(tmp_path / "events.sqlite"))
    with listening(service, replace(LIMITS, read_seconds=8.0)) as (port, _):  # large bodies, on a busy machine
        schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
        checked = set()
        for result in schema.get_all_operations():
            operation: Any = result.ok()  # type: ignore[union-attr]  # an invalid one has none, and fails here
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

                @settings(
                    max_examples=examples, deadline=None, phases=[Phase.generate], derandomize=True, database=None,
                    suppress_health_check=list(HealthCheck),
                )  # fmt: skip
                @given(case=operation.as_strategy(generation_mode=mode))
                def check(case: Any) -> None:
                    case.call_and_validate(excluded_checks=[positive_data_acceptance])

                try:
                    check()
                except Unsatisfiable:  # a route without an input takes none that is wrong
                    assert mode is GenerationMode.NEGATIVE
            checked.add((operation.method.upper(), operation.path))
        assert checked >= {(one.method, one.path) for one in OPERATIONS if one.path.startswith(("/v1", "/admin"))}
