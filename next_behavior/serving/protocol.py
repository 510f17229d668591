"""uvicorn's HTTP protocol with what it lacks: time limits for slow clients, a limit of connections, one error shape.

- A request has `READ_SECONDS` from its first byte to its last: half-sent headers and bodies do not hold a connection.
  A connection that sends nothing at all has as long.
- A client that does not read its answer has `WRITE_SECONDS`.
- The scope tells the application whether the client has left, so that nothing is computed for nobody.
"""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from functools import partial
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from next_behavior.serving.problems import CONTENT_TYPE, Problem
from next_behavior.serving.routes import GONE

READ_SECONDS = 8.0
WRITE_SECONDS = 8.0
MOST_CONNECTIONS = 1000
# Bytes of a request line and headers together.
MOST_HEADER_BYTES = 32_768


class WatchedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        read_seconds: float = READ_SECONDS,
        write_seconds: float = WRITE_SECONDS,
        most_connections: int = MOST_CONNECTIONS,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._read_seconds, self._write_seconds = read_seconds, write_seconds
        self._most_connections = most_connections
        self._reading: TimerHandle | None = None
        self._writing: TimerHandle | None = None
        self._between = True  # no part of a request has come since the last one was complete
        self._header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._most_connections:
            self._refuse(Problem(503, "too many connections", headers={"retry-after": "1"}))
            return
        self._reading = self.loop.call_later(self._read_seconds, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_reading_clock()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._header_bytes >= 0:
            self._header_bytes += len(data)
        super().data_received(data)
        if self.parser is None or self.transport.is_closing():
            return
        if self._header_bytes > MOST_HEADER_BYTES:
            self._refuse(Problem(400, f"more than {MOST_HEADER_BYTES} bytes of headers"))
        elif self._reading is None and self._waits_for_client():
            self._reading = self.loop.call_later(self._read_seconds, self._give_up)

    def _waits_for_client(self) -> bool:
        """Whether a part of a request has come, or only empty lines, for which uvicorn stops its clock of idle ones."""
        if not self._between:
            return True
        return self.cycle is None or (self.cycle.response_complete and self.timeout_keep_alive_task is None)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._between = False
        self.scope["extensions"] = {GONE: {"gone": self.transport.is_closing}}

    def on_headers_complete(self) -> None:
        self._header_bytes = -1  # what follows is a body, which the application limits
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._between = True
        self._header_bytes = 0
        self._stop_reading_clock()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._writing is None:
            self._writing = self.loop.call_later(self._write_seconds, self._give_up)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def send_400_response(self, msg: str) -> None:
        self._refuse(Problem(400, "the request is not HTTP"))

    def _stop_reading_clock(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _give_up(self) -> None:
        """Nothing is waited for any more, not even that what was written is taken."""
        self._reading = None
        if self.transport is not None:
            self.transport.abort()

    def _refuse(self, problem: Problem) -> None:
        body = problem.body("")
        headers = {"content-type": CONTENT_TYPE, "content-length": str(len(body)), "connection": "close"}
        lines = [f"{name}: {value}\r\n" for name, value in (headers | problem.headers).items()]
        status = {400: "400 Bad Request", 503: "503 Service Unavailable"}[problem.status]
        self.transport.write(f"HTTP/1.1 {status}\r\n{''.join(lines)}\r\n".encode() + body)
        self.transport.close()


def protocol(read_seconds: float, most_connections: int) -> Any:
    """The protocol with limits, as uvicorn's configuration takes it."""
    return partial(
        WatchedProtocol, read_seconds=read_seconds, write_seconds=read_seconds, most_connections=most_connections
    )
