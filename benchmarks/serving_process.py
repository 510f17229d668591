"""Processes that are measured: pinned to a core, waited for until they answer, looked at, and ended.

The service and the load generator each have a core of their own, so that one does not take from the other.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"), "1"
)
POLL_SECONDS = 0.005
STOP_SECONDS = 15.0


@dataclass(frozen=True)
class Cores:
    """The numbers of the cores of the service and of the client; None leaves the choice to the system."""

    service: int | None
    client: int | None

    @classmethod
    def of_machine(cls) -> Cores:
        """The first two cores that this process may use; none where there is one alone, or no `taskset`."""
        if shutil.which("taskset") is None:
            return cls(None, None)
        usable = sorted(os.sched_getaffinity(0))
        return cls(usable[0], usable[1]) if len(usable) > 1 else cls(None, None)


def pinned(core: int | None, command: Sequence[str]) -> list[str]:
    return list(command) if core is None else ["taskset", "-c", str(core), *command]


def environment(**added: str) -> dict[str, str]:
    """One thread for each library; modules of this repository can be imported. What BLAS picks is left to it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    return kept | ONE_THREAD | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"} | added


def json_of(core: int | None, command: Sequence[str], log: Path, **variables: str) -> Any:
    """The JSON in the last line that a command prints.

    Raises:
        ValueError: it failed; with the end of what it said.
    """
    with log.open("a") as errors:
        run = functools.partial(subprocess.run, cwd=ROOT, env=environment(**variables), text=True)
        done = run(pinned(core, command), stdout=subprocess.PIPE, stderr=errors)
    if done.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-3:]
        raise ValueError(f"{' '.join(command[:8])} ended with status {done.returncode}: {' | '.join(last)}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def module(name: str, *arguments: object, python: str | Path = sys.executable) -> list[str]:
    return [str(python), "-m", name, *map(str, arguments)]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def http(port: int, method: str, path: str, body: bytes = b"", timeout: float = 10.0) -> tuple[int, bytes]:
    """One request on a connection of its own: status and body."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        parts = []
        while part := connection.recv(2**16):
            parts.append(part)
    answer = b"".join(parts)
    return int(answer[9:12] or 0), answer.partition(b"\r\n\r\n")[2]


class Running:
    """A server, from its start to its end.

        with Running(command, port, core, log, ready=("GET", "/readyz", b"")) as server:
            server.start_seconds, server.mebibytes()

    Args:
        ready: method, path and body of a request that is answered with 200 as soon as the service can work.
        variables: of its environment.
    """

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        core: int | None,
        log: Path,
        ready: tuple[str, str, bytes],
        patience: float = 180.0,
        variables: Mapping[str, str] | None = None,
        folder: Path = ROOT,
    ) -> None:
        self.port, self.log, self.patience, self.ready = port, log, patience, ready
        self.command, self.folder = pinned(core, command), folder
        self.variables = environment(**(variables or {}))
        self.start_seconds = 0.0

    def __enter__(self) -> Running:
        begin = time.perf_counter()
        with self.log.open("a") as log:
            # In a session of its own: servers start more processes, and all of them are ended together.
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=self.variables, stdout=log, stderr=log, start_new_session=True
            )
        try:
            while not self._is_ready():
                if self.process.poll() is not None:
                    raise ValueError(
                        f"{' '.join(self.command)} ended with status {self.process.returncode}: {self._last()}"
                    )
                if time.perf_counter() - begin > self.patience:
                    raise ValueError(f"{self.command} is not ready after {self.patience} s: {self._last()}")
                time.sleep(POLL_SECONDS)
        except BaseException:
            self._end()
            raise
        self.start_seconds = time.perf_counter() - begin
        return self

    def __exit__(self, *raised: object) -> None:
        self._end()

    def _is_ready(self) -> bool:
        try:
            return http(self.port, *self.ready)[0] == 200
        except OSError:
            return False

    def _last(self) -> str:
        return " | ".join(self.log.read_text(errors="replace").strip().splitlines()[-3:])

    def _end(self) -> None:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None or sign == signal.SIGKILL:
                try:
                    os.killpg(self.process.pid, sign)
                except ProcessLookupError:
                    return
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                continue

    def processes(self) -> list[int]:
        """The ids of the server's processes: those of its session."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                values = path.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(values[3]) == self.process.pid:  # the session
                found.append(int(path.parent.name))
        return found

    def mebibytes(self) -> dict[str, float]:
        """Of all its processes: resident, and that without mapped files, which the system may drop and share."""
        totals = {"VmRSS": 0.0, "RssAnon": 0.0}
        for process in self.processes():
            try:
                lines = Path(f"/proc/{process}/status").read_text().splitlines()
            except (FileNotFoundError, ProcessLookupError):
                continue
            for line in lines:
                name, _, value = line.partition(":")
                if name in totals:
                    totals[name] += int(value.split()[0]) / 1024
        return {"resident": totals["VmRSS"], "anonymous": totals["RssAnon"]}
