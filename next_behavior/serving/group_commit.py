"""One thread that writes for all: what is waiting when it comes round is one commit, acknowledged after it.

A commit to a disk takes milliseconds, whether it holds one event or a thousand. Callers that wait at the same time
share one (group commit), and nobody waits for a timer.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any

from next_behavior.serving.event_store import Outcome, StoreBusy, StoredEvent, StoreUnavailable, check_events

MAX_WAITING = 20_000  # events
LARGEST_COMMIT = 2_000  # events, unless one call has more
SECONDS_TO_WAIT = 30.0

# Events to append, or the user to erase.
Request = Sequence[StoredEvent] | str


class GroupCommit:
    """A queue and its thread.

    Args:
        commit: writes requests durably, all or none, and returns a result for each; a result that is a `StoreError` is
            raised for that request alone. It is called with no request when nothing came for `idle_seconds`.
        idle_seconds: None for never.
        max_waiting: events; more are refused.
    """

    def __init__(
        self,
        commit: Callable[[list[Request]], list[Any]],
        idle_seconds: float | None = None,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._commit = commit
        self._idle_seconds = idle_seconds
        self._max_waiting = max_waiting
        self._waiting: deque[tuple[Request, Future[Any]]] = deque()
        self._events = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="event-store-writer", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Future[Any]:
        """Queues a request. Raises StoreBusy when too many events wait, StoreUnavailable after `close`."""
        future: Future[Any] = Future()
        with self._changed:
            if self._closed:
                raise StoreUnavailable("got a call after close(); expected an open store: open it again")
            if self._events and self._events + _size(request) > self._max_waiting:
                raise StoreBusy(
                    f"got {_size(request):,} more events while {self._events:,} wait to be written; expected at most "
                    f"{self._max_waiting:,} in all: send them again in a moment"
                )
            self._waiting.append((request, future))
            self._events += _size(request)
            self._changed.notify()
        return future

    def wait(self, future: Future[Any]) -> Any:
        """The result of a request; StoreBusy if it takes too long."""
        wait([future], timeout=SECONDS_TO_WAIT)
        if future.cancel() or not future.done():
            raise StoreBusy(
                f"got no commit within {SECONDS_TO_WAIT:g} seconds; the events may be written yet: send them again, "
                "their ids make that safe"
            )
        return future.result()

    def close(self) -> None:
        """Writes what waits and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            # A caller that gave up before its commit began is left out.
            taken = [pair for pair in taken if pair[1].set_running_or_notify_cancel()]
            try:
                results = self._commit([request for request, _ in taken])
            except Exception as error:  # of whatever kind: the callers wait for it, and the thread goes on
                results = [error] * len(taken)
            for (_, future), result in zip(taken, results, strict=True):
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    def _take(self) -> list[tuple[Request, Future[Any]]] | None:
        """What is the next commit: [] when nothing came for a while, None at the end."""
        with self._changed:
            if not self._waiting and not self._closed:
                self._changed.wait(self._idle_seconds)
            if not self._waiting:
                return None if self._closed else []
            taken: list[tuple[Request, Future[Any]]] = []
            events = 0
            while self._waiting and (not taken or events + _size(self._waiting[0][0]) <= LARGEST_COMMIT):
                taken.append(self._waiting.popleft())
                events += _size(taken[-1][0])
            self._events -= events
            return taken


def _size(request: Request) -> int:
    return 1 if isinstance(request, str) else len(request)


class WritesInGroups(ABC):
    """What a store does with its queue of writes."""

    @abstractmethod
    def _writing(self) -> GroupCommit:
        """The queue; StoreReadOnly if the store was opened to read."""

    def submit(self, events: Sequence[StoredEvent]) -> Future[list[Outcome]]:
        check_events(events)
        return self._writing().submit(events)

    def append(self, events: Sequence[StoredEvent]) -> list[Outcome]:
        queue = self._writing()
        check_events(events)
        return queue.wait(queue.submit(events))

    def erase(self, user: str) -> bool:
        queue = self._writing()
        return queue.wait(queue.submit(user))
