"""Watches how far what happens is from the training, and from what was predicted. The numbers are in /metrics.

    watch = Watch(metrics)
    watch.predict(predictor, "ann", history)        # after an answer about a stored user
    watch.happened(event, history)                  # the journal goes on: the history ends with the event
    watch.publish()                                 # now and then

Whatever an answer was about, the watch asks the model two questions of its own: how probable is each action, and which
ten items come first. So allowed items and the like do not color the numbers. It asks for a share of the users: it takes
at most 0.5 % of the time. The last prediction of each of these users waits in memory for the user's next event.
Users are kept as hashes that another process does not share, and no metric names a user or an item.
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from next_behavior.serving.answering import About, Answering
from next_behavior.serving.event_store import StoredEvent
from next_behavior.serving.live import History
from next_behavior.serving.metrics import Metrics
from next_behavior.serving.shift import BIN_NAMES, FEWEST_EVENTS, UNKNOWN, bin_of, known_action, known_mix
from next_behavior.serving.shift import stability_index as psi

logger = logging.getLogger(__name__)

MOST_USERS = 10_000
TOP = 10
# Of the time of the process that may go into predictions of the watch: below what a 99th percentile of answers sees.
SHARE_OF_TIME = 0.005
# Stored events of the action mix: beyond, older ones count half as much.
MIX_EVENTS = 20_000


@dataclass(frozen=True, slots=True)
class Prediction:
    """What was said of a user's next event.

    Attributes:
        last: the last event of the history that it is from; None for an empty one.
        actions: {action: probability}; items: the most probable ones.
    """

    last: Mapping[str, Any] | None
    actions: dict[str, float]
    items: frozenset[str]


class Watch:
    """Of one process. All of it runs in the event loop's thread."""

    def __init__(self, metrics: Metrics, most_users: int = MOST_USERS, share_of_time: float = SHARE_OF_TIME) -> None:
        self.metrics, self.most_users, self.share_of_time = metrics, most_users, share_of_time
        self._actions: list[str] = []
        self._training: dict[str, int] = {}
        self._revision = ""
        self._mix: dict[str, float] = {}
        self._published = False
        self._predictions: OrderedDict[int, Prediction] = OrderedDict()
        self._rests_until = 0.0

    @property
    def users(self) -> int:
        """How many users' predictions wait for an event."""
        return len(self._predictions)

    def serves(self, info: About) -> None:
        """Another model is served: what was said by the one before is not held against it."""
        if self._published:
            self.metrics.action_psi.labels(self._revision).set(math.nan)
        self._actions, self._revision, self._published = list(info.actions), info.revision, False
        self._training = known_mix(info.training_actions or {}, self._actions)
        self._mix.clear()
        self._predictions.clear()

    def predict(self, predictor: Answering, user: str, history: History) -> None:
        """Keeps what the model says of a stored user's next event, unless it has taken enough time lately."""
        begin = time.perf_counter()
        if begin < self._rests_until or predictor.info.revision != self._revision:
            return
        try:
            asked = [
                predictor.ask(history, of="action", top_k=len(self._actions)),
                predictor.ask(history, of="item", top_k=TOP),
            ]
            actions, items = predictor.answers(asked)
        except Exception as error:  # whatever a history does to the model, the service goes on
            logger.error("watch failed", extra={"kind": type(error).__name__})
            return
        finally:
            now = time.perf_counter()
            self._rests_until = now + (now - begin) * (1 / self.share_of_time - 1)
        key = hash(user)
        self._predictions[key] = Prediction(
            history[-1] if history else None,
            {answer["action"]: answer["probability"] for answer in actions},
            frozenset(answer["item"] for answer in items),
        )
        self._predictions.move_to_end(key)
        if len(self._predictions) > self.most_users:
            self._predictions.popitem(last=False)

    def forget(self, user: str) -> None:
        """The user is erased."""
        self._predictions.pop(hash(user), None)

    def happened(self, event: StoredEvent, history: History | None) -> None:
        """An event of the journal; with the history that it ends, None if it came late."""
        action = known_action(event.action, self._actions)
        self.metrics.actions.labels(action).inc()
        self._mix[action] = self._mix.get(action, 0.0) + 1
        if history is None:
            return
        key = hash(event.user)
        prediction = self._predictions.get(key)
        before = history[-2] if len(history) > 1 else None
        # A prediction that has read this event already waits for the next one.
        if prediction is None or prediction.last != before:
            return
        del self._predictions[key]
        if action != UNKNOWN:
            for name, probability in prediction.actions.items():
                place = BIN_NAMES[bin_of(probability)]
                self.metrics.predicted.labels(place).inc(probability)
                if name == action:
                    self.metrics.happened.labels(place).inc()
        if event.item is not None:
            self.metrics.hit_predictions.inc()
            self.metrics.hits.inc(event.item in prediction.items)

    def publish(self) -> None:
        """Sets the gauge of the action mix, if the training's mix is known and there are enough events."""
        total = sum(self._mix.values())
        if total > MIX_EVENTS:
            self._mix = {action: count / 2 for action, count in self._mix.items()}
        if self._training and total >= FEWEST_EVENTS:
            self.metrics.action_psi.labels(self._revision).set(psi(self._training, self._mix))
            self._published = True
