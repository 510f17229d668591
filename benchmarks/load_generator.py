"""Load on an HTTP service: requests at given times whatever the service does, or one after the other.

    python -m benchmarks.load_generator --port 8000 --bodies bodies.jsonl --rate 2000 --seconds 10
    python -m benchmarks.load_generator --port 8000 --bodies bodies.jsonl --connections 1     # closed loop
    python -m benchmarks.load_generator --port 8000 --bodies events.jsonl --connections 4 --once

With --rate the loop is open: when each request is to be sent is drawn beforehand, and its latency counts from then. A
service that stands still for a second delays all requests of that second, and the percentiles say so; a client that
waits for the answer before it sends the next one would count one slow request (coordinated omission,
https://github.com/giltene/wrk2). If all connections wait, a request waits here, and its latency goes on.

Raw HTTP/1.1 over connections that stay open: about 50 microseconds of a core for each request. Run it on a core of its
own: it waits for the next request without sleeping, because timers of a millisecond are too coarse.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

PERCENTILES = (50, 95, 99, 99.9)
# The first part of a run is sent, but not counted.
WARM_UP_SHARE = 0.1
# What was not answered so long after the last request is given up.
GRACE_SECONDS = 5.0
# So near to the next request the loop does not sleep any more.
SPIN_SECONDS = 0.002
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
UNANSWERED = 0


def send_times(rate: float, seconds: float, seed: int = 0, even: bool = False) -> np.ndarray:
    """(n,) seconds from the start at which requests are to be sent.

    Args:
        rate: requests a second.
        even: equal gaps; else those of independent users (a Poisson process).

    >>> send_times(4, 1, even=True)
    array([0.  , 0.25, 0.5 , 0.75])
    """
    count = round(rate * seconds)
    if even:
        return np.arange(count) / rate
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))


@dataclass
class Outcomes:
    """What became of n requests, (n,) each: seconds on one clock, and the HTTP status; 0 for no answer.

    Attributes:
        intended: when each was to be sent; sent: when it was; answered: when its answer was whole.
    """

    intended: np.ndarray
    sent: np.ndarray
    answered: np.ndarray
    status: np.ndarray

    @classmethod
    def of(cls, count: int) -> Outcomes:
        return cls(np.zeros(count), np.zeros(count), np.zeros(count), np.zeros(count, np.int64))

    def part(self, begin: int, end: int | None = None) -> Outcomes:
        return Outcomes(*(values[begin:end] for values in vars(self).values()))


def summary(outcomes: Outcomes) -> dict[str, Any]:
    """Counts, rates and percentiles of the latency in ms; of those answered with 200, and from the intended time.

    `late_ms` is how late requests went out, at the 99th percentile: the client was slow, or all connections waited.
    """
    good = outcomes.status == 200
    latency = 1000 * (outcomes.answered - outcomes.intended)[good]
    answered = outcomes.status != UNANSWERED
    begin = outcomes.intended.min(initial=np.inf)
    seconds = max(outcomes.answered.max(initial=0), outcomes.intended.max(initial=0)) - begin
    statuses, counts = np.unique(outcomes.status, return_counts=True)
    found: dict[str, Any] = {
        "requests": len(good),
        "seconds": float(seconds),
        "good_per_second": float(good.sum() / seconds) if len(good) else 0.0,
        "statuses": {str(status): int(count) for status, count in zip(statuses, counts, strict=True)},
        "late_ms": float(np.percentile(1000 * (outcomes.sent - outcomes.intended)[answered], 99))
        if answered.any()
        else None,
    }
    for percentile in PERCENTILES:
        found[f"p{percentile:g}_ms"] = float(np.percentile(latency, percentile)) if len(latency) else None
    return found | {"max_ms": float(latency.max()) if len(latency) else None}


def request_bytes(host: str, path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body


def response_end(buffer: bytes) -> int | None:
    """How many bytes the first response in the buffer has; None if it is not whole yet.

    >>> response_end(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}HTTP"), response_end(b"HTTP/1.1 200")
    (40, None)
    """
    head = buffer.find(b"\r\n\r\n")
    if head < 0:
        return None
    length = LENGTH.search(buffer, 0, head)
    if length is None:
        raise ValueError(f"got a response without Content-Length: {buffer[:200]!r}")
    end = head + 4 + int(length[1])
    return end if len(buffer) >= end else None


class Connection(asyncio.Protocol):
    """One connection, with one request under way at most."""

    def __init__(self, load: Load) -> None:
        self.load, self.buffer, self.place = load, b"", -1
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def send(self, place: int) -> None:
        assert self.transport is not None, "connected"
        self.place = place
        self.load.outcomes.sent[place] = time.perf_counter()
        self.transport.write(self.load.requests[place % len(self.load.requests)])

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        end = response_end(self.buffer)
        if end is None:
            return
        status, self.buffer = int(self.buffer[9:12]), self.buffer[end:]
        place, self.place = self.place, -1
        self.load.answered(place, status, self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.load.lost(self)


@dataclass
class Load:
    """A run: requests that are sent in turn, over connections of one service.

    Attributes:
        requests: as bytes; the n-th request of the run is number n modulo their number.
        times: when each is to be sent; None in a closed loop, where each connection sends one after the other.
        count: requests of the run. seconds: of a closed loop, after which no more are sent.
    """

    requests: Sequence[bytes]
    count: int
    times: np.ndarray | None = None
    seconds: float = float("inf")
    free: list[Connection] = field(default_factory=list)
    waiting: deque[int] = field(default_factory=deque)
    lost_connections: int = 0

    def __post_init__(self) -> None:
        self.outcomes = Outcomes.of(self.count)
        self.next, self.open, self.ends = 0, 0, float("inf")

    async def run(self, host: str, port: int, connections: int) -> Outcomes:
        """Sends everything and waits for the answers."""
        loop = asyncio.get_running_loop()
        made = [(await loop.create_connection(lambda: Connection(self), host, port))[1] for _ in range(connections)]
        begin = time.perf_counter()
        if self.times is None:
            self.ends = begin + self.seconds
            for connection in made:
                self._send_next(connection)
            while self.open:
                await asyncio.sleep(0.01)
        else:
            self.free = made
            self.outcomes.intended[:] = begin + 0.05 + self.times
            await self._send_in_time()
        for connection in made:
            assert connection.transport is not None
            connection.transport.close()
        return self.outcomes.part(0, self.next)

    async def _send_in_time(self) -> None:
        intended = self.outcomes.intended.tolist()
        while self.next < self.count:
            now = time.perf_counter()
            while self.next < self.count and intended[self.next] <= now:
                self.waiting.append(self.next)
                self.next += 1
            self._send_waiting()
            wait = intended[min(self.next, self.count - 1)] - time.perf_counter()
            await asyncio.sleep(wait - SPIN_SECONDS if wait > SPIN_SECONDS else 0)
        give_up = time.perf_counter() + GRACE_SECONDS
        while (self.waiting or self.open) and time.perf_counter() < give_up:
            await asyncio.sleep(0.001)

    def _send_waiting(self) -> None:
        while self.waiting and self.free:
            self.open += 1
            self.free.pop().send(self.waiting.popleft())

    def _send_next(self, connection: Connection) -> None:
        """Of a closed loop: what is sent next, at once."""
        now = time.perf_counter()
        if self.next < self.count and now < self.ends:
            self.outcomes.intended[self.next] = now
            self.open += 1
            self.next += 1
            connection.send(self.next - 1)

    def answered(self, place: int, status: int, connection: Connection) -> None:
        self.outcomes.answered[place], self.outcomes.status[place] = time.perf_counter(), status
        self.open -= 1
        if self.times is None:
            self._send_next(connection)
        else:
            self.free.append(connection)
            self._send_waiting()

    def lost(self, connection: Connection) -> None:
        """The service closed a connection: what was under way on it is not answered."""
        if connection in self.free:
            self.free.remove(connection)
        if connection.place >= 0:
            self.open -= 1
        self.lost_connections += 1


def measure(load: Load, host: str, port: int, connections: int) -> dict[str, Any]:
    """Runs a load; its summary without the warm-up, and the share of a core that it took here."""
    import uvloop

    begin, processor = time.perf_counter(), time.process_time()
    outcomes = uvloop.run(load.run(host, port, connections))
    share = (time.process_time() - processor) / (time.perf_counter() - begin)
    whole = load.seconds == float("inf") and load.times is None
    found = summary(outcomes if whole else outcomes.part(int(WARM_UP_SHARE * len(outcomes.status))))
    return found | {"connections": connections, "client_core_share": share}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/v1/predict")
    parser.add_argument("--bodies", type=Path, required=True, help="a JSON body on each line, sent in turn")
    parser.add_argument("--rate", type=float, help="requests a second; absent: a closed loop")
    parser.add_argument("--even", action="store_true", help="equal gaps; default: those of independent users")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--once", action="store_true", help="a closed loop that sends each body once")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    requests = [request_bytes(args.host, args.path, body) for body in args.bodies.read_bytes().splitlines()]
    if args.rate is not None:
        times = send_times(args.rate, args.seconds, args.seed, args.even)
        load = Load(requests, len(times), times)
    elif args.once:
        load = Load(requests, len(requests))
    else:
        load = Load(requests, round(20_000 * args.seconds), seconds=args.seconds)
    print(json.dumps(measure(load, args.host, args.port, args.connections)))


if __name__ == "__main__":
    main()
