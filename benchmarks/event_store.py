"""Events a second that the event store acknowledges as durable, and microseconds to read a history.

    python -m benchmarks.event_store                                    # a SQLite file in the current folder's .bench
    python -m benchmarks.event_store --store redis://localhost:6379/0   # a server that may be filled
    python -m benchmarks.event_store --seconds 10 --output store.md

Each row is one load: so many callers at once, each of which sends the next batch when the one before is acknowledged.
The last rows read the histories of the users of that load, one call after the other.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

from next_behavior.serving.event_store import EventStore, StoredEvent
from next_behavior.serving.open_store import open_store

LOADS = ((1, 1), (16, 1), (64, 1), (1, 32), (8, 32), (1, 100), (4, 500))  # callers, events of a batch
USERS, ITEMS = 5_000, 12_000
READS = 5_000


def events_of(rng: random.Random, prefix: str, count: int) -> list[StoredEvent]:
    return [
        StoredEvent(
            f"{prefix}-{number}",
            f"user-{rng.randrange(USERS)}",
            f"item-{rng.randrange(ITEMS)}",
            "view",
            1.7e9 + rng.random() * 1e6,
        )
        for number in range(count)
    ]


def append(store: EventStore, callers: int, batch: int, seconds: float, run: str) -> tuple[float, list[float]]:
    """Events a second, and the seconds of every call."""
    times: list[float] = []

    def call(caller: int) -> None:
        rng = random.Random(f"{run} {caller}")
        number = 0
        while time.perf_counter() < end:
            events = events_of(rng, f"{run}-{caller}-{number}", batch)
            begin = time.perf_counter()
            store.append(events)
            times.append(time.perf_counter() - begin)
            number += 1

    start = time.perf_counter()
    end = start + seconds
    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(times) * batch / (time.perf_counter() - start), times


def read(store: EventStore, length: int) -> list[float]:
    """Seconds of every call."""
    rng = random.Random(0)
    times = []
    for _ in range(READS):
        user = f"user-{rng.randrange(USERS)}"
        begin = time.perf_counter()
        store.history(user, length)
        times.append(time.perf_counter() - begin)
    return times


def floor(folder: Path) -> float:
    """Median seconds of the disk to make 4 KiB durable: no commit is faster."""
    times = []
    with (folder / "floor").open("wb", buffering=0) as stream:
        for _ in range(50):
            stream.write(bytes(4096))
            begin = time.perf_counter()
            os.fdatasync(stream.fileno())
            times.append(time.perf_counter() - begin)
    return sorted(times)[25]


def quantiles(times: list[float], scale: float, digits: int) -> str:
    ordered = sorted(times)
    return " | ".join(f"{scale * ordered[int(share * (len(ordered) - 1))]:.{digits}f}" for share in (0.5, 0.99))


def measure(address: str, folder: Path, seconds: float) -> str:
    """Fills a store and reads from it; the tables."""
    with closing(open_store(address)) as store:
        lines = [
            f"{store.description.replace(f'{folder}/', '')}. "
            f"One fdatasync of this disk: {1000 * floor(folder):.1f} ms.",
            "",
            "| callers | events a batch | events a second | ms a call, p50 | p99 |",
            "|---:|---:|---:|---:|---:|",
        ]
        for callers, batch in LOADS:
            rate, times = append(store, callers, batch, seconds, f"{time.time():.0f}-{callers}-{batch}")
            lines.append(f"| {callers} | {batch} | {rate:,.0f} | {quantiles(times, 1e3, 1)} |")
        lines += ["", "| read the last | microseconds, p50 | p99 |", "|---:|---:|---:|"]
        lines += [f"| {length} | {quantiles(read(store, length), 1e6, 0)} |" for length in (1, 50)]
        stored = store.count()
        lines += ["", f"{stored:,} events, {store.size() / stored:.0f} bytes each."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="a path or redis://HOST:PORT/NUMBER; a temporary file if absent")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    parser.add_argument("--output", type=Path, help="write the table here, too")
    settings = parser.parse_args()
    bench = Path(".bench")
    bench.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=bench) as folder:
        table = measure(settings.store or f"{folder}/events.sqlite", Path(folder), settings.seconds)
    print(table, end="")
    if settings.output is not None:
        settings.output.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
