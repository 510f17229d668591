"""What an audit says: a leak, which stops it, or what it found clean and what it cannot decide (`audit.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from next_behavior.data.sequences import NO_TIME, Sequences
from next_behavior.data.shown import shown
from next_behavior.data.splits import moment
from next_behavior.model.special_ids import FIRST_ACTION, NONE

# Rows, or items, that a message names.
EXAMPLES = 3


class Leak(ValueError):
    """Test events were known before the test."""


@dataclass
class Audit:
    """What was looked at and found clean, and what cannot be decided, in short sentences."""

    checked: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, list[str]]:
        return asdict(self)

    def add(self, other: Audit) -> None:
        self.checked += other.checked
        self.undecided += other.undecided


class Rows:
    """Events as a message names them."""

    def __init__(self, sequences: Sequences, items: Sequence[str], actions: Sequence[str]) -> None:
        self.sequences, self.items, self.actions = sequences, items, actions

    def item(self, index: int) -> str:
        place = index - self.sequences.first_item_id
        if index == NONE:
            return "no item"
        return f"item '{shown(self.items[place], most=40)}'" if 0 <= place < len(self.items) else f"item number {index}"

    def __call__(self, positions: np.ndarray) -> str:
        """The first of the events at `positions`."""
        log, lines = self.sequences, []
        for position in positions[:EXAMPLES].tolist():
            user = log.user_ids[int(np.searchsorted(log.offsets, position, side="right")) - 1]
            action, time = int(log.actions[position]) - FIRST_ACTION, int(log.timestamps[position])
            named = f"'{shown(self.actions[action], most=40)}'" if 0 <= action < len(self.actions) else str(action)
            when = "no time" if time == NO_TIME else moment(time)
            what = f"user '{shown(user, most=40)}', {self.item(int(log.items[position]))}, action {named}, {when}"
            lines.append(what)
        more = len(positions) - len(lines)
        return "; ".join(lines) + (f"; and {more:,} more" if more > 0 else "")
