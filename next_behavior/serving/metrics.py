"""Prometheus metrics of the service: base units, no user and no item in any label.

With several worker processes, `PROMETHEUS_MULTIPROC_DIR` names a folder before this file is imported; then /metrics of
any worker is the sum over all of them.
"""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

PREFIX = "nextbehavior"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Seconds: from 50 microseconds on, times 1.6, to 10 seconds.
TIMES = tuple(round(5e-5 * 1.6**step, 7) for step in range(27))
SIZES = (1, 2, 4, 8, 16, 32)
LENGTHS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 512)


class Metrics:
    """All metrics of one process. Children with labels are looked up once: a look-up costs a microsecond."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Answered requests", "route", "code")
        self.request_seconds = self._histogram("request_duration_seconds", "From headers to answer", TIMES, "route")
        self.queue_seconds = self._histogram("queue_duration_seconds", "Wait for a pass of the model", TIMES)
        self.inference_seconds = self._histogram("inference_duration_seconds", "One pass of the model", TIMES)
        self.explanation_seconds = self._histogram("explanation_duration_seconds", "Work on one explanation", TIMES)
        self.batch_size = self._histogram("batch_size", "Questions in one pass", SIZES)
        self.history_events = self._histogram("history_events", "Events of a history", LENGTHS)
        self.queue_depth = self._gauge("queue_depth", "Questions that wait", "livesum")
        self.rejected = self._counter("rejected", "Questions that were not asked", "reason")
        self.unknown_items = self._counter("unknown_items", "Events of histories with an item the model does not know")
        self.known_items = self._counter("known_items", "Events of histories with an item the model knows")
        self.cold_starts = self._counter("cold_starts", "Answers to histories without a known event")
        self.events = self._counter("events", "Events to store", "result")
        self.actions = self._counter("event_actions", "Stored events by action, of those the model knows", "action")
        self.action_psi = self._gauge(
            "action_mix_psi", "Shift of stored actions against the training, from 0", "livemostrecent", "revision"
        )
        self.predicted = self._counter(
            "calibration_predictions", "Probability given to next actions, by how probable they were", "bin"
        )
        self.happened = self._counter(
            "calibration_outcomes", "Next actions that came, by how probable they were said to be", "bin"
        )
        self.hit_predictions = self._counter("hit_predictions", "Events with an item that came after a prediction")
        self.hits = self._counter("hits", "Of these, with an item that was among the first 10")
        self.commit_seconds = self._histogram("event_commit_seconds", "From a batch of events to its commit", TIMES)
        self.store_errors = self._counter("store_errors", "Calls of the store that failed", "kind")
        self.counted = self._counter("counted_events", "Journal events the memory went through", "result")
        self.count_seconds = self._histogram("count_duration_seconds", "The memory counts one event", TIMES)
        self.reloads = self._counter("reload", "Reloads of the model", "result")
        self.model = self._gauge("model_info", "1 for the revision that is served", "livemax", "revision")
        self._requests: dict[tuple[str, int], Counter] = {}
        self._times: dict[str, Histogram] = {}

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", text, labels, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, text: str, mode: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, labels, registry=self.registry, multiprocess_mode=mode)  # type: ignore[arg-type]

    def answered(self, route: str, code: int, seconds: float) -> None:
        key = (route, code)
        counter = self._requests.get(key)
        if counter is None:
            counter = self._requests[key] = self.requests.labels(route, str(code))
        counter.inc()
        histogram = self._times.get(route)
        if histogram is None:
            histogram = self._times[route] = self.request_seconds.labels(route)
        histogram.observe(seconds)

    def waited(self, seconds: float) -> None:
        self.queue_seconds.observe(seconds)

    def passed(self, seconds: float, size: int) -> None:
        self.inference_seconds.observe(seconds)
        self.batch_size.observe(size)

    def dropped(self, reason: str) -> None:
        self.rejected.labels(reason).inc()

    def serves(self, revision: str, before: str | None = None) -> None:
        if before is not None and before != revision:
            self.model.labels(before).set(0)
        self.model.labels(revision).set(1)

    def text(self) -> bytes:
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)
        return generate_latest(together)
