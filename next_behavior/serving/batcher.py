"""Micro-batching without a delay: what came in during one turn of the event loop is answered in one pass.

    batcher = Batcher(most_waiting=256, most_together=32)
    reply = await batcher.answer(live, asked, deadline=loop.time() + 1, gone=transport.is_closing)

A pass takes a fraction of a millisecond, less than handing it to a thread and back, so it runs in the event loop.
Between two passes the loop reads sockets and refuses what does not fit the queue. Nobody waits for company: under light
load a batch is one question, under heavy load up to `most_together`. What a question is answered does not depend on who
shares the batch.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from next_behavior.serving.answering import Answering, Answers
from next_behavior.serving.metrics import Metrics

logger = logging.getLogger(__name__)


class Full(Exception):
    """As many questions wait as may."""


class Late(Exception):
    """The deadline passed while the question waited. The model was not asked."""


class Gone(Exception):
    """The client left while the question waited. The model was not asked."""


class Failed(Exception):
    """The model raised an exception for this question, or gave a probability that is no number."""


@dataclass(slots=True)
class Waiting:
    predictor: Answering
    asked: Any
    future: asyncio.Future[Answers]
    since: float
    deadline: float
    gone: Callable[[], bool]


class Batcher:
    """The queue of one process. All of it runs in the event loop's thread.

    Attributes:
        waiting: how many questions wait.
    """

    def __init__(self, metrics: Metrics, most_waiting: int = 256, most_together: int = 32) -> None:
        self.metrics = metrics
        self.most_waiting, self.most_together = most_waiting, most_together
        self._queue: deque[Waiting] = deque()
        self._scheduled = False

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def full(self) -> bool:
        return len(self._queue) >= self.most_waiting

    def answer(
        self, predictor: Answering, asked: Any, deadline: float, gone: Callable[[], bool]
    ) -> asyncio.Future[Answers]:
        """The future answers to one question; await it.

        Args:
            deadline: on the clock of the event loop, which does not jump.
            gone: whether the client has left.

        Raises:
            Full: at once. Late, Gone, Failed: from the future.
        """
        if self.full:
            raise Full
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answers] = loop.create_future()
        self._queue.append(Waiting(predictor, asked, future, loop.time(), deadline, gone))
        self.metrics.queue_depth.set(len(self._queue))
        self._schedule(loop)
        return future

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._queue and not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._turn, loop)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduled = False
        batch = self._next_batch(loop.time())
        self.metrics.queue_depth.set(len(self._queue))
        if batch:
            self._answer_batch(batch)
        self._schedule(loop)

    def _next_batch(self, now: float) -> list[Waiting]:
        """Questions to one predictor, from the front of the queue; those that need no answer any more are dropped."""
        batch: list[Waiting] = []
        while self._queue and len(batch) < self.most_together:
            if batch and self._queue[0].predictor is not batch[0].predictor:
                break  # a reload in between: every batch is of one revision
            one = self._queue.popleft()
            if one.future.cancelled():
                self.metrics.dropped("cancelled")
            elif one.gone():
                one.future.set_exception(Gone())
            elif now > one.deadline:
                one.future.set_exception(Late())
            else:
                batch.append(one)
                self.metrics.waited(now - one.since)
        return batch

    def _answer_batch(self, batch: list[Waiting]) -> None:
        begin = time.perf_counter()
        try:
            replies = checked(batch[0].predictor.answers([one.asked for one in batch]), len(batch))
        except Exception as error:  # whatever a question does to the model, the service goes on
            logger.error("inference failed", extra={"kind": type(error).__name__, "batch": len(batch)})
            if len(batch) == 1:
                batch[0].future.set_exception(Failed())
            else:  # one bad question does not spoil the others'
                for one in batch:
                    self._answer_batch([one])
            return
        self.metrics.passed(time.perf_counter() - begin, len(batch))
        for one, reply in zip(batch, replies, strict=True):
            one.future.set_result(reply)


def checked(replies: list[Answers], size: int) -> list[Answers]:
    """The replies, if there are `size` and each probability is a number: JSON has no NaN."""
    if len(replies) != size:
        raise ValueError(f"got {len(replies)} replies, expected {size}")
    for reply in replies:
        if not math.isfinite(sum(answer["probability"] for answer in reply)):
            raise ValueError("got a probability that is no number")
    return replies
