"""Batches that are made while the steps before them run.

    with closing(made_ahead(make, range(100), ahead=2)) as results:
        for result in results: ...

One thread makes them in order and waits when enough are ready. With `ahead=0` there is no thread, and each is made when
it is asked for.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

THREAD = "batches"  # what the name of the thread begins with

T = TypeVar("T")


def made_ahead(make: Callable[[int], T], numbers: Iterable[int], ahead: int) -> Generator[T, None, None]:
    """make(number) for each number, in order; up to `ahead` of them are made before they are asked for, in a thread.

    An exception of `make` is raised where its result would have come. The thread ends with the generator, also where
    that is closed.
    """
    if not ahead:
        yield from map(make, numbers)
        return
    ready = deque[Future[T]]()
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=THREAD)
    try:
        for number in numbers:
            ready.append(executor.submit(make, number))
            if len(ready) > ahead:
                yield ready.popleft().result()
        while ready:
            yield ready.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


@dataclass
class Waiting:
    """How long something was waited for, and how long all of it took, in seconds."""

    waited: float = 0.0
    total: float = 0.0

    def next(self, results: Iterator[T]) -> T:
        """The next result; notes how long it took to come."""
        begin = time.monotonic()
        result = next(results)
        self.waited += time.monotonic() - begin
        return result

    @property
    def share(self) -> float:
        return self.waited / self.total if self.total else 0.0
