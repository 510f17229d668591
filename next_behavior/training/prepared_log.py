"""Everything that a run reads, before its sizes are chosen: the event log and, where they are given, the item table and
the model to start from.

    prepared = prepare_log(settings, options, accelerator, phases)

The log is read, cleaned, split and tokenized. The cleaning report, the rejected rows and the tokenized log lie in the
output folder.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import polars as pl
from accelerate import Accelerator

from next_behavior.data.events import read_events
from next_behavior.data.held_out import (
    HELD_OUT_USERS,
    MOST_HELD_OUT_USERS,
    drawn_users,
    hold_out,
    users_with_several_events,
)
from next_behavior.data.items import read_items
from next_behavior.data.read_options import ReadOptions
from next_behavior.data.sequences import (
    PREPARED,
    TEST,
    TRAIN,
    VALIDATION,
    Sequences,
    save_dataset,
    save_unknown,
    tokenize_log,
)
from next_behavior.data.splits import SortedTimes, assign_parts, late_cut, make_split
from next_behavior.evaluation.audit import audit_log
from next_behavior.evaluation.item_neighbors import ItemNeighbors
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.training.continuing import count_items, read_past, with_new_actions
from next_behavior.training.item_text import EmbeddedText, check_items, embed_items, text_report
from next_behavior.training.phases import Phases
from next_behavior.training.settings import RunSettings
from next_behavior.training.start import Start, grow, load_start, own_tokenizer
from next_behavior.training.time_limit import TimeLimit
from next_behavior.training.tokenized_log import TokenizedLog
from next_behavior.training.vocabulary import build_tokenizer

# The default longest history: this quantile of the users' histories, in steps, within bounds.
LENGTH_QUANTILE, LENGTH_STEP, LENGTH_BOUNDS = 0.99, 8, (16, 200)
FEWEST_NEW_ITEMS = 64
COUNTING = "Counting which items follow which"  # a phase


@dataclass(frozen=True)
class PreparedLog:
    """A tokenized log, and what a model for it is built from."""

    log: TokenizedLog
    tokenizer: BehaviorTokenizer
    start: Start
    new_items: list[int]  # token ids that were added to the vocabulary of the model to start from
    text: EmbeddedText | None  # of the vocabulary's items, for a new model
    neighbors: ItemNeighbors  # its constants, chosen on validation events, are the memory's


def prepare_log(settings: RunSettings, options: ReadOptions, accelerator: Accelerator, phases: Phases) -> PreparedLog:
    """Reads, cleans, splits and tokenizes the log. The main process must come first: it writes what the others read."""
    output = Path(settings.output_dir)
    start = load_start(settings.continue_from or settings.base_model, settings.use_positions, settings.convolution_size)
    tokenizer = None if start.behavior is None else own_tokenizer(start)
    with phases(f"Reading the log {settings.events}"):
        cleaned, learned = read_log(settings, options, output, accelerator, phases), None
        if settings.continue_from is None:
            split = make_split(cleaned, settings.split)
        else:
            assert tokenizer is not None
            past = read_past(start, tokenizer)
            cleaned, learned = past.with_newer(cleaned)
            split = past.split_of_newer(cleaned, learned, settings.split)
            phases.line(past.report(cleaned, learned))
        events = assign_parts(cleaned, split)
        if settings.split == "none":
            events = hold_out_last_events(events, settings.seed, learned)
    known_events = events_to_know(events, settings.split, learned)
    items = item_table(settings)
    max_length = settings.max_length or default_length(events if learned is not None else known_events)
    new_items, text = list[int](), None
    if start.behavior is not None:
        assert tokenizer is not None
        if learned is not None:
            start = with_new_actions(start, tokenizer, known_events)
        new_items = grow(start, tokenizer, known_events, items, settings.min_item_count)
        if learned is not None:
            count_items(tokenizer, known_events)
    else:
        if start.bert is not None:
            max_length = min(max_length, start.bert.max_position_embeddings)
        tokenizer = build_tokenizer(
            known_events,
            items,
            min_item_count=settings.min_item_count,
            num_new_items=max(FEWEST_NEW_ITEMS, max_length),
            max_length=max_length,
        )
    if items is not None:
        check_items(str(settings.items), items, tokenizer)
        if start.behavior is None:
            text = read_text(settings, items, tokenizer, phases)
    with phases(COUNTING):
        sequences = tokenized(events, tokenizer, output / PREPARED, accelerator.is_main_process)
        if settings.split != "none":  # before hours of training, whose evaluation would stop
            audit_log(sequences, TEST, split, tokenizer.item_vocabulary, tokenizer.action_vocabulary)
        neighbors = ItemNeighbors(until=TimeLimit(phases.started, settings.max_minutes).counting_end()).fit(sequences)
    return PreparedLog(
        log=TokenizedLog(sequences, split, min(max_length, tokenizer.model_max_length), learned),
        tokenizer=tokenizer,
        start=start,
        new_items=new_items,
        text=text,
        neighbors=neighbors,
    )


def events_to_know(events: pl.DataFrame, split: str, learned: np.ndarray | None) -> pl.DataFrame:
    """The events whose items and actions the model is to know, those apart that it has learned. With `--split none` the
    held-out events are among them."""
    known = pl.lit(True) if split == "none" else pl.col("part") == TRAIN
    return events.filter(known if learned is None else known & pl.Series(~learned))


def item_table(settings: RunSettings) -> pl.DataFrame | None:
    if settings.items is None:
        return None
    form = {"format": settings.items_format, "columns": settings.items_columns}
    return read_items(settings.items, settings.items_id_column, **form)


def read_log(
    settings: RunSettings, options: ReadOptions, output: Path, accelerator: Accelerator, phases: Phases
) -> pl.DataFrame:
    """The cleaned events."""
    writes = accelerator.is_main_process
    cleaned = read_events(settings.events, options, rejects_path=output / "rejects.parquet" if writes else None)
    phases.line(str(cleaned.report))
    if writes:
        (output / "cleaning_report.json").write_text(json.dumps(cleaned.report.to_dict(), indent=1, default=str))
    return cleaned.events


def default_length(events: pl.DataFrame) -> int:
    """The longest history in events, such that it holds all events of nearly all users."""
    return usual_length(float(np.quantile(events.group_by("user_id").len()["len"].to_numpy(), LENGTH_QUANTILE)))


def usual_length(quantile: float) -> int:
    """`default_length` from LENGTH_QUANTILE of the users' histories."""
    return int(np.clip(math.ceil(quantile / LENGTH_STEP) * LENGTH_STEP, *LENGTH_BOUNDS))


