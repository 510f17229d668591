"""How far a mix of things has moved, and how far probabilities are from what happened.

The population stability index (PSI) of two distributions p and q is the sum of (p - q) * ln(p / q): Jeffreys'
divergence, used in credit scoring since the 1990s (Siddiqi 2006, "Credit Risk Scorecards"). This file imports the
standard library alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

# What practice reads from a PSI: below, nothing to speak of; between, a shift; above, another population.
SMALL_SHIFT, LARGE_SHIFT = 0.1, 0.25
# A share of zero would make the index infinite.
SMALLEST_SHARE = 1e-4
# Below so many events the index is mostly chance.
FEWEST_EVENTS = 100
BINS = 10
BIN_NAMES = tuple(f"{low / BINS:.1f}-{(low + 1) / BINS:.1f}" for low in range(BINS))
UNKNOWN = "unknown"


def stability_index(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """The PSI of two counts by name.

    >>> stability_index({"view": 90, "buy": 10}, {"view": 900, "buy": 100})
    0.0
    >>> round(stability_index({"view": 90, "buy": 10}, {"view": 50, "buy": 50}), 2)
    0.88
    """
    old, new = sum(before.values()), sum(after.values())
    if old <= 0 or new <= 0:
        raise ValueError(f"got {old} events before and {new} after; expected some of both")
    total = 0.0
    for name in sorted({*before, *after}):
        p = max(before.get(name, 0) / old, SMALLEST_SHARE)
        q = max(after.get(name, 0) / new, SMALLEST_SHARE)
        total += (p - q) * math.log(p / q)
    return total


def meaning(index: float) -> str:
    """What a PSI means, in words.

    >>> meaning(0.05), meaning(0.2), meaning(0.3)
    ('stable', 'a moderate shift', 'a large shift')
    """
    return "stable" if index < SMALL_SHIFT else "a moderate shift" if index <= LARGE_SHIFT else "a large shift"


def known_action(action: str | None, actions: Sequence[str]) -> str:
    """The action as a model reads it: one it does not know is unknown, and of a single action an event need not say it.

    >>> known_action("buy", ["view", "buy"]), known_action(None, ["view", "buy"]), known_action(None, ["interact"])
    ('buy', 'unknown', 'interact')
    """
    if action is None and len(actions) == 1:
        return actions[0]
    return action if action is not None and action in actions else UNKNOWN


def known_mix(counts: Mapping[str, int], actions: Sequence[str]) -> dict[str, int]:
    """Counts by action as a model reads them."""
    mix: dict[str, int] = {}
    for action, count in counts.items():
        name = known_action(action, actions)
        mix[name] = mix.get(name, 0) + count
    return mix


def bin_of(probability: float) -> int:
    """The tenth of [0, 1] that a probability lies in.

    >>> [bin_of(probability) for probability in (0.0, 0.1, 0.95, 1.0)]
    [0, 1, 9, 9]
    """
    return min(int(probability * BINS), BINS - 1)
