"""The phases of a run as its user sees them: a line when one begins, and how long it took when it ends.

    phases = Phases(started, accelerator.print)
    with phases("Reading the log events.csv"):
        ...

    [ 0:06] Reading the log events.csv ...
    [ 0:09]   done in 0:03

The time in brackets counts from the start of the process, as `--max_minutes` does. Whatever a run prints goes through
`Phases.line`, so that it fits a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from next_behavior.data.shown import to_width


@dataclass(frozen=True)
class Phases:
    """Announces phases by `say`; `started` is the start of the process by `time.monotonic`."""

    started: float
    say: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)  # of the phases that are over, by their text

    def line(self, text: str) -> None:
        """Says something besides: long lines are broken."""
        self.say(to_width(text))

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """One phase. A phase that fails has no end line."""
        begin = time.monotonic()
        self.line(f"[{clock(begin - self.started)}] {what} ...")
        yield
        end = time.monotonic()
        self.seconds[what] = end - begin
        self.say(f"[{clock(end - self.started)}]   done in {clock(end - begin).strip()}")


def clock(seconds: float) -> str:
    """Minutes and seconds, aligned up to 99 minutes.

    >>> clock(7.6), clock(754), clock(6_000)
    (' 0:07', '12:34', '100:00')
    """
    return f"{int(seconds) // 60:2d}:{int(seconds) % 60:02d}"
