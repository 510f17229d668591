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
        # Of the transaction: the counters, and [number, events, horizon] of the users it is about.
        self._counters: dict[str, int] = {}
        self._users: dict[bytes, list[int]] = {}

    def commit(self, requests: list[Request]) -> list[Any]:
        """All requests in one transaction."""
        look = self._cutoff() > 0 and time.monotonic() >= self._next_look
        if not requests and not look:
            return []
        run = self.connection.execute
        run("BEGIN IMMEDIATE")
        try:
            self._counters = dict(all_rows(self.connection, "SELECT name, value FROM counters"))
            self._users = {}
            results: list[Any] = [
                self._erase(request) if isinstance(request, str) else [self._insert(event) for event in request]
                for request in requests
            ]
            self._write_users()
            if look:
                self._remove_old()
            for name, value in self._counters.items():
                run("UPDATE counters SET value = ? WHERE name = ?", (value, name))
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
        key, event_id = keyed_hash(self._key, event.user), keyed_hash(self._key, event.event_id)
        moment = micros(event.time)
        if self._counters["erasures"]:
            erased = one_row(self.connection, "SELECT time FROM erased WHERE hash = ?", (key,))
            if erased is not None and moment <= erased[0]:
                return "erased"
        user = self._user(key)
        if moment < self._cutoff() or (user is not None and moment <= user[2]):
            return "expired"
        same = one_row(self.connection, "SELECT user, time, item, action FROM events WHERE event_id = ?", (event_id,))
        if same is not None:
            new = (None if user is None else user[0], moment, event.item, event.action)
            return "duplicate" if same == new else "conflict"
        if user is None:
            user = self._add_user(key, event.user)
        # Never given twice, even by a store that was put back from an older backup.
        arrival = self._counters["arrivals"] = max(self._counters["arrivals"] + 1, self._now())
        self.connection.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)",
            (user[0], moment, arrival, event_id, event.item, event.action),
        )
        self._counters["events"] += 1
        user[1] += 1
        if self._max_events is not None and user[1] > self._max_events:
            self._remove_oldest(user, user[1] - self._max_events)
        return "inserted"

    def _user(self, key: bytes) -> list[int] | None:
        """[number, events, horizon] of a user: what is changed there is written with the transaction."""
        if key not in self._users:
            row = one_row(self.connection, "SELECT number, events, horizon FROM users WHERE hash = ?", (key,))
            if row is None:
                return None
            self._users[key] = list(row)
        return self._users[key]

    def _add_user(self, key: bytes, name: str) -> list[int]:
        self._counters["users"] += 1  # numbers are not used again, so names stay where they are written
        self._users[key] = [self._counters["users"], 0, -1]
        self.connection.execute("INSERT INTO names VALUES (?, ?, 1)", (self._counters["users"], name))
        return self._users[key]

    def _write_users(self) -> None:
        for key, user in self._users.items():
            self.connection.execute("INSERT OR REPLACE INTO users VALUES (?, ?, ?, ?)", (key, *user))

    def _remove_oldest(self, user: list[int], excess: int) -> None:
        """Removes the oldest events of a user and remembers up to when."""
        oldest = all_rows(
            self.connection,
            "SELECT time, arrival FROM events WHERE user = ? ORDER BY time, arrival LIMIT ?",
            (user[0], min(excess, STEP)),
        )
        for moment, arrival in oldest:
            self._delete(user[0], moment, arrival)
        user[1] -= len(oldest)
        user[2] = oldest[-1][0]

    def _delete(self, number: int, moment: int, arrival: int) -> None:
        self.connection.execute(
            "DELETE FROM events WHERE user = ? AND time = ? AND arrival = ?", (number, moment, arrival)
        )
        self._counters["events"] -= 1

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
            self._delete(number, moment, arrival)
            user = keyed_hash(self._key, name)
            run("UPDATE users SET events = events - 1 WHERE hash = ?", (user,))
            if all_rows(self.connection, "DELETE FROM users WHERE hash = ? AND events = 0 RETURNING 1", (user,)):
                self._overwrite_name(number)
        self._looked_until = rows[-1][3] if len(rows) == STEP else 0
        # A full step is followed by the next one soon, the end of a round by a pause.
        self._next_look = time.monotonic() + SECONDS_BETWEEN_STEPS / (1 if len(rows) < STEP else 10)

    def _erase(self, name: str) -> bool:
        run = self.connection.execute
        key = keyed_hash(self._key, name)
        until = self._now()
        user = self._user(key)
        if user is not None:
            (newest,) = one_row(self.connection, "SELECT max(time) FROM events WHERE user = ?", (user[0],))
            until = max(until, newest or 0)  # of a clock that is ahead
            run("DELETE FROM events WHERE user = ?", (user[0],))
            self._counters["events"] -= self.connection.changes()
            run("DELETE FROM users WHERE hash = ?", (key,))
            self._overwrite_name(user[0])
            del self._users[key]
        run("INSERT INTO erased VALUES (?, ?) ON CONFLICT DO UPDATE SET time = max(time, excluded.time)", (key, until))
        self._counters["erasures"] += 1
        return user is not None

    def _overwrite_name(self, number: int) -> None:
        # As long as before, so that the row stays where it is.
        self.connection.execute(
            "UPDATE names SET name = CAST(zeroblob(octet_length(name)) AS TEXT), live = 0 WHERE number = ?", (number,)
        )

    def _empty_log(self) -> bool:
        """Moves the write-ahead log into the file and cuts it to no bytes; whether that could be done."""
        return one_row(self.connection, "PRAGMA wal_checkpoint(TRUNCATE)")[0] == 0
