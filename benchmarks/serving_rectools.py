"""RecTools' SASRec in process: milliseconds of recommend() for one user, users a second for a whole log.

    .bench/venv-peers/bin/python -m benchmarks.serving_rectools --log log.csv [--calls 100]

The model is that of the comparison in `benchmarks/peers_measure.py` (128 wide, one layer, 50 events), trained for few
steps: its time does not depend on the weights. For one user, the dataset is made of the user's events in each call, as
a service would have to; and the same call is timed with the dataset made beforehand. For all users, it is made once,
and the time counts recommend() alone.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.peers_measure import SASREC, set_seed
from benchmarks.peers_scoring import TRAIN, Clock, Task
from benchmarks.peers_systems import RecToolsTransformer

STEPS = 5
TOP_K = 10
# Single calls are timed for users with the most events, up to the 50 that the model reads.
LENGTH = 50


def task_of(log: Path) -> Task:
    """A log of columns user, item, time as a task whose events are all for training."""
    frame = pd.read_csv(log, dtype={"user": str, "item": str}).sort_values(["user", "time"], kind="stable")
    users, user_ids = pd.factorize(frame["user"], sort=True)
    items, item_ids = pd.factorize(frame["item"], sort=True)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(users))]).astype(np.int64)
    none = np.zeros(0, np.int64)
    parts = np.full(len(items), TRAIN, np.int8)
    names, codes = np.array(user_ids, np.str_), np.array(item_ids, np.str_)
    return Task(offsets, items.astype(np.int64), np.arange(len(items)), parts, names, codes, none, none, "removed")


def milliseconds(times: list[float]) -> dict[str, float]:
    return {f"p{each}_ms": float(1000 * np.percentile(times[len(times) // 10 :], each)) for each in (50, 99)}


def measure(task: Task, calls: int) -> dict[str, Any]:
    import rectools

    set_seed(0)
    system = RecToolsTransformer(False, STEPS, **SASREC | {"batch_size": 64})
    system.fit(task, Clock(task, 600))
    model = system.model
    lengths = np.diff(task.offsets)
    longest = np.argsort(-np.minimum(lengths, LENGTH), kind="stable")[:calls]
    live, ready = [], []
    for user in longest.tolist():
        history = task.items[task.offsets[user] : task.offsets[user + 1]][-LENGTH:]
        begin = time.perf_counter()
        dataset = system._dataset(np.zeros(len(history), np.int64), history)
        made = time.perf_counter()
        model.recommend(users=[0], dataset=dataset, k=TOP_K, filter_viewed=True)
        end = time.perf_counter()
        live.append(end - begin)
        ready.append(end - made)
    users, items = task.training()
    dataset = system._dataset(users, items)
    begin = time.perf_counter()
    model.recommend(users=np.arange(task.num_users), dataset=dataset, k=TOP_K, filter_viewed=True)
    return {
        "recommend": milliseconds(live),
        "recommend_dataset_made_before": milliseconds(ready),
        "events": int(np.minimum(lengths[longest], LENGTH).min()),
        "users_per_second": task.num_users / (time.perf_counter() - begin),
        "users": task.num_users,
        "items": task.num_items,
        "version": rectools.__version__,
        "what": system.what,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--log", type=Path, required=True, help="CSV: user, item, time")
    parser.add_argument("--calls", type=int, default=100)
    args = parser.parse_args()
    print(json.dumps(measure(task_of(args.log), args.calls)))


if __name__ == "__main__":
    main()
