"""What preparing a large log takes: processor time and peak memory, on a made-up log of any size.

    python -m benchmarks.scale --events 5000000 20000000 [--partitions N] [--in_memory] [--folder DIR]
    python -m benchmarks.scale --events 5000000 20000000 --pairs

The log has three actions, about 50 events a user, 200,000 items and its rows in the order of time, as a service writes
them. Each preparation is a process of its own; `--in_memory` measures how training reads the same log by itself, and
`--pairs` how it counts the item pairs of such events.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from next_behavior.data.sequences import starts_of_runs
from next_behavior.model.special_ids import FIRST_NEW

START, SPAN = 1_700_000_000, 90 * 86_400  # seconds: three months
ACTIONS, SHARES = ["view", "cart", "buy"], [0.9, 0.07, 0.03]
ITEMS, EVENTS_OF_A_USER = 200_000, 50
ROWS = 1 << 20  # of a row group, the unit that is made and written


def popularity() -> np.ndarray:
    """(ITEMS,) how often an item or one before it is drawn, not normalized."""
    return np.cumsum(1 / np.arange(1, ITEMS + 1) ** 0.9)


def write_log(path: Path, events: int, seed: int = 0) -> None:
    """Writes the log piece by piece."""
    draw, users = np.random.default_rng(seed), max(2, events // EVENTS_OF_A_USER)
    popular, writer = popularity(), None
    for start in range(0, events, ROWS):
        rows = min(ROWS, events - start)
        frame = pl.DataFrame(
            {
                "user": draw.integers(users, size=rows),
                "item": np.searchsorted(popular, draw.random(rows) * popular[-1]),
                "action": pl.Series(ACTIONS)[draw.choice(len(ACTIONS), rows, p=SHARES)],
                "timestamp": START + (np.arange(start, start + rows) * (SPAN / events)).astype(np.int64),
            }
        ).select(
            pl.format("user-{}", "user").alias("user_id"), pl.format("item-{}", "item").alias("item_id"), "action",
            "timestamp",
        )  # fmt: skip
        table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()


def measure(path: str, output: str, partitions: int | None, in_memory: bool) -> dict[str, float]:
    """Seconds and peak memory of this process."""
    began, processor = time.perf_counter(), time.process_time()
    from next_behavior.preparation.prepare import PrepareSettings, prepare

    if in_memory:
        from benchmarks.preparation import measure_once

        measure_once(path)
    else:
        prepare(path, output, PrepareSettings(partitions=partitions), say=lambda text: print(text, file=sys.stderr))
    return {
        "processor s": time.process_time() - processor,
        "s": time.perf_counter() - began,
        "peak MiB": peak_memory(),
    }


def measure_pairs(events: int) -> dict[str, float]:
    """Seconds and peak memory of counting the pairs of so many events into a memory, as a training does."""
    import torch

    from next_behavior.model.associative_memory import AssociativeMemory
    from next_behavior.model.configuration_behavior import BehaviorConfig
    from next_behavior.training.memory import MEMORY_PAIRS, neighbors_kept
    from next_behavior.training.pairs_in_parts import count_in_parts

    torch.set_num_threads(1)
    draw, popular = np.random.default_rng(0), popularity()
    users = np.sort(draw.integers(max(2, events // EVENTS_OF_A_USER), size=events))
    config = BehaviorConfig(vocab_size=FIRST_NEW + 64 + ITEMS, num_new_items=64)
    items = FIRST_NEW + 64 + np.searchsorted(popular, draw.random(events) * popular[-1])
    is_run = starts_of_runs(items, users)
    runs, owners = torch.from_numpy(items[is_run]), torch.from_numpy(users[is_run])
    del items, users
    memory = AssociativeMemory(config)
    before, began, processor = peak_memory(), time.perf_counter(), time.process_time()
    count_in_parts(memory, runs, owners, neighbors_kept(config), MEMORY_PAIRS)
    return {
        "processor s": time.process_time() - processor,
        "s": time.perf_counter() - began,
        "peak MiB before": before,
        "peak MiB": peak_memory(),
        "pairs kept": len(memory.pair_keys),
    }


def peak_memory() -> float:
    """MiB of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=int, nargs="+", default=[5_000_000], help="sizes of the log")
    parser.add_argument("--partitions", type=int, help="of the preparation (default: by the log's rows)")
    parser.add_argument("--in_memory", action="store_true", help="read the log as training does by itself")
    parser.add_argument("--pairs", action="store_true", help="count the item pairs of so many events instead")
    parser.add_argument("--folder", help="where the log and its preparation are written for the time")
    parser.add_argument("--once", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        print(json.dumps(measure(args.once[0], args.once[1], args.partitions, args.in_memory)))
        return
    for events in args.events:
        if args.pairs:
            print(f"{events:,} events: " + ", ".join(f"{v:,.0f} {k}" for k, v in measure_pairs(events).items()))
            continue
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            log = Path(folder) / "log.parquet"
            write_log(log, events)
            more = ["--partitions", str(args.partitions)] if args.partitions else []
            more += ["--in_memory"] if args.in_memory else []
            once = ["--once", str(log), str(Path(folder) / "prepared")]
            command = [sys.executable, "-m", "benchmarks.scale", *once, *more]
            result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            figures = json.loads(result.stdout.splitlines()[-1])
            size = log.stat().st_size / 2**20
        print(f"{events:,} events ({size:,.0f} MiB): " + ", ".join(f"{v:,.0f} {k}" for k, v in figures.items()))


if __name__ == "__main__":
    main()