def hold_out_last_events(
    events: pl.DataFrame,
    seed: int,
    learned: np.ndarray | None = None,
    share: float = HELD_OUT_USERS,
    most: int = MOST_HELD_OUT_USERS,
) -> pl.DataFrame:
    """Marks events as validation: with `--split none` they decide when to stop, and calibration is fitted on them.

    They are what a random share of the users with two events and more did in the latest tenth of the log. The model is
    asked about events that come later still. The last events of each user would calibrate it for other questions: users
    with few events would count as much as those with many, and most would be old (docs/calibration.md).

    In a log without times, or where that is nothing, they are the last tenth of these users' events, at least one.
    Events that are `learned`, (E,) bool, are not held out.
    """
    fresh = None if learned is None else pl.Series(~learned)
    times = events["timestamp"] if fresh is None else events.filter(fresh)["timestamp"]
    cut = late_cut(SortedTimes(times.drop_nulls().dt.epoch("us").to_numpy()), times.null_count())
    users = users_with_several_events(events, fresh)
    drawn = users.gather(drawn_users(len(users), seed, share, most))
    late = hold_out(events, drawn, fresh, cut)
    return late if cut is None or (late["part"] == VALIDATION).any() else hold_out(events, drawn, fresh, None)


def read_text(
    settings: RunSettings,
    items: pl.DataFrame,
    tokenizer: BehaviorTokenizer,
    phases: Phases,
) -> EmbeddedText | None:
    """The embedded item text for a new model; says what is read."""
    text = embed_items(
        items,
        tokenizer,
        encoder=settings.text_encoder,
        columns=settings.text_columns.split(",") if settings.text_columns else None,
        template=settings.text_template,
        size=settings.text_size,
        phases=phases,
        until=TimeLimit(phases.started, settings.max_minutes).text_end(),
    )
    phases.line(text_report(text, settings.text_encoder, len(tokenizer.item_vocabulary)))
    return text


def tokenized(events: pl.DataFrame, tokenizer: BehaviorTokenizer, folder: Path, writes: bool) -> Sequences:
    """The token ids of the events, memory-mapped from `folder`; only the main process writes there."""
    dataset = tokenize_log(events, tokenizer)
    dataset = save_dataset(dataset, folder) if writes else datasets.Dataset.load_from_disk(str(folder))
    if writes:
        save_unknown(events, tokenizer.item_vocabulary, folder)
    return Sequences.from_dataset(dataset, vocab_size=len(tokenizer), first_item_id=tokenizer.first_item_id)
