"""What `train --continue` reaches in how much time, beside training anew: the last weeks of a log.

    python -m benchmarks.new_days --data events.parquet --work out/new_days [--old 0.8 --new 0.95]

A model is trained on the oldest events of a log, with `--split none`. Then the next events come. Four models are tested
on the events after those; all of them read the same histories:

    as it was        the old model, nothing learned of the new events
    memory updated   the old model, whose memory has counted the new events: no training
    continued        `train --continue`
    anew             trained from the start on the old and the new events

Seconds are processor time of the training process, which other work on the machine changes little. A folder in `--work`
that is finished is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from next_behavior.data.events import read_events
from next_behavior.data.read_options import ReadOptions
from next_behavior.data.sequences import TEST, TRAIN, Sequences, tokenize_log
from next_behavior.data.splits import Split, assign_parts
from next_behavior.evaluation.evaluator import evaluate
from next_behavior.evaluation.rankers import ModelRanker, count_events
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.tokenization_behavior import BehaviorTokenizer

ROOT = Path(__file__).resolve().parent.parent
MODELS = {"as it was": "old", "memory updated": "old", "continued": "continued", "anew": "anew"}


def trained(work: Path, name: str, events: Path, *options: str) -> float:
    """Trains into a folder of `work` unless it is there; processor seconds."""
    record = work / f"{name}.json"
    if not record.is_file():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, str(ROOT / "train_accelerate.py"), "--events", str(events), "--split", "none"]
        subprocess.run(
            [*command, "--output_dir", str(work / name), *options],
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        record.write_text(json.dumps({"seconds": round(seconds, 1)}))
    return float(json.loads(record.read_text())["seconds"])


def tested(folder: Path, events: pl.DataFrame, split: Split, old_cut: int, update: bool) -> dict[str, Any]:
    """The metrics of a model on the test events."""
    tokenizer = BehaviorTokenizer.from_pretrained(folder)
    model = BertForNextBehavior.from_pretrained(folder, dtype=torch.float32).eval()
    dataset = tokenize_log(assign_parts(events, split), tokenizer)
    sequences = Sequences.from_dataset(dataset, vocab_size=len(tokenizer), first_item_id=tokenizer.first_item_id)
    if update:
        items, users, positions = sequences.runs(sequences.parts == TRAIN)
        chosen = np.flatnonzero(sequences.timestamps[positions] > old_cut)
        count_events(model.associate_path, items, users, chosen)
    ranker = {"model": ModelRanker(model)}
    result: dict[str, Any] = evaluate(
        sequences, TEST, ranker, ranker, max_length=tokenizer.model_max_length, split=split, progress=False
    )["model"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="event log with times")
    parser.add_argument("--work", type=Path, required=True, help="folder for models and logs")
    parser.add_argument("--old", type=float, default=0.8, help="share of the events that the old model learns")
    parser.add_argument("--new", type=float, default=0.95, help="share of the events before the test events")
    parser.add_argument("--options", default="", help="of every training, in quotes")
    parser.add_argument("--continue_options", default="", help="of --continue alone, in quotes")
    args = parser.parse_args()
    events = read_events(args.data, ReadOptions()).events
    times = np.sort(events["timestamp"].dt.epoch("us").to_numpy())
    old_cut, new_cut = (int(times[int(share * len(times)) - 1]) for share in (args.old, args.new))
    args.work.mkdir(parents=True, exist_ok=True)
    moment = pl.col("timestamp").dt.epoch("us")
    logs = {"old": old_cut, "new": new_cut}
    for name, cut in logs.items():
        events.filter(moment <= cut).drop("row").write_parquet(args.work / f"{name}.parquet")
    options = args.options.split()
    old, new = (args.work / f"{name}.parquet" for name in logs)
    seconds = {"old": trained(args.work, "old", old, *options)}
    more = ["--continue", str(args.work / "old"), *options, *args.continue_options.split()]
    seconds["continued"] = trained(args.work, "continued", new, *more)
    seconds["anew"] = trained(args.work, "anew", new, *options)

    split = Split("time", new_cut, new_cut)
    print("| model | processor seconds | NDCG@10 | of new items | actions' log-loss |\n|:--|--:|--:|--:|--:|")
    for name, folder in MODELS.items():
        result = tested(args.work / folder, events, split, old_cut, update=name == "memory updated")
        kept, removed = result["kept"]["items"]["all"], result["removed"]["items"]["novel"]
        spent = 0.0 if folder == "old" else seconds[folder]
        print(
            f"| {name} | {spent:,.0f} | {kept['ndcg@10']:.4f} | {removed['ndcg@10']:.4f} | "
            f"{result['actions']['log_loss']:.4f} |",
            flush=True,
        )
    print(f"\nThe old model took {seconds['old']:,.0f} s.")
    print(f"Targets: {kept['count']:,}, of which {removed['count']:,} new to the user.")


if __name__ == "__main__":
    main()
