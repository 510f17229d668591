"""What is sent in the measurements of serving: histories, questions about them, events to store, and a log.

Histories are windows of a log's users, or random walks in which items with close numbers follow each other and few
items are frequent.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl

LENGTH = 50
# Of a walk: how far an item may be from the one before, and how frequent the first ones are.
STRIDE, ZIPF = 20, 1.3
START, GAP_SECONDS = 1_700_000_000, 3600.0
USERS = 5_000


def random_walks(rng: np.random.Generator, items: int, walks: int, steps: int) -> np.ndarray:
    """(walks, steps) numbers of items: each step goes to an item of a close number."""
    starts = rng.zipf(ZIPF, walks) % items
    return (starts[:, None] + rng.integers(-STRIDE, STRIDE, (walks, steps)).cumsum(1)) % items


def windows_of_log(events: pl.DataFrame, names: Sequence[str], longest: int = LENGTH) -> np.ndarray:
    """(users, longest) numbers of the newest items of each user, -1 on the left where there are fewer.

    Args:
        events: user_id and item_id, sorted by user and time.
        names: of the items, by number; events with other items are left out.
    """
    numbers = pl.DataFrame({"item_id": list(names), "number": np.arange(len(names))})
    known = events.join(numbers, on="item_id", how="inner", maintain_order="left")
    newest = known.group_by("user_id", maintain_order=True).agg(pl.col("number").tail(longest))["number"].to_list()
    table = np.full((len(newest), longest), -1)
    for row, found in enumerate(newest):
        table[row, longest - len(found) :] = found
    return table


def questions(names: Sequence[str], actions: Sequence[str], walks: np.ndarray, seed: int = 0) -> Iterator[str]:
    """Bodies of POST /v1/predict: the ten best next items after each walk, -1 for no event."""
    rng = random.Random(seed)
    for walk in walks.tolist():
        time, events = float(START), []
        for number in walk:
            if number >= 0:
                time += rng.expovariate(1 / GAP_SECONDS)
                events.append({"item": names[number], "action": rng.choice(actions), "timestamp": round(time)})
        yield json.dumps({"events": events, "top_k": 10, "of": "item"}, separators=(",", ":"))


def batches_of_events(
    names: Sequence[str], actions: Sequence[str], count: int, size: int, run: str, start: int = START
) -> Iterator[str]:
    """`count` bodies of POST /v1/events with `size` events each; every event is its user's newest."""
    rng = random.Random(run)
    for batch in range(count):
        events = [
            {
                "event_id": f"{run}-{batch}-{number}",
                "user_id": f"user-{rng.randrange(USERS)}",
                "item": names[rng.randrange(len(names))],
                "action": rng.choice(actions),
                "timestamp": start + batch * size + number,
            }
            for number in range(size)
        ]
        yield json.dumps({"events": events}, separators=(",", ":"))


def made_up_log(users: int = 19_000, items: int = 12_000) -> pl.DataFrame:
    """user_id, item_id and idx (the order): histories of 5 to LENGTH events, short ones the most frequent."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(LENGTH, 4 + rng.geometric(0.2, users))
    walks = random_walks(rng, items, users, LENGTH)
    kept = np.arange(LENGTH) < lengths[:, None]
    user = np.repeat(np.arange(users), lengths)
    return pl.DataFrame({"user_id": user, "item_id": walks[kept], "idx": np.arange(len(user))}).with_columns(
        pl.col("user_id", "item_id").cast(pl.String)
    )


def write_lines(path: Path, lines: Iterator[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
    return path
