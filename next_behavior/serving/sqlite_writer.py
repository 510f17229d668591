"""The one connection of a SQLite store that writes: what an event, an erasure and the bounds do to the tables."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import apsw

from next_behavior.serving.event_store import Outcome, StoreBusy, StoredEvent, keyed_hash, micros
from next_behavior.serving.group_commit import Request
from next_behavior.serving.sqlite_file import all_rows, one_row

# Rows that one commit looks at, or removes of one user, to keep the bounds.
STEP = 500
SECONDS_BETWEEN_STEPS = 1.0


class Writer:
    """The connection that writes and checks point, used by one thread."""

    def __init__(
        self,
        connection: apsw.Connection,
        key: bytes,
        max_events: int | None,
        cutoff: Callable[[], int],
        now: Callable[[], int],
    ) -> None:
        self.connection = connection
        self._key, self._max_events, self._cutoff, self._now = key, max_events, cutoff, now
        self._looked_until = 0  # the arrival up to which ages were looked at
        self._next_look = 0.0
        self._arrivals = 0

    def commit(self, requests: list[Request]) -> list[Any]:
        """All requests in one transaction."""
        look = self._cutoff() > 0 and time.monotonic() >= self._next_look
        if not requests and not look:
            return []
        run = self.connection.execute
        run("BEGIN IMMEDIATE")
        try:
            self._arrivals = self._counter("arrivals")
            results: list[Any] = [
                self._erase(request) if isinstance(request, str) else [self._insert(event) for event in request]
                for request in requests
            ]
            run("UPDATE counters SET value = ? WHERE name = 'arrivals'", (self._arrivals,))
            if look:
                self._remove_old()
            run("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                run("ROLLBACK")
            raise
        erased = [index for index, request in enumerate(requests) if isinstance(request, str)]
        if erased and not self._empty_log():
            busy = StoreBusy(
                "the user is erased, but another program reads the file, so its write-ahead log still holds the old "
                "pages: erase the user again when that program has ended"
            )
            results = [busy if index in erased else result for index, result in enumerate(results)]
        return results

    def _insert(self, event: StoredEvent) -> Outcome:
        run = self.connection.execute
        user, event_id, moment = (
            keyed_hash(self._key, event.user),
            keyed_hash(self._key, event.event_id),
            micros(event.time),
        )
        if one_row(self.connection, "SELECT 1 FROM erased WHERE hash = ? AND time >= ?", (user, moment)):
            return "erased"
        row = one_row(self.connection, "SELECT number, events, horizon FROM users WHERE hash = ?", (user,))
        number, events, horizon = row or (None, 0, -1)
        if moment < self._cutoff() or moment <= horizon:
            return "expired"
        same = one_row(self.connection, "SELECT user, time, item, action FROM events WHERE event_id = ?", (event_id,))
        if same is not None:
            return "duplicate" if same == (number, moment, event.item, event.action) else "conflict"
        if number is None:
            number = self._add("users", 1)
            run("INSERT INTO names VALUES (?, ?, 1)", (number, event.user))
            run("INSERT INTO users VALUES (?, ?, 0, -1)", (user, number))
        # Never given twice, even by a store that was put back from an older backup.
        self._arrivals = max(self._arrivals + 1, self._now())
        run(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)",
            (number, moment, self._arrivals, event_id, event.item, event.action),
        )
        self._add("events", 1)
        run("UPDATE users SET events = events + 1 WHERE hash = ?", (user,))
        if self._max_events is not None and events + 1 > self._max_events:
            self._remove_oldest(user, number, events + 1 - self._max_events)
        return "inserted"

    def _remove_oldest(self, user: bytes, number: int, excess: int) -> None:
        """Removes the oldest events of a user and remembers up to when."""
        run = self.connection.execute
        oldest = all_rows(
            self.connection,
            "SELECT time, arrival FROM events WHERE user = ? ORDER BY time, arrival LIMIT ?",
            (number, min(excess, STEP)),
        )
        for moment, arrival in oldest:
            run("DELETE FROM events WHERE user = ? AND time = ? AND arrival = ?", (number, moment, arrival))
        run("UPDATE users SET events = events - ?, horizon = ? WHERE hash = ?", (len(oldest), oldest[-1][0], user))
        self._add("events", -len(oldest))

    def _remove_old(self) -> None:
        """Looks at the next events of the journal, round and round, and removes those that are too old."""
        run = self.connection.execute
        cutoff = self._cutoff()
        rows = all_rows(
            self.connection,
            "SELECT e.user, n.name, e.time, e.arrival FROM events e INDEXED BY events_by_arrival "
            "JOIN names n ON n.number = e.user WHERE e.arrival > ? ORDER BY e.arrival LIMIT ?",
            (self._looked_until, STEP),
        )
        for number, name, moment, arrival in rows:
            if moment >= cutoff:
                continue
            run("DELETE FROM events WHERE user = ? AND time = ? AND arrival = ?", (number, moment, arrival))
            self._add("events", -1)
            user = keyed_hash(self._key, name)
            run("UPDATE users SET events = events - 1 WHERE hash = ?", (user,))
            if all_rows(self.connection, "DELETE FROM users WHERE hash = ? AND events = 0 RETURNING 1", (user,)):
                self._overwrite_name(number)
        self._looked_until = rows[-1][3] if len(rows) == STEP else 0
        # A full step is followed by the next one soon, the end of a round by a pause.
        self._next_look = time.monotonic() + SECONDS_BETWEEN_STEPS / (1 if len(rows) < STEP else 10)

    def _erase(self, user: str) -> bool:
        run = self.connection.execute
        key = keyed_hash(self._key, user)
        until = self._now()
        row = one_row(self.connection, "SELECT number FROM users WHERE hash = ?", (key,))
        if row is not None:
            (newest,) = one_row(self.connection, "SELECT max(time) FROM events WHERE user = ?", row)
            until = max(until, newest or 0)  # of a clock that is ahead
            run("DELETE FROM events WHERE user = ?", row)
            self._add("events", -self.connection.changes())
            run("DELETE FROM users WHERE hash = ?", (key,))
            self._overwrite_name(row[0])
        run("INSERT INTO erased VALUES (?, ?) ON CONFLICT DO UPDATE SET time = max(time, excluded.time)", (key, until))
        self._add("erasures", 1)
        return row is not None

    def _overwrite_name(self, number: int) -> None:
        # As long as before, so that the row stays where it is.
        self.connection.execute(
            "UPDATE names SET name = CAST(zeroblob(octet_length(name)) AS TEXT), live = 0 WHERE number = ?", (number,)
        )

    def _empty_log(self) -> bool:
        """Moves the write-ahead log into the file and cuts it to no bytes; whether that could be done."""
        return one_row(self.connection, "PRAGMA wal_checkpoint(TRUNCATE)")[0] == 0

    def _counter(self, name: str) -> int:
        return one_row(self.connection, "SELECT value FROM counters WHERE name = ?", (name,))[0]

    def _add(self, name: str, number: int) -> int:
        statement = "UPDATE counters SET value = value + ? WHERE name = ? RETURNING value"
        return all_rows(self.connection, statement, (number, name))[0][0]
