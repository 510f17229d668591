"""The event store of one process: a SQLite file in WAL mode, written by one thread.

    store = SQLiteStore("events.sqlite")
    store.append([StoredEvent("e1", "ann", "84", "view", 1_700_000_000.0)])
    SQLiteStore("events.sqlite", read_only=True).journal()          # beside it, from another process

Beside the file lie its write-ahead log (`-wal`, `-shm`), its lock (`.lock`) and the key of its hashes (`.key`).

- Durable: an append returns after a commit with `synchronous=FULL`.
- One writer: of several connections that write or check point at once, SQLite before 3.51.3 can corrupt a WAL. Here one
  connection does both, a lock keeps other processes from opening the file to write, and readers are read-only.
- Erased: `secure_delete` overwrites what is deleted, but not the copies that SQLite leaves behind when it moves rows
  between pages. So names stand in a table of their own, in rows that are never moved: numbers only grow, and an erased
  name is overwritten in place. Everything else refers to the number, or is a keyed hash.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import apsw
from filelock import FileLock

from next_behavior.serving.event_store import (
    MICROS,
    StoredEvent,
    StoreReadOnly,
    check_bounds,
    keyed_hash,
    micros,
)
from next_behavior.serving.group_commit import GroupCommit, Request, WritesInGroups
from next_behavior.serving.sqlite_file import BUSY_MS, hash_key, lock_to_write, open_file, store_errors
from next_behavior.serving.sqlite_writer import SECONDS_BETWEEN_STEPS, Writer

LAST = 2**63 - 1  # no arrival is larger


class SQLiteStore(WritesInGroups):
    """An `EventStore` in one file.

    Args:
        path: the file; made if absent, its folder too.
        max_events_per_user: the newest are kept; None for all.
        max_age: seconds; None for all.
        read_only: beside a process that writes, or a file that nobody may change.
        clock: seconds since 1970.

    Raises:
        StoreError: the file is open elsewhere, is damaged or of another version, or cannot be opened.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_events_per_user: int | None = None,
        max_age: float | None = None,
        read_only: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_bounds(max_events_per_user, max_age)
        self.path = Path(path)
        self._max_events, self._max_age, self._clock = max_events_per_user, max_age, clock
        self._lock: FileLock | None = None
        self._queue: GroupCommit | None = None
        self._writer: Writer | None = None
        with store_errors(self.path):
            if not read_only:
                self._lock = lock_to_write(self.path)
            try:
                connection = open_file(self.path, read_only)
                self._key = hash_key(self.path, connection, read_only)
                if not read_only:
                    self._writer = Writer(connection, self._key, max_events_per_user, self._cutoff, self._now)
                # Histories do not wait for a long look at the journal.
                self._quick, self._long = Reader(self.path), Reader(self.path)
            except BaseException:
                self._release()
                raise
        if self._writer is not None:
            self._queue = GroupCommit(self._commit, None if max_age is None else SECONDS_BETWEEN_STEPS)

    @property
    def description(self) -> str:
        """The kind, its version, what is durable."""
        safe = tuple(map(int, apsw.sqlite_lib_version().split("."))) >= (3, 51, 3)
        note = "" if safe else ", older than 3.51.3: let no other program write to the file"
        how = "read-only" if self._queue is None else "an event is durable when it is acknowledged"
        return f"SQLite {apsw.sqlite_lib_version()} in {self.path}, {how}{note}"

    def history(self, user: str, length: int, until: int | None = None) -> list[dict[str, Any]]:
        with store_errors(self.path):
            rows = self._quick.rows(
                "SELECT item, action, time FROM events WHERE user = (SELECT number FROM users WHERE hash = ?) "
                "AND time >= ? AND arrival <= ? ORDER BY time DESC, arrival DESC LIMIT ?",
                (keyed_hash(self._key, user), self._cutoff(), LAST if until is None else until, max(0, length)),
            )
        rows.reverse()
        return [{"item": item, "action": action, "timestamp": moment / MICROS} for item, action, moment in rows]

    def erasures(self) -> int:
        return self._counter("erasures")

    def erased_until(self, users: Sequence[str]) -> dict[str, float]:
        until = {}
        with store_errors(self.path):
            for user in users:
                for (moment,) in self._long.rows(
                    "SELECT time FROM erased WHERE hash = ?", (keyed_hash(self._key, user),)
                ):
                    until[user] = moment / MICROS
        return until

    def journal(self, after: int = 0, limit: int = 1000) -> list[StoredEvent]:
        with store_errors(self.path):
            rows = self._long.rows(
                "SELECT hex(e.event_id), n.name, e.item, e.action, e.time, e.arrival "
                "FROM events e INDEXED BY events_by_arrival JOIN names n ON n.number = e.user "
                "WHERE e.arrival > ? AND e.time >= ? ORDER BY e.arrival LIMIT ?",
                (after, self._cutoff(), max(0, limit)),
            )
        return [
            StoredEvent(event_id.lower(), user, item, action, moment / MICROS, arrival)
            for event_id, user, item, action, moment, arrival in rows
        ]

    def users(self, limit: int = 100, prefix: str = "") -> list[str]:
        with store_errors(self.path):
            rows = self._long.rows(
                "SELECT name FROM names WHERE live AND substr(CAST(name AS BLOB), 1, ?) = ? "
                "ORDER BY number DESC LIMIT ?",
                (len(prefix.encode()), prefix.encode(), max(0, limit)),  # as text, a NUL would end it
            )
        return [name for (name,) in rows]

    def count(self) -> int:
        return self._counter("events")

    def size(self) -> int:
        files = (self.path, self.path.with_name(f"{self.path.name}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        if self._queue is not None:
            self._queue.close()
        self._quick.close()
        self._long.close()
        self._release()

    def _release(self) -> None:
        if self._writer is not None:
            self._writer.connection.close()
        if self._lock is not None:
            self._lock.release()

    def _counter(self, name: str) -> int:
        with store_errors(self.path):
            return self._quick.rows("SELECT value FROM counters WHERE name = ?", (name,))[0][0]

    def _writing(self) -> GroupCommit:
        if self._queue is None:
            raise StoreReadOnly(f"got an event for {self.path}, opened read-only; expected a store opened to write")
        return self._queue

    def _now(self) -> int:
        return micros(self._clock())

    def _cutoff(self) -> int:
        """Events before this moment are expired."""
        return 0 if self._max_age is None else micros(self._clock() - self._max_age)

    def _commit(self, requests: list[Request]) -> list[Any]:
        assert self._writer is not None
        with store_errors(self.path):
            return self._writer.commit(requests)


class Reader:
    """A read-only connection that threads take in turn. It never checks point, and keeps no transaction open."""

    def __init__(self, path: Path) -> None:
        self._connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        self._connection.set_busy_timeout(BUSY_MS)
        self._lock = threading.Lock()

    def rows(self, statement: str, values: tuple[Any, ...]) -> list[Any]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def close(self) -> None:
        with self._lock:
            self._connection.close()
