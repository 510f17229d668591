"""The service of one process: what it serves from, how it starts, follows the journal, reloads and stops.

    service = Service(Settings(model="out/shop", store="events.sqlite"), Metrics(), bundle_for, Predictor.load)
    app = application(service)          # of app.py: the ASGI application that calls start() and stop()

The predictor, the batcher and the memory live in the event loop's thread. Loading, reading and writing the store, and
snapshots run in threads. The journal is read again after each commit of this process, and a few times a second for
events that other processes have stored.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from next_behavior.serving.answering import Answering, Lesson
from next_behavior.serving.batcher import Batcher
from next_behavior.serving.event_store import EventStore, StoredEvent, StoreError, micros
from next_behavior.serving.explaining_queue import ExplainingQueue
from next_behavior.serving.live import Live, open_live
from next_behavior.serving.metrics import Metrics
from next_behavior.serving.open_store import open_store
from next_behavior.serving.security import read_tokens
from next_behavior.serving.watch import Watch

logger = logging.getLogger(__name__)

STORE_THREADS = 4
FOLLOW_SECONDS = 0.25
SNAPSHOT_SECONDS = 300.0
CONTROL_SECONDS = 0.5
JOIN_SECONDS = 10.0
# The memory counts for so long before it lets requests run.
COUNT_SLICE_SECONDS = 0.001

T = TypeVar("T")
# What makes an event that was submitted the same as one in the journal: user, time, item, action.
Key = tuple[str, int, str | None, str | None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to serve.

    Attributes:
        model: folder, or id on the Hub.
        store: path of a SQLite file, redis://..., or None: then events are neither stored nor counted.
        state: folder of the memory's snapshots; None keeps none.
        token_file, admin_token_file: who may ask, and who may call /admin/; None for everybody, and for those of the
            other file.
        deadline: seconds that a question may wait.
        most_waiting: questions that may wait.
        from_start: a model that was not served here before counts the journal from its first event.
        worker: the number of this process; number 0 writes the snapshots.
        control: a file through which worker processes tell each other of a reload.
        page: whether the page for people is served at /.
    """

    model: str
    revision: str | None = None
    store: str | None = None
    state: Path | None = None
    token_file: Path | None = None
    admin_token_file: Path | None = None
    deadline: float = 1.0
    most_waiting: int = 256
    from_start: bool = False
    max_events_per_user: int | None = None
    max_age: float | None = None
    worker: int = 0
    control: Path | None = None
    page: bool = False


class Control(msgspec.Struct):
    """What one worker process tells the others: a number that changes, and the bundle to serve."""

    change: int
    bundle: str


class NotReady(Exception):
    """Nothing is served yet, or no more."""


