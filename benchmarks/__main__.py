"""Measure preparation, training and ranking quality on one log, with the baselines in the same table.

    make bench DATA=events.parquet
    python -m benchmarks --data events.parquet --output .bench [--split leave_one_out]

Runs what a user runs, as processes of their own: `benchmarks.preparation`, then `train_accelerate.py` with its defaults
for each seed. Prints the median over seeds of the model's and the best baselines' figures; everything else is in the
output folder (`seed_N/evaluation.md`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHOWN = [
    ("kept", "all", "ndcg@10"),
    ("kept", "repeat", "ndcg@10"),
    ("kept", "novel", "ndcg@10"),
    ("removed", "all", "recall@10"),
    ("removed", "all", "ndcg@10"),
    ("removed", "novel", "ndcg@10"),
]
SHOWN_ACTIONS = ("accuracy", "macro_f1", "log_loss", "ece")


def item_value(row: dict[str, Any], way: str, group: str, metric: str) -> float | None:
    value = row.get(way, {}).get("items", {}).get(group, {}).get(metric)
    return None if value is None else float(value)


def print_row(name: str, values: list[list[float]]) -> None:
    """The median over seeds of each figure, and the spread if there are several."""
    cells = []
    for seeds in values:
        spread = f" ±{(max(seeds) - min(seeds)) / 2:.4f}" if len(seeds) > 1 else ""
        cells.append(f"{statistics.median(seeds):.4f}{spread}" if seeds else "-")
    print("| " + " | ".join([name, *cells]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="event log")
    parser.add_argument("--output", default=".bench", help="folder for the models (default .bench)")
    parser.add_argument("--split", default="time", choices=["time", "leave_one_out"])
    parser.add_argument("--seeds", type=int, default=1, help="runs, with seeds 0, 1 ... (default 1)")
    args = parser.parse_args()
    subprocess.run([sys.executable, "-m", "benchmarks.preparation", args.data], check=True, cwd=ROOT)
    results, seconds = [], []
    for seed in range(args.seeds):
        output = Path(args.output) / f"seed_{seed}"
        started = time.monotonic()
        command = [sys.executable, str(ROOT / "train_accelerate.py"), "--events", args.data, "--split", args.split]
        subprocess.run([*command, "--output_dir", str(output), "--seed", str(seed)], check=True)
        seconds.append(time.monotonic() - started)
        results.append(json.loads((output / "evaluation.json").read_text()))
    print(
        f"\n{args.data}, {args.split} split, median of {args.seeds} seed(s), {statistics.median(seconds):.0f} s a run\n"
    )
    print("| next item | " + " | ".join(f"{way}, {group}, {metric}" for way, group, metric in SHOWN) + " |")
    print("|:--|" + "--:|" * len(SHOWN))
    for name in results[0]["rankers"]:
        rows = [result[name] for result in results]
        if "kept" in rows[0]:
            found = [[item_value(row, *figure) for row in rows] for figure in SHOWN]
            print_row(name, [[value for value in seeds if value is not None] for seeds in found])
    print("\n| next action | " + " | ".join(SHOWN_ACTIONS) + " |")
    print("|:--|" + "--:|" * len(SHOWN_ACTIONS))
    for name in results[0]["rankers"]:
        rows = [result[name] for result in results]
        if "actions" in rows[0]:
            print_row(name, [[float(row["actions"][metric]) for row in rows] for metric in SHOWN_ACTIONS])


if __name__ == "__main__":
    main()
