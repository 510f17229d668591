"""Events for the tests of the event stores."""

from __future__ import annotations

from next_behavior.serving.event_store import StoredEvent


def event(
    name: str, user: str = "ann", item: str | None = "84", action: str | None = "view", time: float = 1.0
) -> StoredEvent:
    return StoredEvent(name, user, item, action, time)
