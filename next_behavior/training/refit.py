"""Calibrates a model in a folder again, on held-out events of a log, without training.

record = refit(Path("out/shop"), events, Path("out/shop"))
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from next_behavior.data.batches import target_positions
from next_behavior.data.known import check_known
from next_behavior.data.sequences import VALIDATION, Sequences, tokenize_log
from next_behavior.data.splits import Split, assign_parts, recorded_split
from next_behavior.model.integrity import check_agreement
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.training.probability_calibration import fit_probabilities
from next_behavior.training.save import save_model
from next_behavior.training.tokenized_log import TokenizedLog

# Validation events that the items are fitted on, at most.
REFIT_EVENTS = 4000


def refit(folder: Path, events: pl.DataFrame, output: Path, max_targets: int | None = None) -> dict[str, Any]:
    """Writes the calibrated model to `output`, which may be its own folder; returns the record of the fit.

    Args:
        events: a cleaned log: that of the model or, if it knows its whole log, one with later events.
        max_targets: events that the items are fitted on, at most; None takes `REFIT_EVENTS`.

    Raises:
        ValueError: nothing is left to calibrate on, or an adapter lies beside the model.
    """
    if (folder / "adapter").is_dir():
        raise ValueError(
            f"got {folder}, which holds an adapter beside the merged model; calibrated alone, the two would answer "
            "differently. Expected a folder with one model: copy it without adapter/ and base/"
        )
    model = BertForNextBehavior.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = BehaviorTokenizer.from_pretrained(folder)
    check_agreement(model.config, tokenizer)
    check_known(events, tokenizer.item_vocabulary, tokenizer.action_vocabulary)
    split = recorded_split(folder)
    if split is None:
        raise ValueError(f"got {folder} without split.json; expected the folder of a training run")
    held_out = (
        with_later_events(events, model.config.learned_until) if split.how == "none" else assign_parts(events, split)
    )
    sequences = Sequences.from_dataset(
        tokenize_log(held_out, tokenizer), vocab_size=len(tokenizer), first_item_id=tokenizer.first_item_id
    )
    log = TokenizedLog(sequences, split, tokenizer.model_max_length)
    positions = target_positions(sequences, VALIDATION)
    if not len(positions):
        raise ValueError(
            f"got no event to calibrate {folder} on: none that is held out has an earlier event of its user. Expected "
            "the log that it was split from or, for a model of --split none, a log with later events"
        )
    drawn = np.random.default_rng(0).permutation(positions)[: max_targets or REFIT_EVENTS]
    record = fit_probabilities(model, log, np.sort(drawn))
    save_calibrated(folder, output, model, tokenizer, split, record)
    return record


def with_later_events(events: pl.DataFrame, learned_until: int | None) -> pl.DataFrame:
    """The events with parts: those after `learned_until`, microseconds since 1970, are validation."""
    if learned_until is None:
        raise ValueError(
            "got a model of --split none whose configuration does not say until when it has learned "
            "(learned_until); expected one of this version: train it again"
        )
    later = (pl.col("timestamp").dt.epoch("us") > learned_until).fill_null(False)
    return events.with_columns(later.cast(pl.Int8).alias("part"))


def save_calibrated(
    folder: Path,
    output: Path,
    model: BertForNextBehavior,
    tokenizer: BehaviorTokenizer,
    split: Split,
    record: dict[str, Any],
) -> None:
    """Writes the model with its record and, into another folder, what else its own folder holds of the run."""
    path = folder / "run.json"
    run = json.loads(path.read_text()) if path.is_file() else {}
    if output != folder:
        output.mkdir(parents=True, exist_ok=True)
        for name in ("cleaning_report.json", "README.md"):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, output / name)
    save_model(output, model, tokenizer, split, run | {"calibration": record})
