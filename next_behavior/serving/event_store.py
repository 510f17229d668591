"""What a store of events does for the service: the interface, the event, the outcomes, the errors.

    store = open_store("events.sqlite")                     # or redis://host:6379/0, see open_store.py
    store.append([StoredEvent("e1", "ann", "84", "view", 1_700_000_000.0)])           # ["inserted"], and on the disk
    store.history("ann", 50)                                # [{"item": "84", "action": "view", "timestamp": ...}]
    store.erase("ann")

Two stores have this interface: `sqlite_store.py` for one process, `redis_store.py` for several. The rules they share:

- An event is written once: its `event_id` is its name. Sent again it is a duplicate, with other content a conflict.
- Events are in order of (time, arrival), however late they come. The arrival number grows with every event that is
  inserted, and is never given twice.
- A store may be bounded: `max_events_per_user` keeps the newest ones, `max_age` those younger than so many seconds. An
  event that would be removed at once is not inserted: it is expired.
- Users are numbered, and one table alone has their names. Event ids are kept as keyed hashes. After `erase(user)` a
  keyed hash of the user remains, so that old events which are sent again stay away.

This file and its neighbors import neither torch nor transformers.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, Protocol

MICROS = 1_000_000  # stores keep times as whole microseconds
# Microseconds up to here are exact as floating-point numbers, as Redis has them: the year 2255.
LATEST_TIME = 2**53 / MICROS

# inserted: new, and durable. duplicate: it is there already. conflict: its id is there with other content, which stays.
# erased: its user was erased after it happened. expired: it is older than what the store keeps.
Outcome = Literal["inserted", "duplicate", "conflict", "erased", "expired"]


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One event.

    Attributes:
        event_id: the name of the event, given by whoever sends it; read back, its keyed hash in hexadecimal digits.
        user: who.
        item: on which item; None if the event names none.
        action: what; None if it is not known.
        time: seconds since 1970 UTC; microseconds are kept.
        arrival: its number in the journal, from 1; 0 before it is stored.
    """

    event_id: str
    user: str
    item: str | None
    action: str | None
    time: float
    arrival: int = 0


class StoreError(RuntimeError):
    """The store cannot do it now. Nothing of the call was written, unless the message says otherwise."""


class StoreBusy(StoreError):
    """Another one is writing, or too much is waiting. Sending the same events again later is safe."""


class StoreUnavailable(StoreError):
    """The server or the disk does not answer. Sending the same events again later is safe."""


class StoreFull(StoreError):
    """No space is left. Reading goes on; writing does when there is space."""


class StoreReadOnly(StoreError):
    """The store may be read and not written."""


class StoreDamaged(StoreError):
    """The content is not what a store wrote. The message says how to recover."""


class EventStore(Protocol):
    """A store of events. All methods may be called by several threads at once, and may raise a `StoreError`."""

    @property
    def description(self) -> str:
        """One line for the log of a start: the kind, its version, what is durable."""

    def submit(self, events: Sequence[StoredEvent]) -> Future[list[Outcome]]:
        """Queues events and returns at once; the future has an outcome for each when they are durable.

        Raises:
            ValueError: an event that no store can hold; the message says which.
            StoreBusy: too many events are waiting.
        """

    def append(self, events: Sequence[StoredEvent]) -> list[Outcome]:
        """The same, and waits."""

    def history(self, user: str, length: int, until: int | None = None) -> list[dict[str, Any]]:
        """The newest `length` events of a user, oldest first, as {"item", "action", "timestamp"}; [] if unknown. With
        `until` as they were when the event of this arrival number came."""

    def erase(self, user: str) -> bool:
        """Removes all that names the user. Whether there was something. Sent again, these events stay away."""

    def erasures(self) -> int:
        """How often `erase` was called, so that a copy of the events knows whether it has to look."""

    def erased_until(self, users: Sequence[str]) -> dict[str, float]:
        """Those of the users that were erased, with the time up to which their events were."""

    def journal(self, after: int = 0, limit: int = 1000) -> list[StoredEvent]:
        """The first `limit` events with an arrival number above `after`, in that order."""

    def users(self, limit: int = 100, prefix: str = "") -> list[str]:
        """Some users whose id begins with the prefix, at most `limit`, in no promised order."""

    def count(self) -> int:
        """Events in the journal."""

    def size(self) -> int:
        """Bytes that the store takes."""

    def close(self) -> None:
        """Writes what is queued and releases everything. Twice is once."""


def check_events(events: Sequence[StoredEvent]) -> None:
    """Raises ValueError for an event that a store could not give back as it was."""
    for position, event in enumerate(events):
        for name, value, optional in (
            ("event_id", event.event_id, False),
            ("user", event.user, False),
            ("item", event.item, True),
            ("action", event.action, True),
        ):
            if value is None and optional:
                continue
            if type(value) is not str or not value or not _is_text(value):
                raise ValueError(
                    f"event {position}: got {name}={value!r:.80}; expected a text of at least one character that UTF-8 "
                    "can hold" + (", or None" if optional else "")
                )
        if type(event.time) not in (int, float) or not 0 <= event.time < LATEST_TIME or math.isnan(event.time):
            raise ValueError(
                f"event {position}: got time={event.time!r:.80}; expected seconds since 1970, before the year 2255: "
                "divide milliseconds by 1000"
            )


def check_bounds(max_events_per_user: int | None, max_age: float | None) -> None:
    """Raises ValueError for bounds under which a store keeps nothing."""
    if max_events_per_user is not None and max_events_per_user < 1:
        raise ValueError(f"got max_events_per_user={max_events_per_user}; expected at least 1, or None for no bound")
    if max_age is not None and not max_age > 0:
        raise ValueError(f"got max_age={max_age}; expected seconds above 0, or None for no bound")


def micros(time: float) -> int:
    """Seconds as whole microseconds."""
    return round(time * MICROS)


def keyed_hash(key: bytes, text: str) -> bytes:
    """The first half of HMAC-SHA256: without the key, nobody can find the text by trying all texts."""
    return hmac.digest(key, text.encode(), "sha256")[:16]


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
