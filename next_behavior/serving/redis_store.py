"""The event store of several processes: a Redis server, or Valkey.

    store = RedisStore("redis://localhost:6379/0", max_events_per_user=1000)
    store.append([StoredEvent("e1", "ann", "84", "view", 1_700_000_000.0)])

- One script appends a batch, atomically (see `redis_scripts.py`); a call that failed may be sent again.
- Durable is what Redis makes durable: with `appendonly yes` and `appendfsync always` each append; with `everysec`, its
  default then, a crash of the machine may lose the last second; without, all since the last snapshot. `description`
  says which it is.
- In memory: bound it by `max_events_per_user` or `max_age`. The ids that tell duplicates are kept for `max_age`, or for
  30 days, and the journal for its newest events.
- Erased: nothing in memory names the user. Redis' own files are written anew in the course of time; BGREWRITEAOF, or
  BGSAVE without an append-only file, does it now.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from next_behavior.serving import redis_scripts
from next_behavior.serving.event_store import (
    MICROS,
    StoreBusy,
    StoreDamaged,
    StoredEvent,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
    check_bounds,
    keyed_hash,
    micros,
)
from next_behavior.serving.group_commit import GroupCommit, Request, WritesInGroups

PREFIX = "next-behavior:1:"  # with the version of what lies behind it
KEY_BYTES = 32
SECONDS_OF_IDS = 30 * 86_400
JOURNAL_LENGTH = 1_000_000
SECONDS_TO_ANSWER = 1.0  # of one try
RETRIES = 2
# Events of one script, in which Redis does nothing else: some milliseconds.
LARGEST_SCRIPT = 200
SECONDS_BETWEEN_STEPS = 1.0
PAGE = 1000


class RedisStore(WritesInGroups):
    """An `EventStore` on a server.

    Args:
        address: redis://[USER:PASSWORD@]HOST:PORT/NUMBER, rediss:// with TLS, unix:// with a path.
        max_events_per_user: the newest are kept; None for all.
        max_age: seconds; None for all.
        journal_length: about so many events are in the journal, which loses the oldest.
        read_only: nothing is written.
        prefix: of all keys.
        clock: seconds since 1970.

    Raises:
        StoreError: the server does not answer, or may not be used.
    """

    def __init__(
        self,
        address: str,
        *,
        max_events_per_user: int | None = None,
        max_age: float | None = None,
        journal_length: int = JOURNAL_LENGTH,
        read_only: bool = False,
        prefix: str = PREFIX,
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_bounds(max_events_per_user, max_age)
        self._max_events, self._max_age, self._journal_length = max_events_per_user, max_age, journal_length
        self._read_only, self._prefix, self._clock = read_only, prefix, clock
        self._server = _without_password(address)
        self._redis = redis.Redis.from_url(
            address,
            socket_timeout=SECONDS_TO_ANSWER,
            socket_connect_timeout=SECONDS_TO_ANSWER,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.02), RETRIES),
            health_check_interval=30,
        )
        register = self._redis.register_script
        self._append, self._history = register(redis_scripts.APPEND), register(redis_scripts.HISTORY)
        self._erase, self._tidy = register(redis_scripts.ERASE), register(redis_scripts.TIDY)
        self._cursor = "0"
        with self._errors():
            self._key = self._find_key()
            self._about = self._describe()
        self._queue = GroupCommit(self._commit, None if max_age is None or read_only else SECONDS_BETWEEN_STEPS)

    @property
    def description(self) -> str:
        """The kind, its version, what is durable."""
        return self._about

    def history(self, user: str, length: int, until: int | None = None) -> list[dict[str, Any]]:
        if length < 1:
            return []
        later = 0
        while True:  # what came later is left out here: a sorted set is in order of time alone
            pairs = self._newest(user, length + later)
            kept = [pair for pair in pairs if until is None or int(pair[0].split(b" ", 1)[0]) <= until][:length]
            if len(kept) == length or len(pairs) < length + later:
                break
            later = 2 * later + 16
        history = []
        for member, moment in reversed(kept):
            item, action = json.loads(member.split(b" ", 2)[2])
            history.append({"item": item, "action": action, "timestamp": float(moment) / MICROS})
        return history

    def _newest(self, user: str, length: int) -> list[tuple[bytes, bytes]]:
        """Members and times, newest first."""
        with self._errors():
            answer = self._run(self._history, lambda: [self._hash(user), self._cutoff(), length])
        return list(zip(answer[::2], answer[1::2], strict=True))

    def erasures(self) -> int:
        with self._errors():
            return int(self._redis.hget(self._prefix + "counters", "erasures") or 0)

    def erased_until(self, users: Sequence[str]) -> dict[str, float]:
        if not users:
            return {}
        with self._errors():
            self._key = self._find_key()
            moments: Any = self._redis.hmget(self._prefix + "erased", [self._hash(user) for user in users])
        pairs = zip(users, moments, strict=True)
        return {user: int(moment) / MICROS for user, moment in pairs if moment is not None}

    def journal(self, after: int = 0, limit: int = 1000) -> list[StoredEvent]:
        events: list[StoredEvent] = []
        with self._errors():
            while len(events) < limit:
                count = min(limit - len(events), PAGE)
                page: Any = self._redis.xrange(self._prefix + "journal", f"{after + 1}-0", "+", count)
                if not page:
                    break
                after = int(page[-1][0].split(b"-")[0])
                names: Any = self._redis.hmget(self._prefix + "names", [fields[b"u"] for _, fields in page])
                events += self._named(page, names)
        return events

    def users(self, limit: int = 100, prefix: str = "") -> list[str]:
        found: list[str] = []
        cursor = 0
        with self._errors():
            while len(found) < limit:
                answer: Any = self._redis.hscan(self._prefix + "names", cursor, count=PAGE)
                cursor, page = answer
                found += [name.decode() for name in page.values() if name.startswith(prefix.encode())]
                if cursor == 0:
                    break
        return list(dict.fromkeys(found))[: max(0, limit)]  # a scan may see one twice

    def count(self) -> int:
        with self._errors():
            return int(self._redis.xlen(self._prefix + "journal"))

    def size(self) -> int:
        with self._errors():
            memory: Any = self._redis.info("memory")
        return int(memory["used_memory"])

    def close(self) -> None:
        self._queue.close()
        self._redis.close()

    def _named(self, page: list[Any], names: list[bytes | None]) -> Iterator[StoredEvent]:
        """The events of a page of the journal, without those of erased users and those that are too old."""
        cutoff = self._cutoff()
        for (arrival, fields), name in zip(page, names, strict=True):
            if name is not None and int(fields[b"t"]) >= cutoff:
                item, action = json.loads(fields[b"c"])
                yield StoredEvent(
                    fields[b"i"].decode(),
                    name.decode(),
                    item,
                    action,
                    int(fields[b"t"]) / MICROS,
                    int(arrival.split(b"-")[0]),
                )

    def _commit(self, requests: list[Request]) -> list[Any]:
        """Neighboring appends in scripts of bounded size; erasures between them, in the order of the queue."""
        results: list[Any] = [[] if not isinstance(request, str) else None for request in requests]
        events: list[tuple[int, StoredEvent]] = []
        with self._errors():
            for index, request in enumerate(requests):
                if not isinstance(request, str):
                    events += [(index, event) for event in request]
                    continue
                self._insert(events, results)
                events = []
                results[index] = self._erase_user(request)
            self._insert(events, results)
            if not requests:
                cursor = self._run(self._tidy, lambda: [self._cutoff(), self._cursor])
                self._cursor = cursor.decode()
        return results

    def _erase_user(self, user: str) -> bool:
        return bool(self._run(self._erase, lambda: [self._hash(user), micros(self._clock())]))

    def _insert(self, events: list[tuple[int, StoredEvent]], results: list[Any]) -> None:
        ids = micros(SECONDS_OF_IDS if self._max_age is None else self._max_age + 86_400) // MICROS
        for begin in range(0, len(events), LARGEST_SCRIPT):
            part = events[begin : begin + LARGEST_SCRIPT]

            def arguments(part: list[tuple[int, StoredEvent]] = part) -> list[Any]:
                bounds = [self._cutoff(), micros(self._clock()), self._max_events or 0, ids, self._journal_length]
                return [*bounds, self._max_age or 0, *(value for _, event in part for value in self._fields(event))]

            for (index, _), outcome in zip(part, self._run(self._append, arguments), strict=True):
                results[index].append(outcome.decode())

    def _fields(self, event: StoredEvent) -> tuple[Any, ...]:
        moment = micros(event.time)
        content = json.dumps([event.item, event.action], ensure_ascii=False, separators=(",", ":"))
        whole = self._hash(json.dumps([event.user, moment, content]))
        return self._hash(event.user), event.user, moment, self._hash(event.event_id), whole, content

    def _run(self, script: Any, arguments: Callable[[], list[Any]]) -> Any:
        """Runs a script, and once more if the server was emptied and has another key now."""
        try:
            return script(keys=[self._prefix], args=[self._key.hex(), *arguments()])
        except redis.ResponseError as error:
            if not str(error).startswith("OTHERKEY"):
                raise
            self._key = self._find_key()
            return script(keys=[self._prefix], args=[self._key.hex(), *arguments()])

    def _hash(self, text: str) -> str:
        return keyed_hash(self._key, text).hex()

    def _find_key(self) -> bytes:
        """The key that the server has, made if absent."""
        name = self._prefix + "key"
        if not self._read_only:
            self._redis.set(name, os.urandom(KEY_BYTES).hex(), nx=True)
        stored: Any = self._redis.get(name)
        if stored is None:
            raise StoreUnavailable(f"got {self._server} without events; expected a store that was written to")
        key = bytes.fromhex(stored.decode())
        if len(key) != KEY_BYTES:
            raise StoreDamaged(f"got a key of {len(key)} bytes in {self._server}; expected {KEY_BYTES}: use a backup")
        return key

    def _describe(self) -> str:
        server: Any = self._redis.info("server")
        text = f"Redis {server['redis_version']} at {self._server}"
        try:
            settings: Any = self._redis.config_get("appendonly", "appendfsync", "maxmemory-policy")
        except redis.ResponseError:  # not allowed, as at many who offer Redis
            return f"{text}, which does not say what it keeps when it fails"
        if settings["appendonly"] != "yes":
            text += ", appendonly no: when it fails, all events since its last snapshot are lost"
        elif settings["appendfsync"] == "always":
            text += ", appendfsync always: an event is durable when it is acknowledged"
        else:
            lost = "the last second" if settings["appendfsync"] == "everysec" else "the last seconds"
            text += f", appendfsync {settings['appendfsync']}: when its machine fails, {lost} of events may be lost"
        policy = settings["maxmemory-policy"]
        if policy != "noeviction":
            text += f"; maxmemory-policy {policy} may remove events and erasures: set noeviction"
        return text

    def _writing(self) -> GroupCommit:
        if self._read_only:
            raise StoreReadOnly(f"got an event for {self._server}, opened read-only; expected a store opened to write")
        return self._queue

    def _cutoff(self) -> int:
        """Events before this moment are expired."""
        return 0 if self._max_age is None else micros(self._clock() - self._max_age)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Redis' errors as those of a store."""
        try:
            yield
        except (redis.BusyLoadingError, redis.ConnectionError, redis.TimeoutError) as error:
            raise StoreUnavailable(
                f"got no answer from {self._server} ({error}); expected a Redis server: start it, and the store goes on"
            ) from error
        except redis.ReadOnlyError as error:
            raise StoreReadOnly(f"got {self._server}, a replica; expected the primary: name that one") from error
        except redis.exceptions.NoPermissionError as error:
            raise StoreUnavailable(
                f"got {self._server}, which refuses this user ({error}); expected the right to run scripts there, and "
                f"to use keys that begin with {self._prefix!r}"
            ) from error
        except redis.ResponseError as error:
            text = str(error)
            if isinstance(error, redis.OutOfMemoryError) or "MISCONF" in text:
                raise StoreFull(
                    f"got no space in {self._server} ({text}); expected some: raise maxmemory, or free its disk"
                ) from error
            if "BUSY" in text:
                raise StoreBusy(f"got {self._server}, busy with a script ({text}); send the events again") from error
            raise StoreDamaged(
                f"got {text!r} from {self._server}; expected what the store wrote: does something else write to keys "
                f"that begin with {self._prefix!r}?"
            ) from error


def _without_password(address: str) -> str:
    """An address as it may be shown."""
    parts = urlsplit(address)
    where = parts.hostname or ""
    return f"{parts.scheme}://{where}{f':{parts.port}' if parts.port else ''}{parts.path}"
