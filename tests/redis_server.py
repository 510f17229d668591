"""A real Redis server for tests: on a free port of loopback, in a temporary folder, with an append-only file."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest


class RedisServer:
    """`with RedisServer() as server: server.address`. It may be killed and started again, and finds its file."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"redis://127.0.0.1:{self._port}/0"

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        assert self._folder is not None
        shutil.rmtree(self._folder)

    def start(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            assert "REDIS_REQUIRED" not in os.environ, "REDIS_REQUIRED is set, and there is no redis-server"
            pytest.skip("needs redis-server: apt-get install redis-server")
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="redis-"))
        settings = {"port": self._port, "bind": "127.0.0.1", "save": "", "appendonly": "yes", "appendfsync": "always"}
        arguments = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        self._process = subprocess.Popen([program, *arguments], cwd=self._folder, stdout=subprocess.DEVNULL)
        import redis  # here, because every test process imports this file

        client = redis.Redis.from_url(self.address)
        for _ in range(500):
            try:
                client.ping()
                break
            except redis.ConnectionError:  # BusyLoadingError is one, too
                assert self._process.poll() is None, "redis-server ended at once"
                time.sleep(0.02)
        client.close()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
