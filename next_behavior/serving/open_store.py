"""The event store that an address names.

open_store("events.sqlite")              # a file, for one process
open_store("redis://localhost:6379/0")   # a server, for several
"""

from __future__ import annotations

from next_behavior.serving.event_store import EventStore
from next_behavior.serving.sqlite_store import SQLiteStore

REDIS = ("redis://", "rediss://", "unix://")


def open_store(
    address: str, *, max_events_per_user: int | None = None, max_age: float | None = None, read_only: bool = False
) -> EventStore:
    """Opens a store; a SQLite file is made if absent. The arguments are those of `SQLiteStore`.

    Raises:
        StoreError: it cannot be opened; the message says why.
    """
    if address.startswith(REDIS):
        # Not imported for a file: the client takes as long to import as all else together.
        from next_behavior.serving.redis_store import RedisStore

        return RedisStore(address, max_events_per_user=max_events_per_user, max_age=max_age, read_only=read_only)
    if "://" in address:
        raise ValueError(f"got the store {address.split('://')[0]}://...; expected a path, or redis://HOST:PORT/NUMBER")
    return SQLiteStore(address, max_events_per_user=max_events_per_user, max_age=max_age, read_only=read_only)
