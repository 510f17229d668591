"""LoRA against full fine-tuning and against a new model, in the same minutes: from BERT, and from another shop.

    python -m benchmarks.lora --events interactions.parquet --items items.parquet [--minutes 5] [--bert NAME_OR_DIR]

The log is cut into two shops that share nothing: users and items are drawn into halves by seed, and a shop keeps the
events of its users on its items. A model is trained on the first shop; then the second one is learnt from scratch, by
fine-tuning all weights and by LoRA, and from a BERT checkpoint's encoder, all weights and LoRA. Leave-one-out on the
second shop, seen items removed. Every run is `train_accelerate.py` with `--max_minutes`, and a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
from safetensors import safe_open

from next_behavior.data.events import read_events
from next_behavior.text.encoders import default_encoder

ROOT = Path(__file__).resolve().parent.parent
FEWEST_EVENTS = 3


def two_shops(events: pl.DataFrame, seed: int) -> list[pl.DataFrame]:
    """The events of half of the users on half of the items, and of the others on the others."""
    generator = np.random.default_rng(seed)
    halves = []
    for column in ("user_id", "item_id"):
        names = events[column].drop_nulls().unique().sort()
        halves.append(set(names.gather(np.flatnonzero(generator.random(len(names)) < 0.5)).to_list()))
    users, items = (pl.col(c).is_in(list(half)) for c, half in zip(("user_id", "item_id"), halves, strict=True))
    shops = [events.filter(users & items), events.filter(~users & ~items)]
    return [shop.filter(pl.len().over("user_id") >= FEWEST_EVENTS) for shop in shops]


def numbers_in(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return sum(int(np.prod(file.get_slice(key).get_shape())) for key in file.keys())  # noqa: SIM118


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--events", required=True, help="event log")
    parser.add_argument("--items", required=True, help="item table with text columns")
    parser.add_argument("--bert", default=default_encoder(), help="BERT checkpoint (default: the installed MiniLM-L6)")
    parser.add_argument("--minutes", type=float, default=5, help="of each run (default 5)")
    parser.add_argument("--r", type=int, default=8, help="rank of the adapters (default 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default=".bench/lora", help="folder for logs and models (default .bench/lora)")
    args = parser.parse_args()
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    shops = two_shops(read_events(args.events).events, args.seed)
    for name, shop in zip("ab", shops, strict=True):
        columns = ["user_id", "item_id", "action", "timestamp", "row"]
        if shop["timestamp"].null_count() == len(shop):
            columns.remove("timestamp")
        shop.sort("row").select(columns[:-1]).write_parquet(output / f"shop_{name}.parquet")
    other, bert, lora = str(output / "first shop"), ["--base_model", args.bert], ["--lora_r", str(args.r)]
    runs = {
        "first shop": ("a", []),
        "second shop, new": ("b", []),
        "second shop, from the first, all weights": ("b", ["--base_model", other]),
        "second shop, from the first, LoRA": ("b", ["--base_model", other, *lora]),
        "second shop, from BERT, all weights": ("b", bert),
        "second shop, from BERT, LoRA": ("b", [*bert, *lora]),
    }
    print(f"{args.minutes:g} minutes a run, seed {args.seed}\n")
    print("| run | Recall@10 | NDCG@10 | numbers in the model | in the adapter | adapter, bytes |")
    print("|:--|--:|--:|--:|--:|--:|")
    for name, (which, options) in runs.items():
        folder = output / name
        command = [
            *(sys.executable, str(ROOT / "train_accelerate.py"), "--split", "leave_one_out"),
            *("--events", str(output / f"shop_{which}.parquet"), "--items", args.items),
            *("--output_dir", str(folder), "--max_minutes", str(args.minutes), "--seed", str(args.seed)),
        ]
        with open(output / f"{name}.log", "w") as log:
            subprocess.run([*command, *options], check=True, stdout=log, stderr=log)
        found = json.loads((folder / "evaluation.json").read_text())["model"]["removed"]["items"]["all"]
        adapter = folder / "adapter" / "adapter_model.safetensors"
        of_adapter = f"{numbers_in(adapter):,} | {adapter.stat().st_size:,}" if adapter.exists() else "– | –"
        weights = numbers_in(folder / "model.safetensors")
        print(
            f"| {name} | {found['recall@10']:.4f} | {found['ndcg@10']:.4f} | {weights:,} | {of_adapter} |", flush=True
        )


if __name__ == "__main__":
    main()
