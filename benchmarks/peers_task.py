"""The task that all compared systems are given, made once: this project's reader, cleaning and split.

    python -m benchmarks.peers_task --data beauty.parquet --split leave_one_out --folder .bench/peers

Writes `task.npz` (see `benchmarks/peers_scoring.py`), `events.parquet` for this project's own systems, and `task.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.peers_scoring import NO_ITEM, TEST, TRAIN, VALIDATION, Task
from next_behavior.data.batches import target_positions
from next_behavior.data.events import read_events
from next_behavior.data.sequences import Sequences
from next_behavior.data.splits import assign_parts, make_split

VALIDATION_TARGETS = 4000
# Of the draw of validation users: another one than train_accelerate.py's, whose gate is fitted on its draw.
VALIDATION_SEED = 20_000


def make_task(events: pl.DataFrame, split: str) -> Task:
    """The task of a log.

    Args:
        events: Polars frame of `behavior.splits.assign_parts`, sorted by user and time.
    """
    item_ids = events.filter(pl.col("part") == TRAIN)["item_id"].drop_nulls().unique().sort()
    place = pl.DataFrame({"item_id": item_ids}).with_row_index("place")
    known = events.join(place, on="item_id", how="left", maintain_order="left")["place"]
    new = events["item_id"].rank("dense").cast(pl.Int64) + len(item_ids)
    items = known.cast(pl.Int64).zip_with(known.is_not_null(), new).fill_null(NO_ITEM).to_numpy()
    lengths = events.group_by("user_id", maintain_order=True).len()
    offsets = np.concatenate([[0], np.cumsum(lengths["len"].to_numpy())]).astype(np.int64)
    times = events["timestamp"].dt.epoch("us").to_numpy() if not events["timestamp"].null_count() else None
    parts = events["part"].to_numpy()
    empty = np.zeros(len(items), dtype=np.int16)
    users = lengths["user_id"].to_list()
    sequences = Sequences(offsets, items, empty, empty, items, parts, users, len(item_ids), 0)
    return Task(
        offsets=offsets,
        items=items,
        times=np.arange(len(items)) if times is None else times,
        parts=parts,
        user_ids=np.array(users, dtype=np.str_),
        item_ids=np.array(item_ids.to_list(), dtype=np.str_),
        validation=target_positions(sequences, VALIDATION, VALIDATION_TARGETS, VALIDATION_SEED),
        test=target_positions(sequences, TEST),
        way="removed" if split == "leave_one_out" else "kept",
    )


def prepare(data: str, split: str, folder: Path) -> None:
    """Writes `task.npz`, `events.parquet` and `task.json`, unless they are those of this log and split already."""
    wanted = {"data": str(Path(data).resolve()), "split": split}
    record = folder / "task.json"
    if record.exists():
        found = json.loads(record.read_text())
        if found != wanted:
            raise ValueError(f"got {wanted}, but {folder} holds results of {found}; expected another --output")
        return
    folder.mkdir(parents=True, exist_ok=True)
    log = read_events(wanted["data"])
    events = assign_parts(log.events, make_split(log.events, split))
    events.write_parquet(folder / "events.parquet")
    make_task(events, split).save(folder / "task.npz")
    record.write_text(json.dumps(wanted))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="event log, columns under names that are recognized")
    parser.add_argument("--split", default="time", choices=["time", "leave_one_out"])
    parser.add_argument("--folder", required=True)
    args = parser.parse_args()
    prepare(args.data, args.split, Path(args.folder))


if __name__ == "__main__":
    main()
