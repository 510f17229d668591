"""The finished folder: loadable, with a record of the run."""

from __future__ import annotations

import copy
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from next_behavior.data.log_files import are_files_here
from next_behavior.data.provenance import provenance
from next_behavior.data.read_options import ReadOptions
from next_behavior.data.splits import Split
from next_behavior.model.item_text import split_mark
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.training.checkpoints import CHECKPOINTS
from next_behavior.training.settings import RunSettings
from next_behavior.training.sizes import Sizes


def run_record(
    settings: RunSettings, sizes: Sizes, options: ReadOptions, passes: float, seconds: float, waiting_share: float
) -> dict[str, Any]:
    """What `run.json` holds; `passes` over the training events made the saved weights, and
    `waiting_share` of the steps' time was spent waiting for their batches."""
    _, encoder = split_mark(settings.text_encoder or "")
    names = {
        "events": settings.events,
        "prepared": settings.prepared,
        "base_model": settings.base_model,
        "text_encoder": encoder,
    }
    return {
        "settings": asdict(settings),
        "sizes": asdict(sizes),
        "read_options": asdict(options),
        "passes": round(passes, 4),
        "seconds": round(seconds, 1),
        "waiting_for_data": round(waiting_share, 4),
        # These named files here, and nothing on the Hub, whatever lies here when the run is read again.
        "files": [name for name, value in names.items() if value and are_files_here(value)],
        **provenance(settings.events, options.format),
    }


def save_model(
    output: Path, model: BertForNextBehavior, tokenizer: BehaviorTokenizer, split: Split, record: dict[str, Any]
) -> None:
    """Makes the output folder loadable. A model that was there before stays whole until the new one is written; the
    weights come last, so that a folder with weights is complete."""
    unfinished = output / CHECKPOINTS / "finished.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    tokenizer.save_pretrained(unfinished)
    (unfinished / "split.json").write_text(json.dumps(split.to_dict(), indent=1))
    (unfinished / "run.json").write_text(json.dumps(record, indent=1))
    model.save_pretrained(unfinished)
    for path in sorted(unfinished.iterdir(), key=lambda path: path.suffix == ".safetensors"):
        os.replace(path, output / path.name)
    unfinished.rmdir()


def save_adapter(output: Path, best: Path, model: BertForNextBehavior, tokenizer: BehaviorTokenizer) -> None:
    """Puts the adapter of the best checkpoint beside the merged model, and the base that it sits on."""
    # What was fitted after training belongs to the base: the adapter holds weights alone.
    base = BertForNextBehavior.from_pretrained(best / "base", dtype=torch.float32)
    base.config = copy.deepcopy(model.config)
    base.associate_path.load_tables(model.associate_path)
    base.path_gate.load_state_dict(model.path_gate.state_dict())
    base.save_pretrained(output / "base")
    tokenizer.save_pretrained(output / "base")
    shutil.copytree(best / "adapter", output / "adapter", dirs_exist_ok=True)
