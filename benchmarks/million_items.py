"""How fast a tokenizer of a large catalog loads and encodes, in a process of its own.

    python -m benchmarks.million_items [--items 1000000] [--repeats 3]

Goal: one million items load in under 4 s. Prints medians: `AutoTokenizer.from_pretrained` with remote code, the first
title, and one history of 100 events to tensors; and the largest peak memory of the loading process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile

LOAD = """
import json, resource, sys, time
from transformers import AutoTokenizer
started = time.perf_counter()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
loaded = time.perf_counter()
tokenizer.title(sys.argv[2])
titled = time.perf_counter()
items = tokenizer.item_vocabulary[::len(tokenizer.item_vocabulary) // 100][:100]
history = [{"item": item, "action": "view", "timestamp": 1700000000 + i} for i, item in enumerate(items)]
tokenizer([history], return_tensors="pt")
encoding = time.perf_counter()
for _ in range(200):
    tokenizer([history], return_tensors="pt")
encoded = time.perf_counter()
print(json.dumps({"load s": loaded - started, "first title s": titled - loaded,
    "100 events ms": (encoded - encoding) * 5, "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=1_000_000, help="size of the catalog (default 1,000,000)")
    parser.add_argument("--repeats", type=int, default=3, help="processes to measure in (default 3)")
    args = parser.parse_args()

    from next_behavior.training.vocabulary import assemble

    items = [f"item-{number:09d}" for number in range(args.items)]
    tokenizer = assemble(items, ["view", "cart", "buy"], [1.0, 60.0, 3600.0, 86400.0], num_new_items=64, max_length=200)
    tokenizer.describe_items([1] * len(items), [f"Title of {item}" for item in items])
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        # -P: nothing of this repository can be imported, only the saved folder's own code.
        command = [sys.executable, "-c", LOAD, folder, items[-1]]
        if sys.version_info >= (3, 11):
            command.insert(1, "-P")
        runs = [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout)
            for _ in range(args.repeats)
        ]
    print(f"{args.items:,} items, {args.repeats} processes")
    for name in ("load s", "first title s", "100 events ms"):
        print(f"  {name:<14} {statistics.median(run[name] for run in runs):8.2f}  median")
    print(f"  {'peak MiB':<14} {max(run['peak MiB'] for run in runs):8.0f}  largest")


if __name__ == "__main__":
    main()
