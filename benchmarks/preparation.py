"""How long a log takes from file to token ids, and how much memory: each stage, one process.

    python -m benchmarks.preparation EVENTS [--repeats 3]

Goal on 2 cores: the demo's 1.47 million events in under 10 s and 1.5 GB. Every repeat runs in a process of its own; the
printed figures are medians (seconds) and the largest peak (MiB, resident memory of the whole process).
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time

STAGES = ("import", "read and clean", "split", "build tokenizer", "tokenize", "all")


def measure_once(events: str) -> dict[str, float]:
    """Seconds of every stage and the process's peak memory, in this process."""
    marks = [time.perf_counter()]
    from next_behavior.data.events import read_events
    from next_behavior.data.sequences import Sequences, encode_events
    from next_behavior.data.splits import assign_parts, make_split
    from next_behavior.training.vocabulary import build_tokenizer

    marks.append(time.perf_counter())
    log = read_events(events)
    marks.append(time.perf_counter())
    has_time = log.events["timestamp"].null_count() < len(log.events)
    parts = assign_parts(log.events, make_split(log.events, "time" if has_time else "none"))
    marks.append(time.perf_counter())
    tokenizer = build_tokenizer(parts.filter(parts["part"] == 0))
    marks.append(time.perf_counter())
    dataset = encode_events(
        parts,
        item_vocabulary=tokenizer.item_vocabulary,
        first_item_id=tokenizer.first_item_id,
        action_vocabulary=tokenizer.action_vocabulary,
        time_edges=tokenizer.time_edges,
    )
    Sequences.from_dataset(dataset, vocab_size=len(tokenizer), first_item_id=tokenizer.first_item_id)
    marks.append(time.perf_counter())
    seconds = [later - earlier for earlier, later in itertools.pairwise(marks)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return dict(zip(STAGES, [*seconds, marks[-1] - marks[0]], strict=True)) | {
        "events": len(log.events),
        "users": dataset.num_rows,
        "peak MiB": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("events", help="event log: .csv, .csv.gz, .parquet or a folder of them")
    parser.add_argument("--repeats", type=int, default=3, help="processes to measure in (default 3)")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        print(json.dumps(measure_once(args.events)))
        return
    command = [sys.executable, "-m", "benchmarks.preparation", args.events, "--once"]
    runs = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        for _ in range(args.repeats)
    ]
    print(f"{runs[0]['events']:,} events of {runs[0]['users']:,} users, {args.repeats} processes, medians")
    for stage in STAGES:
        print(f"  {stage:<16} {statistics.median(run[stage] for run in runs):6.2f} s")
    print(f"  {'peak memory':<16} {max(run['peak MiB'] for run in runs):6.0f} MiB")


if __name__ == "__main__":
    main()
