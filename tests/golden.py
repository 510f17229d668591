"""Golden files: a model that was trained and saved once, what it answers, and what the same training must answer today.

    python tests/golden.py      # writes tests/golden/ anew: only where a change of behavior is meant

`model.tar.gz` is the whole folder of a small model with item text, three actions, times and events without an item,
beside the code files it was saved with. `answers.json` holds its answers to `QUESTIONS` and how it ranked test events.
"""

from __future__ import annotations

import csv
import json
import random
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

FOLDER = Path(__file__).parent / "golden"
ARCHIVE, ANSWERS = FOLDER / "model.tar.gz", FOLDER / "answers.json"
NOT_KEPT = ("checkpoints", "prepared", "rejects.parquet", "cleaning_report.json", "run.json")
COLORS, THINGS = ("red", "blue", "green"), ("lip balm", "shoe lace", "nail polish", "comb", "shoe", "polish", "balm")
SIZES = [
    *("--hidden_size", "16", "--num_attention_heads", "2", "--num_hidden_layers", "1", "--max_length", "24"),
    *("--tokens_per_batch", "256", "--learning_rate", "0.01", "--warmup_steps", "5", "--ema_decay", "0.9"),
    *("--text_size", "8", "--max_epochs", "2", "--seed", "3", "--precision", "no", "--cpu"),
]
HISTORIES: list[list[dict[str, Any]]] = [
    [],
    [{"item": "i1", "action": "view", "timestamp": 1_700_000_000}],
    [
        {"item": "i2", "action": "view", "timestamp": 1_700_000_000},
        {"item": "born today", "action": "view", "timestamp": 1_700_000_060},
        {"item": "born today", "action": "cart", "timestamp": 1_700_000_090},
        {"action": "search", "timestamp": 1_700_086_400},
    ],
    [{"item": f"i{number % 15}", "action": "view", "timestamp": 1_700_000_000 + 60 * number} for number in range(30)],
]
QUESTIONS: list[dict[str, Any]] = [
    {"top_k": 5},
    {"top_k": 5, "of": "item"},
    {"top_k": 5, "of": "item", "action": "buy", "exclude_seen": True},
    {"top_k": 5, "action": "view", "paths": True},
    {"top_k": 3, "of": "action"},
    {"top_k": 3, "of": "action", "balanced": True},
    {"top_k": 4, "of": "item", "allowed_items": ["i1", "i2", "i3", "i4"]},
]


def write_log(folder: Path) -> tuple[Path, Path]:
    """An event log and an item table, the same on every machine."""
    draw = random.Random(5)
    items = [f"i{number}" for number in range(21)]
    rows: list[tuple[str, str | None, str, int]] = []
    for user in range(60):
        clock, place = 1_700_000_000 + draw.randrange(86_400), draw.randrange(len(items))
        for _ in range(draw.randrange(6, 14)):
            clock += draw.randrange(30, 20_000)
            place = (place + draw.choice((1, 1, 3))) % len(items)
            rows.append((f"u{user}", items[place], "view", clock))
            if place % 5 == 0:
                rows.append((f"u{user}", items[place], "buy", clock + 40))
            if draw.random() < 0.1:
                rows.append((f"u{user}", None, "search", clock + 80))
    events, table = folder / "events.csv", folder / "items.csv"
    titles = [f"{COLORS[number % 3]} {THINGS[number % 7]}" for number in range(len(items))]
    write_csv(events, ["user_id", "item_id", "action", "timestamp"], rows)
    write_csv(table, ["item_id", "title"], zip(items, titles, strict=True))
    return events, table


def write_csv(path: Path, header: list[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def train(events: Path, items: Path, encoder: str, output: Path) -> Path:
    """The training of the golden model, in fp32 on one thread on every machine."""
    from processes import run_training  # here: a clean process that asks the questions has nothing of ours

    torch.set_num_threads(1)
    with mock.patch("next_behavior.text.encoders.computes_in_bfloat16", return_value=False):
        return run_training(events, output, *SIZES, "--items", str(items), "--text_encoder", encoder)


def answers_of(model: Any, tokenizer: Any, pipeline: Any) -> dict[str, Any]:
    """What a model answers to every question, by the pipeline and by `predict`, before and after counting an event."""
    asked = [{"events": history} for history in HISTORIES]
    batch = tokenizer(HISTORIES, return_tensors="pt")
    output = model(**batch)
    ranked = model.predict(**batch, top_k=6)
    found = {
        "pipeline": [pipeline(asked, **question) for question in QUESTIONS],
        "predict": {name: ranked[name].tolist() for name in ("item_ids", "action_ids", "probabilities")},
        "action_logits": output.action_logits[:, 3:].tolist(),
        "time_logits": output.time_logits[:, 2:].tolist(),
    }
    model.update_memory(**tokenizer(HISTORIES[1:], return_tensors="pt"), pairs="all")
    updated = model.predict(**batch, top_k=6, of="item")
    found["after counting"] = {name: updated[name].tolist() for name in ("item_ids", "probabilities")}
    return found


def evaluation_of(folder: Path) -> dict[str, Any]:
    """The numbers of the run's own evaluation."""
    result = json.loads((folder / "evaluation.json").read_text())
    return {name: {way: result[name][way]["items"]["all"] for way in ("kept", "removed")}
            for name in result["rankers"] if "kept" in result[name]}  # fmt: skip


def main() -> None:
    from tiny import load, save_bert

    from next_behavior.model.pipeline_behavior import NextBehaviorPipeline

    with tempfile.TemporaryDirectory() as scratch:
        events, items = write_log(Path(scratch))
        encoder = save_bert(Path(scratch) / "encoder")
        folder = train(events, items, encoder, Path(scratch) / "model")
        evaluation = evaluation_of(folder)
        for name in NOT_KEPT:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        config = json.loads((folder / "config.json").read_text())
        config["text_encoder"] = "an-encoder/of-another-machine"
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        model, tokenizer = load(folder)
        found = answers_of(model, tokenizer, NextBehaviorPipeline(model=model, tokenizer=tokenizer))
        FOLDER.mkdir(exist_ok=True)
        ANSWERS.write_text(json.dumps({"answers": found, "evaluation": evaluation}, indent=0) + "\n")
        with tarfile.open(ARCHIVE, "w:gz") as archive:
            archive.add(folder, "model")


if __name__ == "__main__":
    main()
