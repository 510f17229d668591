"""The processes: one server, or several behind one port with a parent that starts dead ones again.

One process serves by itself. With `--workers N` the parent binds the port and hands the socket to N children, so that
no connection is refused while one of them starts again. They share the event store, which has to be Redis, and tell
each other of a reload through a file.

SIGTERM: /readyz turns to 503 at once, requests go on for `drain_seconds`, then the port is closed, what is in flight is
finished, and the memory's snapshot is written. A second signal, or Ctrl-C, does not wait.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from next_behavior.serving.app import Application, application
from next_behavior.serving.event_store import StoreError
from next_behavior.serving.protocol import protocol
from next_behavior.serving.service import Service

logger = logging.getLogger(__name__)

BACKLOG = 2048
# A worker that died is started again, unless so many died in so many seconds.
MOST_DEATHS, DEATHS_SECONDS = 5, 60.0
POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of the connections and the end: seconds, and a number of connections."""

    read_seconds: float
    most_connections: int
    drain_seconds: float
    grace_seconds: float


class Server(uvicorn.Server):
    """uvicorn's server, which tells the service of a signal and goes on for a while.

    Args:
        parent: the process that started this one and may be gone by now; None without one.
    """

    def __init__(
        self, config: uvicorn.Config, service: Service, drain_seconds: float, parent: int | None = None
    ) -> None:
        super().__init__(config)
        self.service, self.drain_seconds = service, drain_seconds
        self._stop_at: float | None = None
        # A worker does not outlive its parent, not even one that was killed.
        self._parent = parent
        service.on_failure = self._fail

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        first = not self.service.draining
        self.service.draining = True
        wait = self.drain_seconds if first and sig == signal.SIGTERM else 0.0
        if not first and self.should_exit:
            self.force_exit = True
        self._stop_at = time.monotonic() + wait

    async def on_tick(self, counter: int) -> bool:
        stop = self._stop_at is not None and time.monotonic() >= self._stop_at
        orphan = self._parent is not None and os.getppid() != self._parent
        self.should_exit = self.should_exit or stop or orphan
        return await super().on_tick(counter)

    def _fail(self) -> None:
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. OSError: the port is taken, or may not be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise ValueError(f"cannot listen on {host}:{port}: {error.strerror}; expected a free port") from error
    return listening


def server_config(app: Application, limits: Limits) -> uvicorn.Config:
    return uvicorn.Config(
        app, loop="uvloop", http=protocol(limits.read_seconds, limits.most_connections), ws="none",
        interface="asgi3", lifespan="on", log_config=None, access_log=False, proxy_headers=False, server_header=False,
        backlog=BACKLOG, timeout_keep_alive=30, timeout_graceful_shutdown=max(1, round(limits.grace_seconds)),
    )  # fmt: skip


def serve(service: Service, listening: socket.socket, limits: Limits, parent: int | None = None) -> None:
    """Serves until a signal, or until the process `parent` has ended. Raises what kept the service from starting."""
    config = server_config(application(service), limits)
    Server(config, service, limits.drain_seconds, parent).run(sockets=[listening])
    if isinstance(service.failure, StoreError):
        raise ValueError(str(service.failure)) from service.failure
    if service.failure is not None:
        raise service.failure
    if service.live is None:
        logging.shutdown()
        os._exit(0)  # stopped while a thread waited for an export or a download: its end is not waited for


def supervise(arguments: Sequence[str], workers: int, listening: socket.socket, grace_seconds: float) -> int:
    """Runs worker processes until a signal; the exit status.

    Args:
        arguments: of `next-behavior serve`, for each worker.
    """
    with tempfile.TemporaryDirectory(prefix="next-behavior-") as folder:
        return _Supervisor(arguments, workers, listening, Path(folder)).run(grace_seconds)


class _Supervisor:
    def __init__(self, arguments: Sequence[str], workers: int, listening: socket.socket, folder: Path) -> None:
        self.arguments, self.workers, self.listening, self.folder = list(arguments), workers, listening, folder
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.deaths: list[float] = []
        self.signal: int | None = None
        (folder / "metrics").mkdir()

    def run(self, grace_seconds: float) -> int:
        before = {sign: signal.signal(sign, self._stop) for sign in (signal.SIGTERM, signal.SIGINT)}
        try:
            for number in range(self.workers):
                self._start(number)
            while self.signal is None:
                time.sleep(POLL_SECONDS)
                for number, process in list(self.processes.items()):
                    if process.poll() is not None and not self._again(number, process):
                        self._end(signal.SIGTERM, grace_seconds)
                        return 1
            return self._end(self.signal, grace_seconds)
        finally:
            for process in self.processes.values():
                if process.poll() is None:
                    process.kill()
            for sign, handler in before.items():
                signal.signal(sign, handler)

    def _start(self, number: int) -> None:
        handed = self.listening.fileno()
        command = [sys.executable, "-m", "next_behavior.commands", "serve", *self.arguments, "--worker_number"]
        command += [str(number), "--worker_socket", str(handed), "--worker_folder", str(self.folder)]
        command += ["--worker_parent", str(os.getpid())]
        environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(self.folder / "metrics")}
        # In a group of its own: Ctrl-C reaches the parent, which hands it on.
        self.processes[number] = subprocess.Popen(
            command, env=environment, pass_fds=[handed], stdin=subprocess.DEVNULL, start_new_session=True
        )

    def _again(self, number: int, process: subprocess.Popen[bytes]) -> bool:
        now = time.monotonic()
        self.deaths = [moment for moment in self.deaths if now - moment < DEATHS_SECONDS] + [now]
        logger.error("worker died", extra={"worker": number, "status": process.returncode})
        if len(self.deaths) > MOST_DEATHS:
            logger.error("workers die too often: giving up")
            return False
        self._start(number)
        return True

    def _end(self, sign: int, grace_seconds: float) -> int:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(sign)
        end = time.monotonic() + grace_seconds
        for process in self.processes.values():
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # A worker that was still starting has no handler yet, and ends by the signal itself.
        statuses = [process.returncode for process in self.processes.values() if process.returncode != -sign]
        return max(map(abs, statuses), default=0)

    def _stop(self, sign: int, frame: FrameType | None) -> None:
        self.signal = sign
