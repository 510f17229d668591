"""How much a training step slows down while other processes keep the machine busy, by how OpenMP's threads wait.

    python -m benchmarks.busy_machine [--load 0 1 4] [--steps 30]

Each row is a process of its own: OpenMP reads its settings when torch is loaded. The load is that many processes that
compute without a pause. With fair shares, a step on two cores takes 1.5 times as long
beside one and 3 times beside four.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from typing import Any

# What is compared; the second is what the commands set. GNU's OpenMP, which torch's wheels bring, knows the last.
SETTINGS: dict[str, dict[str, str]] = {
    "OpenMP's defaults": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=100": {"GOMP_SPINCOUNT": "100"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
}
DECIDING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SIZES: dict[str, Any] = {
    "vocab_size": 5_000,
    "num_actions": 6,
    "hidden_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
USERS, EVENTS = 10, 100
UNTIMED_STEPS = 5
BUSY = "while True: pass"


def measure(steps: int) -> None:
    """Prints the milliseconds of each of `steps` training steps."""
    import torch

    from next_behavior.model.modeling_behavior import BehaviorConfig, BertForNextBehavior

    torch.manual_seed(0)
    model = BertForNextBehavior(BehaviorConfig(**SIZES, intermediate_size=512, max_position_embeddings=EVENTS))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    items = torch.randint(model.config.first_item_id, model.config.vocab_size, (USERS, EVENTS))
    ones = torch.ones_like(items)
    batch = {"input_ids": items, "token_type_ids": 3 * ones, "time_gap_ids": ones, "attention_mask": ones}
    labels = {"labels": items.roll(-1, 1), "action_labels": 3 * ones}
    for step in range(UNTIMED_STEPS + steps):
        begin = time.perf_counter()
        model(**batch, **labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= UNTIMED_STEPS:
            print(1000 * (time.perf_counter() - begin))


def milliseconds(setting: dict[str, str], load: int, steps: int) -> list[float]:
    """The steps of a process with these OpenMP settings beside `load` busy ones."""
    environment = {name: value for name, value in os.environ.items() if name not in DECIDING} | setting
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(load)]
    try:
        command = [sys.executable, "-m", "benchmarks.busy_machine", "--measure", "--steps", str(steps)]
        run = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    return [float(line) for line in run.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--load", type=int, nargs="+", default=[0, 1, 4], help="busy processes (default 0 1 4)")
    parser.add_argument("--steps", type=int, default=30, help="timed steps (default 30)")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.steps)
        return
    print(f"milliseconds of a training step on {os.cpu_count()} cores, mean (median)")
    print("| waiting |" + "".join(f" load {load} |" for load in args.load))
    print("|:--|" + "--:|" * len(args.load))
    for name, setting in SETTINGS.items():
        times = [milliseconds(setting, load, args.steps) for load in args.load]
        cells = [f" {statistics.mean(each):,.0f} ({statistics.median(each):,.0f}) |" for each in times]
        print(f"| {name} |{''.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