class Service:
    """Everything of one process that outlives a request.

    Attributes:
        live: the predictor that is served; None while it is loaded.
        previous: what was served before the last reload.
        draining: it is about to stop: not ready, but it answers.
        failure: why it could not start.
        find_bundle: of a model and a revision.
        load: the predictor of a bundle, verified.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        find_bundle: Callable[[str, str | None], Path],
        load: Callable[[Path], Answering],
        store: EventStore | None = None,
    ) -> None:
        self.settings, self.metrics = settings, metrics
        self.find_bundle, self.load = find_bundle, load
        self.batcher = Batcher(metrics, settings.most_waiting)
        self.watch = Watch(metrics)
        self.live: Live | None = None
        self.previous: Live | None = None
        self.store = store
        self.store_fails = False
        self.draining = False
        self.failure: Exception | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.bundles: dict[str, Path] = {}
        self.read_tokens()
        self._threads = ThreadPoolExecutor(STORE_THREADS, "store")
        self._tasks: list[asyncio.Task[None]] = []
        self._wake = asyncio.Event()
        self._counting = asyncio.Lock()
        self.explanations = ExplainingQueue(metrics, self._counting, self.in_thread)
        self._reloading = asyncio.Lock()
        self._learners: dict[Key, list[asyncio.Future[Lesson | None]]] = {}
        self._control_seen = 0
        self._stopping = False

    # -- start and stop ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to load; `ready` turns true later, or `failure` is set."""
        self._tasks.append(asyncio.create_task(self._start()))

    async def join(self) -> None:
        """Of several workers on one port: waits until this one is ready, for some seconds at most.

        Before it accepts connections the others take them, and a client that saw one of them ready meets no other that
        is not. A long export ends the wait, because /livez has to answer.
        """
        end = time.monotonic() + JOIN_SECONDS
        while self.settings.control is not None and not (self.live or self.failure or self.draining):
            if time.monotonic() > end:
                return
            await asyncio.sleep(0.02)

    async def _start(self) -> None:
        try:
            self.live = await self.in_thread(self._open)
        except Exception as error:  # whatever it is, the process has to end with it
            self.failure = error
            self.on_failure()
            return
        self._served(self.live)
        logger.info("ready", extra={"model": self.live.revision, "position": self.live.position})
        self._tasks.append(asyncio.create_task(self._repeat(self.follow, FOLLOW_SECONDS, self._wake)))
        if self.settings.worker == 0:
            self._tasks.append(asyncio.create_task(self._repeat(self.save, SNAPSHOT_SECONDS)))
        if self.settings.control is not None:
            self._tasks.append(asyncio.create_task(self._repeat(self._follow_control, CONTROL_SECONDS)))

    def _open(self) -> Live:
        if self.settings.store is not None and self.store is None:
            self.store = open_store(
                self.settings.store,
                max_events_per_user=self.settings.max_events_per_user,
                max_age=self.settings.max_age,
            )
            logger.info("store opened", extra={"store": self.store.description})
        control = self._control()
        if control is None:
            bundle = self.find_bundle(self.settings.model, self.settings.revision)
        else:  # this worker was started again after a reload
            bundle, self._control_seen = Path(control.bundle), control.change
        live = self._open_bundle(bundle)
        live.replay(lambda: self.draining)
        return live

    def _open_bundle(self, bundle: Path) -> Live:
        predictor = verified(self.load(bundle))
        self.bundles[predictor.info.revision] = bundle
        return open_live(predictor, self.store, self.settings.state, self.settings.from_start)

    async def stop(self) -> None:
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        if self.settings.worker == 0:
            await self.save()
        if self.store is not None:
            await self.in_thread(self.store.close)
        self._threads.shutdown(wait=False, cancel_futures=True)
        logger.info("stopped")

    @property
    def ready(self) -> bool:
        return self.live is not None and not self.draining

    def serving(self) -> Live:
        if self.live is None:
            raise NotReady
        return self.live

    def in_thread(self, function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def read_tokens(self) -> None:
        """Reads the token files again; a file that is not right leaves the tokens as they are."""
        settings = self.settings
        tokens = [] if settings.token_file is None else read_tokens(settings.token_file)
        admins = tokens if settings.admin_token_file is None else read_tokens(settings.admin_token_file)
        self.tokens, self.admin_tokens = tokens, admins

    # -- the journal ---------------------------------------------------------------------------------------------------

    async def submit(self, events: Sequence[StoredEvent]) -> list[str]:
        """What became of each event, when it is durable. Raises StoreError, and ValueError for an impossible event."""
        assert self.store is not None
        begin = time.perf_counter()
        # Shielded: a client that leaves does not take back what is being written.
        outcomes = await asyncio.shield(asyncio.wrap_future(self.store.submit(events)))
        self.metrics.commit_seconds.observe(time.perf_counter() - begin)
        for outcome in outcomes:
            self.metrics.events.labels(outcome).inc()
        self._wake.set()
        return list(outcomes)

    def learner(self, event: StoredEvent) -> asyncio.Future[Lesson | None]:
        """The future of what the memory learns from an event that is about to be stored."""
        future: asyncio.Future[Lesson | None] = asyncio.get_running_loop().create_future()
        self._learners.setdefault(key_of(event), []).append(future)
        return future

    def forget_learner(self, event: StoredEvent, future: asyncio.Future[Lesson | None]) -> None:
        futures = self._learners.get(key_of(event), [])
        if future in futures:
            futures.remove(future)
        if not futures:
            self._learners.pop(key_of(event), None)

    async def follow(self) -> None:
        """Counts what is new in the journal, a little at a time."""
        while await self._follow_some():
            pass

    async def _follow_some(self) -> bool:
        """Counts the next events of the journal; whether there were any."""
        async with self._counting:
            live = self.serving()
            steps = await self.in_thread(live.next_events)
            begin = time.perf_counter()
            for event, history in steps:
                started = time.perf_counter()
                learned = live.count(event, history)
                now = time.perf_counter()
                self.metrics.counted.labels("late" if history is None else "counted").inc()
                self.watch.happened(event, history)
                if history is not None:
                    self.metrics.count_seconds.observe(now - started)
                for future in self._learners.pop(key_of(event), ()):
                    if not future.done():
                        future.set_result(learned)
                if now - begin > COUNT_SLICE_SECONDS:
                    await asyncio.sleep(0)
                    begin = time.perf_counter()
            if steps:
                self.watch.publish()
        return bool(steps)

    async def save(self) -> None:
        """Writes a snapshot of the memory. Nothing is counted meanwhile; requests are answered."""
        async with self._counting:
            try:
                if self.live is not None and await self.in_thread(self.live.save) is not None:
                    logger.info("snapshot", extra={"position": self.live.position})
            except OSError as error:  # nothing is lost: the next start counts the journal since the last snapshot
                logger.error("snapshot failed", extra={"kind": type(error).__name__, "problem": error.strerror})

    async def _repeat(
        self, step: Callable[[], Coroutine[Any, Any, None]], seconds: float, wake: asyncio.Event | None = None
    ) -> None:
        """Runs a step now and then, or when it is woken. A failure is logged and does not end it."""
        while not self._stopping:  # before Python 3.12, `wait_for` may swallow a cancellation
            if wake is None:
                await asyncio.sleep(seconds)
            else:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(wake.wait(), seconds)
                wake.clear()
            try:
                await step()
            except StoreError as error:
                self.store_failed(error)
            except Exception as error:
                logger.error("background step failed", extra={"kind": type(error).__name__}, exc_info=True)
                await asyncio.sleep(1.0)
            else:
                if step == self.follow:
                    self.store_fails = False

    def store_failed(self, error: StoreError) -> None:
        """Counts a failure; the log gets one line when the store begins to fail."""
        self.metrics.store_errors.labels(type(error).__name__).inc()
        if not self.store_fails:
            logger.error("store failed", extra={"kind": type(error).__name__})
        self.store_fails = True

    # -- reload --------------------------------------------------------------------------------------------------------

    async def reload(self, model: str | None, revision: str | None) -> tuple[str, str]:
        """Serves another revision, once it is loaded, verified and has caught up with the journal.

        Returns:
            The revision that is served, and the one that was.

        Raises:
            Busy: another reload runs.
            ValueError, OSError: what is asked for cannot be served; the old one still is.
        """
        if self._reloading.locked():
            raise Busy
        async with self._reloading:
            before = self.serving()
            try:
                self.read_tokens()
                bundle = await self.in_thread(self.find_bundle, model or self.settings.model, revision)
                return await self._switch_to(bundle, before)
            except Exception as error:
                self.metrics.reloads.labels("failed").inc()
                logger.error("reload failed", extra={"kind": type(error).__name__, "model": before.revision})
                raise

    async def roll_back(self) -> tuple[str, str]:
        """Serves what was served before the last reload. Raises Busy, and ValueError if there was none."""
        if self._reloading.locked():
            raise Busy
        async with self._reloading:
            before = self.serving()
            if self.previous is None:
                raise ValueError("nothing to roll back to: no other model was served since the start")
            await self._serve(self.previous, before)
            return self.serving().revision, before.revision

    async def _switch_to(self, bundle: Path, before: Live) -> tuple[str, str]:
        if bundle == self.bundles[before.revision]:  # its name is a digest of the model
            self.metrics.reloads.labels("unchanged").inc()
            self._tell_others(bundle)  # they read their tokens again
            return before.revision, before.revision
        live = await self.in_thread(self._open_bundle, bundle)
        await self._serve(live, before)
        return live.revision, before.revision

    async def _serve(self, live: Live, before: Live) -> None:
        await self.in_thread(live.replay)
        async with self._counting:
            self.live, self.previous = live, before
        self._served(live, before)
        self.metrics.reloads.labels("succeeded").inc()
        logger.info("reloaded", extra={"model": live.revision, "previous": before.revision})
        self._tell_others(self.bundles[live.revision])
        self._wake.set()

    def _served(self, live: Live, before: Live | None = None) -> None:
        self.metrics.serves(live.revision, None if before is None else before.revision)
        self.watch.serves(live.predictor.info)

    def _tell_others(self, bundle: Path) -> None:
        if self.settings.control is not None:
            self._control_seen = time.time_ns()
            part = self.settings.control.with_suffix(f".{self.settings.worker}")
            part.write_bytes(msgspec.json.encode(Control(self._control_seen, str(bundle))))
            part.replace(self.settings.control)

    def _control(self) -> Control | None:
        try:
            assert self.settings.control is not None
            return msgspec.json.decode(self.settings.control.read_bytes(), type=Control)
        except (AssertionError, FileNotFoundError):
            return None

    async def _follow_control(self) -> None:
        """Does what another worker process has done."""
        control = self._control()
        if control is None or control.change == self._control_seen or self._reloading.locked():
            return
        async with self._reloading:
            self._control_seen = control.change
            self.read_tokens()
            before = self.serving()
            live = await self.in_thread(self._open_bundle, Path(control.bundle))
            if live.revision != before.revision:
                await self.in_thread(live.replay)
                async with self._counting:
                    self.live, self.previous = live, before
                self._served(live, before)


class Busy(Exception):
    """A reload is under way."""


def key_of(event: StoredEvent) -> Key:
    return (event.user, micros(event.time), event.item, event.action)


def verified(predictor: Answering) -> Answering:
    """The predictor, if it answers with probabilities. Its own golden answers were checked when it was loaded.

    Raises:
        ValueError: it does not.
    """
    for of in ("pair", "item", "action"):
        for events in ([], [{"item": "an item that nobody has", "timestamp": 0}]):
            answers = predictor.answer(events, of=of, top_k=3)
            if not all(math.isfinite(answer["probability"]) for answer in answers):
                raise ValueError(f"the model answers of={of!r} with a probability that is no number")
    return predictor
