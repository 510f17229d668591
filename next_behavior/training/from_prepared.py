"""A run's log from a folder that `next-behavior prepare` wrote.

    prepared = take_prepared(settings, PreparedFolder.open("out/prepared"), accelerator, phases)

It is what `prepare_log` makes of the same log by itself, so the model is the same. The folder stays as it is; the run's
output folder gets its token ids, report and rejects.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from next_behavior.data.files import whole_file, whole_folder
from next_behavior.data.prepared_folder import REJECTS, REPORT, SEQUENCES, TOKENIZER, PreparedFolder
from next_behavior.data.sequences import PREPARED, TEST, TRAIN, Sequences
from next_behavior.evaluation.audit import audit_log
from next_behavior.evaluation.item_neighbors import ItemNeighbors
from next_behavior.model.integrity import check_manifest
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.training.item_text import check_items
from next_behavior.training.phases import Phases
from next_behavior.training.prepared_log import COUNTING, PreparedLog, item_table, read_text
from next_behavior.training.settings import RunSettings
from next_behavior.training.start import load_start
from next_behavior.training.time_limit import TimeLimit
from next_behavior.training.tokenized_log import TokenizedLog
from next_behavior.training.vocabulary import describe_items


def take_prepared(
    settings: RunSettings, folder: PreparedFolder, accelerator: Accelerator, phases: Phases
) -> PreparedLog:
    """A log that `next-behavior prepare` wrote: what `prepare_log` makes of the same log by itself."""
    output = Path(settings.output_dir)
    start = load_start(settings.continue_from or settings.base_model, settings.use_positions, settings.convolution_size)
    if start.behavior is not None:
        raise ValueError(
            f"--prepared {folder.path} has a vocabulary of its own, and {start.name} brings another; expected a BERT "
            "checkpoint or none: train from the log, with --events."
        )
    if settings.max_length is not None and settings.max_length > folder.max_length:
        raise ValueError(
            f"--max_length is {settings.max_length}, expected at most the {folder.max_length} that the log was "
            f"prepared for: prepare it with --max_length {settings.max_length}."
        )
    max_length = settings.max_length or folder.max_length
    if start.bert is not None:
        max_length = min(max_length, start.bert.max_position_embeddings)
    tokenizer = BehaviorTokenizer.from_pretrained(folder.path / TOKENIZER)
    check_manifest(tokenizer.manifest)
    dataset = folder.dataset()
    sequences = Sequences.from_dataset(dataset, vocab_size=len(tokenizer), first_item_id=tokenizer.first_item_id)
    items, text = item_table(settings), None
    if items is not None:
        known = sequences.known_items() & ((sequences.parts == TRAIN) | (folder.split.how == "none"))
        counts = np.bincount(sequences.items[known], minlength=sequences.vocab_size)[sequences.first_item_id :]
        describe_items(tokenizer, counts.tolist(), items)
        check_items(str(settings.items), items, tokenizer)
        text = read_text(settings, items, tokenizer, phases)
    phases.line(f"{folder.events:,} events of {folder.users:,} users, prepared from {folder.source} ({folder.split})")
    with phases(COUNTING):
        if accelerator.is_main_process:
            take_files(folder, output)
        if folder.split.how != "none":
            audit_log(sequences, TEST, folder.split, tokenizer.item_vocabulary, tokenizer.action_vocabulary)
        neighbors = ItemNeighbors(until=TimeLimit(phases.started, settings.max_minutes).counting_end()).fit(sequences)
    log = TokenizedLog(sequences, folder.split, max_length)
    return PreparedLog(log=log, tokenizer=tokenizer, start=start, new_items=[], text=text, neighbors=neighbors)


def take_files(folder: PreparedFolder, output: Path) -> None:
    """Puts what a run keeps of its log into the output folder, as links where the file system has them."""
    with whole_folder(output / PREPARED) as unfinished:
        shutil.copytree(folder.path / SEQUENCES, unfinished, copy_function=link_or_copy)
    for name in (REPORT, REJECTS):
        with whole_file(output / name) as unfinished:
            link_or_copy(str(folder.path / name), str(unfinished))


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
