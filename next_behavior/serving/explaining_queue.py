"""Explanations of one process: one at a time, in small steps between which other questions are answered.

    queue = ExplainingQueue(metrics, counting, in_thread)
    answers = await queue.answer(predictor, asked, deadline=loop.time() + 1, gone=transport.is_closing)

Nothing is counted while an answer is explained, so that all its numbers are of one memory. An explanation takes a
second or two at most (`questions.MOST_SCORES`); after it, events that wait are counted before the next one begins.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from next_behavior.serving.answering import Answering, Answers
from next_behavior.serving.batcher import Failed, Full, Gone, Late, checked
from next_behavior.serving.metrics import Metrics

logger = logging.getLogger(__name__)

MOST_WAITING = 8


class ExplainingQueue:
    """All of it runs in the event loop's thread, but for steps that may run beside it.

    Args:
        counting: held while the memory changes.
        in_thread: runs a function in a thread.
    """

    def __init__(self, metrics: Metrics, counting: asyncio.Lock, in_thread: Callable[..., Awaitable[Any]]) -> None:
        self.metrics = metrics
        self._counting, self._in_thread = counting, in_thread
        self._waiting = 0

    async def answer(self, predictor: Answering, asked: Any, deadline: float, gone: Callable[[], bool]) -> Answers:
        """The explained answers to a question.

        Args:
            deadline: until when it may begin, on the clock of the event loop.
            gone: whether the client has left.

        Raises:
            Full, Late, Gone, Failed: as the batcher.
        """
        if self._waiting >= MOST_WAITING:
            raise Full
        self._waiting += 1
        try:
            async with self._counting:
                if asyncio.get_running_loop().time() > deadline:
                    raise Late
                begin = time.perf_counter()
                answers = await self._explained(predictor, asked, gone)
                self.metrics.explanation_seconds.observe(time.perf_counter() - begin)
                return answers
        finally:
            self._waiting -= 1

    async def _explained(self, predictor: Answering, asked: Any, gone: Callable[[], bool]) -> Answers:
        steps = predictor.explain(asked)
        while not gone():
            try:
                answers = await self._in_thread(next, steps) if predictor.explains_beside else next(steps)
                if answers is not None:
                    return checked([answers], 1)[0]
            except Exception as error:  # whatever a question does to the model, the service goes on
                logger.error("explanation failed", extra={"kind": type(error).__name__})
                raise Failed from error
            await asyncio.sleep(0)  # one turn of the loop: what came in meanwhile is answered
        raise Gone
