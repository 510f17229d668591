"""With the split none: late events of some users are held out, to decide when to stop and to fit probabilities on.

users = users_with_several_events(events)
events = hold_out(events, users.gather(drawn_users(len(users), seed)), None, cut)      # adds `part`
"""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from next_behavior.data.sequences import TRAIN, VALIDATION

# The latest tenth of the log of a third of the users.
HELD_OUT_USERS, MOST_HELD_OUT_USERS, HELD_OUT_EVENTS = 1 / 3, 10_000, 10


def users_with_several_events(events: pl.DataFrame, fresh: pl.Series | None = None) -> pl.Series:
    """The users with two events and more, one of them `fresh`, in the order of the events."""
    several = pl.len().over("user_id") > 1
    return events.filter(several if fresh is None else several & fresh)["user_id"].unique(maintain_order=True)


def drawn_users(users: int, seed: int, share: float = HELD_OUT_USERS, most: int = MOST_HELD_OUT_USERS) -> np.ndarray:
    """(N,) int64: which of so many users have events held out."""
    return np.random.default_rng(seed).permutation(users)[: min(most, math.ceil(share * users))]


def hold_out(events: pl.DataFrame, users: pl.Series, fresh: pl.Series | None, cut: int | None) -> pl.DataFrame:
    """Marks the events of these users after `cut`, in microseconds since 1970, as validation where `fresh`, all others
    as training. Without a cut the last tenth of their events, at least one."""
    length = pl.len().over("user_id").cast(pl.Int64)
    place = pl.int_range(pl.len(), dtype=pl.Int64).over("user_id")
    is_late = place >= length - (length // HELD_OUT_EVENTS).clip(lower_bound=1)
    if cut is not None:
        is_late = pl.col("timestamp").dt.epoch("us") > cut
    held_out = pl.col("user_id").is_in(users.implode()) & is_late
    if fresh is not None:
        held_out &= fresh
    return events.with_columns(pl.when(held_out).then(VALIDATION).otherwise(TRAIN).cast(pl.Int8).alias("part"))
