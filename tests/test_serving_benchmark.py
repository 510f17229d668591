"""The measurements of serving: the load generator's clock, what is sent, and the table."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import numpy as np
import pytest

from benchmarks.load_generator import Load, Outcomes, request_bytes, response_end, send_times, summary
from benchmarks.serving import medians, this_machine
from benchmarks.serving_inputs import batches_of_events, made_up_log, questions, random_walks, windows_of_log
from benchmarks.serving_process import Cores
from benchmarks.serving_report import report

RATE, PAUSE = 200.0, 0.1


class Service:
    """Answers every request with a few bytes; once, it stands still for PAUSE seconds. Answers 429 when told to."""

    def __init__(self, pause_at: int | None = None, status: int = 200) -> None:
        self.pause_at, self.status, self.requests, self.bodies = pause_at, status, 0, list[bytes]()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            self.bodies.append(await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0])))
            if self.requests == self.pause_at:
                time.sleep(PAUSE)  # the loop of the service, not only this request
            self.requests += 1
            writer.write(f"HTTP/1.1 {self.status} X\r\nContent-Length: 2\r\n\r\n{{".encode())
            writer.write(b"}")


def run(load: Load, service: Service, connections: int) -> Outcomes:
    async def both() -> Outcomes:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await service(reader, writer)
            except asyncio.IncompleteReadError:
                writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        async with server:
            return await load.run("127.0.0.1", server.sockets[0].getsockname()[1], connections)

    return asyncio.run(both())


def open_loop(seconds: float) -> Load:
    times = send_times(RATE, seconds, even=True)
    return Load([request_bytes("127.0.0.1", "/", b"{}")], len(times), times)


def test_requests_that_come_while_the_service_stands_still_are_late_by_the_time_they_waited() -> None:
    outcomes = run(open_loop(0.4), Service(pause_at=20), connections=1)
    latency = outcomes.answered - outcomes.intended
    assert (outcomes.status == 200).all()
    waited = int(PAUSE * RATE)
    # The request that met the pause waited for all of it, the one behind it for one gap less, and so on.
    expected = PAUSE - np.arange(waited - 4) / RATE
    assert (latency[20 : 20 + len(expected)] >= expected - 0.5 / RATE).all()
    # A client that counts from when it has sent sees one slow request instead of twenty.
    counted_from_sending = np.count_nonzero(outcomes.answered - outcomes.sent > PAUSE / 2)
    assert np.count_nonzero(latency > PAUSE / 2) >= counted_from_sending + waited // 3


def test_a_closed_loop_sends_each_body_once_and_in_turn() -> None:
    service = Service()
    bodies = [json.dumps({"number": number}).encode() for number in range(7)]
    outcomes = run(Load([request_bytes("h", "/", body) for body in bodies], 7), service, connections=2)
    assert sorted(service.bodies) == sorted(bodies)
    assert (outcomes.answered > outcomes.sent).all()


def test_refused_and_unanswered_requests_are_no_latency() -> None:
    outcomes = Outcomes(
        intended=np.array([0.0, 1.0, 2.0, 3.0]),
        sent=np.array([0.0, 1.0, 2.0, 0.0]),
        answered=np.array([0.010, 1.030, 2.001, 0.0]),
        status=np.array([200, 200, 429, 0]),
    )
    found = summary(outcomes)
    assert found["statuses"] == {"0": 1, "200": 2, "429": 1}
    assert found["p50_ms"] == pytest.approx(20.0)
    assert found["max_ms"] == pytest.approx(30.0)
    assert found["good_per_second"] == pytest.approx(2 / 3)
    assert run(open_loop(0.02), Service(status=429), 1).status.tolist() == [429] * 4


def test_a_percentile_counts_every_request_of_an_interval_once() -> None:
    intended = np.arange(1000) / 1000
    latency = np.full(1000, 0.001)
    latency[-10:] = 0.5
    found = summary(Outcomes(intended, intended, intended + latency, np.full(1000, 200)))
    assert found["p50_ms"] == pytest.approx(1)
    assert found["p95_ms"] == pytest.approx(1)
    assert found["p99.9_ms"] == pytest.approx(500)


def test_requests_of_independent_users_come_at_the_rate_and_with_exponential_gaps() -> None:
    times = send_times(1000, 20, seed=3)
    gaps = np.diff(times)
    assert len(times) == 20_000
    assert gaps.mean() == pytest.approx(1e-3, rel=0.05)
    assert gaps.std() == pytest.approx(1e-3, rel=0.05)
    assert (times == send_times(1000, 20, seed=3)).all()


@pytest.mark.parametrize(
    ("received", "end"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabcd", 42),
        (b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length:4\r\n\r\nabcdHTTP/1.1 200", 47),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabc", None),
        (b"HTTP/1.1 200 OK\r\ncontent-le", None),
    ],
)
def test_a_response_ends_where_its_length_says(received: bytes, end: int | None) -> None:
    assert response_end(received) == end


def test_a_response_without_a_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="without Content-Length"):
        response_end(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")


def test_questions_ask_about_whole_histories_in_the_order_of_time() -> None:
    walks = random_walks(np.random.default_rng(0), 40, 3, 50)
    names = [f"item {number}" for number in range(40)]
    for line, walk in zip(questions(names, ["view"], walks), walks, strict=True):
        events = json.loads(line)["events"]
        assert [event["item"] for event in events] == [names[number] for number in walk]
        times = [event["timestamp"] for event in events]
        assert times == sorted(times)


def test_every_stored_event_has_an_id_of_its_own_and_is_its_users_newest() -> None:
    bodies = [json.loads(line) for line in batches_of_events(["a", "b"], ["view"], 4, 25, "run")]
    events = [event for body in bodies for event in body["events"]]
    assert len({event["event_id"] for event in events}) == len(events) == 100
    assert [event["timestamp"] for event in events] == sorted({event["timestamp"] for event in events})


def test_windows_are_the_newest_known_items_of_each_user() -> None:
    log = made_up_log(users=30, items=50)
    names = [str(number) for number in range(0, 50, 2)]
    windows = windows_of_log(log, names, longest=4)
    users = log["user_id"].unique(maintain_order=True).to_list()
    expected: dict[str, list[int]] = {user: [] for user in users}
    for user, item in log.select("user_id", "item_id").iter_rows():
        if int(item) % 2 == 0:
            expected[user].append(int(item) // 2)
    rows = [found[-4:] for found in expected.values() if found]
    assert windows.tolist() == [[-1] * (4 - len(row)) + row for row in rows]


def load_result(**changed: Any) -> dict[str, Any]:
    times = np.arange(100) / 100
    outcomes = Outcomes(times, times, times + 0.0005, np.full(100, 200))
    return summary(outcomes) | {"connections": 1, "client_core_share": 0.1} | changed


def test_the_table_says_which_aims_hold_and_which_parts_failed() -> None:
    memory = {"resident": 300.0, "anonymous": 100.0}
    times = {"p50_us": 400.0, "p99_us": 900.0}
    small = {
        "one connection": load_result(),
        "capacity": load_result(),
        "open": {"2000 a second": load_result(p99_ms=12.0), "120% of capacity": load_result(p50_ms=None)},
        "start": {"ready_seconds": 1.5, "at_ready": memory},
        "after_load": memory,
        "in_process": {"answer": times, "floor": times, "items": 12_000},
    }
    about = {"load_average_before": 0.1, "minutes": 1.0, "repeats": 3, "seconds": 8.0, "date": "2026-11-28 20:00"}
    parts = {"small": small | about, "peers": {"failed": "got no python"} | about}
    text = report({"machine": this_machine(Cores(0, 1)), "parts": parts})
    assert "| … 2,000 requests a second, p99 | below 10 ms, all 200 | 12.0 | **no** |" in text
    assert "| … start to ready | below 2 s | 1.50 | yes |" in text
    assert "| … memory at ready | below 250 MiB | 300 | **no** |" in text
    assert "Failed: peers: got no python" in text


def test_medians_are_taken_of_each_number_of_equal_results() -> None:
    runs = [{"a": {"b": value, "name": "x"}, "none": None} for value in (3, 1, 2)]
    assert medians(runs) == {"a": {"b": 2, "name": "x"}, "none": None}
