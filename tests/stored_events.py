"""Events for the tests of the event stores, and a program that writes them until it is killed."""

from __future__ import annotations

from next_behavior.serving.event_store import StoredEvent

# Three threads that append and say what was acknowledged, until the process is killed.
WRITER = """
import itertools, os, sys, threading
from next_behavior.serving.event_store import StoredEvent
from next_behavior.serving.open_store import open_store

store = open_store(sys.argv[1])

def write(thread):
    for batch in itertools.count():
        names = [f"{sys.argv[2]}-{thread}-{batch}-{n}" for n in range(16)]
        events = [StoredEvent(name, f"user {n % 5}", name, "view", float(batch)) for n, name in enumerate(names)]
        assert store.append(events) == ["inserted"] * 16
        os.write(1, ("\\n".join(names) + "\\n").encode())

for thread in range(3):
    threading.Thread(target=write, args=(thread,), daemon=True).start()
threading.Event().wait()
"""


def event(
    name: str, user: str = "ann", item: str | None = "84", action: str | None = "view", time: float = 1.0
) -> StoredEvent:
    return StoredEvent(name, user, item, action, time)
