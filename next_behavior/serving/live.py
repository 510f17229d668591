"""A predictor whose memory follows the journal of an event store.

    live = open_live(predictor, store, folder)      # restores the snapshot, replays the journal since
    for event, history in live.next_events():       # reads the store: may run in a thread
        live.count(event, history)                  # changes the memory: in the thread that predicts

The journal alone decides what is counted, in the order of arrival. So every process that follows it, and every process
that starts later, has the same memory:

- An event is counted if it was its user's newest when it arrived. One that came late is served in its place of the
  history and never counted: the memory learns what follows what, and nothing can be taken back from it.
- A duplicate and a conflict are not in the journal, so they are not counted.
- An erased user's events leave the journal. What the memory counted of them before is a sum over all users and stays.

A snapshot is a file named by the number of the last journal event in it, so that number and content change together.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from next_behavior.serving.answering import Answering, Lesson
from next_behavior.serving.event_store import EventStore, StoredEvent

# Journal events that are read at once.
CHUNK = 256
SNAPSHOTS_KEPT = 2
SNAPSHOT = re.compile(r"memory-(\d{20})\.snapshot")
BEGUN = re.compile(r"start-(\d{20})")

History = list[dict[str, Any]]


@dataclass(slots=True)
class Live:
    """A predictor and how far its memory has followed the journal.

    Attributes:
        position: the number of the last journal event that was looked at.
        folder: of the snapshots of this revision; None keeps none.
    """

    predictor: Answering
    store: EventStore | None
    folder: Path | None
    position: int = 0

    @property
    def revision(self) -> str:
        return self.predictor.info.revision

    def next_events(self, limit: int = CHUNK) -> list[tuple[StoredEvent, History | None]]:
        """The next journal events, each with the history that it ends; None if it was not its user's newest."""
        if self.store is None:
            return []
        length = self.predictor.info.max_events
        steps: list[tuple[StoredEvent, History | None]] = []
        for event in self.store.journal(self.position, limit):
            history = self.store.history(event.user, length, until=event.arrival)
            newest = {"item": event.item, "action": event.action, "timestamp": event.time}
            steps.append((event, history if history and history[-1] == newest else None))
        return steps

    def count(self, event: StoredEvent, history: History | None) -> Lesson | None:
        """The memory learns what the last event of the history adds. The same journal event twice counts once."""
        if event.arrival <= self.position:
            return None
        learned = None if history is None else self.predictor.count(history)
        self.position = event.arrival
        return learned

    def replay(self, stopped: Callable[[], bool] = lambda: False) -> int:
        """Counts the journal to its end; the number of events that were looked at."""
        looked_at = 0
        while not stopped() and (steps := self.next_events()):
            for event, history in steps:
                self.count(event, history)
            looked_at += len(steps)
        return looked_at

    def save(self) -> Path | None:
        """Writes a snapshot if there is anything new; older ones but the last are removed."""
        if self.folder is None or not self.position or _snapshot(self.folder, self.position).exists():
            return None
        path = _snapshot(self.folder, self.position)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            self.predictor.snapshot(part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        for _, old in _snapshots(self.folder)[SNAPSHOTS_KEPT:]:
            old.unlink(missing_ok=True)
        return path


def open_live(predictor: Answering, store: EventStore | None, state: Path | None, from_start: bool = False) -> Live:
    """A predictor whose memory stands where the last process left it. The rest of the journal is still to be replayed.

    Args:
        predictor: just loaded, its memory as it was trained.
        state: folder of the snapshots of all revisions.
        from_start: a revision that is new to this folder counts the journal from its first event, not from its end.
            A model that was trained on a newer log has most of the journal in its memory.
    """
    if store is None:
        return Live(predictor, None, None)
    if state is None:
        return Live(predictor, store, None, 0 if from_start else end_of(store))
    folder = state / predictor.info.revision
    folder.mkdir(parents=True, exist_ok=True)
    for position, path in _snapshots(folder):
        try:
            predictor.restore(path)
        except ValueError:
            continue  # an older one, or the journal from the start of this revision, gives the same memory
        return Live(predictor, store, folder, position)
    return Live(predictor, store, folder, _start(folder, store, from_start))


def end_of(store: EventStore) -> int:
    """The number of the last event of the journal, 0 if it is empty; by doubling and halving, as arrivals grow."""
    low, step = 0, 1024
    while after := store.journal(low + step, 1):
        low, step = after[0].arrival, 2 * step
    high = low + step
    while low < high:
        middle = (low + high) // 2
        after = store.journal(middle, 1)
        if after:
            low = after[0].arrival
        else:
            high = middle
    return low


def _start(folder: Path, store: EventStore, from_start: bool) -> int:
    """Where this revision began to count. The first process writes it down, so that all begin at the same event."""
    begun = sorted(int(match.group(1)) for path in folder.iterdir() if (match := BEGUN.fullmatch(path.name)))
    if begun:
        return begun[0]
    position = 0 if from_start else end_of(store)
    (folder / f"start-{position:020d}").touch()
    return sorted(int(match.group(1)) for path in folder.iterdir() if (match := BEGUN.fullmatch(path.name)))[0]


def _snapshot(folder: Path, position: int) -> Path:
    return folder / f"memory-{position:020d}.snapshot"


def _snapshots(folder: Path) -> list[tuple[int, Path]]:
    """Newest first."""
    matches = ((SNAPSHOT.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted(((int(match.group(1)), path) for match, path in matches if match), reverse=True)
