"""The event store: what is acknowledged stays, once and in order; what is erased is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from next_behavior.serving.event_store import StoreBusy, StoredEvent, StoreReadOnly
from next_behavior.serving.sqlite_store import SQLiteStore


def event(
    name: str, user: str = "ann", item: str | None = "84", action: str | None = "view", time: float = 1.0
) -> StoredEvent:
    return StoredEvent(name, user, item, action, time)


def test_an_event_is_there_after_the_process_that_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    store = SQLiteStore(path)
    assert store.append([event("e1", time=2.5), event("e2", item=None, action=None, time=1.25)]) == ["inserted"] * 2
    store.close()
    store.close()
    store = SQLiteStore(path)
    history = [
        {"item": None, "action": None, "timestamp": 1.25},
        {"item": "84", "action": "view", "timestamp": 2.5},
    ]
    assert store.history("ann", 50) == history
    assert store.history("ann", 1) == history[1:]
    assert store.history("bob", 50) == []
    assert store.append([event("e1", time=2.5), event("e1", time=3.0)]) == ["duplicate", "conflict"]
    store.close()


def test_one_process_writes_and_others_read(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    store = SQLiteStore(path)
    store.append([event("e1")])
    with pytest.raises(StoreBusy, match="Redis"):
        SQLiteStore(path)
    reader = SQLiteStore(path, read_only=True)
    assert [stored.user for stored in reader.journal()] == ["ann"]
    with pytest.raises(StoreReadOnly):
        reader.append([event("e2")])
    reader.close()
    store.close()
