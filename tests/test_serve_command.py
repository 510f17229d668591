"""`next-behavior serve` as users start it: a process of its own, with the real predictor of a tiny model."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
from redis_server import RedisServer

from next_behavior.commands.serve import main
from next_behavior.serving.export import bundle_for
from next_behavior.training.vocabulary import assemble

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
ITEMS = [str(number) for number in range(30)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with its bundle beside it."""
    folder = tmp_path_factory.mktemp("served") / "model"
    tokenizer = assemble(ITEMS, ["view", "buy"], [60.0, 3600.0], num_new_items=2, max_length=8)
    tokenizer.describe_items([1] * len(ITEMS), [None] * len(ITEMS))
    tiny.tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    bundle_for(folder)
    return folder


@dataclass
class Running:
    """A service in a process."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            headers = {"content-type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def wait_until_ready(self, seconds: float = 60.0) -> float:
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.call("GET", "/readyz")[0] == 200:
                    return time.monotonic() - begin
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        raise AssertionError(self.log.read_text())


@contextlib.contextmanager
def serving(model: Path, folder: Path, *options: str, port: int = 0) -> Iterator[Running]:
    log = folder / "log.jsonl"
    command = [sys.executable, "-m", "next_behavior.commands", "serve", "--model", str(model), "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *options], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=output
        )
    try:
        while "listening" not in log.read_text() and process.poll() is None:
            time.sleep(0.02)
        assert process.poll() is None, log.read_text()
        running = Running(process, int(json.loads(log.read_text().splitlines()[0])["url"].rsplit(":", 1)[1]), log)
        running.wait_until_ready()
        yield running
    finally:
        process.kill()
        process.wait()


def event(number: int, user: str = "ann", item: str = "3") -> dict[str, Any]:
    return {"event_id": f"e{number}", "user_id": user, "item": item, "action": "view", "timestamp": 1000.0 + number}


def test_it_answers_learns_and_stops_cleanly(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path) as service:
        status, before = service.call("POST", "/v1/predict", {"events": [{"item": "3"}], "of": "item", "top_k": 30})
        assert (status, before["cold_start"], len(before["answers"])) == (200, False, 30)
        stored = {"events": [event(1, item="3"), event(2, item="7")], "learned": True}
        status, learned = service.call("POST", "/v1/events", stored)
        assert status == 200
        assert learned["events"][1]["learned"]
        _, after = service.call("POST", "/v1/predict", {"events": [{"item": "3"}], "of": "item", "top_k": 30})
        assert after["answers"] != before["answers"]
        libraries = Path(f"/proc/{service.process.pid}/maps").read_text()
        assert "libtorch" not in libraries
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(20) == 0
    with serving(model, tmp_path) as service:
        _, again = service.call("POST", "/v1/predict", {"events": [{"item": "3"}], "of": "item", "top_k": 30})
        assert again["answers"] == after["answers"]


@pytest.mark.parametrize("rounds", [3, pytest.param(50, marks=pytest.mark.timeout(1200))])
def test_kill_9_under_load_loses_no_acknowledged_event(model: Path, tmp_path: Path, rounds: int) -> None:
    acknowledged: set[str] = set()
    number = 0

    def send(service: Running) -> None:
        nonlocal number
        with contextlib.suppress(OSError, http.client.HTTPException):
            while True:
                batch = [event(number + place, user=f"u{place % 4}") for place in range(8)]
                number += 8
                status, answer = service.call("POST", "/v1/events", {"events": batch})
                if status == 200:
                    acknowledged.update(one["event_id"] for one in answer["events"])

    for _ in range(rounds):
        with serving(model, tmp_path) as service:
            sender = threading.Thread(target=send, args=[service])
            sender.start()
            time.sleep(0.2 + random.random() / 2)
            service.process.kill()
            sender.join()
    with serving(model, tmp_path) as service:
        assert acknowledged
        again = [event(int(name[1:]), user=f"u{int(name[1:]) % 8 % 4}") for name in sorted(acknowledged)]
        results = []
        for begin in range(0, len(again), 500):
            status, answer = service.call("POST", "/v1/events", {"events": again[begin : begin + 500]})
            assert status == 200
            results += [one["result"] for one in answer["events"]]
        assert set(results) == {"duplicate"}


def test_a_worker_that_crashes_is_started_again_and_nobody_notices(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, "--workers", "2", "--store", "none") as service:
        children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text()
        workers = [int(pid) for pid in children.split()]
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGSEGV)
        for _ in range(50):
            with contextlib.suppress(http.client.HTTPException, OSError):  # what the dead one had accepted is lost
                assert service.call("GET", "/livez")[0] == 200
                assert service.call("POST", "/v1/predict", {"events": [{"item": "3"}]})[0] == 200
            time.sleep(0.02)
        assert any(line["message"] == "worker died" for line in service.lines())
        service.wait_until_ready()
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(30) == 0


def test_workers_do_not_outlive_a_parent_that_was_killed(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, "--workers", "2", "--store", "none") as service:
        children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
        service.process.kill()
        end = time.monotonic() + 20
        while any(Path(f"/proc/{child}/maps").exists() for child in children):
            assert time.monotonic() < end
            time.sleep(0.05)


def test_mistakes_end_the_command_in_one_line(model: Path, tmp_path: Path) -> None:
    trained, empty = str(model), str(tmp_path)
    with pytest.raises(ValueError, match="--token_file"):
        main(["--model", empty, "--host", "0.0.0.0", "--port", "0"])
    with pytest.raises(SystemExit):
        main(["--model", empty, "--workers", "2"])
    with pytest.raises(ValueError, match=r"config\.json"):
        main(["--model", empty, "--port", "0", "--store", "none"])
    store = tmp_path / "events.sqlite"
    store.write_bytes(b"not a database" * 100)
    with pytest.raises(ValueError, match=r"events\.sqlite"):
        main(["--model", trained, "--port", "0", "--store", str(store)])


@pytest.mark.redis
def test_workers_with_one_redis_have_one_memory_and_reload_together(
    model: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    tokens = tmp_path / "tokens.txt"
    options = ("--workers", "2", "--store", redis_server.address, "--no_request_log")
    with serving(model, tmp_path, *options) as service:
        number = 0
        for _ in range(10):  # each call is a connection, which either worker may take
            number += 2
            stored = {"events": [event(number, item="3"), event(number + 1, item="7")]}
            assert service.call("POST", "/v1/events", stored)[0] == 200
        question = {"events": [{"item": "3"}], "of": "item", "top_k": 30}
        time.sleep(1.5)
        answers = {json.dumps(service.call("POST", "/v1/predict", question)[1]["answers"]) for _ in range(20)}
        assert len(answers) == 1
        assert not tokens.exists()
        assert service.call("POST", "/admin/reload", {})[1]["changed"] is False
        redis_server.kill()
        assert service.call("POST", "/v1/events", {"events": [event(900)]})[0] == 503
        assert service.call("POST", "/v1/predict", question)[0] == 200
        redis_server.start()
        assert service.call("POST", "/v1/events", {"events": [event(900)]})[0] == 200


def test_a_history_is_answered_the_same_beside_longer_ones(model: Path, tmp_path: Path) -> None:
    """In a batch a short history is padded."""
    questions = [{"events": [{"item": str(n + place)} for place in range(1 + n % 12)], "top_k": 60} for n in range(16)]

    def ask(service: Running, number: int) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = service.call("POST", "/v1/predict", questions[number])[1]["answers"]
        return answers

    with serving(model, tmp_path, "--store", "none") as service:
        alone = [ask(service, number) for number in range(len(questions))]
        with ThreadPoolExecutor(len(questions)) as threads:
            for _ in range(5):
                together = threads.map(lambda number: ask(service, number), range(len(questions)))
                for one, other in zip(alone, together, strict=True):
                    pairs = {(answer["action"], answer["item"]): answer["probability"] for answer in one}
                    assert {(answer["action"], answer["item"]) for answer in other} == set(pairs)
                    for answer in other:
                        same = pytest.approx(pairs[answer["action"], answer["item"]], abs=1e-5)
                        assert answer["probability"] == same


def ask_until(service: Running, end: float, replies: list[tuple[int, float]]) -> None:
    """Questions one after the other on one connection: statuses and seconds."""
    body = json.dumps({"events": [{"item": str(number % 30)} for number in range(8)]})
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)) as connection:
        while time.monotonic() < end:
            begin = time.monotonic()
            connection.request("POST", "/v1/predict", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            replies.append((answer.status, time.monotonic() - begin))


def test_overload_is_refused_and_what_is_admitted_is_answered_in_time(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, "--max_waiting", "8", "--no_request_log", "--store", "none") as service:
        replies: list[tuple[int, float]] = []
        end = time.monotonic() + 5
        asking = [threading.Thread(target=ask_until, args=[service, end, replies]) for _ in range(100)]
        for thread in asking:
            thread.start()
        probes = []
        while time.monotonic() < end:
            probes.append(service.call("GET", "/readyz")[0])
            time.sleep(0.1)
        for thread in asking:
            thread.join()
        assert set(probes) == {200}
        statuses = [status for status, _ in replies]
        assert set(statuses) <= {200, 429, 504}
        assert {200, 429} <= set(statuses)
        admitted = sorted(seconds for status, seconds in replies if status == 200)
        assert admitted[int(len(admitted) * 0.99)] < 2.0


@pytest.mark.timeout(1200)
def test_a_soak_leaves_memory_and_files_as_they_were(model: Path, tmp_path: Path) -> None:
    """Ten minutes, or `SOAK_SECONDS`: questions, events, half-sent requests and reloads."""
    seconds = float(os.environ.get("SOAK_SECONDS", "600"))
    with serving(model, tmp_path, "--no_request_log") as service:
        sizes: list[tuple[int, int]] = []
        number = 0
        replies: list[tuple[int, float]] = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ask_until(service, time.monotonic() + 0.5, replies)
            batch = [event(number + place, user=f"u{place}", item=str(place)) for place in range(20)]
            number += 20
            assert service.call("POST", "/v1/events", {"events": batch})[0] == 200
            assert service.call("POST", "/admin/reload", {})[0] == 200
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", service.port)) as half:
                half.connect()
                half.sock.sendall(b"POST /v1/pre")
            process = Path(f"/proc/{service.process.pid}")
            pages = int((process / "statm").read_text().split()[1])
            sizes.append((pages * os.sysconf("SC_PAGE_SIZE"), len(list((process / "fd").iterdir()))))
        assert {status for status, _ in replies} == {200}
        quarter = len(sizes) // 4
        settled, last = sizes[quarter], sizes[-1]
        assert last[0] < settled[0] * 1.1 + 10 * 2**20
        assert last[1] <= settled[1] + 3
